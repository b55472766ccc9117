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

// nodeSockets counts the TCP sockets of this node by state: those of the test's own
// namespaces, and the others.
type nodeSockets struct {
	ours, others map[string]int
	namespaces   int
}

// ssOfNode counts them with ss, in one network namespace of a process after the other. own
// are the test's own namespaces.
func ssOfNode(t *testing.T, own map[string]bool) nodeSockets {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n := nodeSockets{ours: make(map[string]int), others: make(map[string]int)}
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
		states := n.others
		if own[ns] {
			states = n.ours
		}
		for line := range strings.Lines(string(out)) {
			state, ok := ssStates[strings.Fields(line)[0]]
			if !ok {
				t.Fatalf("ss says %q", line)
			}
			states[state]++
		}
	}
	n.namespaces = len(seen)
	return n
}

// mostOfOthers is how many sockets in a state others may have at any time between two
// counts: they come and go, and may be where ss does not look.
func mostOfOthers(before, after nodeSockets, state string) int {
	return 2*max(before.others[state], after.others[state]) + 500
}

// compareUnchanged returns an error unless the test's sockets are the same in both counts,
// but for those whose minute in time_wait is over, and a census has as many as ss.
func compareUnchanged(before, after nodeSockets, census map[string]int) error {
	ended := before.ours["time_wait"] - after.ours["time_wait"]
	later := maps.Clone(after.ours)
	later["time_wait"] += ended
	if !maps.Equal(before.ours, later) || alone && ended != 0 {
		return fmt.Errorf("the sockets change: %v, then %v, and %d in time_wait have ended", before.ours, after.ours, ended)
	}
	if alone && !maps.Equal(before.others, after.others) {
		return fmt.Errorf("the sockets of others change: %v, then %v", before.others, after.others)
	}
	for _, state := range ssStates {
		low := before.ours[state] + before.others[state]
		high := low
		if !alone {
			low, high = before.ours[state], before.ours[state]+mostOfOthers(before, after, state)
		}
		if state == "time_wait" {
			low -= ended
		}
		if n := census[state]; n < low || n > high {
			return fmt.Errorf("the census has %d in %s, ss has %d, and %d to %d of others", n, state, before.ours[state], before.others[state], after.others[state])
		}
	}
	return nil
}

// checkBetween checks that a census has what ss had before or after it, give or take the
// sockets that came and went meanwhile.
func checkBetween(t *testing.T, before, after nodeSockets, came int, census map[string]int) {
	t.Helper()
	for _, state := range ssStates {
		low := min(before.ours[state], after.ours[state])
		high := max(before.ours[state], after.ours[state]) + mostOfOthers(before, after, state) + came
		if state == "time_wait" {
			low = 0 // they end by themselves
		}
		if census[state] < low || census[state] > high {
			t.Errorf("the census has %d in %s, ss had %d before and %d after, and %d came and went",
				census[state], state, before.ours[state], after.ours[state], came)
		}
	}
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

// censusAfter waits for another census than the one that m is of. That no two take equally
// long, to the nanosecond, is good enough.
func (a *agent) censusAfter(m metrics) metrics {
	a.t.Helper()
	const took = "halfopen_census_duration_seconds"
	last := m.value(took)
	eventually(a.t, "a census", func() error {
		if m = a.metrics(); m.value(took) == last {
			return errors.New("none")
		}
		return nil
	})
	return m
}

// nextCensus waits for a census that has begun since it was called: the first that ends may
// have been under way already.
func (a *agent) nextCensus() metrics {
	a.t.Helper()
	return a.censusAfter(a.censusAfter(a.metrics()))
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

// population is many sockets in many namespaces, which several helper processes hold.
type population struct {
	namespaces []*lab.Namespace
	paths      []string        // of the namespaces
	own        map[string]bool // the namespaces, as /proc names them
	populators []*populator
}

// populator is a helper process that has a listener, and connections to it, in each of the
// namespaces.
type populator struct {
	*helperProcess
	addr      netip.AddrPort
	listeners []int
}

const (
	populatorCount = 11
	populatorPairs = 46 // in each namespace
)

// newPopulation makes so many namespaces and fills them.
func newPopulation(t *testing.T, namespaces int) *population {
	t.Helper()
	p := &population{own: make(map[string]bool)}
	for range namespaces {
		n, err := lab.NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		p.namespaces, p.paths = append(p.namespaces, n), append(p.paths, n.Path())
		p.own[fmt.Sprintf("net:[%d]", n.Inode())] = true
	}
	h := newController(t)
	for i := range populatorCount {
		loopback := netip.MustParseAddr([]string{"127.0.0.1", "::1"}[i%2])
		p.populators = append(p.populators, &populator{
			helperProcess: h.start("populator", ""), addr: netip.AddrPortFrom(loopback, uint16(7000+i)),
		})
	}
	if err := p.together(func(h *populator) error {
		got, err := h.do(command{Do: "populate", Paths: p.paths, Addr: h.addr, Count: populatorPairs})
		h.listeners = got.FDs
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

// together has all populators do something at once.
func (p *population) together(do func(*populator) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(p.populators))
	for i, h := range p.populators {
		wg.Go(func() { errs[i] = do(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// visit has a populator make a connection in each namespace that ends at once: one end of
// it is in time_wait for a minute.
func (p *population) visit(h *populator) error {
	_, err := h.do(command{Do: "visit", Paths: p.paths, FDs: h.listeners, Addr: h.addr, Count: 1})
	return err
}

// sockets returns how many there are at least.
func (p *population) sockets() int {
	return 2 * populatorCount * populatorPairs * len(p.namespaces)
}

// compareCensus returns an error unless a census counts every socket that ss shows. It
// returns what ss shows.
func (p *population) compareCensus(t *testing.T, a *agent) (nodeSockets, error) {
	t.Helper()
	if err := p.together(p.visit); err != nil {
		t.Fatal(err)
	}
	before := ssOfNode(t, p.own)
	m := a.nextCensus()
	after := ssOfNode(t, p.own)
	got := m.sockets()
	if err := compareUnchanged(before, after, got); err != nil {
		return before, err
	}
	// A connection in trouble that ends after the census is no longer counted by its state.
	if all := int(m.value("halfopen_census_sockets")); all != total(got) {
		return before, fmt.Errorf("the census has %d sockets, and %d by state", all, total(got))
	}
	// There may be more, which only a connection keeps that its application has closed.
	n, unvisited := int(m.value("halfopen_census_namespaces")), m.value("halfopen_census_namespaces_unvisited")
	if n < len(p.namespaces) || alone && (n < before.namespaces || unvisited != 0) {
		t.Errorf("%d namespaces, expected at least %d, and all visited", n, before.namespaces)
	}
	t.Logf("%d sockets in %d namespaces: %v; %d are of others", total(got), before.namespaces, got, total(before.others))
	return before, nil
}

// compareNamespace returns an error unless the agent lists each socket of a namespace as ss
// does.
func (p *population) compareNamespace(t *testing.T, a *agent, n *lab.Namespace) error {
	t.Helper()
	var list struct{ Connections []socketObject }
	if err := a.get(fmt.Sprintf("/api/v1/connections?all=true&limit=100000&netns=%d", n.Inode()), &list); err != nil {
		return err
	}
	got := make(map[string]row)
	for i := range list.Connections {
		got[list.Connections[i].Cookie] = rowOf(&list.Connections[i])
	}
	if want := ssAll(t, n); len(want) < 2*populatorCount*populatorPairs || !maps.Equal(got, want) {
		return fmt.Errorf("namespace %d has %d sockets, ss shows %d", n.Inode(), len(got), len(want))
	}
	return nil
}

// visitors are populators that visit all namespaces again and again.
type visitors struct {
	visits atomic.Int64
	stop   chan struct{}
	done   chan error
}

func (p *population) comeAndGo() *visitors {
	v := &visitors{stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		v.done <- p.together(func(h *populator) error {
			for {
				select {
				case <-v.stop:
					return nil
				case <-time.After(time.Second): // few enough for the bounds of checkBetween
				}
				if err := p.visit(h); err != nil {
					return err
				}
				v.visits.Add(1)
			}
		})
	}()
	return v
}

// end ends the visits.
func (v *visitors) end() error {
	close(v.stop)
	return <-v.done
}

// A hundred thousand sockets in 11 processes and 100 namespaces. Not parallel:
// the census counts every socket of the node.
func TestCensusOfHundredThousandSockets(t *testing.T) {
	began := time.Now()
	p := newPopulation(t, scaled(100))
	built := time.Since(began)

	t.Run("at rest", func(t *testing.T) {
		// A census every second would take many times its share.
		a := startAgent(t, "--census-interval=1s")
		m := a.censusAfter(a.metrics()) // the first is for once, as starting is
		interval, took := m.value("halfopen_census_interval_seconds"), m.value("halfopen_census_duration_seconds")
		sockets := m.value("halfopen_census_sockets")
		t.Logf("%.0f sockets built in %.1f s; a census takes %.3f s, every %.1f s; the agent has %.1f MB",
			sockets, built.Seconds(), took, interval, m.value("process_resident_memory_bytes")/1e6)
		if sockets < float64(p.sockets()) {
			t.Errorf("%.0f sockets, expected at least %d", sockets, p.sockets())
		}
		if interval <= 1 {
			t.Errorf("%.1f s between two censuses that take %.3f s: not stretched", interval, took)
		}
	})

	a := startAgent(t, "--census-interval=100ms", "--census-cpu=100%")
	t.Run("to the last socket", func(t *testing.T) {
		a := a.of(t)
		var shown nodeSockets
		eventually(t, "the census and ss agree", func() (err error) {
			shown, err = p.compareCensus(t, a)
			return err
		})
		for i := 0; i < len(p.namespaces); i += max(len(p.namespaces)/5, 1) {
			eventually(t, "the agent and ss agree about one namespace", func() error {
				return p.compareNamespace(t, a, p.namespaces[i])
			})
		}
		for _, state := range []string{"established", "listen", "time_wait", "fin_wait2", "close_wait"} {
			least := populatorCount * len(p.namespaces)
			if n := shown.ours[state]; n < least && (alone || state != "time_wait" || n == 0) {
				t.Errorf("ss has %d in %s: too few to tell", n, state)
			}
		}
	})

	t.Run("while they come and go", func(t *testing.T) {
		a := a.of(t)
		before := ssOfNode(t, p.own)
		v := p.comeAndGo()
		var censuses []map[string]int
		for late := time.Now().Add(generous); v.visits.Load() < 3*populatorCount && time.Now().Before(late); {
			censuses = append(censuses, a.nextCensus().sockets())
		}
		visits := int(v.visits.Load())
		came := 2 * len(p.namespaces) * (visits + populatorCount) // both ends, and of visits that go on
		if err := v.end(); err != nil {
			t.Fatal(err)
		}
		after := ssOfNode(t, p.own)
		t.Logf("%d sockets came, and went, in %d censuses: %v", came, len(censuses), censuses[len(censuses)-1])
		for _, census := range censuses {
			checkBetween(t, before, after, came, census)
		}
		if visits < 2*populatorCount {
			t.Errorf("only %d visits: nothing came and went", visits)
		}
	})
}
