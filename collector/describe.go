// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// Describe translates what the kernel said at a moment for those who read it.
func (r *Rules) Describe(c *bpf.Conn, at time.Time) Connection {
	if c.Class == bpf.ClassNone {
		return r.describeOther(c, at)
	}
	conn := Connection{
		Cookie:           c.Cookie,
		At:               at,
		Local:            bpf.Local(c),
		Remote:           bpf.Remote(c),
		Netns:            c.Netns,
		State:            stateOf(c.State),
		Unanswered:       int(c.Unanswered),
		Idle:             r.age(c.Idle),
		Silent:           r.age(c.Silent),
		Keepalive:        r.keepalive(c),
		UserTimeout:      time.Duration(c.UserTimeout) * time.Millisecond,
		RetransmitsTotal: int(c.TotalRetrans),
		RTO:              r.duration(c.Rto),
		UnackedSegments:  c.PacketsOut,
		SendQueue:        c.SendQueue,
		SendWindow:       c.SendWindow,
		SRTT:             time.Duration(c.Srtt) * time.Microsecond,
		Orphaned:         c.Flags&bpf.ConnOrphan != 0,
		Accepted:         c.Flags&bpf.ConnUnaccepted == 0,
		UID:              c.Uid,
		Cgroup:           c.Cgroup,
	}
	if c.PacketsOut > 0 {
		conn.RetransmitsUnanswered = int(c.Retransmits)
	}
	if c.Evidence == bpf.EvidenceKeepalive {
		conn.Keepalive.ProbesOut = int(c.Unanswered)
	}
	for risk := range Risk(Risks) {
		if c.Risks&(1<<risk) != 0 {
			conn.Risks = append(conn.Risks, risk)
		}
	}
	conn.GivesUp = r.Forecast(c, at)
	conn.Verdict, conn.Evidence = r.Judge(c)
	if began := r.began(c, conn.Verdict); began >= 0 {
		conn.Since = at.Add(-began)
	}
	return conn
}

// describeOther is Describe of what is no connection. Nothing has been sent or
// heard on it; a listener's settings are those that its connections begin with.
func (r *Rules) describeOther(c *bpf.Conn, at time.Time) Connection {
	conn := Connection{
		Cookie:   c.Cookie,
		At:       at,
		Local:    bpf.Local(c),
		Remote:   bpf.Remote(c),
		Netns:    c.Netns,
		State:    stateOf(c.State),
		Idle:     -1,
		Silent:   -1,
		Orphaned: c.Flags&bpf.ConnOrphan != 0,
		Accepted: c.Flags&bpf.ConnUnaccepted == 0,
	}
	if conn.Stub = conn.State != Listen; conn.Stub {
		return conn
	}
	conn.Keepalive = r.keepalive(c)
	conn.UserTimeout = time.Duration(c.UserTimeout) * time.Millisecond
	conn.AcceptQueue, conn.AcceptLimit = c.AcceptQueue, c.AcceptLimit
	conn.UID, conn.Cgroup = c.Uid, c.Cgroup
	return conn
}

func (r *Rules) keepalive(c *bpf.Conn) Keepalive {
	return Keepalive{
		Enabled:   c.Flags&bpf.ConnKeepalive != 0,
		Time:      r.duration(c.KeepaliveTime),
		Interval:  r.duration(c.KeepaliveIntvl),
		Probes:    int(c.KeepaliveProbes),
		PerSocket: c.Flags&(bpf.ConnKeepaliveTimeSet|bpf.ConnKeepaliveIntvlSet|bpf.ConnKeepaliveProbesSet) != 0,
	}
}
