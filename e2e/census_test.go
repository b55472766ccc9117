// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// ssStates are ss's names of the contract's states.
var ssStates = map[string]string{
	"ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_recv", "FIN-WAIT-1": "fin_wait1", "FIN-WAIT-2": "fin_wait2",
	"TIME-WAIT": "time_wait", "UNCONN": "close", "CLOSE-WAIT": "close_wait", "LAST-ACK": "last_ack", "LISTEN": "listen", "CLOSING": "closing",
}

// ssOfNode counts the TCP sockets of this node with ss, by state, one network
// namespace of a process after the other: those of the test's own namespaces, and
// the others.
func ssOfNode(t *testing.T, own map[string]bool) (ours, others map[string]int, namespaces int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ours, others = make(map[string]int), make(map[string]int)
	seen := make(map[string]bool)
	for _, path := range paths {
		ns, err := os.Readlink(path)
		if err != nil || seen[ns] {
			continue
		}
		out, err := exec.Command("nsenter", "--net="+path, "ss", "-Htan").Output()
		if err != nil {
			continue // its process has just ended
		}
		seen[ns] = true
		states := others
		if own[ns] {
			states = ours
		}
		for line := range strings.Lines(string(out)) {
			state, ok := ssStates[strings.Fields(line)[0]]
			if !ok {
				t.Fatalf("ss says %q", line)
			}
			states[state]++
		}
	}
	return ours, others, len(seen)
}

// sockets are those of the last census by state, as the metrics have them.
func (m metrics) sockets() map[string]int {
	m.t.Helper()
	states := make(map[string]int)
	for _, s := range m.families["halfopen_tcp_connections"].Metric {
		for _, l := range s.Label {
			if n := int(s.Gauge.GetValue()); l.GetName() == "state" && n > 0 {
				states[l.GetValue()] += n
			}
		}
	}
	return states
}

// nextCensus waits for a census that has begun since it was called.
func (a *agent) nextCensus() metrics {
	a.t.Helper()
	// That no two take equally long, to the nanosecond, is good enough; the
	// first may have been under way already.
	m := a.metrics()
	for range 2 {
		last := m.value("halfopen_census_duration_seconds")
		eventually(a.t, "a census", func() error {
			if m = a.metrics(); m.value("halfopen_census_duration_seconds") == last {
				return errors.New("none")
			}
			return nil
		})
	}
	return m
}

// of returns the agent for a subtest: a failure fails that one.
func (a *agent) of(t testing.TB) *agent {
	of := *a
	of.t = t
	return &of
}

func total(states map[string]int) (n int) {
	for _, count := range states {
		n += count
	}
	return n
}

// Two hundred thousand sockets in 11 processes and 100 namespaces. Not parallel:
// the census counts every socket of the node.
func TestCensusOfTwoHundredThousandSockets(t *testing.T) {
	const (
		processes = 11
		pairs     = 91 // of each process in each place
	)
	places := scaled(100)
	began := time.Now()
	var paths []string
	var namespaces []*lab.Namespace
	own := make(map[string]bool)
	for range places {
		n, err := lab.NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		paths, namespaces = append(paths, n.Path()), append(namespaces, n)
		own[fmt.Sprintf("net:[%d]", n.Inode())] = true
	}
	h := newController(t)
	type populator struct {
		*helperProcess
		addr      netip.AddrPort
		listeners []int
	}
	helpers := make([]*populator, processes)
	for i := range helpers {
		loopback := "127.0.0.1"
		if i%2 > 0 {
			loopback = "::1"
		}
		helpers[i] = &populator{helperProcess: h.start("populator", ""),
			addr: netip.AddrPortFrom(netip.MustParseAddr(loopback), uint16(7000+i))}
	}
	// together has all of them do something at once.
	together := func(do func(p *populator) error) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, len(helpers))
		for i, p := range helpers {
			wg.Go(func() { errs[i] = do(p) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	together(func(p *populator) error {
		got, err := p.do(command{Do: "populate", Paths: paths, Addr: p.addr, Count: pairs})
		p.listeners = got.FDs
		return err
	})
	visit := func(p *populator, count int) error {
		_, err := p.do(command{Do: "visit", Paths: paths, FDs: p.listeners, Addr: p.addr, Count: count})
		return err
	}
	built := time.Since(began)

	t.Run("at rest", func(t *testing.T) {
		// A census every second would take many times its share.
		a := startAgent(t, "--census-interval=1s")
		// The first is for once, as starting is.
		first := a.metrics().value("halfopen_census_duration_seconds")
		eventually(t, "a second census", func() error {
			if a.metrics().value("halfopen_census_duration_seconds") == first {
				return errors.New("none")
			}
			return nil
		})
		m := a.metrics()
		interval, took := m.value("halfopen_census_interval_seconds"), m.value("halfopen_census_duration_seconds")
		sockets := m.value("halfopen_census_sockets")
		t.Logf("%.0f sockets built in %.1f s; a census takes %.3f s, every %.1f s; the agent has %.1f MB",
			sockets, built.Seconds(), took, interval, m.value("process_resident_memory_bytes")/1e6)
		if sockets < float64(2*processes*places*pairs) {
			t.Errorf("%.0f sockets, expected at least %d", sockets, 2*processes*places*pairs)
		}
		if interval <= 1 {
			t.Errorf("%.1f s between two censuses that take %.3f s: not stretched", interval, took)
		}
	})

	a := startAgent(t, "--census-interval=100ms", "--census-cpu=100%")
	t.Run("to the last socket", func(t *testing.T) {
		a := a.of(t)
		var before map[string]int
		eventually(t, "the census and ss agree", func() error {
			together(func(p *populator) error { return visit(p, 1) }) // some in time_wait, for a minute
			var others, otherLater map[string]int
			var count int
			before, others, count = ssOfNode(t, own)
			m := a.nextCensus()
			after, otherLater, _ := ssOfNode(t, own)
			got := m.sockets()
			ended := before["time_wait"] - after["time_wait"] // a minute is over
			after["time_wait"] += ended
			if !maps.Equal(before, after) || alone && ended != 0 {
				return fmt.Errorf("the sockets change: %v, then %v, and %d in time_wait have ended", before, after, ended)
			}
			if alone && !maps.Equal(others, otherLater) {
				return fmt.Errorf("the sockets of others change: %v, then %v", others, otherLater)
			}
			for _, state := range ssStates {
				low, high := before[state]+others[state], before[state]+others[state]
				if !alone { // others come and go at any time, and may be where ss does not look
					low, high = before[state], before[state]+2*max(others[state], otherLater[state])+500
				}
				if state == "time_wait" {
					low -= ended
				}
				if n := got[state]; n < low || n > high {
					return fmt.Errorf("the census has %d in %s, ss has %d, and %d to %d of others", n, state, before[state], others[state], otherLater[state])
				}
			}
			if all := int(m.value("halfopen_census_sockets")); all != total(got) {
				t.Errorf("the census has %d sockets, and %d by state", all, total(got))
			}
			// There may be more, which only a connection keeps that its application has closed.
			if n := int(m.value("halfopen_census_namespaces")); n < places || alone && (n < count || m.value("halfopen_census_namespaces_unvisited") != 0) {
				t.Errorf("%d namespaces, expected at least %d, and all visited", n, count)
			}
			t.Logf("%d sockets in %d namespaces: %v; %d are of others", total(got), count, got, total(others))
			return nil
		})
		// Of some namespaces each socket.
		for i := 0; i < len(namespaces); i += max(len(namespaces)/5, 1) {
			n := namespaces[i]
			eventually(t, "the agent and ss agree about one namespace", func() error {
				var list struct{ Connections []socketObject }
				if err := a.get(fmt.Sprintf("/api/v1/connections?all=true&limit=100000&netns=%d", n.Inode()), &list); err != nil {
					return err
				}
				got := make(map[string]row)
				for j := range list.Connections {
					got[list.Connections[j].Cookie] = rowOf(&list.Connections[j])
				}
				if want := ssAll(t, n); len(want) < 2*processes*pairs || !maps.Equal(got, want) {
					return fmt.Errorf("namespace %d has %d sockets, ss shows %d", n.Inode(), len(got), len(want))
				}
				return nil
			})
		}
		for _, state := range []string{"established", "listen", "time_wait", "fin_wait2", "close_wait"} {
			if least := processes * places; before[state] < least && (alone || state != "time_wait" || before[state] == 0) {
				t.Errorf("ss has %d in %s: too few to tell", before[state], state)
			}
		}
	})

	t.Run("while they come and go", func(t *testing.T) {
		a := a.of(t)
		before, others, _ := ssOfNode(t, own)
		var visits atomic.Int64
		stop, done := make(chan struct{}), make(chan error)
		go func() {
			var wg sync.WaitGroup
			errs := make([]error, len(helpers))
			for i, p := range helpers {
				wg.Go(func() {
					for errs[i] == nil {
						select {
						case <-stop:
							return
						case <-time.After(time.Second): // few enough for the bounds below
						}
						errs[i] = visit(p, 1)
						visits.Add(1)
					}
				})
			}
			wg.Wait()
			done <- errors.Join(errs...)
		}()
		var censuses []map[string]int
		for late := time.Now().Add(generous); visits.Load() < 3*processes && time.Now().Before(late); {
			censuses = append(censuses, a.nextCensus().sockets())
		}
		// Both ends of each connection.
		came := 2 * places * (int(visits.Load()) + processes)
		close(stop)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		after, otherLater, _ := ssOfNode(t, own)
		t.Logf("%d sockets came, and went, in %d censuses: %v", came, len(censuses), censuses[len(censuses)-1])
		for _, got := range censuses {
			for _, name := range ssStates {
				low := min(before[name], after[name])
				high := max(before[name], after[name]) + 2*max(others[name], otherLater[name]) + 500 + came
				if name == "time_wait" {
					low = 0 // they end by themselves
				}
				if got[name] < low || got[name] > high {
					t.Errorf("the census has %d in %s, ss had %d before and %d after, and %d came and went", got[name], name, before[name], after[name], came)
				}
			}
		}
		if visits.Load() < 2*processes {
			t.Errorf("only %d visits: nothing came and went", visits.Load())
		}
	})
}
