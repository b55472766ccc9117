// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"math/bits"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Forecast is when the kernel gives a connection up if nothing more is heard
// from its peer. The zero value says that it never will.
type Forecast struct {
	At, Latest time.Time // the truth is between them
	By         Cause
}

// Ever tells whether the kernel gives the connection up at all.
func (f Forecast) Ever() bool { return f.By != CauseUnknown }

// miss is by how much a death came before (below 0) or after what was forecast.
func (f Forecast) miss(died time.Time) time.Duration {
	if early := died.Sub(f.At); early < 0 {
		return early
	}
	return max(died.Sub(f.Latest), 0)
}

// Forecast tells when the kernel gives a connection up that looked like c at
// that time.
//
// It replays what the connection's timers are going to do: the same tests in the
// same order, timer after timer (net/ipv4/tcp_timer.c, alike in all that matters
// from 5.10 to 7.x). At is reached if every timer fires in the very jiffy of its
// bucket in the timer wheel, Latest if each is as late as a busy machine makes
// it. The two are never further apart than the granularity of those buckets all
// in all, and 1 % of the time till then.
func (r *Rules) Forecast(c *abi.Conn, at time.Time) Forecast {
	early := Timers{C: c, Hz: uint64(r.HZ)}
	late := Timers{C: c, Hz: uint64(r.HZ), Late: Lateness}
	first, by := early.GivesUp()
	if by == CauseUnknown || first < c.Jiffies { // a clock that no kernel has
		return Forecast{}
	}
	last, _ := late.GivesUp()
	return r.Between(c, at, first, min(max(first, last), first+early.slack), by)
}

// Between is a forecast from the first to the last jiffy.
func (r *Rules) Between(c *abi.Conn, at time.Time, first, last uint64, by Cause) Forecast {
	into := time.Duration(c.IntoJiffy) * time.Microsecond
	from := r.Jiffies64(first-c.Jiffies) - into
	to := r.Jiffies64(last-c.Jiffies) - into
	return Forecast{At: at.Add(from), Latest: at.Add(to + max(from, 0)/100), By: by}
}

// Jiffies64 is how long so many jiffies are: a century at most.
func (r *Rules) Jiffies64(n uint64) time.Duration {
	const century = 100 * 365 * 24 * 60 * 60 // in seconds
	hz := uint64(r.HZ)
	return time.Duration(min(n/hz, century))*time.Second + time.Duration(n%hz)*time.Second/time.Duration(hz)
}

// Lateness is how late, in jiffies, a timer may be whose CPU has other work.
const Lateness = 2

// Timers replays a connection's timers. Everything is in jiffies.
type Timers struct {
	C     *abi.Conn
	Hz    uint64
	Late  uint64 // by which every timer is late
	slack uint64 // by which the timers so far may have been late: their levels' granularity
}

// GiveUpPath is the way in which the kernel ends a connection if it hears nothing more.
type GiveUpPath uint8

// The ways; by NoGiveUp the connection never ends.
const (
	NoGiveUp GiveUpPath = iota
	ByKeepalive
	ByRetransmission
	ByWindowProbe
	byFinWait2
)

// GiveUpPath returns by which timer the kernel will give the connection up.
func (t *Timers) GiveUpPath() GiveUpPath {
	c := t.C
	switch {
	case StateOf(c.State) == FinWait2 && c.Flags&abi.ConnOrphan != 0:
		return byFinWait2
	case c.Pending == abi.PendingWindowProbe && c.PacketsOut == 0 && c.WriteExpires != 0:
		return ByWindowProbe
	case c.PacketsOut > 0 && c.Pending != 0 && c.WriteExpires != 0:
		return ByRetransmission
	case c.Flags&abi.ConnKeepalive != 0 && c.KeepaliveExpires != 0 && c.PacketsOut == 0 && c.SendQueue == 0:
		return ByKeepalive
	}
	return NoGiveUp
}

// GivesUp is the jiffy in which the connection is given up, and why; the cause
// is CauseUnknown when that is never.
func (t *Timers) GivesUp() (jiffy uint64, by Cause) {
	switch t.GiveUpPath() {
	case byFinWait2:
		return t.finWait2()
	case ByWindowProbe:
		return t.windowProbes()
	case ByRetransmission:
		return t.retransmissions()
	case ByKeepalive:
		return t.keepalive()
	}
	return 0, CauseUnknown
}

// maxSteps is on the steps of a replay: more than any socket can take.
const maxSteps = 1000

// keepalive is tcp_keepalive_timer().
func (t *Timers) keepalive() (uint64, Cause) {
	c := t.C
	idle, interval := uint64(c.KeepaliveTime), uint64(c.KeepaliveIntvl)
	timeout := t.Msecs(c.UserTimeout)
	probes := int(c.ProbesOut)
	now := t.Pending(c.KeepaliveExpires, c.KeepaliveLevel)
	for range maxSteps {
		silent := uint64(c.Silent) + now - c.Jiffies
		if silent < idle {
			now = t.arm(now, idle-silent)
			continue
		}
		if timeout > 0 && silent >= timeout && probes > 0 {
			return now, CauseUserTimeout
		}
		if timeout == 0 && probes >= int(c.KeepaliveProbes) {
			return now, CauseKeepaliveTimeout
		}
		probes++
		now = t.arm(now, interval)
	}
	return 0, CauseUnknown
}

// retransmissions is tcp_retransmit_timer().
func (t *Timers) retransmissions() (uint64, Cause) {
	c := t.C
	orphan := c.Flags&abi.ConnOrphan != 0
	state := StateOf(c.State)
	connecting := state == SynSent || state == SynRecv
	now := t.Pending(c.WriteExpires, c.WriteLevel)
	rto := uint64(c.Rto)
	if c.Pending == abi.PendingTailLossProbe || c.Pending == abi.PendingReorder {
		// The probe is sent, and the retransmission timer is armed. It counts
		// from when the oldest segment was sent (tcp_rearm_rto); a single one
		// has just been sent again.
		wait := rto
		if c.PacketsOut > 1 && c.Idle != abi.AgeNone {
			wait = uint64(max(1, int64(rto)-int64(now-c.Jiffies)-int64(c.Idle)))
		}
		now = t.arm(now, wait)
	}
	retransmits := int(c.Retransmits)
	var started uint64 // the first retransmission, 0 not yet
	if c.Retransmitting != abi.AgeNone {
		started = c.Jiffies - uint64(c.Retransmitting)
	}
	timeout := t.Msecs(c.UserTimeout)
	if state == SynRecv { // tcp_fastopen_synack_timer() does not look at it
		timeout = 0
	}
	base := t.Hz / 5 // TCP_RTO_MIN, whatever the route or the socket say
	if connecting {
		base = t.Hz // TCP_TIMEOUT_INIT
	}
	reverting := RTOReverting(c)
	for range maxSteps {
		var lasting uint64
		if started != 0 {
			lasting = now - started
		}
		switch {
		case c.SendWindow == 0 && !orphan && !connecting:
			// tcp_rtx_probe0_timed_out()
			limit, by := 2*uint64(c.RtoMax), CauseWindowProbeTimeout
			if timeout > 0 && lasting > timeout {
				return now, CauseUserTimeout
			}
			if timeout > 0 && timeout < limit {
				limit, by = timeout, CauseUserTimeout
			}
			if uint64(c.Silent)+now-c.Jiffies > limit && lasting > limit {
				return now, by
			}
		default: // tcp_write_timeout()
			limit := int(c.Retries)
			if connecting && retransmits >= limit+t.linear() {
				return now, CauseConnectTimeout
			}
			if orphan {
				limit = t.OrphanRetries(rto < uint64(c.RtoMax))
			}
			if retransmits > 0 && timeout > 0 && lasting >= timeout {
				return now, CauseUserTimeout
			}
			if retransmits > 0 && timeout == 0 && lasting >= RetransmitTime(limit, base, uint64(c.RtoMax)) {
				switch {
				case connecting:
					return now, CauseConnectTimeout
				case orphan:
					return now, CauseOrphanTimeout
				}
				return now, CauseRetransmitTimeout
			}
			retransmits++
		}
		if started == 0 {
			started = now
		}
		switch {
		case state == SynRecv:
			rto = min(base<<min(retransmits, 32), uint64(c.RtoMax))
		case state == Established && c.ThinRto > 0 && retransmits <= 6: // TCP_THIN_LINEAR_RETRIES
			rto = uint64(c.ThinRto)
		case reverting: // armed again when the ICMP error comes, for what is left
			rto = max(uint64(c.Rto), 2) - 1
		case state != SynSent || retransmits > int(c.SynLinear):
			rto = min(2*rto, uint64(c.RtoMax))
		}
		wait := rto
		if timeout > 0 { // tcp_clamp_rto_to_user_timeout()
			wait = uint64(min(max(int64(timeout)-int64(now-started), 1), int64(rto)))
		}
		now = t.arm(now, wait)
	}
	return 0, CauseUnknown
}

// RTOReverting tells whether ICMP errors answer the retransmissions: each takes back
// the doubling of the wait (tcp_ld_RTO_revert, RFC 6069).
func RTOReverting(c *abi.Conn) bool {
	return c.Flags&abi.ConnSoftError != 0 && c.Backoff < c.Retransmits && c.ThinRto == 0 && StateOf(c.State) != SynSent
}

// linear is how many SYNs more are sent than the limit says.
func (t *Timers) linear() int {
	if StateOf(t.C.State) == SynSent {
		return int(t.C.SynLinear)
	}
	return 0
}

// windowProbes is tcp_probe_timer().
func (t *Timers) windowProbes() (uint64, Cause) {
	c := t.C
	orphan := c.Flags&abi.ConnOrphan != 0
	timeout := t.Msecs(c.UserTimeout)
	probes, backoff := int(c.ProbesOut), int(c.Backoff)
	rtoMax := uint64(c.RtoMax)
	var started uint64 // the first probe, 0 not yet
	if c.WindowClosed != abi.AgeNone {
		started = c.Jiffies - uint64(c.WindowClosed)
	}
	now := t.Pending(c.WriteExpires, c.WriteLevel)
	for range maxSteps {
		if started == 0 {
			started = now
		} else if timeout > 0 && now-started >= timeout {
			return now, CauseUserTimeout
		}
		limit, by := int(c.Retries), CauseWindowProbeTimeout
		if c.Flags&abi.ConnBlocked != 0 {
			by = CauseRetransmitTimeout
		}
		if orphan {
			alive := min(uint64(c.Rto)<<min(backoff, 32), rtoMax) < rtoMax
			limit, by = t.OrphanRetries(alive), CauseOrphanTimeout
			if !alive && backoff >= limit {
				return now, by
			}
		}
		if probes >= limit {
			return now, by
		}
		probes++
		if backoff < int(c.Retries2) {
			backoff++
		}
		// tcp_probe0_when()
		shift := min(backoff, log2(rtoMax/(t.Hz/5))+1)
		wait := min(max(uint64(c.Rto), t.Hz/5)<<shift, rtoMax)
		if timeout > 0 { // tcp_clamp_probe0_to_user_timeout()
			wait = uint64(min(max(int64(timeout)-int64(now-started), 2), int64(wait)))
		}
		now = t.arm(now, wait)
	}
	return 0, CauseUnknown
}

// finWait2 is the end of a connection that its application has closed and whose
// peer has not: the full socket first, then a time_wait socket for as long.
func (t *Timers) finWait2() (uint64, Cause) {
	c := t.C
	if c.KeepaliveExpires == 0 {
		return 0, CauseUnknown
	}
	now := t.Pending(c.KeepaliveExpires, c.KeepaliveLevel)
	if timeWait := 60 * t.Hz; c.FinTime != abi.AgeNone && uint64(c.FinTime) > timeWait {
		now += uint64(c.FinTime) - timeWait
	}
	return now, CauseOrphanTimeout
}

// OrphanRetries is tcp_orphan_retries().
func (t *Timers) OrphanRetries(alive bool) int {
	n := int(t.C.Retries)
	if t.C.Flags&abi.ConnSoftError != 0 && !alive {
		n = 0
	}
	if n == 0 && alive {
		n = 8
	}
	return n
}

// RetransmitTime returns for how many jiffies the kernel retransmits if the limit is a
// number of retransmissions: as long as so many take from that base (tcp_model_timeout).
func RetransmitTime(retransmits int, base, rtoMax uint64) uint64 {
	doublings := log2(rtoMax / base)
	if retransmits <= doublings {
		return (2<<retransmits - 1) * base
	}
	return (2<<doublings-1)*base + uint64(retransmits-doublings)*rtoMax
}

func log2(n uint64) int { return max(bits.Len64(n)-1, 0) }

// Msecs is msecs_to_jiffies(), which rounds up.
func (t *Timers) Msecs(ms uint32) uint64 { return (uint64(ms)*t.Hz + 999) / 1000 }

// Pending is when a timer fires that is in the wheel already.
func (t *Timers) Pending(expires uint64, level uint8) uint64 {
	t.slack += granularity(int(level))
	expires = min(expires, t.C.Jiffies+wheelMost)
	return max(bucket(expires, int(level)), t.C.Jiffies) + t.Late
}

// arm is when a timer fires that is armed at now.
func (t *Timers) arm(now, wait uint64) uint64 {
	t.slack += granularity(LevelOf(now, now+wait))
	return fires(now, now+wait) + t.Late
}

// wheelLevels is the depth of the timer wheel where HZ > 100 (LVL_DEPTH), and
// wheelMost is by how many jiffies a timer in it can be ahead (WHEEL_TIMEOUT_CUTOFF).
const (
	wheelLevels = 9
	wheelMost   = 63 << (3 * (wheelLevels - 1))
)

// fires is when a timer fires that is armed at now and expires then
// (kernel/time/timer.c calc_wheel_index).
func fires(now, expires uint64) uint64 { return bucket(expires, LevelOf(now, expires)) }

// LevelOf is the level of the wheel that such a timer is put into.
func LevelOf(now, expires uint64) int {
	level := 0
	for level < wheelLevels-1 && expires-now >= 63<<(3*level) { // LVL_START(level + 1)
		level++
	}
	return level
}

// granularity is that of a level of the wheel, in jiffies: 8^level (LVL_GRAN). A
// record may name a level that there is not: it is read while the timer changes.
func granularity(level int) uint64 { return 1 << (3 * min(level, wheelLevels-1)) }

// bucket rounds up to the granularity of a level of the wheel (calc_index).
func bucket(expires uint64, level int) uint64 {
	return (expires/granularity(level) + 1) * granularity(level)
}
