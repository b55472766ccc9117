// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

var causes = strings.Fields(`keepalive_timeout user_timeout retransmit_timeout window_probe_timeout connect_timeout
	orphan_timeout reset_by_peer refused unreachable aborted destroyed out_of_memory closed unknown`)

// deathsByCause returns the deaths that the agent has counted, by cause.
func deathsByCause(m metrics) map[string]int {
	m.t.Helper()
	deaths := make(map[string]int)
	for _, cause := range causes {
		deaths[cause] = int(m.value("halfopen_tcp_deaths_total", "cause", cause))
	}
	return deaths
}

// deathEvents counts what became of the details of deaths: sent, suppressed, or lost.
func deathEvents(m metrics) (n int) {
	m.t.Helper()
	for _, name := range []string{"events", "events_suppressed", "events_lost"} {
		n += int(m.value("halfopen_"+name+"_total", "type", "death"))
	}
	return n
}

// skipped returns how many times the kernel did not run a program.
func (m metrics) skipped() float64 {
	m.t.Helper()
	return m.value("halfopen_events_lost_total", "type", "recursion")
}

// settled waits until no connection of a test network has ended for so long, and returns
// the agent's counters then.
func (a *agent) settled(t *testing.T, d time.Duration) metrics {
	t.Helper()
	last, _ := deathTracer.counts(t)
	since := time.Now()
	eventually(t, "no connection of the tests ends", func() error {
		if now, _ := deathTracer.counts(t); now != last {
			last, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < d {
			return fmt.Errorf("none has for only %v", quiet)
		}
		return nil
	})
	return a.of(t).metrics()
}

// waitForLeftovers waits until no connection of a test network is left. A
// connection that its application has closed keeps its network namespace until the
// kernel gives it up.
func (a *agent) waitForLeftovers() {
	a.t.Helper()
	eventually(a.t, "what other tests have left is gone", func() error {
		var left struct{ Total int }
		ipv4, ipv6 := lab.Subnets(subnet)
		if err := a.get(fmt.Sprintf("/api/v1/connections?limit=1&remote=%v&remote=%v", ipv4, ipv6), &left); err != nil {
			return err
		}
		if left.Total > 0 {
			return fmt.Errorf("%d connections", left.Total)
		}
		return nil
	})
}

// expectedCause returns the cause of a death that an application saw as what, in a process
// whose connections end that way; "" if it cannot have been seen so.
func expectedCause(end, what string) string {
	switch what {
	case "ETIMEDOUT":
		if slices.Contains(causes, end) {
			return end
		}
	case "ECONNRESET":
		return "reset_by_peer"
	case "abort":
		return "aborted"
	// Each of the two is closed once: from last_ack, and, whether its
	// descriptor is closed by then or not, where a time_wait socket
	// takes over from fin_wait1 or fin_wait2 (tcp_time_wait).
	case "EOF", "close":
		return "closed"
	}
	return ""
}

// expectedCauses waits until all connections have ended, and counts the causes by what their
// applications saw.
func expectedCauses(t *testing.T, processes []*bulkProcess) map[string]int {
	t.Helper()
	expected := make(map[string]int)
	for _, g := range processes {
		for what, n := range g.outcomes() {
			cause := expectedCause(g.End, what)
			if cause == "" {
				t.Fatalf("%d applications that wanted to %s got %s", n, g.End, what)
			}
			expected[cause] += n
		}
	}
	return expected
}

// compareCauses compares the deaths that the agent has counted between two scrapes with the
// expected ones: as many as were hidden from every program may be missing, and there may be
// as many more as connections of others ended. It returns how many are missing.
func compareCauses(t *testing.T, before, after metrics, expected map[string]int, hidden, foreign int) (missing int) {
	t.Helper()
	was, is := deathsByCause(before), deathsByCause(after)
	surplus := 0
	for _, cause := range causes {
		got := is[cause] - was[cause]
		excess := got - expected[cause]
		missing -= min(excess, 0)
		surplus += max(excess, 0)
		// The watch pass finds that a hidden one has gone, and does not know why.
		if excess < -hidden || excess > foreign && (cause != "unknown" || excess > foreign+hidden) {
			t.Errorf("%s: %d were counted, the applications saw %d (%+d)", cause, got, expected[cause], excess)
		}
	}
	if missing > hidden {
		t.Errorf("%d were not counted, and only %d were hidden from every program", missing, hidden)
	}
	if surplus > foreign+missing {
		t.Errorf("%d were counted that the applications did not see, and only %d connections of others ended", surplus, foreign)
	}
	return missing
}

// A hundred thousand ends within seconds, resets and timeouts together, and every
// one of them is counted as what its application saw. Not parallel: the counters are of
// the whole node.
func TestHundredThousandDeathsAreCountedExactly(t *testing.T) {
	pairs := scaled(8501) // 102,012 ends in all
	a := startAgent(t)
	a.waitForLeftovers()
	var timeouts, others []*bulkProcess
	for i, end := range []string{"keepalive_timeout", "reset", "keepalive_timeout", "user_timeout", "reset", "close"} {
		into := &timeouts
		if end == "reset" || end == "close" {
			into = &others
		}
		*into = append(*into, startBulkClients(t, end, pairs, 7100+i))
	}
	all := slices.Concat(timeouts, others)
	for _, g := range all {
		g.ready()
	}
	// Connections of others may end at any time, of whatever cause.
	ofOthers := deathTracer.countOthers(t)
	before := a.settled(t, 3*time.Second)
	hiddenBefore := len(deathTracer.hiddenDeaths(t))

	began := time.Now()
	for _, g := range timeouts {
		g.drop(lab.Rule{Percent: 100})
		g.begin()
	}
	eventually(t, "the first times out", func() error {
		was, is := deathsByCause(before), deathsByCause(a.metrics())
		if is["keepalive_timeout"] > was["keepalive_timeout"] || is["user_timeout"] > was["user_timeout"] {
			return nil
		}
		return fmt.Errorf("%v", is)
	})
	first := time.Since(began)
	for _, g := range others {
		g.begin()
	}
	expected := expectedCauses(t, all)
	last := time.Since(began)
	after := a.settled(t, 3*time.Second)
	foreign := ofOthers()
	hidden := len(deathTracer.hiddenDeaths(t)) - hiddenBefore

	missing := compareCauses(t, before, after, expected, hidden, foreign)
	ends := total(expected)
	t.Logf("%d deaths within %.1f s: %v; %d connections of others ended", ends, (last - first).Seconds(), expected, foreign)
	if ends != 2*pairs*len(all) {
		t.Errorf("%d deaths, expected %d", ends, 2*pairs*len(all))
	}
	// Of those that closed in order, only what was retransmitted to is told. The watch pass
	// tells of those that no program saw.
	abnormal, retransmitted := ends-expected["closed"]-missing, 0
	for _, g := range others {
		retransmitted += netstat(t, g.Client)["TcpRetransSegs"] + netstat(t, g.Server)["TcpRetransSegs"]
	}
	if got := deathEvents(after) - deathEvents(before); got < abnormal || got > abnormal+missing+retransmitted+foreign {
		t.Errorf("the details of %d deaths were sent, suppressed or lost, but %d were not orderly", got, abnormal)
	}
	if t.Failed() {
		t.Logf("the kernel skipped %v programs", after.skipped()-before.skipped())
	}
	for _, g := range all {
		out, err := g.Client.Output("ss", "-Htan", "state", "connected", "exclude", "time-wait")
		if err != nil {
			t.Fatal(err)
		}
		if len(out) > 0 {
			t.Errorf("some live on: %s", out)
		}
	}
}

// netstat is the kernel's own counters of a namespace, or of the host.
func netstat(t testing.TB, n *lab.Namespace) map[string]int {
	t.Helper()
	read := lab.Netstat
	if n != nil {
		read = n.Netstat
	}
	counters, err := read()
	if err != nil {
		t.Fatal(err)
	}
	return counters
}
