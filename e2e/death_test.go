// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// readErrno waits for the connection's end and returns what the application
// gets: the independent truth about a death.
func readErrno(t *testing.T, c *net.TCPConn, timeout time.Duration) syscall.Errno {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	_, err := c.Read(make([]byte, 16))
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		t.Fatalf("the application got %v", err)
	}
	return errno
}

// checkDeaths waits for so many deaths at a port and checks each of them.
func checkDeaths(t *testing.T, a *agent, n *network, port, count int, cause, during, errno string) []death {
	t.Helper()
	var deaths []death
	eventually(t, 2*time.Second, fmt.Sprintf("%d deaths", count), func() error {
		deaths = a.deaths(n, port)
		if len(deaths) != count {
			return fmt.Errorf("%d deaths", len(deaths))
		}
		return nil
	})
	for _, d := range deaths {
		if d.Cause != cause || d.During != during || d.Errno != errno {
			t.Errorf("cause %q during %q with errno %q, expected %q, %q, %q", d.Cause, d.During, d.Errno, cause, during, errno)
		}
	}
	return deaths
}

func TestKeepaliveTimeout(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--zombie-silence=4s")
		n.serve(vanishing, echo)
		conns := n.dial(vanishing, many)
		n.greet(conns)
		n.keepalive(conns, 2*time.Second, time.Second, 3)
		n.cut(vanishing)
		for _, c := range conns {
			if errno := readErrno(t, c, 15*time.Second); errno != syscall.ETIMEDOUT {
				t.Errorf("the application got %v", errno)
			}
		}
		for _, d := range checkDeaths(t, a, n, vanishing, many, "keepalive_timeout", "", "ETIMEDOUT") {
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
		a := startAgent(t)
		n.serve(vanishing, echo)
		conns := n.dial(vanishing, many)
		n.greet(conns)
		n.cut(vanishing)
		for _, c := range conns {
			if err := lab.SetUserTimeout(c, 3*time.Second); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("anybody there?")); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range conns {
			if errno := readErrno(t, c, 15*time.Second); errno != syscall.ETIMEDOUT {
				t.Errorf("the application got %v", errno)
			}
		}
		for _, d := range checkDeaths(t, a, n, vanishing, many, "user_timeout", "retransmit", "ETIMEDOUT") {
			if d.Evidence != "retransmit" || d.Unanswered < 3 {
				t.Errorf("wrong: %+v", d)
			}
		}
	})
}

func TestUserTimeoutOverridesKeepaliveProbes(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t)
		n.serve(vanishing, echo)
		conns := n.dial(vanishing, many)
		n.greet(conns)
		n.keepalive(conns, 2*time.Second, time.Second, 60)
		for _, c := range conns {
			if err := lab.SetUserTimeout(c, 3*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		n.cut(vanishing)
		for _, c := range conns {
			if errno := readErrno(t, c, 15*time.Second); errno != syscall.ETIMEDOUT {
				t.Errorf("the application got %v", errno)
			}
		}
		for _, d := range checkDeaths(t, a, n, vanishing, many, "user_timeout", "keepalive", "ETIMEDOUT") {
			if d.Unanswered < 1 || d.Unanswered > 2 {
				t.Errorf("%d unanswered probes", d.Unanswered)
			}
		}
	})
}

func TestRetransmitTimeout(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t)
		if err := n.Client.Sysctl("net.ipv4.tcp_retries2", "3"); err != nil {
			t.Fatal(err)
		}
		n.serve(vanishing, echo)
		conns := n.dial(vanishing, many)
		n.greet(conns)
		n.cut(vanishing)
		for _, c := range conns {
			if _, err := c.Write([]byte("anybody there?")); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range conns {
			if errno := readErrno(t, c, 15*time.Second); errno != syscall.ETIMEDOUT {
				t.Errorf("the application got %v", errno)
			}
		}
		for _, d := range checkDeaths(t, a, n, vanishing, many, "retransmit_timeout", "", "ETIMEDOUT") {
			if d.Evidence != "retransmit" || d.Verdict != "suspect" || d.ZombieSeconds != nil {
				t.Errorf("wrong: %+v", d)
			}
		}
	})
}

func TestResetByPeerAndAborted(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t)
		release := make(chan struct{})
		n.serve(healthy, func(c *net.TCPConn) {
			<-release
			_ = c.SetLinger(0)
			c.Close()
		})
		conns := n.dial(healthy, many)
		before := a.metrics()
		close(release)
		for _, c := range conns {
			if errno := readErrno(t, c, 5*time.Second); errno != syscall.ECONNRESET {
				t.Errorf("the application got %v", errno)
			}
		}
		checkDeaths(t, a, n, healthy, many, "reset_by_peer", "", "ECONNRESET")
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

func TestRefused(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t)
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
