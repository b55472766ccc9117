// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// answerGrace is how long a first solicitation may go unanswered before anybody
// is suspected; without it every keepalive probe would make a suspect for one
// round trip. RFC 6298 (2.4) lets a sender wait a second at least. Twice that,
// because a peer answers out-of-window probes at most every 500 ms
// (tcp_oow_rate_limited, net.ipv4.tcp_invalid_ratelimit): of two that are closer
// together the second goes unanswered, until a third that follows in about a
// second.
const answerGrace = 2 * time.Second

// Rules say what makes a verdict.
type Rules struct {
	IdleAfter        time.Duration // as configured in the kernel
	StalledAfter     time.Duration
	ZombieUnanswered int
	ZombieSilence    time.Duration
	HZ               int // jiffies a second
}

func (r *Rules) duration(jiffies uint32) time.Duration {
	return time.Duration(jiffies) * time.Second / time.Duration(r.HZ)
}

// age translates the age of something that may never have happened: -1 then.
func (r *Rules) age(jiffies uint32) time.Duration {
	if jiffies == bpf.AgeNone {
		return -1
	}
	return r.duration(jiffies)
}

// synchronized are the states in which both ends have agreed on a connection
// (RFC 9293 3.3.2) and in which something can still be unanswered: FIN_WAIT2
// has nothing left to send.
func synchronized(s State) bool {
	switch s {
	case Established, FinWait1, CloseWait, Closing, LastAck:
		return true
	}
	return false
}

// Judge gives a connection's verdict and the evidence for it.
func (r *Rules) Judge(c *bpf.Conn) (Verdict, Evidence) {
	if r.overdue(c) {
		if synchronized(stateOf(c.State)) && int(c.Unanswered) >= r.ZombieUnanswered &&
			c.Silent != bpf.AgeNone && r.duration(c.Silent) >= r.ZombieSilence {
			return Zombie, Evidence(c.Evidence)
		}
		return Suspect, Evidence(c.Evidence)
	}
	if c.Flags&bpf.ConnWindowClosed != 0 && c.WindowClosed != bpf.AgeNone &&
		r.duration(c.WindowClosed) >= r.StalledAfter {
		return Stalled, EvidenceWindowProbe
	}
	return ofClass(c.Class), NoEvidence
}

// overdue tells whether an answer is. The second solicitation says that the
// first was not answered; a first one has its grace, unless nobody saw it go.
func (r *Rules) overdue(c *bpf.Conn) bool {
	switch c.Unanswered {
	case 0:
		return false
	case 1:
		return c.Solicited == bpf.AgeNone || r.duration(c.Solicited) >= answerGrace
	}
	return true
}

// ofClass is the verdict that follows from the socket's fields alone.
func ofClass(class uint8) Verdict {
	switch class {
	case bpf.ClassIdle:
		return Idle
	case bpf.ClassUnguarded:
		return Unguarded
	}
	return Active
}

// Describe translates what the kernel said at a moment for those who read it.
func (r *Rules) Describe(c *bpf.Conn, at time.Time) Connection {
	conn := Connection{
		Cookie:     c.Cookie,
		At:         at,
		Local:      bpf.Local(c),
		Remote:     bpf.Remote(c),
		Netns:      c.Netns,
		State:      stateOf(c.State),
		Unanswered: int(c.Unanswered),
		Idle:       r.age(c.Idle),
		Silent:     r.age(c.Silent),
		Keepalive: Keepalive{
			Enabled:   c.Flags&bpf.ConnKeepalive != 0,
			Time:      r.duration(c.KeepaliveTime),
			Interval:  r.duration(c.KeepaliveIntvl),
			Probes:    int(c.KeepaliveProbes),
			PerSocket: c.Flags&bpf.ConnKeepalivePerSocket != 0,
		},
		UserTimeout:      time.Duration(c.UserTimeout) * time.Millisecond,
		RetransmitsTotal: int(c.TotalRetrans),
		UnackedSegments:  c.PacketsOut,
		SendQueue:        c.SendQueue,
		SendWindow:       c.SendWindow,
		SRTT:             time.Duration(c.Srtt) * time.Microsecond,
		Orphaned:         c.Flags&bpf.ConnOrphan != 0,
		Accepted:         c.Flags&bpf.ConnUnaccepted == 0,
		UID:              c.Uid,
	}
	if c.PacketsOut > 0 {
		conn.RetransmitsUnanswered = int(c.Retransmits)
	}
	if c.Evidence == bpf.EvidenceKeepalive {
		conn.Keepalive.ProbesOut = int(c.ProbesOut)
	}
	for risk := range Risk(Risks) {
		if c.Risks&(1<<risk) != 0 {
			conn.Risks = append(conn.Risks, risk)
		}
	}
	conn.Verdict, conn.Evidence = r.Judge(c)
	// An idle connection's verdict began when the data stopped plus IdleAfter;
	// that of an active one did when it was made, which the kernel does not say.
	if conn.Verdict == Idle || conn.Verdict == Unguarded {
		conn.Since = at.Add(r.IdleAfter - conn.Idle)
	}
	return conn
}
