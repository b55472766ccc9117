// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/halfopen/halfopen/internal/lab"
)

// readErrno waits for the connection's end and returns what the application
// gets: the independent truth about a death.
func readErrno(t *testing.T, c *net.TCPConn) syscall.Errno {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(generous))
	_, err := c.Read(make([]byte, 16))
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		t.Fatalf("the application got %v", err)
	}
	return errno
}

// checkErrno waits for the connections' ends and checks what their application gets.
func checkErrno(t *testing.T, want syscall.Errno, conns ...*net.TCPConn) {
	t.Helper()
	for _, c := range conns {
		if errno := readErrno(t, c); errno != want {
			t.Errorf("the application got %v, expected %v", errno, want)
		}
	}
}

// checkDeaths waits for so many deaths at a port and checks each of them.
func checkDeaths(t *testing.T, a *agent, n *network, port, count int, cause, during, errno string) []death {
	t.Helper()
	var deaths []death
	eventually(t, fmt.Sprintf("%d deaths", count), func() error {
		deaths = a.deaths(n, port)
		if len(deaths) != count {
			return fmt.Errorf("%d deaths", len(deaths))
		}
		return nil
	})
	for _, d := range deaths {
		if d.hidden(t) {
			t.Logf("hidden from every program: %+v", d)
			continue
		}
		if d.Cause != cause || d.During != during || d.Errno != errno {
			t.Errorf("cause %q during %q with errno %q, expected %q, %q, %q; the kernel skipped %v programs", d.Cause, d.During, d.Errno,
				cause, during, errno, a.metrics().value("halfopen_events_lost_total", "type", "recursion"))
		}
	}
	return deaths
}

func TestKeepaliveTimeout(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--zombie-silence=4s")
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.keepalive(conns, 2*time.Second, time.Second, 3)
		n.cut(droppedPort)
		checkErrno(t, syscall.ETIMEDOUT, conns...)
		for _, d := range checkDeaths(t, a, n, droppedPort, many, "keepalive_timeout", "", "ETIMEDOUT") {
			if d.Unanswered != 3 || d.Evidence != "keepalive" || d.State != "established" {
				t.Errorf("wrong: %+v", d)
			}
			if d.Verdict != "zombie" || d.ZombieSeconds == nil || *d.ZombieSeconds < 0.5 || *d.ZombieSeconds > 2 {
				t.Errorf("it was a zombie for about a second: %+v", d)
			}
			if d.SilentSeconds < 4.9 || d.SilentSeconds > 6 {
				t.Errorf("silent for %v s, expected 5", d.SilentSeconds)
			}
		}
	})
}

func TestUserTimeoutWithDataInFlight(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.cut(droppedPort)
		for _, c := range conns {
			if err := lab.SetUserTimeout(c, 3*time.Second); err != nil {
				t.Fatal(err)
			}
			n.write(c)
		}
		checkErrno(t, syscall.ETIMEDOUT, conns...)
		for _, d := range checkDeaths(t, a, n, droppedPort, many, "user_timeout", "retransmit", "ETIMEDOUT") {
			if d.Evidence != "retransmit" || d.Unanswered < 3 {
				t.Errorf("wrong: %+v", d)
			}
		}
	})
}

func TestUserTimeoutOverridesKeepaliveProbes(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.keepalive(conns, 2*time.Second, time.Second, 60)
		for _, c := range conns {
			if err := lab.SetUserTimeout(c, 3*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		n.cut(droppedPort)
		checkErrno(t, syscall.ETIMEDOUT, conns...)
		for _, d := range checkDeaths(t, a, n, droppedPort, many, "user_timeout", "keepalive", "ETIMEDOUT") {
			if d.Unanswered < 1 || d.Unanswered > 2 {
				t.Errorf("%d unanswered probes", d.Unanswered)
			}
		}
	})
}

func TestRetransmitTimeout(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		if err := n.Client.Sysctl("net.ipv4.tcp_retries2", "3"); err != nil {
			t.Fatal(err)
		}
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.cut(droppedPort)
		n.write(conns...)
		checkErrno(t, syscall.ETIMEDOUT, conns...)
		for _, d := range checkDeaths(t, a, n, droppedPort, many, "retransmit_timeout", "", "ETIMEDOUT") {
			if d.Evidence != "retransmit" || d.Verdict != "suspect" || d.ZombieSeconds != nil {
				t.Errorf("wrong: %+v", d)
			}
		}
	})
}

func TestResetByPeerAndAborted(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		release := make(chan struct{})
		n.serve(servedPort, func(c *net.TCPConn) {
			<-release
			_ = c.SetLinger(0)
			c.Close()
		})
		conns := n.dial(servedPort, many)
		before := a.metrics()
		close(release)
		checkErrno(t, syscall.ECONNRESET, conns...)
		checkDeaths(t, a, n, servedPort, many, "reset_by_peer", "", "ECONNRESET")
		// The other ends were closed with SO_LINGER 0. Other tests run at the
		// same time, so of node-wide counters only the least is known.
		for _, cause := range []string{"reset_by_peer", "aborted"} {
			if grew := a.metrics().value("halfopen_tcp_deaths_total", "cause", cause) -
				before.value("halfopen_tcp_deaths_total", "cause", cause); grew < many {
				t.Errorf("%v deaths by %s counted, expected %d", grew, cause, many)
			}
		}
	})
}

// Health checks that end with resets push no timeout out of the agent's memory.
func TestManyResetsPushOutNoTimeout(t *testing.T) { // not parallel: every agent of the node forgets older resets
	for _, family := range []string{"ipv4", "ipv6"} {
		t.Run(family, func(t *testing.T) {
			n := newNetwork(t, family)
			a := startAgent(t)
			n.serve(droppedPort, echo)
			lost := n.dial(droppedPort, 1)
			n.greet(lost)
			n.keepalive(lost, time.Second, time.Second, 2)
			n.cut(droppedPort)
			if errno := readErrno(t, lost[0]); errno != syscall.ETIMEDOUT {
				t.Fatalf("the application got %v", errno)
			}
			timeout := checkDeaths(t, a, n, droppedPort, 1, "keepalive_timeout", "", "ETIMEDOUT")[0]

			n.serve(servedPort, func(c *net.TCPConn) {
				_ = c.SetLinger(0)
				c.Close()
			})
			began := time.Now()
			var similar int
			resets := 0
			for similar == 0 {
				if resets >= 50000 {
					t.Fatalf("after %d resets the agent has forgotten none of them", resets)
				}
				for range 500 {
					// The reset may come before connect returns.
					if c, err := n.Client.Dial(t.Context(), n.server(servedPort)); err == nil {
						_, _ = c.Read(make([]byte, 1))
						c.Close()
					}
					resets++
				}
				for _, d := range a.deaths(n, servedPort) {
					if d.Similar > 0 {
						similar = d.Similar
						if d.Cause != "reset_by_peer" || d.SimilarSince == nil || d.SimilarSince.Before(began) || d.SimilarSince.After(d.At) {
							t.Errorf("wrong: %+v", d)
						}
					}
				}
			}
			if similar > resets {
				t.Errorf("%d resets are counted, there were %d", similar, resets)
			}
			if kept := a.deaths(n, droppedPort); len(kept) != 1 || kept[0].Cookie != timeout.Cookie {
				t.Errorf("after %d resets the agent lists %+v, expected %+v", resets, kept, timeout)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		for range many {
			c, err := n.Client.Dial(context.Background(), n.server(7009))
			if err == nil {
				c.Close()
				t.Fatal("somebody listens")
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
		for _, d := range checkDeaths(t, a, n, 7009, many, "refused", "", "ECONNREFUSED") {
			if d.State != "syn_sent" {
				t.Errorf("it died in %s", d.State)
			}
		}
	})
}

// fill writes until the peer's window is closed and our own buffer full.
func fill(c *net.TCPConn) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	for buf := make([]byte, 1<<20); ; {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func paused(t *testing.T) func(*net.TCPConn) {
	return func(*net.TCPConn) { <-t.Context().Done() }
}

// A user timeout is the cause only if it was what came first.
func TestWindowProbeTimeout(t *testing.T) {
	for name, timeout := range map[string]time.Duration{
		"without TCP_USER_TIMEOUT": 0, "long before TCP_USER_TIMEOUT": 10 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T, n *network) {
				a := sharedAgent(t)
				if err := n.Client.Sysctl("net.ipv4.tcp_retries2", "3"); err != nil {
					t.Fatal(err)
				}
				n.serve(droppedPort, paused(t))
				c := n.dial(droppedPort, 1)[0]
				if err := lab.SetUserTimeout(c, timeout); err != nil {
					t.Fatal(err)
				}
				fill(c)
				n.cut(droppedPort)
				checkErrno(t, syscall.ETIMEDOUT, c)
				for _, d := range checkDeaths(t, a, n, droppedPort, 1, "window_probe_timeout", "", "ETIMEDOUT") {
					if d.Evidence != "window_probe" || d.Unanswered != 3 {
						t.Errorf("wrong: %+v", d)
					}
				}
			})
		})
	}
}

func TestUserTimeoutWithAClosedWindow(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, paused(t))
		c := n.dial(droppedPort, 1)[0]
		if err := lab.SetUserTimeout(c, 3*time.Second); err != nil {
			t.Fatal(err)
		}
		fill(c)
		checkErrno(t, syscall.ETIMEDOUT, c)
		checkDeaths(t, a, n, droppedPort, 1, "user_timeout", "window_probe", "ETIMEDOUT")
	})
}

func TestConnectTimeouts(t *testing.T) {
	for name, test := range map[string]struct {
		timeout       time.Duration
		cause, during string
	}{
		"SYN retries exhausted": {0, "connect_timeout", ""},
		"TCP_USER_TIMEOUT":      {1500 * time.Millisecond, "user_timeout", "retransmit"},
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T, n *network) {
				a := sharedAgent(t)
				sysctls(t, n.Client, map[string]string{"net.ipv4.tcp_syn_retries": "2", synLinear: "1"})
				n.cut(droppedPort)
				c, err := n.Client.Dial(context.Background(), n.server(droppedPort), func(d *net.Dialer) {
					d.Control = func(_, _ string, raw syscall.RawConn) error {
						return raw.Control(func(fd uintptr) {
							if test.timeout > 0 {
								_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, 18, int(test.timeout.Milliseconds())) // TCP_USER_TIMEOUT
							}
						})
					}
				})
				if err == nil {
					c.Close()
				}
				if !errors.Is(err, syscall.ETIMEDOUT) {
					t.Fatalf("the application got %v", err)
				}
				for _, d := range checkDeaths(t, a, n, droppedPort, 1, test.cause, test.during, "ETIMEDOUT") {
					if d.State != "syn_sent" {
						t.Errorf("it died in %s", d.State)
					}
				}
			})
		})
	}
}

func TestOrphanTimeout(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		if err := n.Client.Sysctl("net.ipv4.tcp_orphan_retries", "2"); err != nil {
			t.Fatal(err)
		}
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.cut(droppedPort)
		for _, c := range conns {
			n.write(c)
			c.Close()
		}
		eventually(t, "ss shows none any more", func() error {
			if left := len(n.ss(droppedPort)); left > 0 {
				return fmt.Errorf("%d left", left)
			}
			return nil
		})
		for _, d := range checkDeaths(t, a, n, droppedPort, many, "orphan_timeout", "", "ETIMEDOUT") {
			if d.State != "fin_wait1" || d.Process != nil || d.UID != nil {
				t.Errorf("wrong: %+v", d)
			}
		}
	})
}

// Whatever had a forecast died within it.
func TestForecastsHold(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		if err := n.Client.Sysctl("net.ipv4.tcp_retries2", "5"); err != nil {
			t.Fatal(err)
		}
		n.serve(droppedPort, echo)
		probing, sending := n.dial(droppedPort, many), n.dial(droppedPort, many)
		n.greet(probing)
		n.greet(sending)
		n.keepalive(probing, 2*time.Second, time.Second, 7)
		n.cut(droppedPort)
		n.write(sending...)
		checkErrno(t, syscall.ETIMEDOUT, append(probing, sending...)...)
		eventually(t, "all deaths", func() error {
			if got := len(a.deaths(n, droppedPort)); got != 2*many {
				return fmt.Errorf("%d deaths", got)
			}
			return nil
		})
		for _, d := range a.deaths(n, droppedPort) {
			if d.ForecastErrorSeconds == nil {
				t.Errorf("%s died of %s without a forecast", d.Cookie, d.Cause)
			} else if math.Abs(*d.ForecastErrorSeconds) > 0.05 { // both CPUs may be busy
				t.Errorf("%s missed its forecast by %v s", d.Cause, *d.ForecastErrorSeconds)
			}
		}
	})
}

// The errors of a neighbour that is gone come some time after each retransmission, and take back one
// doubling of the timeout (over IPv4). Each forecast since the first of them holds the end.
func TestForecastsHoldWhileErrorsComeLate(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		neigh := "net." + n.family + ".neigh.eth0."
		sysctls(t, n.Client, map[string]string{
			"net.ipv4.tcp_retries2": "5", neigh + "base_reachable_time_ms": "2000", neigh + "delay_first_probe_time": "1", neigh + "retrans_time_ms": "300",
		})
		n.serve(servedPort, echo)
		conns := n.dial(servedPort, 1)
		c := conns[0]
		n.greet(conns)
		if err := n.Server.Do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			gone := n.subnet()
			gone.IP = n.server(0).Addr().AsSlice()
			return errors.Join(err, netlink.AddrDel(eth0, &netlink.Addr{IPNet: gone}))
		}); err != nil {
			t.Fatal(err)
		}
		n.write(c)
		cookie, died := cookieOf(t, c), make(chan time.Time, 1)
		go func() {
			_, _ = c.Read(make([]byte, 1))
			died <- time.Now()
		}()

		type look struct {
			forecast
			reverted bool
		}
		var looks []look
		var dead time.Time
		for reverted := false; dead.IsZero(); {
			if info, err := lab.Info(c); err == nil && info.Backoff < info.Retransmits {
				reverted = true
			}
			var now blockedForecast
			if err := a.get("/api/v1/connections/"+cookie, &now); err == nil && now.GivesUp != nil {
				looks = append(looks, look{*now.GivesUp, reverted})
			}
			select {
			case dead = <-died:
			case <-time.After(100 * time.Millisecond):
			}
		}
		since := 0
		for _, f := range looks {
			room := 50 * time.Millisecond // both CPUs may be busy
			if f.reverted {
				since++
			} else {
				room = 500 * time.Millisecond // the errors to come round the timers in another way
			}
			latest := f.At.Add(time.Duration((f.LatestInSeconds - f.InSeconds) * float64(time.Second)))
			if f.At.After(dead.Add(room)) || latest.Before(dead.Add(-room)) {
				t.Errorf("%.1f s before the end, at %v, it was forecast for %v to %v; after the first error: %t", f.InSeconds, dead, f.At, latest, f.reverted)
			}
		}
		if t.Logf("%d looks, %d of them after the first error", len(looks), since); len(looks) == 0 || n.family == "ipv4" && since == 0 {
			t.Error("too few")
		}
		checkDeaths(t, a, n, servedPort, 1, "retransmit_timeout", "", "EHOSTUNREACH")
	})
}
