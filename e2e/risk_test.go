// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// ofPort returns what the agent says of the client's only connection to a port.
func (a *agent) ofPort(n *network, port int) connection {
	a.t.Helper()
	conns := a.connections(n, port, "")
	if len(conns) != 1 {
		a.t.Fatalf("%d connections to port %d, expected 1", len(conns), port)
	}
	return conns[0]
}

// accepting returns what the agent says of the server's only connection on a port, the zero
// value if there is none.
func (a *agent) accepting(n *network, port int) connection {
	a.t.Helper()
	var doc struct{ Connections []connection }
	if err := a.get(fmt.Sprintf("/api/v1/connections?port=%d&netns=%d", port, n.Server.Inode()), &doc); err != nil || len(doc.Connections) > 1 {
		a.t.Fatalf("%d connections on port %d, error %v", len(doc.Connections), port, err)
	}
	if len(doc.Connections) == 0 {
		return connection{}
	}
	return doc.Connections[0]
}

// checkAccepting returns an error while the server's end of a connection is active, and fails
// the test unless it is unguarded after that. A local one is the client's own.
func (a *agent) checkAccepting(n *network, addr netip.AddrPort, local bool) error {
	a.t.Helper()
	server := a.accepting(n, int(addr.Port()))
	if server.Verdict == "active" {
		return errors.New("the server's end is active")
	}
	if !local && (server.Verdict != "unguarded" || !slices.Equal(server.Risks, []string{"no_keepalive"})) {
		a.t.Errorf("the server's end of the connection to %v is %s at risks %v", addr, server.Verdict, server.Risks)
	}
	return nil
}

// Nothing is on the way to a peer in the same network namespace, and it cannot vanish
// unnoticed.
func TestPeersInTheSameNamespaceAreNoRisk(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--idle-after=2s", "--middlebox-timeout=1m")
		loopback, own := netip.MustParseAddr("127.0.0.1"), n.Client.Addr4()
		if n.family == "ipv6" {
			loopback, own = netip.IPv6Loopback(), n.Client.Addr6()
		}
		type peer struct {
			addr  netip.AddrPort
			local bool
		}
		peers := []peer{
			{netip.AddrPortFrom(loopback, 7101), true}, {netip.AddrPortFrom(own, 7102), true}, {n.server(7103), false},
			{netip.AddrPortFrom(loopback, 7104), true}, {netip.AddrPortFrom(own, 7105), true}, {n.server(7106), false},
		}
		var conns []*net.TCPConn
		for i, p := range peers {
			ns := n.Client
			if !p.local {
				ns = n.Server
			}
			l, err := ns.Listen("tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			c, err := n.Client.Dial(t.Context(), p.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if i >= 3 {
				if err := lab.SetKeepalive(c, 2*time.Hour, time.Second, 9); err != nil {
					t.Fatal(err)
				}
			}
			route, err := n.Client.Output("ip", "route", "get", p.addr.Addr().String())
			if err != nil || bytes.HasPrefix(route, []byte("local ")) != p.local {
				t.Fatalf("the route to %v is %s, %v", p.addr, route, err)
			}
			conns = append(conns, c)
		}
		for i, p := range peers {
			verdict, risks := "unguarded", []string{"no_keepalive"}
			if i >= 3 {
				verdict, risks = "idle", []string{"keepalive_slower_than_middlebox"}
			}
			if p.local {
				verdict, risks = "idle", nil
			}
			eventually(t, fmt.Sprintf("the connection to %v is idle", p.addr), func() error {
				c := a.ofPort(n, int(p.addr.Port()))
				if c.Verdict == "active" {
					return errors.New("it is active")
				}
				if err := a.checkAccepting(n, p.addr, p.local); err != nil {
					return err
				}
				if c.Verdict != verdict || !slices.Equal(c.Risks, risks) && len(c.Risks)+len(risks) > 0 {
					t.Errorf("the connection to %v is %s at risks %v, expected %s and %v", p.addr, c.Verdict, c.Risks, verdict, risks)
				}
				return nil
			})
		}
		for _, c := range conns { // which also keeps them
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
		}
	})
}

// The kernel's timers are late: keepalive that is only just quicker than the middlebox is
// not quick enough.
func TestKeepaliveMustBeatTheMiddleboxByTheTimersLateness(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--middlebox-timeout=4050ms")
		for i, test := range []struct {
			idle time.Duration
			risk bool
		}{{5 * time.Second, true}, {4 * time.Second, true}, {3 * time.Second, false}} {
			port := 7101 + i
			n.serve(port, echo)
			n.keepalive(n.dial(port, 1), test.idle, time.Second, 9)
			if c := a.ofPort(n, port); slices.Contains(c.Risks, "keepalive_slower_than_middlebox") != test.risk {
				t.Errorf("with a first probe after %v, the risks are %v", test.idle, c.Risks)
			}
		}
	})
}

// With a TCP_USER_TIMEOUT of at most the keepalive time and interval, one probe that is
// lost ends a connection over a path that works; with a longer one it does not.
func TestOneLostProbeEndsAConnection(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		for i, test := range []struct {
			timeout time.Duration
			ends    bool
		}{{4 * time.Second, true}, {6500 * time.Millisecond, false}} {
			for try := 0; ; try++ {
				port := 7101 + 10*i + try
				n.serve(port, echo)
				conns := n.dial(port, 1)
				n.greet(conns)
				n.keepalive(conns, 3*time.Second, 3*time.Second, 9)
				if err := lab.SetUserTimeout(conns[0], test.timeout); err != nil {
					t.Fatal(err)
				}
				if c := a.ofPort(n, port); slices.Contains(c.Risks, "one_probe_ends_it") != test.ends {
					t.Errorf("with a TCP_USER_TIMEOUT of %v, the risks are %v", test.timeout, c.Risks)
				}
				restore := n.cut(port)
				probes := func() (count int) {
					for _, s := range n.ss(port) {
						count = s.count
					}
					return count
				}
				eventually(t, "a probe is sent", func() error {
					if probes() == 0 {
						return errors.New("none yet")
					}
					return nil
				})
				restore()
				if lost := probes(); lost != 1 { // the machine was slow
					if try < 5 {
						continue
					}
					t.Fatalf("%d probes were lost, expected 1", lost)
				}
				if test.ends {
					checkErrno(t, syscall.ETIMEDOUT, conns[0])
					break
				}
				eventually(t, "the next probe is answered", func() error {
					if n := probes(); n > 0 {
						return fmt.Errorf("%d are unanswered", n)
					}
					return nil
				})
				n.greet(conns)
				break
			}
		}
	})
}

// A connection that only one end has closed.
func TestHalfClosedConnectionsAreAtRisk(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		const idleAfter = 3 * time.Second
		a := startAgent(t, "--idle-after="+idleAfter.String())
		held := make(chan *net.TCPConn, 2)
		for port := 7101; port <= 7102; port++ {
			n.serve(port, func(c *net.TCPConn) { held <- c }) // the application never closes it
		}
		bare, guarded := n.dial(7101, 1)[0], n.dial(7102, 1)
		n.keepalive(guarded, time.Minute, time.Second, 9)
		eventually(t, "the connection is idle", func() error {
			if v := a.ofPort(n, 7101).Verdict; v != "unguarded" {
				return fmt.Errorf("it is %s", v)
			}
			return nil
		})
		fin := time.Now()
		for _, c := range []*net.TCPConn{bare, guarded[0]} {
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		for port, risk := range map[int]bool{7101: true, 7102: false} {
			eventually(t, "its FIN is acknowledged", func() error {
				c := a.ofPort(n, port)
				if c.State != "fin_wait2" {
					return fmt.Errorf("it is in %s", c.State)
				}
				if slices.Contains(c.Risks, "half_closed_unguarded") != risk {
					t.Errorf("port %d is at risks %v", port, c.Risks)
				}
				return nil
			})
		}
		leaks := func() (count int) {
			for _, c := range a.everywhere(n, 7101) {
				if c.State == "close_wait" && slices.Contains(c.Risks, "close_wait_leak") {
					count++
				}
			}
			return count
		}
		if count := leaks(); count > 0 && time.Since(fin) < idleAfter {
			t.Errorf("the peer closed it %v ago, and it is a leak", time.Since(fin))
		}
		eventually(t, "the server leaks it", func() error {
			if leaks() != 1 {
				return errors.New("not yet")
			}
			return nil
		})
		if since := time.Since(fin); since < idleAfter {
			t.Errorf("it is a leak after %v, expected %v", since, idleAfter)
		}
	})
}

// What the application has not read is what SIOCINQ tells it, before and after the peer's
// FIN, which takes a number of the sequence and no byte.
func TestReceiveQueueIsWhatTheApplicationCanRead(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		finish := make(chan struct{})
		n.serve(7101, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("unread"))
			<-finish
			_ = c.CloseWrite()
		})
		c := n.dial(7101, 1)[0]
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		check := func(state string, want int) {
			t.Helper()
			eventually(t, fmt.Sprintf("%d bytes wait in %s", want, state), func() error {
				var waiting int
				var err error
				if err := raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
					t.Fatal(err)
				}
				if got := a.ofPort(n, 7101); err != nil || waiting != want || got.ReceiveQueue != want || got.State != state {
					return fmt.Errorf("%d bytes, %v; the agent says %d in %s", waiting, err, got.ReceiveQueue, got.State)
				}
				return nil
			})
		}
		check("established", 6)
		close(finish)
		check("close_wait", 6)
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		check("close_wait", 0)
	})
}
