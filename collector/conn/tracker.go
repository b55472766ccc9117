// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

const (
	// WatchInterval is the time between two watch passes. A watch pass notices an
	// answer, and a silence that has become long enough.
	WatchInterval = 500 * time.Millisecond
	// OwnersRetry is the time after which an owner is searched for again: the last
	// search may have found none, or the owner may have changed.
	OwnersRetry = 30 * time.Second
)

// Bounds of a Tracker's memory.
const (
	// maxTracked is how many connections in trouble a tracker follows one by one:
	// twice as many as the kernel watches. A census counts the others.
	maxTracked = 65536
	// watchedFor is the age at which a record of a watch pass is out of date: after a
	// few more passes.
	watchedFor = 4 * WatchInterval
)

// tracked is a connection in trouble, or with unread data.
type tracked struct {
	conn     abi.Conn  // its newest record
	at       time.Time // the time of conn
	verdict  Verdict
	evidence Evidence
	since    time.Time // when the verdict began
	// gap is the longest time between two signs of life of the peer since the tracker
	// follows the connection.
	gap time.Duration
	// refused is the jiffy in which the first keepalive probe was sent that the peer has not
	// acknowledged, as far as records since then show; 0: it has acknowledged all.
	refused uint64
	// obstacle is what its path showed at the last look, which began at pathSearched; zero:
	// nothing, or nobody has looked. asked is true if a look showed no obstacle while a
	// solicitation was unanswered: then the silence is the peer's.
	obstacle     Reason
	pathSearched time.Time
	asked        bool
	// sent is true if a program has seen that an unanswered solicitation left this host,
	// dropped if it has seen that this host dropped one.
	sent, dropped bool
	gone          time.Time // when a watch pass did not find its socket; zero: it did
	// forecast is the first one since the peer was last heard, with this cause and
	// these settings. A death is compared with it. It stays when close(2) has waited for
	// long enough (SO_LINGER), and leaves an orphan.
	forecast      Forecast
	owner         Ownership
	ownerSearched time.Time // the beginning of the last search for its owner
	// label names the owner under which the connection is counted, which is of labelKind:
	// the first that was found. A process may rename itself without end, and each name would
	// be another series. Only an owner of a better kind replaces it, or a container's name
	// that was not known. It has no port.
	label     OwnerLabel
	labelKind OwnerKind
}

// setOwner sets the owner that a search found which began at that time.
func (tc *tracked) setOwner(o *Ownership, at time.Time) {
	tc.owner, tc.ownerSearched = *o, at
	owned := Connection{Process: o.Process, Cgroup: o.Cgroup}
	kind, name := owned.OwnerName()
	g := &o.Cgroup
	if kind > tc.labelKind || kind == tc.labelKind && tc.label.Pod == "" && tc.label.Container == "" && g.Pod+g.Container != "" {
		tc.label = OwnerLabel{Name: name, Namespace: g.Namespace, Pod: g.Pod, Container: g.Container}
		tc.labelKind = kind
	}
}

// countKey returns where the connection is counted.
func (tc *tracked) countKey() countKey { return countKey{StateOf(tc.conn.State), tc.verdict} }

// Tracker follows the connections in trouble and remembers how connections ended. It is
// pure: it has no clock and does no I/O. It is not safe for concurrent use. Facts may
// come late, twice, or not at all.
type Tracker struct {
	rules     Rules
	notify    func(Notice)
	tracked   map[uint64]*tracked // by cookie, at most maxTracked
	histories map[uint64]*history // by cookie, at most maxHistories
	deaths    deathLog
	// dead has the cookies of the latest deaths. The kernel never uses a cookie again, so a record
	// with one of these was read before the death and is ignored.
	dead recentCookies
	// recovered has the cookies of the connections that recovered since the last census,
	// at most maxTracked, and the time on the kernel's clock (ns). A record that is older
	// than that does not put the connection in trouble again.
	recovered map[uint64]uint64
	// counts has the counts of the last census, updated as connections in trouble change
	// and die.
	counts        [States][Verdicts]int64
	hosts         map[HostKey]*peerHost // the remote addresses of zombies, at the last census
	counted       bool                  // by a census
	zombieSeconds Histogram
	forecastError Histogram
	rows          rows
	excluded      OwnerGlobs
	overflowed    uint64 // connections, histories and recoveries beyond the bounds
	unseen        uint64 // deaths of connections in trouble that no program saw
}

// NewTracker returns an empty tracker. It calls notify for each change that subscribers
// hear of, before the call that made the change returns; notify may be nil.
func NewTracker(rules Rules, notify func(Notice)) *Tracker {
	if notify == nil {
		notify = func(Notice) {}
	}
	return &Tracker{
		rules:         rules,
		notify:        notify,
		tracked:       make(map[uint64]*tracked),
		histories:     make(map[uint64]*history),
		recovered:     make(map[uint64]uint64),
		zombieSeconds: newHistogram(zombieBounds),
		forecastError: newHistogram(forecastBounds),
	}
}

// ExcludeOwners has Stats count the connections of these owners apart. Call it before Apply.
func (t *Tracker) ExcludeOwners(owners OwnerGlobs) { t.excluded = owners }

// solicitation applies the event of a solicitation. at is the time of its record.
// recheckAfter is that of [Tracker.Apply].
func (t *Tracker) solicitation(e *abi.Event, at time.Time) (recheckAfter time.Duration) {
	t.appendHistory(e.Conn.Cookie, HistoryEntry{
		At: at, Kind: HistorySolicitation, Evidence: Evidence(e.Conn.Evidence), Unanswered: int(e.Conn.Unanswered),
	})
	connection := t.describeTracked(&e.Conn, at, t.tracked[e.Conn.Cookie])
	connection.Evidence = Evidence(e.Conn.Evidence) // what was sent, though a first one proves nothing
	t.emit(Notice{Kind: NoticeSolicitation, At: at, Connection: connection})
	t.observe(&e.Conn, at)
	return t.rules.recheckAfter(&e.Conn)
}

// watched applies a record of a watch pass, read at that time. recheckAfter is that of
// [Tracker.Apply].
func (t *Tracker) watched(c *abi.Conn, at time.Time) (recheckAfter time.Duration) {
	if c.Flags&abi.ConnGone != 0 {
		t.watchedGone(c, at)
		return 0
	}
	t.observe(c, at)
	return t.rules.recheckAfter(c)
}

// observe applies the record c of a living connection, read at that time.
func (t *Tracker) observe(c *abi.Conn, at time.Time) {
	tc := t.tracked[c.Cookie]
	if tc != nil && c.At < tc.conn.At {
		return // a newer record was applied before
	}
	created := tc == nil
	if created {
		if tc = t.track(c, at); tc == nil {
			return
		}
	}
	answer, answered := t.answer(tc, c, at)
	oldKey, oldVerdict, oldSince := tc.countKey(), tc.verdict, tc.since
	tc.forecast = t.forecast(tc, c, at)
	if heardSince(&tc.conn, c) {
		tc.asked, tc.sent, tc.dropped = false, false, false
		if tc.conn.Silent != abi.AgeNone {
			tc.gap = max(tc.gap, t.rules.Duration(heardAt(c)-heardAt(&tc.conn)))
		}
	}
	tc.sent = tc.sent || c.Drop == abi.DropNone && c.Unanswered > 0
	tc.dropped = tc.dropped || c.Drop >= abi.DropFilter
	tc.refused = t.rules.refused(tc.refused, c)
	tc.verdict, tc.evidence = t.judge(tc, c)
	tc.conn, tc.at, tc.gone = *c, at, time.Time{}
	t.move(oldKey, tc.countKey())
	if answered {
		t.appendHistory(c.Cookie, answer)
	}
	if tc.verdict != oldVerdict {
		if oldVerdict == Zombie {
			t.zombieSeconds.observe(at.Sub(oldSince))
		}
		// If no event reported how the trouble began, it did not begin now. That data is
		// unread, only a census reports.
		t.changedVerdict(tc, oldVerdict, created && c.Solicited == abi.AgeNone && (tc.verdict != Unread || !t.counted))
	}
	if !Followed(c) {
		t.endTrouble(c)
	}
}

// judge returns the verdict and evidence of a connection with the record c. A connection
// that is stuck becomes a zombie only when its peer has been silent for twice as long as
// between any two signs of life before: between them nothing has changed.
func (t *Tracker) judge(tc *tracked, c *abi.Conn) (Verdict, Evidence) {
	refused := t.rules.refused(tc.refused, c)
	heard := c.Silent != abi.AgeNone && c.Jiffies-uint64(c.Silent) > refused
	v, evidence := t.rules.judge(c, t.rules.stuck(c) && heard)
	if v == Zombie && tc.verdict == Stuck && t.rules.Age(c.Silent) < 2*tc.gap {
		v = Stuck
	}
	return tc.withObstacle(v, c), evidence
}

// refused returns tracked.refused, of which the old value is old, with the record c. The
// settings in a record, from which UnacknowledgedFor works out when keepalive probes were sent, may
// not be those with which they were: `halfopen probe` changes them while the kernel sends one.
func (r *Rules) refused(old uint64, c *abi.Conn) uint64 {
	if c.Unacknowledged == 0 || Evidence(c.Evidence) != EvidenceKeepalive {
		return 0
	}
	since := r.UnacknowledgedFor(c)
	if since < 0 {
		return old
	}
	return max(old, c.Jiffies-min(uint64(since*time.Duration(r.HZ)/time.Second), c.Jiffies))
}

// changedVerdict records and reports that the verdict of a connection has changed.
// initial is true if the verdict began before the connection was first seen.
func (t *Tracker) changedVerdict(tc *tracked, from Verdict, initial bool) {
	tc.since = tc.at
	if initial || tc.verdict == Unread && !from.InTrouble() { // the census comes late
		if began := t.rules.began(&tc.conn, tc.verdict); began >= 0 {
			tc.since = tc.at.Add(-began)
		}
	}
	if !initial {
		t.appendHistory(tc.conn.Cookie, HistoryEntry{
			At: tc.at, Kind: HistoryVerdict, Evidence: tc.evidence, Unanswered: int(tc.conn.Unanswered), From: from, To: tc.verdict,
		})
	}
	t.emit(Notice{
		Kind: NoticeVerdict, At: tc.at, Connection: t.describeTracked(&tc.conn, tc.at, tc), From: from, Initial: initial,
	})
}

// FollowsUnread reports whether the tracker follows a connection that has unread data and is
// not in trouble.
func (t *Tracker) FollowsUnread() bool {
	for _, tc := range t.tracked {
		if tc.conn.Flags&abi.ConnTrouble == 0 {
			return true
		}
	}
	return false
}

// hasRoom reports whether the tracker can begin to follow the connection with the record c.
// Those that only have unread data get half of the room, since a user can make many.
func (t *Tracker) hasRoom(c *abi.Conn) bool {
	if c.Flags&abi.ConnTrouble == 0 {
		return len(t.tracked) < maxTracked/2
	}
	return len(t.tracked) < maxTracked
}

// track begins to follow the connection with the record c. It returns nil if the connection
// is not to be followed, if the record is out of date, or if there is no room.
func (t *Tracker) track(c *abi.Conn, at time.Time) *tracked {
	if !Followed(c) || c.At < t.recovered[c.Cookie] {
		return nil
	}
	if t.dead.has(c.Cookie) {
		return nil
	}
	if !t.hasRoom(c) {
		t.overflowed++
		return nil
	}
	tc := &tracked{conn: *c, at: at, verdict: VerdictOfClass(c.Class), since: at}
	t.tracked[c.Cookie] = tc
	return tc
}

// endTrouble stops following the connection with the record c, which has recovered.
func (t *Tracker) endTrouble(c *abi.Conn) {
	delete(t.tracked, c.Cookie)
	if len(t.recovered) < maxTracked {
		t.recovered[c.Cookie] = c.At
	} else {
		t.overflowed++
	}
}

// answer returns the history entry if the peer has answered between the last record of
// the connection and c.
func (t *Tracker) answer(tc *tracked, c *abi.Conn, at time.Time) (e HistoryEntry, answered bool) {
	if tc.conn.Unanswered == 0 || c.Unanswered > 0 {
		return HistoryEntry{}, false
	}
	heard, took := at.Add(-t.rules.Duration(c.Silent)), time.Duration(-1)
	if tc.conn.Solicited != abi.AgeNone {
		took = max(heard.Sub(tc.at.Add(-t.rules.Duration(tc.conn.Solicited))), 0)
	}
	return HistoryEntry{At: heard, Kind: HistoryAnswer, Unanswered: int(tc.conn.Unanswered), Took: took}, true
}

// forecast returns the forecast of the connection, of which c is the new record. It is
// the old forecast as long as that holds: until the peer is heard, an ICMP error reports
// it, the settings change, another timer takes over, a device begins or ceases to take
// what the kernel sends, or a signal ends a close(2) that waits.
func (t *Tracker) forecast(tc *tracked, c *abi.Conn, at time.Time) Forecast {
	f := t.rules.Forecast(c, at)
	old := &tc.conn
	switch {
	case tc.forecast.By != f.By, heardSince(old, c), c.Backoff < old.Backoff, RTOReverting(c), Congested(c) != Congested(old),
		c.KeepaliveTime != old.KeepaliveTime, c.KeepaliveIntvl != old.KeepaliveIntvl,
		c.KeepaliveProbes != old.KeepaliveProbes, c.UserTimeout != old.UserTimeout, c.Retries != old.Retries,
		interrupted(old, c):
		return f
	}
	return tc.forecast
}

// interrupted reports whether close(2) waited at the time of old (SO_LINGER), and had ceased to
// before its time at that of now.
func interrupted(old, now *abi.Conn) bool {
	first, _ := lingersUntil(old)
	return Lingering(old) && !Lingering(now) && old.Lingering != abi.AgeNone && now.Jiffies < first
}

// heardSince reports whether the peer was heard between two records of a connection. It
// allows for one jiffy, since the times are rounded to jiffies.
func heardSince(old, now *abi.Conn) bool {
	if now.Silent == abi.AgeNone {
		return false
	}
	return old.Silent == abi.AgeNone || int32(heardAt(now)-heardAt(old)) > 1
}

// heardAt returns the jiffy, of which it has the low 32 bits, in which the peer was last
// heard. It must have been heard.
func heardAt(c *abi.Conn) uint32 { return uint32(c.Jiffies) - c.Silent }

// emit updates the row of a connection, unless the connection has died, and calls notify.
func (t *Tracker) emit(n Notice) {
	if !t.dead.has(n.Connection.Cookie) {
		t.rows.notice(&n.Connection)
	}
	t.notify(n)
}
