// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Describe describes the socket whose record, read at that time, is c.
func (r *Rules) Describe(c *abi.Conn, at time.Time) Connection {
	connection := r.Outline(c, at)
	if c.Class != abi.ClassNone {
		connection.GivesUp = r.Forecast(c, at)
	}
	return connection
}

// Outline is Describe without the forecast, which is most of the work. A listener and a
// stub are not connections: nothing was sent or heard on them. The settings of a listener
// are those that the connections accepted from it begin with.
func (r *Rules) Outline(c *abi.Conn, at time.Time) Connection {
	connection := Connection{
		Cookie:   c.Cookie,
		At:       at,
		Local:    c.Local(),
		Remote:   c.Remote(),
		Netns:    c.Netns,
		State:    StateOf(c.State),
		Idle:     -1,
		Silent:   -1,
		Orphaned: c.Flags&abi.ConnOrphan != 0,
		Accepted: c.Flags&abi.ConnUnaccepted == 0,
	}
	if c.Class == abi.ClassNone && connection.State != Listen {
		connection.Stub = true
		return connection
	}
	connection.Keepalive = r.keepalive(c)
	connection.UserTimeout = time.Duration(c.UserTimeout) * time.Millisecond
	connection.UID, connection.CgroupID = c.UID, c.Cgroup
	for risk := range Risk(Risks) {
		if c.Risks&(1<<risk) != 0 {
			connection.Risks = append(connection.Risks, risk)
		}
	}
	if c.Class == abi.ClassNone {
		connection.AcceptQueue, connection.AcceptLimit = c.AcceptQueue, c.AcceptLimit
		connection.ListenDrops = c.ListenDrops()
		return connection
	}
	connection.SegmentsIn, connection.Attempts = c.SegmentsIn, int(c.Attempts)
	connection.Idle, connection.Silent = r.Age(c.Idle), r.Age(c.Silent)
	connection.RetransmitsTotal = int(c.TotalRetrans)
	connection.RTO = r.Duration(c.Rto)
	connection.UnackedSegments = c.PacketsOut
	connection.SendQueue, connection.ReceiveQueue = c.SendQueue, c.ReceiveQueue
	connection.SendWindow = c.SendWindow
	connection.SRTT = time.Duration(c.Srtt) * time.Microsecond
	if c.PacketsOut > 0 {
		connection.RetransmitsUnanswered = int(c.Retransmits)
	}
	if c.Evidence == abi.EvidenceKeepalive {
		connection.Keepalive.ProbesOut = int(c.Unanswered)
	}
	connection.Verdict, connection.Evidence = r.Judge(c)
	r.giveReason(&connection, c)
	if began := r.began(c, connection.Verdict); began >= 0 {
		connection.Since = at.Add(-began)
	}
	return connection
}

// giveReason sets the fields that depend on the verdict, of which the record is c.
func (r *Rules) giveReason(connection *Connection, c *abi.Conn) {
	connection.Reason = r.reason(c, connection.Verdict)
	connection.Also = r.also(c, connection.Verdict)
	connection.Unanswered = int(c.Unanswered)
	if connection.Verdict == Stuck {
		connection.Unanswered = int(c.Unacknowledged)
	}
}

func (r *Rules) keepalive(c *abi.Conn) Keepalive {
	return Keepalive{
		Enabled:   c.Flags&abi.ConnKeepalive != 0,
		Time:      r.Duration(c.KeepaliveTime),
		Interval:  r.Duration(c.KeepaliveIntvl),
		Probes:    int(c.KeepaliveProbes),
		PerSocket: c.Flags&(abi.ConnKeepaliveTimeSet|abi.ConnKeepaliveIntvlSet|abi.ConnKeepaliveProbesSet) != 0,
	}
}
