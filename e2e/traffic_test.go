// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// families runs a test over IPv4 and over IPv6, at the same time.
func families(t *testing.T, f func(t *testing.T, n *network)) {
	t.Parallel()
	for _, family := range []string{"ipv4", "ipv6"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			f(t, newNetwork(t, family))
		})
	}
}

// network is a client and a server that only they can reach.
type network struct {
	*lab.Lab
	t      testing.TB
	family string
	made   time.Time // its namespaces may have the inodes of earlier ones
}

func newNetwork(t testing.TB, family string) *network {
	t.Helper()
	l, err := lab.NewIn(subnet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return &network{l, t, family, time.Now()}
}

// synLinear is a sysctl that kernels have since 6.5; what it says there by 0 is
// what they did before.
const synLinear = "net.ipv4.tcp_syn_linear_timeouts"

func sysctls(t testing.TB, n *lab.Namespace, values map[string]string) {
	t.Helper()
	for key, value := range values {
		err := n.Sysctl(key, value)
		if key == synLinear && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (n *network) server(port int) netip.AddrPort {
	if n.family == "ipv6" {
		return netip.AddrPortFrom(n.Server.Addr6(), uint16(port))
	}
	return netip.AddrPortFrom(n.Server.Addr4(), uint16(port))
}

// serve accepts on a port and hands each connection to handle until the test
// ends.
func (n *network) serve(port int, handle func(*net.TCPConn)) {
	n.t.Helper()
	l, err := n.Server.Listen("tcp", n.server(port))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			n.t.Cleanup(func() { c.Close() })
			go handle(c)
		}
	}()
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// chat writes a line twenty times a second, and reads whatever comes, until the connection
// ends.
func chat(c *net.TCPConn) {
	go func() { _, _ = io.Copy(io.Discard, c) }()
	for {
		if _, err := io.WriteString(c, "what a line"); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// dial opens connections, each of which has had its first words answered.
func (n *network) dial(port, count int) []*net.TCPConn {
	n.t.Helper()
	conns := make([]*net.TCPConn, count)
	for i := range conns {
		ctx, cancel := context.WithTimeout(context.Background(), generous)
		c, err := n.Client.Dial(ctx, n.server(port))
		cancel()
		if err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	return conns
}

// greet sends a word on each connection and waits for its echo.
func (n *network) greet(conns []*net.TCPConn) {
	n.t.Helper()
	buf := make([]byte, 5)
	for _, c := range conns {
		if _, err := io.WriteString(c, "hello"); err != nil {
			n.t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			n.t.Fatal(err)
		}
	}
}

// write sends something on each connection, and waits for nothing.
func (n *network) write(conns ...*net.TCPConn) {
	n.t.Helper()
	for _, c := range conns {
		if _, err := io.WriteString(c, "anybody there?"); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *network) keepalive(conns []*net.TCPConn, idle, interval time.Duration, count int) {
	n.t.Helper()
	for _, c := range conns {
		if err := lab.SetKeepalive(c, idle, interval, count); err != nil {
			n.t.Fatal(err)
		}
	}
}

// cut silently loses everything of a port, both ways, until restore.
func (n *network) cut(port int) (restore func()) {
	n.t.Helper()
	return n.drop(lab.Rule{Port: uint16(port), Percent: 100})
}

// drop loses packets, until restore.
func (n *network) drop(r lab.Rule) (restore func()) {
	n.t.Helper()
	remove, err := n.Client.Drop(r)
	if err != nil {
		n.t.Fatal(err)
	}
	return func() {
		n.t.Helper()
		if err := remove(); err != nil {
			n.t.Fatal(err)
		}
	}
}

// socket is one line of ss.
type socket struct {
	state string
	timer string // "keepalive", "on", "persist", … or ""
	count int    // the timer's third figure: probes or retransmissions
}

var (
	ssTimer  = regexp.MustCompile(`timer:\((\w+),[^,]*,(\d+)\)`)
	ssCookie = regexp.MustCompile(`\bsk:([0-9a-f]+)`)
)

// ss asks ss, inside the client's namespace, for the client's connections to a
// port: by cookie, as both tools print it.
func (n *network) ss(port int) map[string]socket {
	n.t.Helper()
	out, err := n.Client.Output("ss", "-Htnaoe", fmt.Sprintf("dport = :%d", port))
	if err != nil {
		n.t.Fatal(err)
	}
	sockets := make(map[string]socket)
	for line := range strings.Lines(string(out)) {
		cookie := ssCookie.FindStringSubmatch(line)
		if cookie == nil {
			continue
		}
		s := socket{state: strings.Fields(line)[0]}
		if m := ssTimer.FindStringSubmatch(line); m != nil {
			s.timer = m[1]
			s.count, _ = strconv.Atoi(m[2])
		}
		sockets[cookie[1]] = s
	}
	return sockets
}

// unansweredAsSS checks that each connection's unanswered lies between what ss
// said before and after the agent was asked: the same, unless a timer fired.
func (n *network) unansweredAsSS(a *agent, port int, timer string) []connection {
	n.t.Helper()
	before := n.ss(port)
	conns := a.connections(n, port, "")
	after := n.ss(port)
	if len(conns) != len(before) {
		n.t.Fatalf("the agent has %d connections to port %d, ss has %d", len(conns), port, len(before))
	}
	for _, c := range conns {
		b, ok := before[c.Cookie]
		if !ok {
			n.t.Fatalf("ss has no socket %s", c.Cookie)
		}
		if b.timer != timer {
			n.t.Errorf("ss shows timer %q of %s, expected %q", b.timer, c.Cookie, timer)
		}
		if c.Unanswered < b.count || c.Unanswered > after[c.Cookie].count {
			n.t.Errorf("%s: %d unanswered, ss counts %d before and %d after", c.Cookie, c.Unanswered, b.count, after[c.Cookie].count)
		}
	}
	return conns
}

// all checks that there are so many connections and that each has the verdict.
func all(conns []connection, count int, verdict string) error {
	if len(conns) != count {
		return fmt.Errorf("%d connections, expected %d", len(conns), count)
	}
	for _, c := range conns {
		if c.Verdict != verdict {
			return fmt.Errorf("%s is %s (%d unanswered, silent for %.1f s)", c.Cookie, c.Verdict, c.Unanswered, c.SilentSeconds)
		}
	}
	return nil
}
