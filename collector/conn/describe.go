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

// Outline is Describe without the forecast, which is most of the work.
func (r *Rules) Outline(c *abi.Conn, at time.Time) Connection {
	if c.Class == abi.ClassNone {
		return r.describeOther(c, at)
	}
	connection := Connection{
		Cookie:           c.Cookie,
		At:               at,
		Local:            c.Local(),
		Remote:           c.Remote(),
		Netns:            c.Netns,
		State:            StateOf(c.State),
		Unanswered:       int(c.Unanswered),
		Idle:             r.Age(c.Idle),
		Silent:           r.Age(c.Silent),
		Keepalive:        r.keepalive(c),
		UserTimeout:      time.Duration(c.UserTimeout) * time.Millisecond,
		RetransmitsTotal: int(c.TotalRetrans),
		RTO:              r.Duration(c.Rto),
		UnackedSegments:  c.PacketsOut,
		SendQueue:        c.SendQueue,
		ReceiveQueue:     c.ReceiveQueue,
		SendWindow:       c.SendWindow,
		SRTT:             time.Duration(c.Srtt) * time.Microsecond,
		Orphaned:         c.Flags&abi.ConnOrphan != 0,
		Accepted:         c.Flags&abi.ConnUnaccepted == 0,
		UID:              c.UID,
		CgroupID:         c.Cgroup,
	}
	if c.PacketsOut > 0 {
		connection.RetransmitsUnanswered = int(c.Retransmits)
	}
	if c.Evidence == abi.EvidenceKeepalive {
		connection.Keepalive.ProbesOut = int(c.Unanswered)
	}
	for risk := range Risk(Risks) {
		if c.Risks&(1<<risk) != 0 {
			connection.Risks = append(connection.Risks, risk)
		}
	}
	connection.Verdict, connection.Evidence = r.Judge(c)
	if began := r.began(c, connection.Verdict); began >= 0 {
		connection.Since = at.Add(-began)
	}
	return connection
}

// describeOther describes a socket that is not a connection: a listener or a stub.
// Nothing was sent or heard on it. The settings of a listener are those that the
// connections accepted from it begin with.
func (r *Rules) describeOther(c *abi.Conn, at time.Time) Connection {
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
	if connection.Stub = connection.State != Listen; connection.Stub {
		return connection
	}
	connection.Keepalive = r.keepalive(c)
	connection.UserTimeout = time.Duration(c.UserTimeout) * time.Millisecond
	connection.AcceptQueue, connection.AcceptLimit = c.AcceptQueue, c.AcceptLimit
	connection.UID, connection.CgroupID = c.UID, c.Cgroup
	return connection
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
