// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The ports of TestUnreadNamesTheProcess: by what its client does.
const (
	stopsPort    = 7401 // it reads nothing, of data that came at once
	tricklePort  = 7402 // it reads nothing, while its peer sends a byte now and then
	slowPort     = 7403 // it reads a little now and then, of much data
	finishedPort = 7404 // it does not read the peer's FIN, before which there is no data
	bothPort     = 7405 // neither end reads, and both send as much as they can
)

const unreadAfter = 3 * time.Second

// descriptor returns the number of the descriptor of a connection.
func descriptor(t *testing.T, c syscall.Conn) (number int) {
	t.Helper()
	if err := onFD(c, func(fd int) error {
		number = fd
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return number
}

// canRead returns how many bytes an application can read.
func canRead(c syscall.Conn) (bytes int, err error) {
	err = onFD(c, func(fd int) (err error) {
		bytes, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return bytes, err
}

// readNow reads what waits.
func readNow(t *testing.T, c *net.TCPConn) {
	t.Helper()
	n, err := canRead(c)
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, n))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// everyNow calls f again and again, until the test ends or f fails.
func everyNow(t *testing.T, f func() error) {
	for t.Context().Err() == nil && f() == nil {
		time.Sleep(200 * time.Millisecond)
	}
}

// An application that does not read is named, with how much waits: whether the agent saw it
// stop, or starts later. One that reads slowly, and a FIN, are no reason.
func TestUnreadNamesTheProcess(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		flags := []string{"--unread-after=" + unreadAfter.String(), "--stalled-after=2s", "--census-interval=500ms", "--census-cpu=50%"}
		first := startAgent(t, flags...)
		began := time.Now()
		handle := map[int]func(*net.TCPConn){
			stopsPort:    func(c *net.TCPConn) { _, _ = c.Write(make([]byte, 11584)) },
			tricklePort:  func(c *net.TCPConn) { everyNow(t, func() error { _, err := c.Write([]byte(".")); return err }) },
			slowPort:     func(c *net.TCPConn) { _, _ = c.Write(make([]byte, 256<<10)) },
			finishedPort: func(c *net.TCPConn) { _ = c.CloseWrite() },
			bothPort:     fill,
		}
		client := make(map[int]*net.TCPConn)
		for port, f := range handle {
			n.serve(port, f)
			client[port] = n.dial(port, 1)[0]
		}
		go fill(client[bothPort])
		go everyNow(t, func() error { _, err := client[slowPort].Read(make([]byte, 100)); return err })

		check := func(a *agent) {
			t.Helper()
			for _, port := range []int{stopsPort, tricklePort} {
				a.becomesUnread(t, n, port, client[port])
			}
			a.bothStall(t, n)
			for _, port := range []int{slowPort, finishedPort} {
				c := a.ofPort(n, port)
				if c.Verdict == "unread" || len(c.Also) > 0 {
					t.Errorf("port %d: it is %s, also %v", port, c.Verdict, c.Also)
				}
				for _, e := range a.story(c.Cookie) {
					if e.From == "unread" || e.To == "unread" {
						t.Errorf("port %d: it was unread at %v", port, e.At)
					}
				}
			}
		}
		check(first)
		if c := first.ofPort(n, stopsPort); c.Since == nil || c.Since.Before(began.Add(unreadAfter-100*time.Millisecond)) {
			t.Errorf("unread since %v, though its data came at %v or later", c.Since, began)
		}
		later := startAgent(t, flags...)
		if c := later.ofPort(n, slowPort); c.Verdict != "active" {
			t.Errorf("at its first look a slow reader is %s", c.Verdict)
		}
		check(later)
		later.stop()

		for _, port := range []int{stopsPort, tricklePort} {
			c := first.ofPort(n, port)
			if port == tricklePort {
				go func() { _, _ = io.Copy(io.Discard, client[port]) }()
			} else {
				readNow(t, client[port])
			}
			eventually(t, fmt.Sprintf("the end of unread is told of port %d", port), func() error {
				now := first.ofPort(n, port)
				story := first.story(c.Cookie)
				switch {
				case now.Verdict != "active" || now.Evidence != "":
					return fmt.Errorf("it is %s by %q", now.Verdict, now.Evidence)
				case len(story) == 0 || story[len(story)-1].From != "unread" || story[len(story)-1].To != "active":
					return fmt.Errorf("its story is %+v", story)
				}
				return nil
			})
		}
	})
}

// becomesUnread waits until the agent says that the client's connection to a port is unread
// by this process, with as many bytes as the kernel tells the application.
func (a *agent) becomesUnread(t *testing.T, n *network, port int, client *net.TCPConn) {
	t.Helper()
	fd := descriptor(t, client)
	var got connection
	eventually(t, fmt.Sprintf("port %d is unread", port), func() error {
		before, err := canRead(client)
		if err != nil {
			return err
		}
		got = a.ofPort(n, port)
		after, err := canRead(client)
		switch {
		case err != nil:
			return err
		case got.Verdict != "unread" || got.Evidence != "receive_queue" || got.Unanswered != 0 || len(got.Also) > 0:
			return fmt.Errorf("it is %s by %q, %d unanswered, also %v", got.Verdict, got.Evidence, got.Unanswered, got.Also)
		case got.ReceiveQueue < before || got.ReceiveQueue > after:
			return fmt.Errorf("%d bytes wait, but SIOCINQ says %d and then %d", got.ReceiveQueue, before, after)
		case got.Process == nil || got.Process.PID != os.Getpid() || got.Process.FD != fd:
			return fmt.Errorf("it is of %+v, expected descriptor %d of %d", got.Process, fd, os.Getpid())
		}
		return nil
	})
	if out, err := n.Client.Output("ss", "-Htnae", fmt.Sprintf("dport = :%d", port)); err != nil || port == stopsPort && !slices.Contains(strings.Fields(string(out)), fmt.Sprint(got.ReceiveQueue)) {
		t.Errorf("ss shows no Recv-Q of %d, error %v: %s", got.ReceiveQueue, err, out)
	}
	stdout, stderr, status := run(t, exec.Command(binary, "explain", got.Cookie, "--url", a.url))
	stdout = strings.Join(strings.Fields(stdout), " ") // without the breaks of lines
	for _, want := range []string{"Verdict: unread.", "WHAT TO DO", fmt.Sprintf("/proc/%d/task/*/stack", os.Getpid())} {
		if status != 0 || !strings.Contains(stdout, want) {
			t.Errorf("explain has no %q, exit status %d: %s\n%s", want, status, stderr, stdout)
		}
	}
	if strings.Contains(stdout, "SO_KEEPALIVE, 1") {
		t.Errorf("explain advises keepalive:\n%s", stdout)
	}
	eventually(t, fmt.Sprintf("port %d is counted", port), func() error {
		if a.metrics().unread(port) == 0 {
			return errors.New("halfopen_tcp_trouble_by_owner counts none")
		}
		return nil
	})
}

// unread returns how many unread connections to a service's port a metric counts.
func (m metrics) unread(port int) (count int) {
	for _, s := range m.families["halfopen_tcp_trouble_by_owner"].GetMetric() {
		labels := make(map[string]string)
		for _, l := range s.Label {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["verdict"] == "unread" && labels["remote_port"] == fmt.Sprint(port) {
			count += int(s.Gauge.GetValue())
		}
	}
	return count
}

// bothStall waits until the agent says of both ends to bothPort that each does not read, and
// waits for the other to read.
func (a *agent) bothStall(t *testing.T, n *network) {
	t.Helper()
	eventually(t, "both ends are stalled and unread", func() error {
		var list struct {
			Connections []connection `json:"connections"`
		}
		if err := a.get(fmt.Sprintf("/api/v1/connections?port=%d", bothPort), &list); err != nil {
			return err
		}
		var ends []connection
		for _, c := range list.Connections {
			if addr := netip.MustParseAddr(c.Remote.IP); addr == n.client() || addr == n.server(bothPort).Addr() {
				ends = append(ends, c)
			}
		}
		if len(ends) != 2 {
			return errors.New("not two ends")
		}
		if stdout, _, _ := run(t, exec.Command(binary, "explain", ends[0].Cookie, "--url", a.url)); !strings.Contains(strings.Join(strings.Fields(stdout), " "), "see connection "+ends[1].Cookie) {
			return fmt.Errorf("explain does not name the other end, %s:\n%s", ends[1].Cookie, stdout)
		}
		var text bytes.Buffer
		for _, c := range ends {
			if c.Verdict != "stalled" || c.Evidence != "window_probe" || !slices.Equal(c.Also, []string{"unread"}) || c.ReceiveQueue == 0 {
				fmt.Fprintf(&text, "%d is %s by %q, also %v, %d bytes wait; ", c.Local.Port, c.Verdict, c.Evidence, c.Also, c.ReceiveQueue)
			}
		}
		if text.Len() > 0 {
			return errors.New(text.String())
		}
		return nil
	})
}
