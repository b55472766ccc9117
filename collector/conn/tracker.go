// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"iter"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

const (
	// WatchInterval is the time between two watch passes: an answer is noticed within
	// it, and so is a silence that has become long enough.
	WatchInterval = 500 * time.Millisecond
	// OwnersRetry is the time after which an owner that was not found, or may have
	// changed, is searched for again.
	OwnersRetry = 30 * time.Second
)

// Bounds of what a Tracker remembers.
const (
	// maxTracked connections in trouble are followed one by one; more are
	// counted by each census, without a story. Twice what the kernel watches.
	maxTracked = 65536
	// maxHistories are kept, each of the last maxEvents events, for storyFor
	// after the last of them.
	maxHistories = 16384
	maxEntries   = 16
	historyFor   = 15 * time.Minute
	// maxDeaths are remembered.
	maxDeaths = 4096
	// watchedFor is how old what the watch pass said may be: some passes.
	watchedFor = 4 * WatchInterval
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

// tracked is a connection in trouble.
type tracked struct {
	conn     abi.Conn
	at       time.Time // of conn
	verdict  Verdict
	evidence Evidence
	since    time.Time
	gone     time.Time // when the watch pass no longer found it
	// forecast is the first since the peer was last heard, of this cause and
	// with these settings: what a death is held against.
	forecast      Forecast
	owner         Ownership
	ownerSearched time.Time // when its owner was last looked for
}

func (m *tracked) cell() cell { return cell{StateOf(m.conn.State), m.verdict} }

// history is what happened to a connection lately.
type history struct {
	entries []HistoryEntry // oldest first, at most maxEvents
}

// Tracker is the memory of a Collector. It is pure: it has no clock, and is not
// safe for concurrent use. Facts may come late or twice, or not at all.
type Tracker struct {
	rules     Rules
	notify    func(Notice)
	tracked   map[uint64]*tracked
	histories map[uint64]*history
	deaths    []Death // a ring; next is the oldest once it is full
	next      int
	// dead are the cookies of deaths, which are never used again: whatever was
	// read before a death and is taken in after it must not wake the dead.
	dead map[uint64]struct{}
	// recovered are the cookies of those that got out of trouble since the last
	// census, and when (the kernel's clock), for the same reason; at most maxMembers.
	recovered map[uint64]uint64
	// counts is the last census, kept true as connections change and die.
	counts        [States][Verdicts]int64
	zombieSeconds Histogram
	forecastError Histogram
	rows          rows
	overflowed    uint64 // members, stories and recoveries there was no room for
	unseen        uint64 // deaths of members that no program saw
}

// NewTracker makes a table that calls notify, if any, for everything worth
// telling, before the call that caused it returns.
func NewTracker(rules Rules, notify func(Notice)) *Tracker {
	if notify == nil {
		notify = func(Notice) {}
	}
	return &Tracker{
		rules:         rules,
		notify:        notify,
		tracked:       make(map[uint64]*tracked),
		histories:     make(map[uint64]*history),
		dead:          make(map[uint64]struct{}),
		recovered:     make(map[uint64]uint64),
		zombieSeconds: newHistogram(zombieBounds),
		forecastError: newHistogram(forecastBounds),
	}
}

// solicitation takes in that the kernel sent a solicitation; at is the time of e.Conn. If
// an answer may be on its way, recheckAfter is how long to wait before another pass.
func (t *Tracker) solicitation(e *abi.Event, at time.Time) (recheckAfter time.Duration) {
	t.appendHistory(e.Conn.Cookie, HistoryEntry{
		At: at, Kind: HistorySolicitation, Evidence: Evidence(e.Conn.Evidence), Unanswered: int(e.Conn.Unanswered),
	})
	connection := t.view(&e.Conn, at, t.tracked[e.Conn.Cookie])
	connection.Evidence = Evidence(e.Conn.Evidence) // what was sent, though a first one proves nothing
	t.tell(Notice{Kind: NoticeSolicitation, At: at, Connection: connection})
	t.observe(&e.Conn, at)
	return t.rules.recheckAfter(&e.Conn)
}

// watched takes in one record of a watch pass, of that time; settles as of solicitation.
func (t *Tracker) watched(c *abi.Conn, at time.Time) (settles time.Duration) {
	if c.Flags&abi.ConnGone != 0 {
		m := t.tracked[c.Cookie]
		switch {
		case m == nil:
		case Cause(c.Cause) != CauseUnknown: // its event could not be sent
			t.recordDeath(c.Cookie, m, Death{
				Connection: t.view(&m.conn, m.at, m), DiedAt: at, Cause: Cause(c.Cause), During: during(c.Cause, c.Evidence),
			})
		case m.gone.IsZero():
			m.gone = at
		}
		return 0
	}
	t.observe(c, at)
	return t.rules.recheckAfter(c)
}

// during is what a user timeout ended.
func during(cause, evidence uint8) Evidence {
	if Cause(cause) == CauseUserTimeout {
		return Evidence(evidence)
	}
	return NoEvidence
}

// sweep buries, at a time, the members whose sockets are gone and whose deaths
// were not told: no program saw them.
func (t *Tracker) sweep(now time.Time) {
	for cookie, m := range t.tracked {
		if m.gone.IsZero() || now.Sub(m.gone) < goneFor {
			continue
		}
		t.unseen++
		t.recordDeath(cookie, m, Death{Connection: t.view(&m.conn, m.at, m), DiedAt: m.gone, Cause: CauseUnknown})
	}
}

// Observation is how a connection was at a time.
type Observation struct {
	Conn abi.Conn
	At   time.Time
}

// census takes in a census that ended at that time.
func (t *Tracker) census(census *Census, ended time.Time) {
	counts, troubled, began, unwalked := census.Counts, census.Troubled, census.Began, census.Unwalked
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
	seen := make(map[uint64]bool, len(troubled))
	for i := range troubled {
		c := &troubled[i].Conn
		seen[c.Cookie] = true
		if _, dead := t.dead[c.Cookie]; dead {
			continue
		}
		if m := t.tracked[c.Cookie]; m != nil {
			t.count(m.cell())
		} else if len(t.tracked) >= maxTracked {
			verdict, _ := t.rules.Judge(c)
			t.count(cell{StateOf(c.State), verdict})
			continue
		} else {
			t.count(cell{StateOf(c.State), VerdictOfClass(c.Class)})
		}
		t.observe(c, troubled[i].At)
	}
	for cookie, m := range t.tracked {
		switch {
		case seen[cookie]:
		case slices.Contains(unwalked, m.conn.Netns) && ended.Sub(m.at) < watchedFor:
			t.count(m.cell()) // the counts have none in trouble there
		case m.at.After(began):
			// In trouble since the census passed it by: counted as the other.
			t.move(cell{StateOf(m.conn.State), VerdictOfClass(m.conn.Class)}, m.cell())
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
			delete(t.tracked, cookie)
		}
	}
	t.rows.census(census, t.describeRow)
	clear(t.recovered)
	for cookie, s := range t.histories {
		if ended.Sub(s.entries[len(s.entries)-1].At) > historyFor && t.tracked[cookie] == nil {
			delete(t.histories, cookie)
		}
	}
}

// observe takes in how a connection is now. It returns its member, or nil when
// it is in no trouble (any more).
func (t *Tracker) observe(c *abi.Conn, at time.Time) *tracked {
	m := t.tracked[c.Cookie]
	if m != nil && c.At < m.conn.At {
		return m // the event path and the passes overtake each other
	}
	created := m == nil
	if created {
		if c.Flags&abi.ConnTrouble == 0 {
			return nil
		}
		if _, dead := t.dead[c.Cookie]; dead || c.At < t.recovered[c.Cookie] {
			return nil
		}
		if len(t.tracked) >= maxTracked {
			t.overflowed++
			return nil
		}
		m = &tracked{conn: *c, at: at, verdict: VerdictOfClass(c.Class), since: at}
		t.tracked[c.Cookie] = m
	}
	verdict, evidence := t.rules.Judge(c)
	old := m.cell()
	from := m.verdict
	// Nobody saw it get into trouble: it is no change that happened now.
	first := created && c.Solicited == abi.AgeNone
	answered := m.conn.Unanswered > 0 && c.Unanswered == 0
	unanswered, heard, took := m.conn.Unanswered, at.Add(-t.rules.Duration(c.Silent)), time.Duration(-1)
	if m.conn.Solicited != abi.AgeNone {
		took = max(heard.Sub(m.at.Add(-t.rules.Duration(m.conn.Solicited))), 0)
	}
	m.forecast = t.forecast(m, c, at)
	m.conn, m.at, m.evidence, m.gone = *c, at, evidence, time.Time{}
	if answered {
		t.appendHistory(c.Cookie, HistoryEntry{
			At: heard, Kind: HistoryAnswer, Unanswered: int(unanswered), Took: took,
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
			t.appendHistory(c.Cookie, HistoryEntry{
				At: at, Kind: HistoryVerdict, Evidence: evidence, Unanswered: int(c.Unanswered), From: from, To: verdict,
			})
		}
	}
	t.move(old, m.cell())
	if verdict != from {
		t.tell(Notice{Kind: NoticeVerdict, At: at, Connection: t.view(c, at, m), From: from, First: first})
	}
	if c.Flags&abi.ConnTrouble == 0 {
		delete(t.tracked, c.Cookie)
		if len(t.recovered) < maxTracked {
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
func (t *Tracker) forecast(m *tracked, c *abi.Conn, at time.Time) Forecast {
	f := t.rules.Forecast(c, at)
	old := &m.conn
	switch {
	case m.forecast.By != f.By, heardSince(old, c), c.Backoff < old.Backoff, RTOReverting(c),
		c.KeepaliveTime != old.KeepaliveTime, c.KeepaliveIntvl != old.KeepaliveIntvl,
		c.KeepaliveProbes != old.KeepaliveProbes, c.UserTimeout != old.UserTimeout, c.Retries != old.Retries:
		return f
	}
	return m.forecast
}

func (t *Tracker) death(e *abi.Event, at time.Time) {
	cookie := e.Conn.Cookie
	if _, dead := t.dead[cookie]; dead {
		return // the watch pass was faster
	}
	m := t.tracked[cookie]
	connection := t.rules.Outline(&e.Conn, at) // the kernel will do no more
	t.complete(&connection, m)
	if m != nil && connection.Unanswered == 0 {
		// Its end may have cleared what was unanswered; being heard has as well.
		if heardSince(&m.conn, &e.Conn) {
			connection.Evidence = NoEvidence
		} else {
			connection.Unanswered = int(m.conn.Unanswered)
		}
	}
	t.recordDeath(cookie, m, Death{
		Connection: connection, DiedAt: at, Cause: Cause(e.Cause), During: Evidence(e.During), Errno: e.Err,
	})
}

// heardSince tells whether the peer was heard between two looks. The stamps are
// in jiffies, hence the one of tolerance.
func heardSince(old, now *abi.Conn) bool {
	if now.Silent == abi.AgeNone {
		return false
	}
	return uint32(now.Jiffies)-now.Silent-(uint32(old.Jiffies)-old.Silent) > 1
}

// recordDeath ends a connection; m is nil if it was in no trouble.
func (t *Tracker) recordDeath(cookie uint64, m *tracked, d Death) {
	if m != nil {
		if m.verdict == Zombie {
			d.ZombieFor = max(d.DiedAt.Sub(m.since), 0)
			t.zombieSeconds.observe(d.ZombieFor)
		}
		if m.forecast.Ever() && d.Cause.IsTimeout() {
			d.Forecast, d.ForecastError = m.forecast, m.forecast.miss(d.DiedAt)
			t.forecastError.observe(d.ForecastError.Abs())
		}
		// Its last verdict, not what its last moments look like.
		d.Verdict, d.Since = m.verdict, Earlier(m.since, d.At)
		t.uncount(m.cell())
		delete(t.tracked, cookie)
	}
	if row := t.rows.current[cookie]; row != nil && d.Process == nil {
		d.setOwner(row.owner()) // of an orphan, who had it
	}
	t.rows.death(cookie)
	delete(t.histories, cookie)
	t.dead[cookie] = struct{}{}
	if len(t.deaths) < maxDeaths {
		t.deaths = append(t.deaths, d)
	} else {
		delete(t.dead, t.deaths[t.next].Cookie)
		t.deaths[t.next] = d
		t.next = (t.next + 1) % maxDeaths
	}
	t.notify(Notice{Kind: NoticeDeath, At: d.DiedAt, Connection: d.Connection, Death: &d})
}

// tell notifies of a living connection, whose row has to follow if there is one.
func (t *Tracker) tell(n Notice) {
	t.rows.notice(&n.Connection)
	t.notify(n)
}

// describeRow describes a connection that a census read; ok is false if it has died.
func (t *Tracker) describeRow(o *Observation) (c Connection, ok bool) {
	if _, dead := t.dead[o.Conn.Cookie]; dead {
		return Connection{}, false
	}
	return t.Describe(&o.Conn, o.At), true
}

// view describes a connection as it was read at that time, with what the tracker knows
// of it; m is nil if it is in no trouble.
func (t *Tracker) view(c *abi.Conn, at time.Time, m *tracked) Connection {
	connection := t.rules.Describe(c, at)
	t.complete(&connection, m)
	return connection
}

// complete adds to the description of a connection what the tracker knows of it.
func (t *Tracker) complete(c *Connection, m *tracked) {
	if m != nil {
		c.Verdict, c.Evidence, c.Since = m.verdict, m.evidence, Earlier(m.since, c.At)
		c.setOwner(m.owner)
	} else if s := t.histories[c.Cookie]; s != nil {
		// It had been in trouble: since when it is not.
		for _, e := range s.entries {
			if e.Kind == HistoryVerdict && e.To == c.Verdict {
				c.Since = Earlier(e.At, c.At)
			}
		}
	}
	if row := t.rows.current[c.Cookie]; row != nil && c.Held() {
		c.setOwner(row.owner())
	}
}

// appendHistory adds to a connection's story.
func (t *Tracker) appendHistory(cookie uint64, e HistoryEntry) {
	s := t.histories[cookie]
	if s == nil {
		if len(t.histories) >= maxHistories {
			t.overflowed++
			return
		}
		s = &history{}
		t.histories[cookie] = s
	}
	if len(s.entries) == maxEntries {
		copy(s.entries, s.entries[1:])
		s.entries = s.entries[:maxEntries-1]
	}
	s.entries = append(s.entries, e)
}

// move counts a connection elsewhere.
func (t *Tracker) move(from, to cell) {
	if from == to {
		return
	}
	t.uncount(from)
	t.count(to)
}

func (t *Tracker) count(c cell) { t.counts[c.state][c.verdict]++ }

// uncount never goes below zero: what came after the census is not in it.
func (t *Tracker) uncount(c cell) {
	if n := &t.counts[c.state][c.verdict]; *n > 0 {
		*n--
	}
}

// An Ownership is whose a connection is.
type Ownership struct {
	Process *Process // nil: none was found
	Cgroup  Cgroup
}

// NeedOwners returns the connections whose owner should be searched for now, by cookie
// with the id of their control group: those in trouble and those with a row, unless that
// was done within OwnersRetry, and those that died after since.
func (t *Tracker) NeedOwners(now, since time.Time) map[uint64]uint64 {
	wanted := make(map[uint64]uint64)
	for cookie, m := range t.tracked {
		if m.verdict > Unguarded && now.Sub(m.ownerSearched) > OwnersRetry &&
			m.conn.Flags&(abi.ConnOrphan|abi.ConnUnaccepted) == 0 {
			wanted[cookie] = m.conn.Cgroup
		}
	}
	for d := range t.Deaths() {
		if d.DiedAt.Before(since) {
			break
		}
		if d.Process == nil && d.Held() {
			wanted[d.Cookie] = d.CgroupID
		}
	}
	t.rows.needOwners(now, wanted)
	return wanted
}

// setOwners takes in the owners that a search at that time found.
func (t *Tracker) setOwners(owners map[uint64]Ownership, at time.Time) {
	for cookie, o := range owners {
		t.rows.setOwner(cookie, &o, at)
		if m := t.tracked[cookie]; m != nil {
			m.owner, m.ownerSearched = o, at
		}
	}
	for d := range t.Deaths() {
		if o, ok := owners[d.Cookie]; ok && d.Process == nil {
			d.Process, d.Cgroup = o.Process, o.Cgroup
		}
	}
}

// Deaths returns the deaths that are remembered, newest first.
func (t *Tracker) Deaths() iter.Seq[*Death] {
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
func (t *Tracker) History(cookie uint64) []HistoryEntry {
	if s := t.histories[cookie]; s != nil {
		return slices.Clone(s.entries)
	}
	return nil
}

// Describe describes a connection as it was read at a time, without taking that in:
// verdict and evidence are those of c unless the tracker knows newer ones; since when
// they hold, and the owner, are what the tracker knows.
func (t *Tracker) Describe(c *abi.Conn, at time.Time) Connection {
	connection := t.Outline(c, at)
	connection.GivesUp = t.rules.Forecast(c, at)
	return connection
}

// Outline is Describe without the forecast, which is most of the work.
func (t *Tracker) Outline(c *abi.Conn, at time.Time) Connection {
	connection := t.rules.Outline(c, at)
	m := t.tracked[c.Cookie]
	if m == nil || c.At < m.conn.At {
		t.complete(&connection, m)
		return connection
	}
	fresh := *m
	fresh.verdict, fresh.evidence = connection.Verdict, connection.Evidence
	if fresh.verdict != m.verdict {
		fresh.since = at
	}
	t.complete(&connection, &fresh)
	return connection
}

// TrackerStats are the numbers of a Tracker at one moment.
type TrackerStats struct {
	Connections    [States][Verdicts]uint64 // of states that are Judged
	ZombieOldest   time.Duration            // 0: there is none
	ZombiesByOwner map[OwnerLabel]int
	ZombieSeconds  Histogram // of zombies that died or recovered
	ForecastError  Histogram // of deaths that had a forecast; absolute
	Watched        int       // connections in trouble
	Overflowed     uint64    // connections, histories and recoveries there was no room for
	Unseen         uint64    // deaths of connections in trouble that no program saw
}

// Stats returns the numbers at that time. They share nothing with the tracker.
func (t *Tracker) Stats(now time.Time) TrackerStats {
	s := TrackerStats{
		ZombiesByOwner: make(map[OwnerLabel]int),
		ZombieSeconds:  t.zombieSeconds.clone(),
		ForecastError:  t.forecastError.clone(),
		Watched:        len(t.tracked),
		Overflowed:     t.overflowed,
		Unseen:         t.unseen,
	}
	for state := range States {
		for verdict, n := range t.counts[state] {
			s.Connections[state][verdict] = uint64(n)
		}
	}
	for _, m := range t.tracked {
		if m.verdict != Zombie {
			continue
		}
		s.ZombieOldest = max(s.ZombieOldest, now.Sub(m.since))
		whose := Connection{Process: m.owner.Process, Cgroup: m.owner.Cgroup}
		s.ZombiesByOwner[OwnerLabel{Name: whose.Owner(), RemotePort: servicePort(m.conn.Rport)}]++
	}
	return s
}
