// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// answerGrace is how long a single solicitation may be unanswered before the connection
// is a suspect. Without it every keepalive probe would make a suspect for one round trip.
// RFC 6298 (2.4) makes a sender wait for at least a second. answerGrace is twice that,
// because a peer answers out-of-window probes at most every 500 ms (tcp_oow_rate_limited,
// net.ipv4.tcp_invalid_ratelimit): it may leave the second of two probes unanswered until
// a third one follows, in about a second.
const answerGrace = 2 * time.Second

// Rules are the settings that decide a verdict.
type Rules struct {
	IdleAfter        time.Duration // as configured in the kernel
	StalledAfter     time.Duration
	ZombieUnanswered int
	ZombieSilence    time.Duration
	Middleboxes      Middleboxes   // as configured in the kernel
	UnreadAfter      time.Duration // as configured in the kernel
	HZ               int           // jiffies a second
}

// Duration returns how long a number of jiffies is.
func (r *Rules) Duration(jiffies uint32) time.Duration {
	return time.Duration(jiffies) * time.Second / time.Duration(r.HZ)
}

// Age returns an age in jiffies as a duration, or -1 if the age is abi.AgeNone: it never
// happened.
func (r *Rules) Age(jiffies uint32) time.Duration {
	if jiffies == abi.AgeNone {
		return -1
	}
	return r.Duration(jiffies)
}

// synchronized reports whether a connection can be a zombie: both ends have agreed on it
// (RFC 9293 3.3.2), and it is no orphan in FIN_WAIT2, which the kernel ends soon anyway.
func synchronized(c *abi.Conn) bool {
	switch StateOf(c.State) {
	case Established, FinWait1, CloseWait, Closing, LastAck:
		return true
	case FinWait2:
		return c.Flags&abi.ConnOrphan == 0
	}
	return false
}

// Judge returns the verdict of a connection and the evidence for it.
func (r *Rules) Judge(c *abi.Conn) (Verdict, Evidence) { return r.judge(c, r.stuck(c)) }

// judge is Judge for a connection that is stuck, unless it is worse, or is not.
func (r *Rules) judge(c *abi.Conn, stuck bool) (Verdict, Evidence) {
	due := r.due(c)
	switch {
	case synchronized(c) && due >= r.ZombieUnanswered && r.Age(c.Silent) >= r.ZombieSilence && !r.neverAccepted(c):
		return Zombie, Evidence(c.Evidence)
	case int(c.Attempts) >= r.ZombieUnanswered && r.Age(c.Failing) >= r.ZombieSilence:
		return Blocked, Evidence(c.Evidence)
	case due == 0 && r.windowClosed(c):
		return Stalled, EvidenceWindowProbe
	case stuck:
		return Stuck, Evidence(c.Evidence)
	case due > 0, c.Attempts > 0 && c.Flags&abi.ConnTrouble != 0:
		return Suspect, Evidence(c.Evidence)
	case c.Flags&abi.ConnUnread != 0:
		return Unread, EvidenceReceiveQueue
	}
	return VerdictOfClass(c.Class), NoEvidence
}

// repeatsHandshake reports whether segments of the peer came after the handshake of a
// connection that we made, and TCP accepted none of them: the peer sends its SYN-ACK again.
// It allows for a jiffy, since the times are rounded to jiffies.
func repeatsHandshake(c *abi.Conn) bool {
	return c.Flags&abi.ConnNeverAcked != 0 && c.Silent != abi.AgeNone && uint64(c.Silent)+1 < uint64(Accepted(c))
}

// handshakeLasts is how long after the handshake a peer that is there may not answer, if its
// listener does not accept the connection. With Linux's defaults (tcp_synack_retries 5) it
// sends its SYN-ACK for 63 s, at waits that double. Then it forgets the handshake, and answers
// the next retransmission by a reset, which may take as long again.
const handshakeLasts = 126 * time.Second

// neverAccepted reports whether the listener of the peer does not accept a connection, so that
// silence is no sign that the peer is gone.
func (r *Rules) neverAccepted(c *abi.Conn) bool {
	return repeatsHandshake(c) && r.Age(Accepted(c)) < handshakeLasts
}

// windowClosed reports whether the peer's window has been closed for StalledAfter.
func (r *Rules) windowClosed(c *abi.Conn) bool {
	return c.Flags&abi.ConnWindowClosed != 0 && r.Age(c.WindowClosed) >= r.StalledAfter
}

// also returns the verdicts other than v whose conditions hold, too, worst first.
func (r *Rules) also(c *abi.Conn, v Verdict) (others []Verdict) {
	if v != Stalled && r.due(c) == 0 && r.windowClosed(c) {
		others = append(others, Stalled)
	}
	if v != Unread && c.Flags&abi.ConnUnread != 0 {
		others = append(others, Unread)
	}
	return others
}

// Followed reports whether a [Tracker] follows the connection with the record c one by one:
// it is in trouble, or its application has left data for UnreadAfter.
func Followed(c *abi.Conn) bool { return c.Flags&(abi.ConnTrouble|abi.ConnUnread) != 0 }

// stuck reports whether a connection is stuck, unless it is a zombie: enough
// solicitations are not acknowledged for long enough, although the peer was heard since
// the first of them, or has not accepted the connection.
func (r *Rules) stuck(c *abi.Conn) bool {
	if !synchronized(c) || int(c.Unacknowledged) < r.ZombieUnanswered || c.Silent == abi.AgeNone {
		return false
	}
	since := r.UnacknowledgedFor(c)
	return since >= r.ZombieSilence && (r.Age(c.Silent) < since || r.neverAccepted(c))
}

// UnacknowledgedFor returns how long ago the first of the solicitations was sent that the
// peer has not acknowledged, or -1 if unknown.
func (r *Rules) UnacknowledgedFor(c *abi.Conn) time.Duration {
	if Evidence(c.Evidence) == EvidenceRetransmit {
		return r.Age(c.Retransmitting)
	}
	age := r.solicited(c)
	for i := 1; age >= 0 && i < int(c.Unacknowledged); i++ {
		age += r.waited(c, i)
	}
	return age
}

// due returns how many of the unanswered solicitations a live peer would have answered by
// now. Each is due after a round trip, a single one after answerGrace.
func (r *Rules) due(c *abi.Conn) int {
	n := int(c.Unanswered)
	age := r.solicited(c)
	if n == 0 || age < 0 {
		return n
	}
	for i, wait := 1, r.roundTrip(c); n > 0 && age < wait; i++ {
		n--
		age += r.waited(c, i)
	}
	if n == 1 && age < answerGrace {
		return 0
	}
	return n
}

// recheckAfter returns the time until the answer to another solicitation is due, when the
// verdict may change; 0 if all are due already.
func (r *Rules) recheckAfter(c *abi.Conn) time.Duration {
	age, wait := r.solicited(c), r.roundTrip(c)
	if c.Unanswered < 2 || age < 0 || age >= wait {
		return 0
	}
	for i := 1; i < int(c.Unanswered) && age+r.waited(c, i) < wait; i++ {
		age += r.waited(c, i)
	}
	return wait - age + r.Duration(1)
}

// roundTripLeast is the least time that roundTrip returns.
const roundTripLeast = 50 * time.Millisecond

// roundTrip returns how long an answer may take: twice the smoothed round-trip time, but
// not longer than the retransmission timeout without its backoff, since a peer can make
// the former as long as it likes.
func (r *Rules) roundTrip(c *abi.Conn) time.Duration {
	timeout := r.Duration(c.Rto)
	if Evidence(c.Evidence) == EvidenceRetransmit { // the others do not back off icsk_rto
		timeout >>= min(c.Backoff, 31)
	}
	return max(min(2*time.Duration(c.Srtt)*time.Microsecond, timeout), roundTripLeast)
}

// solicited returns how long ago the last solicitation was sent, or -1 if unknown. If we
// did not observe it, it is derived from the timer armed for the next one.
func (r *Rules) solicited(c *abi.Conn) time.Duration {
	if c.Solicited != abi.AgeNone {
		return r.Duration(c.Solicited)
	}
	expires := c.WriteExpires
	if Evidence(c.Evidence) == EvidenceKeepalive {
		expires = c.KeepaliveExpires
	} else if c.UserTimeout > 0 {
		return -1 // TCP_USER_TIMEOUT may have shortened the wait
	}
	if expires == 0 {
		return -1
	}
	left := max(int64(expires-c.Jiffies), 0)
	return max(r.waited(c, 0)-time.Duration(left)*time.Second/time.Duration(r.HZ), 0)
}

// waited returns how long the kernel waits between a solicitation and the next one. n
// counts back from the last solicitation, which is 0. The waits between keepalive probes
// are equal; those between the others double.
func (r *Rules) waited(c *abi.Conn, n int) time.Duration {
	wait := r.Duration(c.Rto)
	switch {
	case Evidence(c.Evidence) == EvidenceKeepalive && c.Flags&abi.ConnKeepalive == 0:
		return askedSpacing
	case Evidence(c.Evidence) == EvidenceKeepalive:
		return r.Duration(c.KeepaliveIntvl)
	case c.PacketsOut == 0: // tcp_probe0_when()
		wait = min(max(wait, leastRTO)<<min(c.Backoff, 10), r.Duration(c.RtoMax))
	}
	return wait >> n
}

// askedSpacing is the time between two keepalive probes of `halfopen probe`.
const askedSpacing = 3 * time.Second

// leastRTO is TCP_RTO_MIN (include/net/tcp.h).
const leastRTO = 200 * time.Millisecond

// askedFor returns how long ago the n-th unanswered solicitation of the streak was sent, or -1
// if unknown.
func (r *Rules) askedFor(c *abi.Conn, n int) time.Duration {
	age := r.solicited(c)
	if age < 0 || int(c.Unanswered) < n {
		return -1
	}
	for i := 1; i <= int(c.Unanswered)-n; i++ {
		age += r.waited(c, i)
	}
	return age
}

// began returns how long ago a verdict began, derived from the times and timers of the
// socket, or -1 if unknown.
func (r *Rules) began(c *abi.Conn, v Verdict) time.Duration {
	switch v {
	case Idle, Unguarded:
		return max(r.Duration(c.Idle)-r.IdleAfter, 0)
	case Unread:
		return max(r.Age(c.Unread)-r.UnreadAfter, 0)
	case Stalled:
		return max(r.Duration(c.WindowClosed)-r.StalledAfter, 0)
	case Suspect:
		return max(r.askedFor(c, 1)-answerGrace, r.askedFor(c, 2))
	case Blocked:
		return max(r.Age(c.Failing)-r.ZombieSilence, 0)
	case Stuck:
		return max(r.UnacknowledgedFor(c)-r.ZombieSilence, 0)
	case Zombie:
		return min(r.Duration(c.Silent)-r.ZombieSilence, r.askedFor(c, r.ZombieUnanswered))
	}
	return -1
}

// Accepted returns how many jiffies ago TCP last accepted a segment of the peer. The
// kernel's keepalive and window probes wait for that; out-of-window segments do not count.
// A recording of an older version does not have it.
func Accepted(c *abi.Conn) uint32 { return max(c.Accepted, c.Silent) }

// VerdictOfClass returns the verdict of a connection that is not in trouble, from the
// class that the kernel programs gave it.
func VerdictOfClass(class uint8) Verdict {
	switch class {
	case abi.ClassIdle:
		return Idle
	case abi.ClassUnguarded:
		return Unguarded
	}
	return Active
}
