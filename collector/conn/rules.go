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
	MiddleboxTimeout time.Duration // as configured in the kernel
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
func (r *Rules) Judge(c *abi.Conn) (Verdict, Evidence) {
	if due := r.due(c); due > 0 {
		if synchronized(c) && due >= r.ZombieUnanswered &&
			c.Silent != abi.AgeNone && r.Duration(c.Silent) >= r.ZombieSilence {
			return Zombie, Evidence(c.Evidence)
		}
		return Suspect, Evidence(c.Evidence)
	}
	if c.Flags&abi.ConnWindowClosed != 0 && c.WindowClosed != abi.AgeNone &&
		r.Duration(c.WindowClosed) >= r.StalledAfter {
		return Stalled, EvidenceWindowProbe
	}
	return VerdictOfClass(c.Class), NoEvidence
}

// due returns how many of the unanswered solicitations a live peer would have answered by
// now. The newest one is due after a round trip, a single one after answerGrace.
func (r *Rules) due(c *abi.Conn) int {
	n := int(c.Unanswered)
	if n == 0 {
		return 0
	}
	age := r.solicited(c)
	if age < 0 {
		return n
	}
	if age < roundTrip(c) {
		n--
		age = r.waited(c, 1)
	}
	if n == 1 && age < answerGrace {
		return 0
	}
	return n
}

// recheckAfter returns the time until the answer to the newest solicitation is due, when
// the verdict may change; 0 if it is due already.
func (r *Rules) recheckAfter(c *abi.Conn) time.Duration {
	age := r.solicited(c)
	if wait := roundTrip(c) - age; c.Unanswered > 1 && age >= 0 && wait > 0 {
		return wait + r.Duration(1)
	}
	return 0
}

// Bounds of roundTrip.
const (
	roundTripLeast = 50 * time.Millisecond
	roundTripMost  = 500 * time.Millisecond
)

// roundTrip returns how long an answer may take: twice the smoothed round-trip time,
// within the bounds.
func roundTrip(c *abi.Conn) time.Duration {
	return min(max(2*time.Duration(c.Srtt)*time.Microsecond, roundTripLeast), roundTripMost)
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
	case Evidence(c.Evidence) == EvidenceKeepalive:
		return r.Duration(c.KeepaliveIntvl)
	case c.PacketsOut == 0: // tcp_probe0_when()
		wait = min(max(wait, leastRTO)<<min(c.Backoff, 10), r.Duration(c.RtoMax))
	}
	return wait >> n
}

// leastRTO is TCP_RTO_MIN (include/net/tcp.h).
const leastRTO = 200 * time.Millisecond

// began returns how long ago a verdict began, derived from the times and timers of the
// socket, or -1 if unknown.
func (r *Rules) began(c *abi.Conn, v Verdict) time.Duration {
	// nth returns how long ago the n-th unanswered solicitation of the streak was sent.
	nth := func(n int) time.Duration {
		age := r.solicited(c)
		if age < 0 || int(c.Unanswered) < n {
			return -1
		}
		for i := 1; i <= int(c.Unanswered)-n; i++ {
			age += r.waited(c, i)
		}
		return age
	}
	switch v {
	case Idle, Unguarded:
		return max(r.Duration(c.Idle)-r.IdleAfter, 0)
	case Stalled:
		return max(r.Duration(c.WindowClosed)-r.StalledAfter, 0)
	case Suspect:
		return max(nth(1)-answerGrace, nth(2))
	case Zombie:
		return min(r.Duration(c.Silent)-r.ZombieSilence, nth(r.ZombieUnanswered))
	}
	return -1
}

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
