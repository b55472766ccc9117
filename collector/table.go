// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"iter"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf"
)

const (
	// watchInterval is the time between two watch passes: an answer is noticed within
	// it, and so is a silence that has become long enough.
	watchInterval = 500 * time.Millisecond
	// ownersAgain is the time after which an owner that was not found, or may have
	// changed, is searched for again.
	ownersAgain = 30 * time.Second
)

// Bounds of what a Table remembers.
const (
	// maxMembers connections in trouble are followed one by one; more are
	// counted by each census, without a story. Twice what the kernel watches.
	maxMembers = 65536
	// maxStories are kept, each of the last maxEvents events, for storyFor
	// after the last of them.
	maxStories = 16384
	maxEvents  = 16
	storyFor   = 15 * time.Minute
	// maxDeaths are remembered.
	maxDeaths = 4096
	// watchedFor is how old what the watch pass said may be: some passes.
	watchedFor = 4 * watchInterval
	// goneFor is how long the event of a death may come later than the watch
	// pass that found the socket gone.
	goneFor = time.Second
)

// zombieBounds are the upper bounds of Stats.ZombieSeconds: how long a zombie
// can live goes from the silence that makes one to days.
var zombieBounds = []float64{1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 86400}

// forecastBounds are those of Stats.ForecastError; up to the first is right.
var forecastBounds = []float64{0, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600}

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
	// forecast is the first since the peer was last heard, of this cause and
	// with these settings: what a death is held against.
	forecast Forecast
	owner    owner
	looked   time.Time // when its owner was last looked for
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
	// buried are the cookies of deaths, which are never used again: whatever was
	// read before a death and is taken in after it must not wake the dead.
	buried map[uint64]struct{}
	// recovered are the cookies of those that got out of trouble since the last
	// census, and when (the kernel's clock), for the same reason; at most maxMembers.
	recovered map[uint64]uint64
	// counts is the last census, kept true as connections change and die.
	counts        [States][Verdicts]int64
	zombieSeconds Histogram
	forecastError Histogram
	overflowed    uint64 // members, stories and recoveries there was no room for
	unseen        uint64 // deaths of members that no program saw
}

// NewTable makes a table that calls notify, if any, for everything worth
// telling, before the call that caused it returns.
func NewTable(rules Rules, notify func(Notice)) *Table {
	if notify == nil {
		notify = func(Notice) {}
	}
	return &Table{
		rules:         rules,
		notify:        notify,
		members:       make(map[uint64]*member),
		stories:       make(map[uint64]*story),
		buried:        make(map[uint64]struct{}),
		recovered:     make(map[uint64]uint64),
		zombieSeconds: newHistogram(zombieBounds),
		forecastError: newHistogram(forecastBounds),
	}
}

// Event takes in what the kernel sent; at is the time of e.Conn. If that needs
// another look, because an answer may be on its way, settles tells when.
func (t *Table) Event(e *bpf.Event, at time.Time) (settles time.Duration) {
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
		settles = t.rules.settles(&e.Conn)
	}
	return settles
}

// Watched takes in one record of a watch pass, of that time; settles as of Event.
func (t *Table) Watched(c *bpf.Conn, at time.Time) (settles time.Duration) {
	if c.Flags&bpf.ConnGone != 0 {
		m := t.members[c.Cookie]
		switch {
		case m == nil:
		case Cause(c.Cause) != CauseUnknown: // its event could not be sent
			t.bury(c.Cookie, m, Death{
				Connection: t.view(&m.conn, m.at, m), DiedAt: at, Cause: Cause(c.Cause), During: during(c.Cause, c.Evidence),
			})
		case m.gone.IsZero():
			m.gone = at
		}
		return 0
	}
	t.observe(c, at)
	return t.rules.settles(c)
}

// during is what a user timeout ended.
func during(cause, evidence uint8) Evidence {
	if Cause(cause) == CauseUserTimeout {
		return Evidence(evidence)
	}
	return NoEvidence
}

// Sweep buries, at a time, the members whose sockets are gone and whose deaths
// were not told: no program saw them.
func (t *Table) Sweep(now time.Time) {
	for cookie, m := range t.members {
		if m.gone.IsZero() || now.Sub(m.gone) < goneFor {
			continue
		}
		t.unseen++
		t.bury(cookie, m, Death{Connection: t.view(&m.conn, m.at, m), DiedAt: m.gone, Cause: CauseUnknown})
	}
}

// Seen is how a connection was at a time.
type Seen struct {
	Conn bpf.Conn
	At   time.Time
}

// Census takes in a census that ended at that time.
func (t *Table) Census(census *Census, ended time.Time) {
	counts, troubled, began, unwalked := census.Counts, census.Troubled, census.Began, census.Unwalked
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
		c := &troubled[i].Conn
		seen[c.Cookie] = true
		if _, dead := t.buried[c.Cookie]; dead {
			continue
		}
		if m := t.members[c.Cookie]; m != nil {
			t.count(m.cell())
		} else if len(t.members) >= maxMembers {
			verdict, _ := t.rules.Judge(c)
			t.count(cell{stateOf(c.State), verdict})
			continue
		} else {
			t.count(cell{stateOf(c.State), ofClass(c.Class)})
		}
		t.observe(c, troubled[i].At)
	}
	for cookie, m := range t.members {
		switch {
		case seen[cookie]:
		case slices.Contains(unwalked, m.conn.Netns) && ended.Sub(m.at) < watchedFor:
			t.count(m.cell()) // the counts have none in trouble there
		case m.at.After(began):
			// In trouble since the census passed it by: counted as the other.
			t.move(cell{stateOf(m.conn.State), ofClass(m.conn.Class)}, m.cell())
		case ended.Sub(m.at) < watchedFor:
			// The watch pass sees to it, though the census does not get to its
			// network namespace.
			t.count(m.cell())
		case m.gone.IsZero():
			// It is in no trouble any more, dead or alive, and nobody told:
			// the kernel had no room to watch it.
			if m.verdict == Zombie {
				t.zombieSeconds.observe(ended.Sub(m.since))
			}
			delete(t.members, cookie)
		}
	}
	clear(t.recovered)
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
	created := m == nil
	if created {
		if c.Flags&bpf.ConnTrouble == 0 {
			return nil
		}
		if _, dead := t.buried[c.Cookie]; dead || c.At < t.recovered[c.Cookie] {
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
	// Nobody saw it get into trouble: it is no change that happened now.
	first := created && c.Solicited == bpf.AgeNone
	answered := m.conn.Unanswered > 0 && c.Unanswered == 0
	unanswered, heard, took := m.conn.Unanswered, at.Add(-t.rules.duration(c.Silent)), time.Duration(-1)
	if m.conn.Solicited != bpf.AgeNone {
		took = max(heard.Sub(m.at.Add(-t.rules.duration(m.conn.Solicited))), 0)
	}
	m.forecast = t.forecast(m, c, at)
	m.conn, m.at, m.evidence, m.gone = *c, at, evidence, time.Time{}
	if answered {
		t.tell(c.Cookie, Event{
			At: heard, Kind: EventAnswer, Unanswered: int(unanswered), Took: took,
		})
	}
	if verdict != from {
		if from == Zombie {
			t.zombieSeconds.observe(at.Sub(m.since))
		}
		m.verdict, m.since = verdict, at
		if began := t.rules.began(c, verdict); first && began >= 0 {
			m.since = at.Add(-began)
		}
		if !first {
			t.tell(c.Cookie, Event{
				At: at, Kind: EventVerdict, Evidence: evidence, Unanswered: int(c.Unanswered), From: from, To: verdict,
			})
		}
	}
	t.move(old, m.cell())
	if verdict != from {
		t.notify(Notice{Kind: NoticeVerdict, At: at, Connection: t.view(c, at, m), From: from, First: first})
	}
	if c.Flags&bpf.ConnTrouble == 0 {
		delete(t.members, c.Cookie)
		if len(t.recovered) < maxMembers {
			t.recovered[c.Cookie] = c.At
		} else {
			t.overflowed++
		}
		return nil
	}
	return m
}

// forecast keeps the member's forecast for as long as it still holds, and makes a
// new one when the peer was heard since, or an ICMP error about it, the settings
// changed, or another timer has taken over.
func (t *Table) forecast(m *member, c *bpf.Conn, at time.Time) Forecast {
	f := t.rules.Forecast(c, at)
	old := &m.conn
	switch {
	case m.forecast.By != f.By, heardSince(old, c), c.Backoff < old.Backoff, reverting(c),
		c.KeepaliveTime != old.KeepaliveTime, c.KeepaliveIntvl != old.KeepaliveIntvl,
		c.KeepaliveProbes != old.KeepaliveProbes, c.UserTimeout != old.UserTimeout, c.Retries != old.Retries:
		return f
	}
	return m.forecast
}

func (t *Table) died(e *bpf.Event, at time.Time) {
	cookie := e.Conn.Cookie
	if _, dead := t.buried[cookie]; dead {
		return // the watch pass was faster
	}
	m := t.members[cookie]
	conn := t.view(&e.Conn, at, m)
	if m != nil && conn.Unanswered == 0 {
		// Its end may have cleared what was unanswered; being heard has as well.
		if heardSince(&m.conn, &e.Conn) {
			conn.Evidence = NoEvidence
		} else {
			conn.Unanswered = int(m.conn.Unanswered)
		}
	}
	t.bury(cookie, m, Death{
		Connection: conn, DiedAt: at, Cause: Cause(e.Cause), During: Evidence(e.During), Errno: e.Err,
	})
}

// heardSince tells whether the peer was heard between two looks. The stamps are
// in jiffies, hence the one of tolerance.
func heardSince(old, now *bpf.Conn) bool {
	if now.Silent == bpf.AgeNone {
		return false
	}
	return uint32(now.Jiffies)-now.Silent-(uint32(old.Jiffies)-old.Silent) > 1
}

// bury ends a connection; m is nil if it was in no trouble.
func (t *Table) bury(cookie uint64, m *member, d Death) {
	if m != nil {
		if m.verdict == Zombie {
			d.ZombieFor = max(d.DiedAt.Sub(m.since), 0)
			t.zombieSeconds.observe(d.ZombieFor)
		}
		if m.forecast.Ever() && d.Cause.timeout() {
			d.Forecast, d.ForecastError = m.forecast, m.forecast.miss(d.DiedAt)
			t.forecastError.observe(d.ForecastError.Abs())
		}
		// Its last verdict, not what its last moments look like.
		d.Verdict, d.Since = m.verdict, earlier(m.since, d.At)
		t.uncount(m.cell())
		delete(t.members, cookie)
	}
	delete(t.stories, cookie)
	t.buried[cookie] = struct{}{}
	if len(t.deaths) < maxDeaths {
		t.deaths = append(t.deaths, d)
	} else {
		delete(t.buried, t.deaths[t.next].Cookie)
		t.deaths[t.next] = d
		t.next = (t.next + 1) % maxDeaths
	}
	t.notify(Notice{Kind: NoticeDeath, At: d.DiedAt, Connection: d.Connection, Death: &d})
}

// view describes a connection as of now, with what the table knows of it.
func (t *Table) view(c *bpf.Conn, at time.Time, m *member) Connection {
	conn := t.rules.Describe(c, at)
	if m != nil {
		conn.Verdict, conn.Evidence, conn.Since = m.verdict, m.evidence, earlier(m.since, at)
		conn.Process, conn.Group = m.owner.process, m.owner.group
	} else if s := t.stories[c.Cookie]; s != nil {
		// It had been in trouble: since when it is not.
		for _, e := range s.events {
			if e.Kind == EventVerdict && e.To == conn.Verdict {
				conn.Since = earlier(e.At, at)
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

// An owner is whose a connection is.
type owner struct {
	process *Process // nil: none was found
	group   Group
}

// needOwners returns the connections whose owner should be searched for now, by cookie
// with the id of their control group: those in trouble, unless that was done within
// ownersAgain, and those that died after since.
func (t *Table) needOwners(now, since time.Time) map[uint64]uint64 {
	wanted := make(map[uint64]uint64)
	for cookie, m := range t.members {
		if m.verdict > Unguarded && now.Sub(m.looked) > ownersAgain &&
			m.conn.Flags&(bpf.ConnOrphan|bpf.ConnUnaccepted) == 0 {
			wanted[cookie] = m.conn.Cgroup
		}
	}
	for d := range t.Deaths() {
		if d.DiedAt.Before(since) {
			break
		}
		if d.Process == nil && d.held() {
			wanted[d.Cookie] = d.Cgroup
		}
	}
	return wanted
}

// setOwners takes in the owners that a search at that time found.
func (t *Table) setOwners(owners map[uint64]owner, at time.Time) {
	for cookie, o := range owners {
		if m := t.members[cookie]; m != nil {
			m.owner, m.looked = o, at
		}
	}
	for d := range t.Deaths() {
		if o, ok := owners[d.Cookie]; ok && d.Process == nil {
			d.Process, d.Group = o.process, o.group
		}
	}
}

// Deaths returns the deaths that are remembered, newest first.
func (t *Table) Deaths() iter.Seq[*Death] {
	return func(yield func(*Death) bool) {
		n := len(t.deaths)
		for i := range n {
			if !yield(&t.deaths[(t.next-1-i+2*n)%n]) {
				return
			}
		}
	}
}

// History returns what happened to a connection lately, oldest first.
func (t *Table) History(cookie uint64) []Event {
	if s := t.stories[cookie]; s != nil {
		return slices.Clone(s.events)
	}
	return nil
}

// Describe describes a connection as it was read at a time, without taking that in:
// verdict and evidence are those of c unless the table knows newer ones, and since
// when they hold, and the owner, is what the table knows.
func (t *Table) Describe(c *bpf.Conn, at time.Time) Connection {
	m := t.members[c.Cookie]
	if m == nil || c.At < m.conn.At {
		return t.view(c, at, m)
	}
	fresh := *m
	fresh.verdict, fresh.evidence = t.rules.Judge(c)
	if fresh.verdict != m.verdict {
		fresh.since = at
	}
	return t.view(c, at, &fresh)
}

// TableStats are the numbers of a Table at one moment.
type TableStats struct {
	Connections    [States][Verdicts]uint64 // of states that are Judged
	ZombieOldest   time.Duration            // 0: there is none
	ZombiesByOwner map[Owner]int
	ZombieSeconds  Histogram // of zombies that died or recovered
	ForecastError  Histogram // of deaths that had a forecast; absolute
	Watched        int       // connections in trouble
	Overflowed     uint64    // connections, histories and recoveries there was no room for
	Unseen         uint64    // deaths of connections in trouble that no program saw
}

// Stats returns the numbers at that time. They share nothing with the table.
func (t *Table) Stats(now time.Time) TableStats {
	s := TableStats{
		ZombiesByOwner: make(map[Owner]int),
		ZombieSeconds:  t.zombieSeconds.clone(),
		ForecastError:  t.forecastError.clone(),
		Watched:        len(t.members),
		Overflowed:     t.overflowed,
		Unseen:         t.unseen,
	}
	for state := range States {
		for verdict, n := range t.counts[state] {
			s.Connections[state][verdict] = uint64(n)
		}
	}
	for _, m := range t.members {
		if m.verdict != Zombie {
			continue
		}
		s.ZombieOldest = max(s.ZombieOldest, now.Sub(m.since))
		whose := Connection{Process: m.owner.process, Group: m.owner.group}
		s.ZombiesByOwner[Owner{Name: whose.Owner(), RemotePort: servicePort(m.conn.Rport)}]++
	}
	return s
}
