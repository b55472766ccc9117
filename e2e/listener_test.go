// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

const (
	fullPort = 7320
	backlog  = 7
	waiting  = 4 // clients; with more, a listener's kernel forgets handshakes early (reqsk_timer_handler)
)

// listenerDrops matches what a listener has dropped, in the output of ss -m.
var listenerDrops = regexp.MustCompile(`skmem:\(.*,d(\d+)\)`)

// ssListener returns the only listener of the server as ss shows it: its queue, such as 5/4,
// and how many segments it has dropped.
func (n *network) ssListener() (queue string, drops int, err error) {
	out, err := n.Server.Output("ss", "-Hltnm")
	f, dropped := strings.Fields(string(out)), listenerDrops.FindSubmatch(out)
	if err != nil || len(f) < 3 || dropped == nil {
		return "", 0, fmt.Errorf("ss: %v, %q", err, out)
	}
	drops, err = strconv.Atoi(string(dropped[1]))
	return f[1] + "/" + f[2], drops, err
}

// fillAcceptQueue makes a listener that accepts nothing, and connects as many clients as fill
// its queue, and some more at once. It returns the listener, how many connections are in its
// queue, and the clients that are established though the server has not let them in: it is to
// send them its SYN-ACKs.
func (n *network) fillAcceptQueue() (l *net.TCPListener, queue int, unaccepted []*net.TCPConn) {
	t := n.t
	t.Helper()
	sysctls(t, n.Server, map[string]string{"net.ipv4.tcp_synack_retries": "4", "net.ipv4.tcp_syncookies": "0"})
	l, err := n.Server.Listen("tcp", n.server(fullPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := onFD(l, func(fd int) error { return unix.Listen(fd, backlog) }); err != nil {
		t.Fatal(err)
	}
	n.dial(fullPort, backlog) // one more has room
	restore := n.drop(lab.Rule{Port: fullPort, Direction: lab.In, Percent: 100})
	clients := make([]*net.TCPConn, waiting)
	var dials sync.WaitGroup
	for i := range clients {
		dials.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), generous)
			defer cancel()
			c, err := n.Client.Dial(ctx, n.server(fullPort))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { c.Close() })
			clients[i] = c
		})
	}
	eventually(t, "the server has their SYNs", func() error {
		if half := n.halfMade(); len(half) != waiting {
			return fmt.Errorf("of %d", len(half))
		}
		return nil
	})
	restore()
	dials.Wait()
	if t.Failed() {
		t.FailNow()
	}
	half := n.halfMade()
	for _, c := range clients {
		if slices.Contains(half, c.LocalAddr().(*net.TCPAddr).Port) {
			unaccepted = append(unaccepted, c)
		}
	}
	if len(unaccepted) == 0 { // the server lets in one, or some more that come at the same time
		t.Fatal("all clients are let in")
	}
	return l, backlog + waiting - len(unaccepted), unaccepted
}

// halfMade returns the ports of the clients whose handshake is not complete for the server.
func (n *network) halfMade() (ports []int) {
	out, err := n.Server.Output("ss", "-Htan", "state", "syn-recv")
	if err != nil {
		n.t.Error(err)
		return nil
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if i := strings.LastIndexByte(f[len(f)-1], ':'); i >= 0 {
			port, err := strconv.Atoi(f[len(f)-1][i+1:])
			if err != nil {
				n.t.Errorf("ss: %q", line)
			}
			ports = append(ports, port)
		}
	}
	return ports
}

// The clients that a listener with a full accept queue does not let in are stuck, and no zombies
// at any time, until the server resets them. The listener is at risk, and drops, as ss and the
// counters of its namespace say.
func TestFullAcceptQueue(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--zombie-silence=1s", "--zombie-unanswered=2", "--census-interval=1s", "--census-cpu=100%")
		l, queue, unaccepted := n.fillAcceptQueue()

		// The server sends SYN-ACKs 1, 3, 7 and 15 s after the first, and forgets the
		// handshake after 31 s. Between them nothing answers what the client sends.
		for _, c := range unaccepted {
			before := ^uint32(0)
			eventually(t, "the third SYN-ACK comes", func() error {
				info, err := lab.Info(c)
				switch {
				case err != nil:
					return err
				case info.Last_ack_recv < 4000:
					before = info.Segs_in
					return errors.New("too soon")
				case info.Segs_in == before:
					return errors.New("not yet")
				}
				return nil
			})
		}
		n.write(unaccepted...)
		a.becomesNeverAccepted(t, unaccepted[0])
		for _, found := range list(t, "--zombie-silence=1s", "--zombie-unanswered=2", "--netns", fmt.Sprint(n.Client.Inode()), "--verdict=stuck") {
			if found.Reason == nil || found.Reason.Code != "never_accepted" {
				t.Errorf("at first sight its reason is %+v", found.Reason)
			}
		}
		for _, c := range unaccepted {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the application of a client got %v, expected ECONNRESET", err)
			}
		}
		eventually(t, "the deaths are known", func() error {
			deaths := a.deaths(n, fullPort)
			if len(deaths) != len(unaccepted) {
				return fmt.Errorf("%d of %d", len(deaths), len(unaccepted))
			}
			for _, d := range deaths {
				if d.Cause != "reset_by_peer" || d.Verdict != "stuck" || d.ZombieSeconds != nil {
					t.Errorf("died of %s as %s, a zombie before: %v; its story: %+v", d.Cause, d.Verdict, d.ZombieSeconds != nil, a.story(d.Cookie))
				}
			}
			return nil
		})

		n.checkFullListener(t, a, fmt.Sprintf("%d/%d", queue, backlog))
		for range queue {
			c, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}
		if got := n.full(t); len(got) > 0 {
			t.Errorf("with an empty queue it is at risk: %+v", got)
		}
	})
}

// full lists the listeners of the server whose queue is full.
func (n *network) full(t *testing.T) []socketObject {
	t.Helper()
	return list(t, "--risk=accept_queue_full", "--netns", fmt.Sprint(n.Server.Inode()))
}

// checkFullListener checks what the agent says of the server's listener, whose queue is full.
func (n *network) checkFullListener(t *testing.T, a *agent, queue string) {
	t.Helper()
	var drops int
	eventually(t, "the listener is as ss says", func() error {
		shown, before, err := n.ssListener()
		if err != nil {
			return err
		}
		full := n.full(t)
		if _, drops, err = n.ssListener(); err != nil || drops != before {
			return fmt.Errorf("it changes: %d, %d dropped, %v", before, drops, err)
		}
		if shown != queue {
			t.Fatalf("ss shows the queue %s, expected %s", shown, queue)
		}
		if len(full) != 1 || rowOf(&full[0]).queue != queue || full[0].AcceptQueue.Overflows != drops || full[0].Verdict != nil {
			return fmt.Errorf("%+v, expected the queue %s and %d dropped", full, queue, drops)
		}
		return nil
	})
	counters, err := n.Server.Netstat()
	if overflows := counters["TcpExtListenOverflows"]; err != nil || overflows == 0 || drops < overflows {
		t.Errorf("%d segments dropped, but %d overflows, error %v", drops, overflows, err)
	}
	eventually(t, "the metrics count it", func() error {
		m := a.metrics()
		full, dropped := m.value("halfopen_tcp_listeners_full"), m.value("halfopen_tcp_listen_overflows_total")
		if full < 1 || dropped < float64(drops) || m.value("halfopen_tcp_listeners") < full {
			return fmt.Errorf("%v full, %v dropped, expected %d at least", full, dropped, drops)
		}
		return nil
	})
	stdout, stderr, status := run(t, exec.Command(binary, "list", "--state=listen", "--url", a.url, "--netns", fmt.Sprint(n.Server.Inode())))
	if status != 0 || !strings.Contains(stdout, "ACCEPT-Q") || !strings.Contains(stdout, " "+queue+" ") {
		t.Errorf("exit status %d: %s\n%s", status, stderr, stdout)
	}
}

// becomesNeverAccepted waits until the agent says that a client is stuck, since the server's
// listener does not accept it, and checks that it has been no zombie.
func (a *agent) becomesNeverAccepted(t *testing.T, client *net.TCPConn) {
	t.Helper()
	cookie := cookieOf(t, client)
	eventually(t, "the client is stuck", func() error {
		var c struct {
			connection
			Events []event `json:"events"`
		}
		if err := a.get("/api/v1/connections/"+cookie, &c); err != nil {
			return err
		}
		for _, e := range c.Events {
			if e.To == "zombie" {
				t.Errorf("it was a zombie at %v", e.At)
			}
		}
		if c.Verdict != "stuck" || c.Reason == nil || c.Reason.Code != "never_accepted" || c.State != "established" {
			return fmt.Errorf("it is %s (%s), reason %+v", c.Verdict, c.State, c.Reason)
		}
		return nil
	})
	stdout, stderr, status := run(t, exec.Command(binary, "explain", cookie, "--url", a.url))
	if status != 0 || !strings.Contains(stdout, "ss -ltn sport = :"+strconv.Itoa(fullPort)) || strings.Contains(stdout, "most likely gone") {
		t.Errorf("explain: exit status %d: %s\n%s", status, stderr, stdout)
	}
}
