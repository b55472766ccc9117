// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// countKey is what connections that are counted together have in common.
type countKey struct {
	state   State
	verdict Verdict
}

// move counts a connection under another key.
func (t *Tracker) move(from, to countKey) {
	if from == to {
		return
	}
	t.uncount(from)
	t.count(to)
}

func (t *Tracker) count(k countKey) { t.counts[k.state][k.verdict]++ }

// uncount never counts below zero: a connection that is newer than the last census was
// not counted by it.
func (t *Tracker) uncount(k countKey) {
	if n := &t.counts[k.state][k.verdict]; *n > 0 {
		*n--
	}
}

// census applies a census that ended at that time.
func (t *Tracker) census(census *Census, ended time.Time) {
	t.countClasses(census.Counts)
	seen := t.observeTroubled(census.Troubled)
	for cookie, tc := range t.tracked {
		if !seen[cookie] {
			t.missedByCensus(cookie, tc, census, ended)
		}
	}
	t.setHosts(census.Hosts, ended)
	t.rows.census(census, t.describeRow)
	clear(t.recovered)
	t.counted = true
	t.forgetHistories(ended)
}

// countClasses replaces the counts by those of the connections without trouble.
func (t *Tracker) countClasses(counts *abi.CensusCounts) {
	t.counts = [States][Verdicts]int64{}
	for state := range counts.Sockets {
		s := StateOf(uint8(state))
		if int(s) >= States || !s.Judged() {
			continue
		}
		for _, class := range []uint8{abi.ClassActive, abi.ClassIdle, abi.ClassUnguarded} {
			t.counts[s][VerdictOfClass(class)] += int64(counts.Sockets[state][class])
		}
	}
}

// observeTroubled counts and observes the connections that a census found in trouble.
// It returns their cookies.
func (t *Tracker) observeTroubled(troubled []Observation) (seen map[uint64]bool) {
	seen = make(map[uint64]bool, len(troubled))
	for i := range troubled {
		c := &troubled[i].Conn
		seen[c.Cookie] = true
		if t.dead.has(c.Cookie) {
			continue
		}
		if tc := t.tracked[c.Cookie]; tc != nil {
			t.count(tc.countKey())
		} else if !t.hasRoom(c) {
			verdict, _ := t.rules.Judge(c)
			t.count(countKey{StateOf(c.State), verdict})
			continue
		} else {
			t.count(countKey{StateOf(c.State), VerdictOfClass(c.Class)})
		}
		t.observe(c, troubled[i].At)
	}
	return seen
}

// missedByCensus counts, or forgets, a connection that is followed and that the census did not
// report. Only censuses report those that are not in trouble and have unread data.
func (t *Tracker) missedByCensus(cookie uint64, tc *tracked, census *Census, ended time.Time) {
	watched := tc.conn.Flags&abi.ConnTrouble != 0
	fresh := watched && ended.Sub(tc.at) < watchedFor
	switch {
	case (fresh || !watched) && slices.Contains(census.Unwalked, tc.conn.Netns):
		// The census read no such connection there.
		t.count(tc.countKey())
	case tc.at.After(census.Began):
		// The census read it before its trouble began, and counted it by its class.
		t.move(countKey{StateOf(tc.conn.State), VerdictOfClass(tc.conn.Class)}, tc.countKey())
	case fresh:
		// A watch pass read it, though the census cannot enter its network namespace.
		t.count(tc.countKey())
	case tc.gone.IsZero():
		// It has recovered or died. No event reported that: the kernel had no room to watch
		// it, or it was unread, and ended in order.
		if tc.verdict == Zombie {
			t.zombieSeconds.observe(ended.Sub(tc.since))
		}
		delete(t.tracked, cookie)
	}
}
