// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"math/bits"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Timers replays the timers of one connection. All times are in jiffies. A method may
// add to the slack, so a value serves for one replay.
type Timers struct {
	C    *abi.Conn
	Hz   uint64 // jiffies a second
	Late uint64 // delay of every timer
	// Reverted assumes that an ICMP error is still to answer the last retransmission, and
	// takes back its doubling of the timeout.
	Reverted bool
	// OrphanFrom is the jiffy from which the socket is an orphan whose close(2) waits now.
	OrphanFrom uint64
	slack      uint64 // sum of the granularities of the timers so far
}

// Lingering reports whether close(2) waits until the peer has acknowledged everything.
func Lingering(c *abi.Conn) bool { return c.Flags&abi.ConnLingering != 0 }

// lingersUntil returns the jiffies between which close(2) ceases to wait; both are 0 if it does
// not wait. If no program saw it begin to, it may cease at any time. What comes in wakes it,
// and then it waits for the rest.
func lingersUntil(c *abi.Conn) (first, last uint64) {
	switch {
	case !Lingering(c):
		return 0, 0
	case c.Lingering == abi.AgeNone:
		return c.Jiffies, fires(c.Jiffies, c.Jiffies+uint64(c.Linger)) + Lateness
	}
	began := c.Jiffies - uint64(c.Lingering)
	until := began + uint64(c.Linger)
	return until, fires(began, until) + Lateness
}

// orphanAt reports whether the socket is an orphan in the jiffy now.
func (t *Timers) orphanAt(now uint64) bool {
	return t.C.Flags&abi.ConnOrphan != 0 || Lingering(t.C) && now >= t.OrphanFrom
}

// retries returns how often the kernel sends again what is not an orphan's.
func (t *Timers) retries() int {
	if Lingering(t.C) {
		return int(t.C.Retries2)
	}
	return int(t.C.Retries)
}

// GiveUpPath says which timer ends a connection if nothing more is heard from its peer.
type GiveUpPath uint8

// The paths.
const (
	NoGiveUp         GiveUpPath = iota // no timer ends it
	ByKeepalive                        // the keepalive timer
	ByRetransmission                   // the retransmission timer
	ByWindowProbe                      // the timer that probes a closed window
	ByFinWait2                         // the keepalive timer, in FIN_WAIT2 without an application
)

// GiveUpPath returns which timer will give the connection up.
func (t *Timers) GiveUpPath() GiveUpPath {
	c := t.C
	switch {
	case StateOf(c.State) == FinWait2 && c.Flags&abi.ConnOrphan != 0:
		return ByFinWait2
	case c.Pending == abi.PendingWindowProbe && c.PacketsOut == 0 && c.WriteExpires != 0:
		return ByWindowProbe
	case c.PacketsOut > 0 && c.Pending != 0 && c.WriteExpires != 0:
		return ByRetransmission
	case c.Flags&abi.ConnKeepalive != 0 && c.KeepaliveExpires != 0 && c.PacketsOut == 0 && c.SendQueue == 0:
		return ByKeepalive
	}
	return NoGiveUp
}

// GivesUp returns the jiffy in which the kernel gives the connection up, and the cause;
// CauseUnknown means never.
func (t *Timers) GivesUp() (jiffy uint64, by Cause) {
	switch t.GiveUpPath() {
	case ByFinWait2:
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

// maxSteps bounds a replay. Where a device takes no segment, the kernel tries every half second
// for as long as tcp_retries2 says, which is at most eight hours.
const maxSteps = 1 << 16

// Congested reports whether a device did not take what the kernel tried to send last. The
// kernel then tries again after half a second (TCP_RESOURCE_PROBE_INTERVAL), does not back off,
// and does not count a keepalive probe.
func Congested(c *abi.Conn) bool { return c.Flags&abi.ConnCongested != 0 }

// resourceProbe returns TCP_RESOURCE_PROBE_INTERVAL.
func (t *Timers) resourceProbe() uint64 { return t.Hz / 2 }

// keepalive replays tcp_keepalive_timer().
func (t *Timers) keepalive() (jiffy uint64, by Cause) {
	c := t.C
	idle, interval := uint64(c.KeepaliveTime), uint64(c.KeepaliveIntvl)
	timeout := t.MsecsToJiffies(c.UserTimeout)
	probes := int(c.ProbesOut)
	now := t.FiresAt(c.KeepaliveExpires, c.KeepaliveLevel)
	for range maxSteps {
		silent := uint64(Accepted(c)) + now - c.Jiffies
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
		if Congested(c) {
			if timeout == 0 || probes == 0 {
				return 0, CauseUnknown // none is counted, so this goes on for ever
			}
			now = t.arm(now, t.resourceProbe())
			continue
		}
		probes++
		now = t.arm(now, interval)
	}
	return 0, CauseUnknown
}

// windowProbes replays tcp_probe_timer().
func (t *Timers) windowProbes() (jiffy uint64, by Cause) {
	c := t.C
	timeout := t.MsecsToJiffies(c.UserTimeout)
	probes, backoff := int(c.ProbesOut), int(c.Backoff)
	rtoMax := uint64(c.RtoMax)
	var started uint64 // the jiffy of the first probe; 0: not sent yet
	since := c.WindowClosed
	if c.Flags&abi.ConnBlocked != 0 {
		since = c.Failing
	}
	if since != abi.AgeNone {
		started = c.Jiffies - uint64(since)
	}
	now := t.FiresAt(c.WriteExpires, c.WriteLevel)
	for range maxSteps {
		if started == 0 {
			started = now
		} else if timeout > 0 && now-started >= timeout {
			return now, CauseUserTimeout
		}
		limit, by := t.retries(), CauseWindowProbeTimeout
		if c.Flags&abi.ConnBlocked != 0 {
			by = CauseRetransmitTimeout
		}
		if t.orphanAt(now) {
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
		wait := t.resourceProbe()
		if !Congested(c) {
			if backoff < int(c.Retries2) {
				backoff++
			}
			// tcp_probe0_when()
			shift := min(backoff, log2(rtoMax/(t.Hz/5))+1)
			wait = min(max(uint64(c.Rto), t.Hz/5)<<shift, rtoMax)
		}
		if timeout > 0 { // tcp_clamp_probe0_to_user_timeout()
			wait = uint64(min(max(int64(timeout)-int64(now-started), 2), int64(wait)))
		}
		now = t.arm(now, wait)
	}
	return 0, CauseUnknown
}

// finWait2 replays the end of a connection that its application has closed and its peer
// has not. The full socket waits first, then a time_wait socket for as long.
func (t *Timers) finWait2() (jiffy uint64, by Cause) {
	c := t.C
	if c.KeepaliveExpires == 0 {
		return 0, CauseUnknown
	}
	now := t.FiresAt(c.KeepaliveExpires, c.KeepaliveLevel)
	if timeWait := 60 * t.Hz; c.FinTime != abi.AgeNone && uint64(c.FinTime) > timeWait {
		now += uint64(c.FinTime) - timeWait
	}
	return now, CauseOrphanTimeout
}

// OrphanRetries returns how many retransmissions or window probes the kernel sends for a
// socket that its application has closed (tcp_orphan_retries). alive is false once the
// wait between two of them has reached its maximum.
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

// MsecsToJiffies returns a number of milliseconds in jiffies, rounded up
// (msecs_to_jiffies).
func (t *Timers) MsecsToJiffies(ms uint32) uint64 { return (uint64(ms)*t.Hz + 999) / 1000 }

func log2(n uint64) int { return max(bits.Len64(n)-1, 0) }
