// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
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
	MiddleboxTimeout time.Duration // as configured in the kernel
	HZ               int           // jiffies a second
}

// Duration converts jiffies.
func (r *Rules) Duration(jiffies uint32) time.Duration {
	return time.Duration(jiffies) * time.Second / time.Duration(r.HZ)
}

// Age translates the age of something that may never have happened: -1 then.
func (r *Rules) Age(jiffies uint32) time.Duration {
	if jiffies == abi.AgeNone {
		return -1
	}
	return r.Duration(jiffies)
}

// synchronized are the states in which a connection can be a zombie: both ends
// have agreed on it (RFC 9293 3.3.2), and ours is not just waiting for the
// peer's FIN, as in FIN_WAIT2.
func synchronized(s State) bool {
	switch s {
	case Established, FinWait1, CloseWait, Closing, LastAck:
		return true
	}
	return false
}

// Judge gives a connection's verdict and the evidence for it.
func (r *Rules) Judge(c *abi.Conn) (Verdict, Evidence) {
	if due := r.due(c); due > 0 {
		if synchronized(StateOf(c.State)) && due >= r.ZombieUnanswered &&
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

// due is how many of the unanswered solicitations a live peer would have
// answered by now. The newest is not until a round trip later, and a single one
// not until answerGrace.
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

// recheckAfter is when a connection is worth another look, because the newest
// solicitation makes a difference once its answer is due; 0 if it is.
func (r *Rules) recheckAfter(c *abi.Conn) time.Duration {
	age := r.solicited(c)
	if wait := roundTrip(c) - age; c.Unanswered > 1 && age >= 0 && wait > 0 {
		return wait + r.Duration(1)
	}
	return 0
}

// The time that an answer may take: twice the smoothed round trip, and within
// these bounds.
const (
	roundTripLeast = 50 * time.Millisecond
	roundTripMost  = 500 * time.Millisecond
)

func roundTrip(c *abi.Conn) time.Duration {
	return min(max(2*time.Duration(c.Srtt)*time.Microsecond, roundTripLeast), roundTripMost)
}

// solicited is how long ago the last solicitation went out, -1 if that is not
// known. Where nobody saw it, the timer tells that will send the next.
func (r *Rules) solicited(c *abi.Conn) time.Duration {
	if c.Solicited != abi.AgeNone {
		return r.Duration(c.Solicited)
	}
	expires := c.WriteExpires
	if Evidence(c.Evidence) == EvidenceKeepalive {
		expires = c.KeepaliveExpires
	} else if c.UserTimeout > 0 {
		return -1 // the wait may have been cut short
	}
	if expires == 0 {
		return -1
	}
	left := max(int64(expires-c.Jiffies), 0)
	return max(r.waited(c, 0)-time.Duration(left)*time.Second/time.Duration(r.HZ), 0)
}

// waited is how long the kernel waits after the n-th last solicitation until the
// next one: 0 is the last. Keepalive probes are evenly spaced, the waits of the
// others double.
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

// began is how long ago a verdict began, as far as the socket's own stamps and
// timers tell; -1 if they do not.
func (r *Rules) began(c *abi.Conn, v Verdict) time.Duration {
	// nth is how long ago the n-th solicitation of the row went out.
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

// VerdictOfClass is the verdict that follows from the socket's fields alone.
func VerdictOfClass(class uint8) Verdict {
	switch class {
	case abi.ClassIdle:
		return Idle
	case abi.ClassUnguarded:
		return Unguarded
	}
	return Active
}
