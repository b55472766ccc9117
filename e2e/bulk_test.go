// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bulkEnv makes the test binary the process of bulkClients instead of running the tests. A process
// may have 20,000 descriptors, so a great many connections need several.
const bulkEnv = "HALFOPEN_E2E_BULK"

// bulkClients are a process that holds both ends of many connections, ends them all
// when told to, and returns what its applications saw.
type bulkClients struct {
	ClientNS, ServerNS string // paths of the namespaces
	Addrs              []netip.AddrPort
	Pairs              int
	// reset, close, keepalive_timeout or user_timeout; keepalive: not at all, while the
	// clients ask every second whether the servers are there.
	End string
}

// outcomes counts the ends of connections by what their application got: the error of
// its read, "EOF", or what it did itself.
type outcomes map[string]int

// A bulkEnd is one end of a connection.
type bulkEnd struct {
	fd     int
	pair   int
	server bool
}

// runBulkClients is the main function of the child process: it says "ready", waits for
// a line, and answers with what was seen.
func runBulkClients(part string) int {
	runtime.LockOSThread()
	var c bulkClients
	err := json.Unmarshal([]byte(part), &c)
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (c bulkClients) run() error {
	members, err := c.connect()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	seen, err := c.end(members)
	if err != nil {
		return fmt.Errorf("end by %s: %w", c.End, err)
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}

// enter moves the calling thread to a namespace: sockets stay where they were made.
func enter(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Set(ns)
}

func (c bulkClients) connect() ([]bulkEnd, error) {
	if err := enter(c.ServerNS); err != nil {
		return nil, err
	}
	listeners := make([]int, len(c.Addrs))
	for i, addr := range c.Addrs {
		fd, err := newListener(addr, 128)
		if err != nil {
			return nil, err
		}
		listeners[i] = fd
	}
	if err := enter(c.ClientNS); err != nil {
		return nil, err
	}
	members := make([]bulkEnd, 0, 2*c.Pairs)
	for i := range c.Pairs {
		addr := c.Addrs[i%len(c.Addrs)]
		fd, accepted, err := pair(listeners[i%len(c.Addrs)], addr)
		if err != nil {
			return nil, err
		}
		members = append(members, bulkEnd{fd, i, false}, bulkEnd{accepted, i, true})
		if c.End == "keepalive" {
			if err := keepalive(fd, 1, 127); err != nil {
				return nil, err
			}
		}
		if c.unread(i) {
			if _, err := unix.Write(fd, []byte("unread")); err != nil {
				return nil, err
			}
		}
	}
	return members, nil
}

// unread says whether a connection is reset by closing it with data unread, which
// does it as well as SO_LINGER.
func (c bulkClients) unread(pair int) bool { return c.End == "reset" && pair%4 == 0 }

func newSocket(addr netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

// newListener opens a listener whose backlog is of that length.
func newListener(addr netip.AddrPort, backlog int) (int, error) {
	fd, err := newSocket(addr)
	if err != nil {
		return 0, err
	}
	return fd, errors.Join(unix.Bind(fd, sockaddr(addr)), unix.Listen(fd, backlog))
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())}
	}
	return &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
}

// end begins the end of every connection and reads what comes of it.
func (c bulkClients) end(members []bulkEnd) (outcomes, error) {
	seen := make(outcomes)
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	var waiting int
	for i, m := range members {
		does, err := c.begin(m)
		if err != nil {
			return nil, err
		}
		if does != "" {
			seen[does]++
			continue
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(i)}
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, m.fd, &event); err != nil {
			return nil, err
		}
		waiting++
	}
	events := make([]unix.EpollEvent, 512)
	buf := make([]byte, 16)
	for waiting > 0 {
		n, err := unix.EpollWait(poll, events, int((30 * time.Second).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("nothing for 30 s, with %d ends left and %v", waiting, seen)
		}
		for _, e := range events[:n] {
			got, err := unix.Read(members[e.Fd].fd, buf)
			if got > 0 {
				return nil, fmt.Errorf("read %q", buf[:got])
			}
			what := "EOF"
			if err != nil {
				what = unix.ErrnoName(err.(unix.Errno))
			}
			seen[what]++
			waiting--
			// Closing alone ends the events only once nobody else has the socket's file,
			// and an agent that looks for owners has it for a moment.
			if err := unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, members[e.Fd].fd, nil); err != nil {
				return nil, err
			}
			if err := unix.Close(members[e.Fd].fd); err != nil {
				return nil, err
			}
		}
	}
	return seen, nil
}

// begin does what one end does by itself. If it has closed then, it returns what
// that was.
func (c bulkClients) begin(m bulkEnd) (string, error) {
	switch {
	case c.End == "reset" && m.server:
		if c.unread(m.pair) {
			return "abort", unix.Close(m.fd)
		}
		if err := unix.SetsockoptLinger(m.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return "", err
		}
		return "abort", unix.Close(m.fd)
	case c.End == "reset":
		// A reset may be lost to a full backlog. Then a probe brings another.
		return "", keepalive(m.fd, 4, 60)
	case c.End == "close" && !m.server && m.pair%2 == 0:
		return "close", unix.Close(m.fd) // an orphan in fin_wait1
	case c.End == "close" && !m.server:
		return "", unix.Shutdown(m.fd, unix.SHUT_WR) // fin_wait2 with a descriptor
	case c.End == "keepalive_timeout":
		return "", keepalive(m.fd, 1, 1+m.pair%2)
	case c.End == "user_timeout":
		if err := unix.SetsockoptInt(m.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000); err != nil {
			return "", err
		}
		if m.pair%4 == 0 {
			return "", keepalive(m.fd, 1, 60)
		}
		return "", writeTo(m.fd)
	}
	return "", nil
}

func keepalive(fd, idle, count int) error {
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
	)
}

// bulkProcess is such a process as its parent sees it.
type bulkProcess struct {
	*network
	bulkClients
	stdin  io.Writer
	stdout *bufio.Reader
	stderr *buffer
}

// startBulkClients starts the process in a network of its own.
func startBulkClients(t *testing.T, end string, pairs, port int) *bulkProcess {
	t.Helper()
	n := newNetwork(t, "")
	g := &bulkProcess{network: n, stderr: &buffer{}, bulkClients: bulkClients{
		ClientNS: n.Client.Path(), ServerNS: n.Server.Path(), Pairs: pairs, End: end,
		Addrs: []netip.AddrPort{
			netip.AddrPortFrom(n.Server.Addr4(), uint16(port)),
			netip.AddrPortFrom(n.Server.Addr6(), uint16(port)),
		},
	}}
	// 28,232 ports by default, in which the kernel seeks long when many are taken.
	if err := n.Client.Sysctl("net.ipv4.ip_local_port_range", "10001 65000"); err != nil {
		t.Fatal(err)
	}
	part, err := json.Marshal(g.bulkClients)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), bulkEnv+"="+string(part))
	cmd.Stderr = g.stderr
	if g.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.stdout = bufio.NewReader(stdout)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return g
}

// ready waits until all connections are there.
func (g *bulkProcess) ready() {
	g.t.Helper()
	if line, err := g.stdout.ReadString('\n'); line != "ready\n" {
		g.t.Fatalf("the process to %s said %q, %v: %s", g.End, line, err, g.stderr)
	}
}

func (g *bulkProcess) begin() {
	g.t.Helper()
	if _, err := io.WriteString(g.stdin, "go\n"); err != nil {
		g.t.Fatal(err)
	}
}

// outcomes waits until all connections have ended.
func (g *bulkProcess) outcomes() outcomes {
	g.t.Helper()
	var seen outcomes
	if err := json.NewDecoder(g.stdout).Decode(&seen); err != nil {
		g.t.Fatalf("the process to %s: %v: %s", g.End, err, g.stderr)
	}
	return seen
}
