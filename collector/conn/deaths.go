// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"iter"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// goneFor is how long a tracker waits for the event of a death after a watch pass did not
// find the socket.
const goneFor = time.Second

// death applies the event of a death. at is the time of its record.
func (t *Tracker) death(e *abi.Event, at time.Time) {
	cookie := e.Conn.Cookie
	if t.dead.has(cookie) {
		return // a watch pass reported it before
	}
	tc := t.tracked[cookie]
	connection := t.rules.Outline(&e.Conn, at) // a dead connection has no forecast
	t.complete(&connection, &e.Conn, tc)
	if tc != nil && tc.verdict != Unread && connection.Unanswered == 0 {
		// Either the peer was heard, or the kernel cleared the count as it ended the
		// connection.
		if heardSince(&tc.conn, &e.Conn) {
			connection.Evidence = NoEvidence
		} else {
			t.rules.giveReason(&connection, &tc.conn)
			tc.blame(&connection, &tc.conn)
		}
	}
	t.recordDeath(cookie, tc, Death{
		Connection: connection, DiedAt: at, Cause: Cause(e.Cause), During: Evidence(e.During), Errno: e.Err,
	})
}

// watchedGone applies a record of a watch pass that did not find the socket. If the
// record has a cause, the event of the death could not be sent. Else the event may still
// come: sweep records the death if it does not.
func (t *Tracker) watchedGone(c *abi.Conn, at time.Time) {
	tc := t.tracked[c.Cookie]
	switch {
	case tc == nil:
	case Cause(c.Cause) != CauseUnknown:
		d := Death{Connection: t.describeTracked(&tc.conn, tc.at, tc), DiedAt: at, Cause: Cause(c.Cause)}
		if d.Cause == CauseUserTimeout {
			d.During = Evidence(c.Evidence)
		}
		t.recordDeath(c.Cookie, tc, d)
	case tc.gone.IsZero():
		tc.gone = at
	}
}

// AwaitsDeaths reports whether a watch pass did not find a socket whose death no event has
// reported yet.
func (t *Tracker) AwaitsDeaths() bool {
	for _, tc := range t.tracked {
		if !tc.gone.IsZero() {
			return true
		}
	}
	return false
}

// sweep records the deaths of connections in trouble whose sockets are gone and whose
// deaths no event reported.
func (t *Tracker) sweep(now time.Time) {
	for cookie, tc := range t.tracked {
		if tc.gone.IsZero() || now.Sub(tc.gone) < goneFor {
			continue
		}
		t.unseen++
		t.recordDeath(cookie, tc, Death{Connection: t.describeTracked(&tc.conn, tc.at, tc), DiedAt: tc.gone, Cause: CauseUnknown})
	}
}

// recordDeath completes and records a death. tc is nil if the connection was not in
// trouble.
func (t *Tracker) recordDeath(cookie uint64, tc *tracked, d Death) {
	if tc != nil {
		if tc.verdict == Zombie {
			d.ZombieFor = max(d.DiedAt.Sub(tc.since), 0)
			t.zombieSeconds.observe(d.ZombieFor)
		}
		if tc.forecast.Ever() && d.Cause.IsTimeout() {
			d.Forecast, d.ForecastError = tc.forecast, tc.forecast.miss(d.DiedAt)
			t.forecastError.observe(d.ForecastError.Abs())
		}
		// The last verdict, not the one that follows from the record of the death.
		d.Verdict, d.Since = tc.verdict, Earlier(tc.since, d.At)
		t.uncount(tc.countKey())
		delete(t.tracked, cookie)
	}
	if row := t.rows.current[cookie]; row != nil && d.Process == nil {
		d.setOwner(row.owner()) // also if no process holds the socket any more
	}
	t.rows.death(cookie)
	delete(t.histories, cookie)
	t.dead.add(cookie)
	t.deaths.add(d, tc != nil)
	t.notify(Notice{Kind: NoticeDeath, At: d.DiedAt, Connection: d.Connection, Death: &d})
}

// Deaths returns the deaths that the tracker remembers, newest first.
func (t *Tracker) Deaths() iter.Seq[*Death] { return t.deaths.all() }
