// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// A row of unanswered solicitations ends with any sign of life, whatever the
// kernel's own counters show; and an end of trouble is not a death.

func TestLossyConnectionsAreNotCalledDead(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--census-interval=2s")
	n.serve(servedPort, chat)
	conns := n.dial(servedPort, many)
	for _, d := range []lab.Direction{lab.In, lab.Out} {
		n.drop(lab.Rule{Port: servedPort, Direction: d, Percent: 40})
	}
	for _, c := range conns {
		go chat(c)
	}
	// Asking for these verdicts alone leaves out those that have recovered. All
	// connections share the losses, so that one may really hear nothing for long.
	suspects := 0
	throughout(t.Context(), 25*time.Second, func() {
		for _, c := range a.connections(n, servedPort, "verdict=zombie&verdict=suspect") {
			switch {
			case c.Verdict == "suspect" && c.Unanswered > 0:
				suspects++
			case c.Verdict != "zombie" || c.Unanswered < 3 || c.SilentSeconds < 10:
				t.Errorf("%s is %s with %d unanswered, silent for %.1f s", c.Cookie, c.Verdict, c.Unanswered, c.SilentSeconds)
			}
		}
	})
	t.Logf("%d times one was suspect", suspects)
	if suspects == 0 {
		t.Error("none was ever suspect: nothing was tried")
	}
	alive := n.ss(servedPort)
	if len(alive) != len(conns) {
		t.Errorf("ss shows %d connections, expected %d", len(alive), len(conns))
	}
	for _, d := range a.deaths(n, servedPort) {
		if _, ok := alive[d.Cookie]; ok {
			t.Errorf("%s lives, and is said to have died of %s", d.Cookie, d.Cause)
		}
	}
}

// The peer hears nothing, but is heard from time to time: its own
// retransmissions, at growing intervals.
func TestOneWayLossNeverMakesAZombieOfWhoIsHeard(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	begin := make(chan struct{})
	n.serve(droppedPort, func(c *net.TCPConn) {
		<-begin
		_, _ = c.Write([]byte("heartbeat"))
	})
	conns := n.dial(droppedPort, 3)
	n.drop(lab.Rule{Port: droppedPort, Direction: lab.Out, Percent: 100})
	close(begin)
	n.write(conns...)
	counted := 0
	throughout(t.Context(), 50*time.Second, func() {
		for _, c := range a.connections(n, droppedPort, "") {
			counted = max(counted, c.Retransmits.Unanswered)
			if c.Verdict == "zombie" {
				t.Errorf("%s: %d unanswered, silent for %.1f s, the kernel counts %d", c.Cookie, c.Unanswered, c.SilentSeconds, c.Retransmits.Unanswered)
			}
		}
	})
	if counted < 5 {
		t.Errorf("the kernel has counted only %d retransmissions: nothing was tried", counted)
	}
}

// An answer that carries only data may leave the kernel's count of keepalive
// probes behind.
func TestProbesThatAnAnswerLeftBehind(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	servers := make(chan *net.TCPConn, 1)
	n.serve(droppedPort, func(c *net.TCPConn) { servers <- c })
	c := n.dial(droppedPort, 1)[0]
	server := <-servers
	say := func() {
		if _, err := server.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for range 23 {
		say()
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	say() // stays unread
	n.keepalive([]*net.TCPConn{c}, time.Second, time.Second, 60)
	restore := n.cut(droppedPort)
	eventually(t, "five probes are unanswered", func() error {
		for _, s := range n.ss(droppedPort) {
			if s.count >= 5 {
				return nil
			}
		}
		return fmt.Errorf("ss: %v", n.ss(droppedPort))
	})
	restore()
	say()
	n.keepalive([]*net.TCPConn{c}, 8*time.Second, 8*time.Second, 60)
	heard := time.Now()
	throughout(t.Context(), 12*time.Second, func() {
		since := time.Since(heard)
		for _, c := range a.connections(n, droppedPort, "") {
			if since > 2*time.Second && (c.Unanswered > 1 || c.Verdict != "active") {
				t.Errorf("%s with %d unanswered, silent for %.1f s, %v after its peer was heard; ss: %v",
					c.Verdict, c.Unanswered, c.SilentSeconds, since, n.ss(droppedPort))
			}
		}
	})
}

func TestManyRecoverAtOnce(t *testing.T) {
	count := scaled(1000) // not parallel: every agent sees every event
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, count)
	n.greet(conns)
	n.keepalive(conns, 2*time.Second, time.Second, 120)
	restore := n.cut(droppedPort)
	eventually(t, "all zombies", func() error {
		return all(a.connections(n, droppedPort, "verdict=zombie"), count, "zombie")
	})
	restore()
	within(t, 7*patience*time.Second, "all recovered", func() error {
		if left := a.connections(n, droppedPort, "verdict=zombie&verdict=suspect"); len(left) > 0 {
			return fmt.Errorf("%d are %s still", len(left), left[0].Verdict)
		}
		return nil
	})
	if alive := len(n.ss(droppedPort)); alive != count {
		t.Errorf("ss shows %d connections", alive)
	}
	if deaths := a.deaths(n, droppedPort); len(deaths) > 0 {
		t.Errorf("%d deaths, such as %+v", len(deaths), deaths[0])
	}
}

// More deaths at once than there are events: none of them is lost.
func TestManyAreDestroyedAtOnce(t *testing.T) {
	count := scaled(2500) // not parallel: every agent sees every event
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--zombie-silence=2s")
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, count)
	n.greet(conns)
	n.keepalive(conns, time.Second, time.Second, 120)
	n.cut(droppedPort)
	eventually(t, "all zombies", func() error {
		return all(a.connections(n, droppedPort, "verdict=zombie"), count, "zombie")
	})
	// The list is a look of its own; a death has the last verdict that the agent has told.
	eventually(t, "all told as zombies", func() error {
		if told := a.metrics().value("halfopen_tcp_connections", "state", "established", "verdict", "zombie"); told < float64(count) {
			return fmt.Errorf("%v zombies", told)
		}
		return nil
	})
	before := a.metrics().value("halfopen_tcp_deaths_total", "cause", "destroyed")
	if out, err := n.Client.Output("ss", "-HKtn", fmt.Sprintf("dport = :%d", droppedPort)); err != nil {
		t.Fatalf("ss -K: %v\n%s", err, out)
	}
	if left := len(n.ss(droppedPort)); left > 0 {
		t.Fatalf("ss -K left %d", left)
	}
	var deaths []death
	within(t, 7*patience*time.Second, "all told", func() error {
		if deaths = a.deaths(n, droppedPort); len(deaths) != count {
			return fmt.Errorf("%d deaths", len(deaths))
		}
		return nil
	})
	for _, d := range deaths {
		if d.Cause != "destroyed" || d.Verdict != "zombie" || d.Unanswered < 2 || d.Evidence != "keepalive" {
			t.Fatalf("wrong: %+v", d)
		}
	}
	m := a.metrics()
	if grew := m.value("halfopen_tcp_deaths_total", "cause", "destroyed") - before; grew < float64(count) {
		t.Errorf("%v deaths are counted, expected %d", grew, count)
	}
	t.Logf("%v deaths over the rate limit were told by the watch pass", m.value("halfopen_events_suppressed_total", "type", "death"))
}
