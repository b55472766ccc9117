// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// Describe translates what the kernel said at a moment for those who read it.
func (r *Rules) Describe(c *bpf.Conn, at time.Time) Connection {
	if c.Class == bpf.ClassNone {
		return r.describeOther(c, at)
	}
	connection := Connection{
		Cookie:           c.Cookie,
		At:               at,
		Local:            bpf.Local(c),
		Remote:           bpf.Remote(c),
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
		SendWindow:       c.SendWindow,
		SRTT:             time.Duration(c.Srtt) * time.Microsecond,
		Orphaned:         c.Flags&bpf.ConnOrphan != 0,
		Accepted:         c.Flags&bpf.ConnUnaccepted == 0,
		UID:              c.Uid,
		CgroupID:         c.Cgroup,
	}
	if c.PacketsOut > 0 {
		connection.RetransmitsUnanswered = int(c.Retransmits)
	}
	if c.Evidence == bpf.EvidenceKeepalive {
		connection.Keepalive.ProbesOut = int(c.Unanswered)
	}
	for risk := range Risk(Risks) {
		if c.Risks&(1<<risk) != 0 {
			connection.Risks = append(connection.Risks, risk)
		}
	}
	connection.GivesUp = r.Forecast(c, at)
	connection.Verdict, connection.Evidence = r.Judge(c)
	if began := r.began(c, connection.Verdict); began >= 0 {
		connection.Since = at.Add(-began)
	}
	return connection
}

// describeOther is Describe of what is no connection. Nothing has been sent or
// heard on it; a listener's settings are those that its connections begin with.
func (r *Rules) describeOther(c *bpf.Conn, at time.Time) Connection {
	connection := Connection{
		Cookie:   c.Cookie,
		At:       at,
		Local:    bpf.Local(c),
		Remote:   bpf.Remote(c),
		Netns:    c.Netns,
		State:    StateOf(c.State),
		Idle:     -1,
		Silent:   -1,
		Orphaned: c.Flags&bpf.ConnOrphan != 0,
		Accepted: c.Flags&bpf.ConnUnaccepted == 0,
	}
	if connection.Stub = connection.State != Listen; connection.Stub {
		return connection
	}
	connection.Keepalive = r.keepalive(c)
	connection.UserTimeout = time.Duration(c.UserTimeout) * time.Millisecond
	connection.AcceptQueue, connection.AcceptLimit = c.AcceptQueue, c.AcceptLimit
	connection.UID, connection.CgroupID = c.Uid, c.Cgroup
	return connection
}

func (r *Rules) keepalive(c *bpf.Conn) Keepalive {
	return Keepalive{
		Enabled:   c.Flags&bpf.ConnKeepalive != 0,
		Time:      r.Duration(c.KeepaliveTime),
		Interval:  r.Duration(c.KeepaliveIntvl),
		Probes:    int(c.KeepaliveProbes),
		PerSocket: c.Flags&(bpf.ConnKeepaliveTimeSet|bpf.ConnKeepaliveIntvlSet|bpf.ConnKeepaliveProbesSet) != 0,
	}
}
