// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Describe describes a connection whose record, read at that time, is c. The description
// has the owner and the beginning of the verdict as the tracker knows them. Its verdict
// and evidence follow from c, unless the tracker knows a newer record. Describe does not
// change the tracker.
func (t *Tracker) Describe(c *abi.Conn, at time.Time) Connection {
	connection := t.Outline(c, at)
	connection.GivesUp = t.rules.Forecast(c, at)
	return connection
}

// Outline is Describe without the forecast, which is most of the work.
func (t *Tracker) Outline(c *abi.Conn, at time.Time) Connection {
	connection := t.rules.Outline(c, at)
	tc := t.tracked[c.Cookie]
	if tc == nil || c.At < tc.conn.At {
		t.complete(&connection, c, tc)
		return connection
	}
	fresh := *tc
	fresh.verdict, fresh.evidence = t.judge(tc, c)
	if fresh.verdict != tc.verdict {
		fresh.since = at
	}
	t.complete(&connection, c, &fresh)
	return connection
}

// describeTracked describes a connection whose record, read at that time, is c, with the
// verdict of tc. tc is nil if the connection is not in trouble.
func (t *Tracker) describeTracked(c *abi.Conn, at time.Time, tc *tracked) Connection {
	connection := t.rules.Describe(c, at)
	t.complete(&connection, c, tc)
	return connection
}

// describeRow describes a connection that a census read; ok is false if it has died.
func (t *Tracker) describeRow(o *Observation) (c Connection, ok bool) {
	if t.dead.has(o.Conn.Cookie) {
		return Connection{}, false
	}
	return t.Describe(&o.Conn, o.At), true
}

// OtherEnd returns the other end of the connection c, if it is on this node and its application
// does not read. It returns nil if the tracker follows no such connection, or more than one: any
// network namespace may have these addresses.
func (t *Tracker) OtherEnd(c *Connection) (other *Connection) {
	for _, tc := range t.tracked {
		r := &tc.conn
		if r.Flags&abi.ConnUnread == 0 || r.Cookie == c.Cookie || r.Rport != c.Local.Port() || r.Local() != c.Remote || r.Remote() != c.Local {
			continue
		}
		if other != nil {
			return nil
		}
		other = new(t.describeTracked(r, tc.at, tc))
	}
	return other
}

// complete adds to the description of a record what the tracker knows of the connection.
// tc is nil if the connection is not in trouble.
func (t *Tracker) complete(c *Connection, record *abi.Conn, tc *tracked) {
	if tc != nil {
		c.Verdict, c.Evidence, c.Since = tc.verdict, tc.evidence, Earlier(tc.since, c.At)
		t.rules.giveReason(c, record)
		tc.blame(c, record)
		c.setOwner(tc.owner)
	} else if h := t.histories[c.Cookie]; h != nil {
		// It has been in trouble: its history has the time of the recovery.
		for _, e := range h.entries {
			if e.Kind == HistoryVerdict && e.To == c.Verdict {
				c.Since = Earlier(e.At, c.At)
			}
		}
	}
	t.askHost(c, record)
	if row := t.rows.current[c.Cookie]; row != nil && c.Held() {
		c.setOwner(row.owner())
	}
}
