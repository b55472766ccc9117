// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// A prime number of connections: a count that is right by accident is rarer.
const many = 23

const (
	droppedPort = 7000 // the port whose packets get lost
	servedPort  = 7001
)

// checkLatency checks that the verdict came soon after the silence was long enough: with
// keepalive every second, a second later at most, and as much later as the machine is
// busy. The next census would be up to fifteen seconds later.
func checkLatency(t *testing.T, conns []connection, within time.Duration) {
	t.Helper()
	now := time.Now()
	for _, c := range conns {
		if c.Since == nil {
			t.Fatalf("%s is %s since nobody knows when", c.Cookie, c.Verdict)
		}
		silence := time.Duration(c.SilentSeconds*float64(time.Second)) - now.Sub(*c.Since)
		if silence > 10*time.Second+within {
			t.Errorf("%s had been silent for %v when it was found to be a zombie", c.Cookie, silence)
		}
	}
}

func TestKeepaliveZombies(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, echo)
		n.serve(servedPort, echo)
		victims, neighbours := n.dial(droppedPort, many), n.dial(servedPort, many)
		n.greet(victims)
		n.greet(neighbours)
		n.keepalive(victims, 2*time.Second, time.Second, 120)
		n.keepalive(neighbours, 2*time.Second, time.Second, 120)
		n.cut(droppedPort)

		checkNeighbours := func() {
			for _, c := range a.connections(n, servedPort, "") {
				if c.Verdict != "active" && c.Verdict != "idle" {
					t.Errorf("healthy %s is %s (%d unanswered)", c.Cookie, c.Verdict, c.Unanswered)
				}
			}
		}
		eventually(t, "all zombies", func() error {
			checkNeighbours()
			return all(a.connections(n, droppedPort, ""), many, "zombie")
		})
		checkLatency(t, a.connections(n, droppedPort, ""), 5*patience*time.Second)

		earliest := time.Now()
		first := n.unansweredAsSS(a, droppedPort, "keepalive")
		began := time.Now()
		throughout(t.Context(), 5*time.Second, func() {
			n.unansweredAsSS(a, droppedPort, "keepalive")
			checkNeighbours()
		})
		least := time.Since(began).Seconds()
		last := n.unansweredAsSS(a, droppedPort, "keepalive")
		most := time.Since(earliest).Seconds()
		were := make(map[string]int)
		for _, c := range first {
			were[c.Cookie] = c.Unanswered
		}
		for _, c := range last {
			if c.Evidence != "keepalive" {
				t.Errorf("%s: evidence is %q", c.Cookie, c.Evidence)
			}
			if c.State != "established" || c.Family != n.family || !c.Keepalive.Enabled ||
				c.Keepalive.TimeSeconds != 2 || c.Keepalive.IntervalSeconds != 1 || c.Keepalive.Probes != 120 ||
				!c.Keepalive.PerSocket || c.Keepalive.ProbesOut != c.Unanswered {
				t.Errorf("wrong settings: %+v", c)
			}
			if c.Process == nil || c.Process.PID != syscall.Getpid() {
				t.Errorf("%s belongs to %+v, not to us", c.Cookie, c.Process)
			}
			if grew := float64(c.Unanswered - were[c.Cookie]); grew < least-2 || grew > most+1 {
				t.Errorf("%s: %v more unanswered after %.1f to %.1f s", c.Cookie, grew, least, most)
			}
		}
		if got := len(a.connections(n, servedPort, "")); got != many {
			t.Errorf("%d healthy connections, expected %d", got, many)
		}
	})
}

func TestRetransmitZombies(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, echo)
		victims := n.dial(droppedPort, many)
		n.greet(victims)
		n.cut(droppedPort)
		n.write(victims...)
		eventually(t, "all zombies", func() error {
			return all(a.connections(n, droppedPort, ""), many, "zombie")
		})
		checkLatency(t, a.connections(n, droppedPort, ""), 5*patience*time.Second)
		throughout(t.Context(), 5*time.Second, func() {
			for _, c := range n.unansweredAsSS(a, droppedPort, "on") {
				if c.Evidence != "retransmit" || c.Retransmits.Unanswered != c.Unanswered || c.UnackedSegments == 0 ||
					c.Keepalive.Enabled || !slices.Contains(c.Risks, "no_keepalive") {
					t.Errorf("wrong: %+v", c)
				}
			}
		})
	})
}

func TestPeerComesBack(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.keepalive(conns, 2*time.Second, time.Second, 120)
		restore := n.cut(droppedPort)
		eventually(t, "all zombies", func() error {
			return all(a.connections(n, droppedPort, ""), many, "zombie")
		})
		before := a.metrics().value("halfopen_tcp_zombie_seconds")
		restore()
		// The next probe goes out within a second, and its answer is noticed
		// within two more.
		within(t, 7*patience*time.Second, "all recovered", func() error {
			for _, c := range a.connections(n, droppedPort, "") {
				if c.Verdict != "active" && c.Verdict != "idle" {
					return fmt.Errorf("%s is %s", c.Cookie, c.Verdict)
				}
			}
			return nil
		})
		// A list is what the kernel says now; what the agent counts follows with the next
		// watch pass.
		eventually(t, "the agent has counted them", func() error {
			if grew := a.metrics().value("halfopen_tcp_zombie_seconds") - before; grew < many {
				return fmt.Errorf("%v observations of halfopen_tcp_zombie_seconds, expected %d", grew, many)
			}
			return nil
		})
		// From the answer itself (silent_seconds tells when it came) to the
		// verdict it must be less than two seconds.
		for _, c := range a.connections(n, droppedPort, "") {
			events := a.story(c.Cookie)
			last := events[len(events)-1]
			for _, e := range events {
				if e.Kind == "verdict" && e.From == "zombie" {
					last = e
				}
			}
			if last.Kind != "verdict" || last.From != "zombie" {
				t.Errorf("%s: no recovery in its story: %+v", c.Cookie, events)
			}
		}
	})
}

func TestConnectionsOlderThanTheAgent(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		n.serve(droppedPort, echo)
		conns := n.dial(droppedPort, many)
		n.greet(conns)
		n.keepalive(conns, 2*time.Second, time.Second, 120)
		n.cut(droppedPort)
		eventually(t, "ss counts enough probes", func() error {
			for cookie, s := range n.ss(droppedPort) {
				if s.count < 9 {
					return fmt.Errorf("%s has %d", cookie, s.count)
				}
			}
			return nil
		})
		a := startAgent(t)
		if err := all(n.unansweredAsSS(a, droppedPort, "keepalive"), many, "zombie"); err != nil {
			t.Errorf("at the agent's start: %v", err)
		}
		throughout(t.Context(), 3*time.Second, func() { n.unansweredAsSS(a, droppedPort, "keepalive") })
	})
}

// stalls fills connections to peers that do not read until their window is
// closed, and checks what becomes of them for half a minute. timer is the one
// that ss shows of such a connection.
func stalls(t *testing.T, n *network, timer string, pause func(*net.TCPConn)) {
	a := startAgent(t)
	n.serve(servedPort, func(c *net.TCPConn) {
		pause(c)
		<-t.Context().Done()
	})
	conns := n.dial(servedPort, 3)
	for _, c := range conns {
		fill(c)
	}
	var stalled bool
	throughout(t.Context(), 30*time.Second, func() {
		conns := a.connections(n, servedPort, "")
		for _, c := range conns {
			if c.Verdict == "zombie" || c.Verdict == "suspect" {
				t.Errorf("%s is %s (%d unanswered, silent for %.1f s)", c.Cookie, c.Verdict, c.Unanswered, c.SilentSeconds)
			}
		}
		stalled = stalled || all(conns, 3, "stalled") == nil
	})
	if !stalled {
		t.Errorf("they were not all stalled: %+v", a.connections(n, servedPort, ""))
	}
	for cookie, s := range n.ss(servedPort) {
		if s.timer != timer {
			t.Errorf("ss shows of %s %+v, expected timer %s", cookie, s, timer)
		}
	}
	for _, c := range a.connections(n, servedPort, "") {
		if c.Evidence != "window_probe" || c.SendWindowBytes != 0 {
			t.Errorf("evidence of %s is %q, its window is %d", c.Cookie, c.Evidence, c.SendWindowBytes)
		}
	}
}

func TestPausedPeerIsStalledNotZombie(t *testing.T) {
	families(t, func(t *testing.T, n *network) { stalls(t, n, "persist", func(*net.TCPConn) {}) })
}

// The window may also close under data in flight; then the kernel probes it
// with retransmissions that it does not count.
func TestPausedPeerThatShrinksItsWindowIsStalledNotZombie(t *testing.T) {
	if !fullReceiversAnswer(t) {
		leftOut(t, t.Name(), "a receiver whose buffer is full does not answer")
		t.SkipNow()
	}
	families(t, func(t *testing.T, n *network) {
		stalls(t, n, "on", func(c *net.TCPConn) { _ = c.SetReadBuffer(4096) })
	})
}

func TestLossNeverMakesAZombie(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		// Of the same connection and direction no two in a row, so that whatever
		// the dice say, none is silent for long.
		var conns []*net.TCPConn
		for port := lossyPort; port < lossyPort+3; port++ {
			n.serve(port, chat)
			conns = append(conns, n.dial(port, 1)...)
			for _, direction := range []lab.Direction{lab.In, lab.Out} {
				n.drop(lab.Rule{Port: uint16(port), Direction: direction, Percent: 25, Apart: true})
			}
		}
		all := func() (all []connection) {
			for port := lossyPort; port < lossyPort+len(conns); port++ {
				all = append(all, a.connections(n, port, "")...)
			}
			return all
		}
		for _, c := range conns {
			go chat(c)
		}
		throughout(t.Context(), 30*time.Second, func() {
			for _, c := range all() {
				if c.Verdict == "zombie" {
					t.Errorf("%s: %d unanswered, silent for %.1f s", c.Cookie, c.Unanswered, c.SilentSeconds)
				}
			}
		})
		alive := all()
		if len(alive) != len(conns) {
			t.Errorf("%d connections are left of %d", len(alive), len(conns))
		}
		for _, c := range alive {
			if c.Retransmits.Total < 23 {
				t.Errorf("%s had only %d retransmissions: the loss did not work", c.Cookie, c.Retransmits.Total)
			}
			for _, e := range a.story(c.Cookie) {
				if e.To == "zombie" {
					t.Errorf("%s was a zombie at %v", c.Cookie, e.At)
				}
			}
		}
	})
}

func TestIdleConnections(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		if err := n.Client.Sysctl("net.ipv4.tcp_keepalive_time", "77"); err != nil {
			t.Fatal(err)
		}
		const guardedPort, unguardedPort, activePort = 7002, 7003, 7004
		a := startAgent(t, "--idle-after=3s")
		for _, port := range []int{guardedPort, unguardedPort, activePort} {
			n.serve(port, echo)
		}
		guarded, unguarded, active := n.dial(guardedPort, 5), n.dial(unguardedPort, 7), n.dial(activePort, 3)
		n.keepalive(guarded, time.Second, time.Second, 60)
		n.greet(guarded)
		greeted := time.Now()
		n.greet(unguarded)
		answered := time.Now()
		if err := all(a.connections(n, unguardedPort, ""), 7, "active"); err != nil {
			t.Error(err)
		}
		eventually(t, "unguarded", func() error {
			n.greet(active)
			return all(a.connections(n, unguardedPort, ""), 7, "unguarded")
		})
		for _, c := range a.connections(n, unguardedPort, "verdict=unguarded") {
			if c.Keepalive.Enabled || c.Keepalive.PerSocket || c.Keepalive.TimeSeconds != 77 {
				t.Errorf("not the settings of its namespace: %+v", c.Keepalive)
			}
			// Both clocks have some milliseconds of room.
			if since := c.Since.Add(-3 * time.Second); since.Before(greeted.Add(-100*time.Millisecond)) || since.After(answered.Add(200*time.Millisecond)) {
				t.Errorf("%s is unguarded since %v, expected 3 s after its last data, of %v to %v", c.Cookie, c.Since, greeted, answered)
			}
		}
		if err := all(a.connections(n, guardedPort, ""), 5, "idle"); err != nil {
			t.Error(err)
		}
		n.greet(active)
		if err := all(a.connections(n, activePort, ""), 3, "active"); err != nil {
			t.Error(err)
		}
	})
}

// An IPv4 connection of an IPv6 socket, one that nobody has accepted, and one
// that its application has closed.
func TestUnusualSockets(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	l, err := n.Server.Listen("tcp", n.server(droppedPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := n.dial(droppedPort, 1)[0]
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var list struct {
		Connections []connection `json:"connections"`
	}
	if err := a.get(fmt.Sprintf("/api/v1/connections?port=%d", droppedPort), &list); err != nil {
		t.Fatal(err)
	}
	ends := 0
	for _, c := range list.Connections {
		if c.Netns != n.Client.Inode() && c.Netns != n.Server.Inode() {
			continue // another test's
		}
		ends++
		switch {
		case c.Local.Port == droppedPort && (c.Process != nil || c.UID != nil || c.Accepted == nil || *c.Accepted):
			t.Errorf("not accepted yet, and still somebody's: %+v", c)
		case c.Remote.Port == droppedPort && (c.Process == nil || c.UID == nil || *c.UID != 0):
			t.Errorf("nobody's: %+v", c)
		}
	}
	if ends != 2 {
		t.Errorf("%d connections, expected both ends of one", ends)
	}

	n.cut(droppedPort)
	c.Close()
	eventually(t, "the orphan is a zombie", func() error {
		return all(a.connections(n, droppedPort, "state=fin_wait1"), 1, "zombie")
	})
	if orphan := a.connections(n, droppedPort, "")[0]; orphan.Process != nil || orphan.UID != nil || orphan.Evidence != "retransmit" {
		t.Errorf("an orphan is nobody's: %+v", orphan)
	}
}

func TestIPv4ConnectionOfAnIPv6Socket(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	n.serve(servedPort, echo)
	var fd int
	err := n.Client.Do(func() (err error) {
		if fd, err = syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return syscall.Connect(fd, &syscall.SockaddrInet6{Port: servedPort, Addr: n.server(servedPort).Addr().As16()})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	conns := a.connections(n, servedPort, "")
	if err := all(conns, 1, "active"); err != nil {
		t.Fatal(err)
	}
	if c := conns[0]; c.Family != "ipv4" || c.Remote.IP != n.Server.Addr4().String() || c.Local.IP != n.Client.Addr4().String() {
		t.Errorf("not as on the wire: %+v", c)
	}
}

// What a healthy connection costs in events: nothing.
func TestHealthyConnectionsMakeNoEvents(t *testing.T) {
	n := newNetwork(t, "ipv4") // not parallel: the counters are of the whole node
	a := startAgent(t)
	n.serve(servedPort, func(c *net.TCPConn) {
		echo(c)
		c.Close()
	})
	a.waitForLeftovers()
	othersRetransmit := startTracer(t, tcpRetransmissions, labAddress).countOthers(t)
	othersEnd := deathTracer.countOthers(t)
	before := a.settled(t, 3*time.Second)
	probed := probesOfOthers(before)
	ended, _ := deathTracer.counts(t)
	for range many {
		conns := n.dial(servedPort, many)
		n.greet(conns)
		for _, c := range conns {
			c.Close()
		}
	}
	// Both ends of each; the server's ends follow.
	const ends = 2 * many * many
	eventually(t, "all closed", func() error {
		if now, _ := deathTracer.counts(t); now-ended < ends {
			return fmt.Errorf("%d ends, expected %d", now-ended, ends)
		}
		return nil
	})
	if got := a.metrics().value("halfopen_tcp_deaths_total", "cause", "closed") - before.value("halfopen_tcp_deaths_total", "cause", "closed"); got < ends-float64(len(deathTracer.hiddenDeaths(t))) {
		t.Errorf("%v deaths are counted, expected %d", got, ends)
	}
	// Others may make events: as many as they retransmit and probe, and as many as end.
	after := a.metrics()
	most := map[string]int{
		"solicitation": othersRetransmit() + probesOfOthers(after) - probed,
		"death":        othersEnd(),
	}
	for kind, n := range most {
		if made := int(after.value("halfopen_events_total", "type", kind) - before.value("halfopen_events_total", "type", kind)); made > n {
			t.Errorf("%d healthy connections made %d events of type %s, of which others made %d at most", many*many, made, kind, n)
		}
	}
	if deaths := a.deaths(n, servedPort); len(deaths) > 0 {
		t.Errorf("the agent tells of deaths of healthy connections, such as %+v", deaths[0])
	}
}
