// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// Bounds of what a Table remembers.
const (
	// maxMembers connections in trouble are followed one by one; more are
	// counted by each census, without a story. Twice what the kernel watches.
	maxMembers = 65536
	// maxStories are kept, each of the last maxEvents events, for storyFor
	// after the last of them.
	maxStories = 65536
	maxEvents  = 32
	storyFor   = 15 * time.Minute
	// maxDeaths are remembered.
	maxDeaths = 4096
	// goneFor is how long the event of a death may come later than the watch
	// pass that found the socket gone.
	goneFor = time.Second
)

// zombieBounds are the upper bounds of Stats.ZombieSeconds: how long a zombie
// can live goes from the silence that makes one to days.
var zombieBounds = []float64{1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 86400}

// cell is where a connection is counted.
type cell struct {
	state   State
	verdict Verdict
}

// member is a connection in trouble.
type member struct {
	conn     bpf.Conn
	at       time.Time // of conn
	verdict  Verdict
	evidence Evidence
	since    time.Time
	gone     time.Time // when the watch pass no longer found it
	process  *Process
	looked   time.Time // when its process was last looked for
}

func (m *member) cell() cell { return cell{stateOf(m.conn.State), m.verdict} }

// story is what happened to a connection lately.
type story struct {
	events []Event // oldest first, at most maxEvents
}

// Table is the memory of a Collector. It is pure: it has no clock, and is not
// safe for concurrent use. Facts may come late or twice, or not at all.
type Table struct {
	rules   Rules
	notify  func(Notice)
	members map[uint64]*member
	stories map[uint64]*story
	deaths  []Death // a ring; next is the oldest once it is full
	next    int
	// counts is the last census, kept true as connections change and die.
	counts        [States][Verdicts]int64
	zombieSeconds Histogram
	overflowed    uint64 // members and stories there was no room for
}

// NewTable makes a table that calls notify, if any, for everything worth
// telling, before the call that caused it returns.
func NewTable(rules Rules, notify func(Notice)) *Table {
	if notify == nil {
		notify = func(Notice) {}
	}
	return &Table{
		rules:   rules,
		notify:  notify,
		members: make(map[uint64]*member),
		stories: make(map[uint64]*story),
		zombieSeconds: Histogram{
			Bounds: zombieBounds,
			Counts: make([]uint64, len(zombieBounds)+1),
		},
	}
}

// Event takes in what the kernel sent; at is the time of e.Conn.
func (t *Table) Event(e *bpf.Event, at time.Time) {
	switch e.Type {
	case bpf.EventDeath:
		t.died(e, at)
	case bpf.EventSolicitation:
		t.tell(e.Conn.Cookie, Event{
			At: at, Kind: EventSolicitation, Evidence: Evidence(e.Conn.Evidence), Unanswered: int(e.Conn.Unanswered),
		})
		conn := t.view(&e.Conn, at, t.members[e.Conn.Cookie])
		conn.Evidence = Evidence(e.Conn.Evidence) // what was sent, though a first one proves nothing
		t.notify(Notice{Kind: NoticeSolicitation, At: at, Connection: conn})
		t.observe(&e.Conn, at)
	}
}

// Watched takes in one record of a watch pass, of that time.
func (t *Table) Watched(c *bpf.Conn, at time.Time) {
	if c.Flags&bpf.ConnGone != 0 {
		if m := t.members[c.Cookie]; m != nil && m.gone.IsZero() {
			m.gone = at
		}
		return
	}
	t.observe(c, at)
}

// Sweep drops, at a time, the members whose sockets are gone and whose deaths
// were not told: the event was lost or held back. The cause is in the kernel's
// counters all the same; here it is unknown.
func (t *Table) Sweep(now time.Time) {
	for cookie, m := range t.members {
		if m.gone.IsZero() || now.Sub(m.gone) < goneFor {
			continue
		}
		t.bury(cookie, m, Death{Connection: t.view(&m.conn, m.at, m), DiedAt: m.gone, Cause: CauseUnknown})
	}
}

// Census takes in a census that began and ended at these times: what the
// kernel counted, and every connection in trouble.
func (t *Table) Census(counts *bpf.CensusCounts, troubled []bpf.Conn, began, ended time.Time) {
	t.counts = [States][Verdicts]int64{}
	for state := range counts.Sockets {
		s := stateOf(uint8(state))
		if int(s) >= States || !s.Judged() {
			continue
		}
		for _, class := range []uint8{bpf.ClassActive, bpf.ClassIdle, bpf.ClassUnguarded} {
			t.counts[s][ofClass(class)] += int64(counts.Sockets[state][class])
		}
	}
	seen := make(map[uint64]bool, len(troubled))
	for i := range troubled {
		c := &troubled[i]
		seen[c.Cookie] = true
		if m := t.members[c.Cookie]; m != nil {
			t.count(m.cell())
		} else if len(t.members) >= maxMembers {
			verdict, _ := t.rules.Judge(c)
			t.count(cell{stateOf(c.State), verdict})
			continue
		} else {
			t.count(cell{stateOf(c.State), ofClass(c.Class)})
		}
		t.observe(c, began)
	}
	for cookie, m := range t.members {
		switch {
		case seen[cookie]:
		case m.at.After(began):
			// In trouble since the census passed it by: counted as the other.
			t.move(cell{stateOf(m.conn.State), ofClass(m.conn.Class)}, m.cell())
		case m.gone.IsZero():
			// Nobody has seen it in trouble any more; its death, if it is one,
			// was not told. The next sweep buries it.
			m.gone = ended
		}
	}
	for cookie, s := range t.stories {
		if ended.Sub(s.events[len(s.events)-1].At) > storyFor && t.members[cookie] == nil {
			delete(t.stories, cookie)
		}
	}
}

// observe takes in how a connection is now. It returns its member, or nil when
// it is in no trouble (any more).
func (t *Table) observe(c *bpf.Conn, at time.Time) *member {
	m := t.members[c.Cookie]
	if m != nil && c.At < m.conn.At {
		return m // the event path and the passes overtake each other
	}
	if m == nil {
		if c.Flags&bpf.ConnTrouble == 0 {
			return nil
		}
		if len(t.members) >= maxMembers {
			t.overflowed++
			return nil
		}
		m = &member{conn: *c, at: at, verdict: ofClass(c.Class), since: at}
		t.members[c.Cookie] = m
	}
	verdict, evidence := t.rules.Judge(c)
	old := m.cell()
	from := m.verdict
	answered := m.conn.Unanswered > 0 && c.Unanswered == 0
	unanswered := m.conn.Unanswered
	m.conn, m.at, m.evidence, m.gone = *c, at, evidence, time.Time{}
	if answered {
		t.tell(c.Cookie, Event{At: at, Kind: EventAnswer, Unanswered: int(unanswered)})
	}
	if verdict != from {
		if from == Zombie {
			t.zombieSeconds.observe(at.Sub(m.since))
		}
		m.verdict, m.since = verdict, at
		t.tell(c.Cookie, Event{
			At: at, Kind: EventVerdict, Evidence: evidence, Unanswered: int(c.Unanswered), From: from, To: verdict,
		})
	}
	t.move(old, m.cell())
	if verdict != from {
		t.notify(Notice{Kind: NoticeVerdict, At: at, Connection: t.view(c, at, m), From: from})
	}
	if c.Flags&bpf.ConnTrouble == 0 {
		delete(t.members, c.Cookie)
		return nil
	}
	return m
}

func (t *Table) died(e *bpf.Event, at time.Time) {
	cookie := e.Conn.Cookie
	m := t.members[cookie]
	t.bury(cookie, m, Death{
		Connection: t.view(&e.Conn, at, m), DiedAt: at, Cause: Cause(e.Cause), During: Evidence(e.During), Errno: e.Err,
	})
}

// bury ends a connection; m is nil if it was in no trouble.
func (t *Table) bury(cookie uint64, m *member, d Death) {
	if m != nil {
		if m.verdict == Zombie {
			d.ZombieFor = d.DiedAt.Sub(m.since)
			t.zombieSeconds.observe(d.ZombieFor)
		}
		// Its last verdict, not what its last moments look like.
		d.Verdict, d.Since = m.verdict, m.since
		t.uncount(m.cell())
		delete(t.members, cookie)
	}
	delete(t.stories, cookie)
	if len(t.deaths) < maxDeaths {
		t.deaths = append(t.deaths, d)
	} else {
		t.deaths[t.next] = d
		t.next = (t.next + 1) % maxDeaths
	}
	t.notify(Notice{Kind: NoticeDeath, At: d.DiedAt, Connection: d.Connection, Death: &d})
}

// view describes a connection as of now, with what the table knows of it.
func (t *Table) view(c *bpf.Conn, at time.Time, m *member) Connection {
	conn := t.rules.Describe(c, at)
	if m != nil {
		conn.Verdict, conn.Evidence, conn.Since, conn.Process = m.verdict, m.evidence, m.since, m.process
	} else if s := t.stories[c.Cookie]; s != nil {
		// It had been in trouble: since when it is not.
		for _, e := range s.events {
			if e.Kind == EventVerdict && e.To == conn.Verdict {
				conn.Since = e.At
			}
		}
	}
	return conn
}

// tell adds to a connection's story.
func (t *Table) tell(cookie uint64, e Event) {
	s := t.stories[cookie]
	if s == nil {
		if len(t.stories) >= maxStories {
			t.overflowed++
			return
		}
		s = &story{}
		t.stories[cookie] = s
	}
	if len(s.events) == maxEvents {
		copy(s.events, s.events[1:])
		s.events = s.events[:maxEvents-1]
	}
	s.events = append(s.events, e)
}

// move counts a connection elsewhere.
func (t *Table) move(from, to cell) {
	if from == to {
		return
	}
	t.uncount(from)
	t.count(to)
}

func (t *Table) count(c cell) { t.counts[c.state][c.verdict]++ }

// uncount never goes below zero: what came after the census is not in it.
func (t *Table) uncount(c cell) {
	if n := &t.counts[c.state][c.verdict]; *n > 0 {
		*n--
	}
}

// eachDeath calls f for the deaths, newest first, until it returns false.
func (t *Table) eachDeath(f func(*Death) bool) {
	for i := range t.deaths {
		n := len(t.deaths)
		if !f(&t.deaths[(t.next-1-i+2*n)%n]) {
			return
		}
	}
}

func (h *Histogram) observe(d time.Duration) {
	s := d.Seconds()
	h.Sum += s
	for i, bound := range h.Bounds {
		if s <= bound {
			h.Counts[i]++
			return
		}
	}
	h.Counts[len(h.Bounds)]++
}
