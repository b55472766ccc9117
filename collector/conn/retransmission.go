// SPDX-License-Identifier: Apache-2.0

package conn

import "github.com/halfopen/halfopen/bpf/abi"

// thinLinearRetries is TCP_THIN_LINEAR_RETRIES (include/net/tcp.h).
const thinLinearRetries = 6

// retransmission is the state of a replay of tcp_retransmit_timer(). All times are in
// jiffies.
type retransmission struct {
	*Timers
	state       State
	connecting  bool   // the retransmission is that of a SYN or SYN-ACK
	timeout     uint64 // TCP_USER_TIMEOUT; 0: none that the timer looks at
	base        uint64 // the first wait in the kernel's model of the retries limit
	rtoMax      uint64
	rto         uint64
	firstRTO    uint64
	retransmits int
	started     uint64 // the jiffy of the first retransmission; 0: not sent yet
}

// newRetransmission returns the state at the time of the record. It returns a value, so that
// a replay allocates nothing.
func (t *Timers) newRetransmission() retransmission {
	c := t.C
	r := retransmission{
		Timers:      t,
		state:       StateOf(c.State),
		timeout:     t.MsecsToJiffies(c.UserTimeout),
		base:        t.Hz / 5, // TCP_RTO_MIN, whatever the route or the socket say
		rtoMax:      uint64(c.RtoMax),
		rto:         uint64(c.Rto),
		retransmits: int(c.Retransmits),
	}
	if t.Reverted {
		r.rto /= 2
	}
	r.firstRTO = r.rto
	r.connecting = r.state == SynSent || r.state == SynRecv
	if r.connecting {
		r.base = t.Hz // TCP_TIMEOUT_INIT
	}
	if r.state == SynRecv { // tcp_fastopen_synack_timer() ignores it
		r.timeout = 0
	}
	if c.Retransmitting != abi.AgeNone {
		r.started = c.Jiffies - uint64(c.Retransmitting)
	}
	return r
}

// retransmissions replays tcp_retransmit_timer().
func (t *Timers) retransmissions() (jiffy uint64, by Cause) {
	r := t.newRetransmission()
	now := r.firstFires()
	for range maxSteps {
		if by := r.gaveUp(now); by != CauseUnknown {
			return now, by
		}
		r.retransmit(now)
		if Congested(r.C) {
			now = t.arm(now, t.resourceProbe())
			continue
		}
		r.rto = r.nextRTO()
		now = t.arm(now, r.nextWait(now))
	}
	return 0, CauseUnknown
}

// firstFires returns the jiffy in which the retransmission timer fires for the first
// time.
func (r *retransmission) firstFires() uint64 {
	c := r.C
	now := r.FiresAt(c.WriteExpires, c.WriteLevel)
	if c.Pending != abi.PendingTailLossProbe && c.Pending != abi.PendingReorder {
		if r.Reverted {
			now = max(c.WriteExpires-min(r.firstRTO, c.WriteExpires), c.Jiffies)
		}
		return now
	}
	// The armed timer is another one. When it fires, the kernel sends a segment and arms
	// the retransmission timer, whose wait counts from when the oldest segment was sent
	// (tcp_rearm_rto). A single segment has just been sent again.
	wait := r.rto
	if c.PacketsOut > 1 && c.Idle != abi.AgeNone {
		wait = uint64(max(1, int64(r.rto)-int64(now-c.Jiffies)-int64(c.Idle)))
	}
	return r.arm(now, wait)
}

// gaveUp returns the cause if the kernel gives the connection up when the timer fires in
// the jiffy now, and CauseUnknown if it sends again.
func (r *retransmission) gaveUp(now uint64) Cause {
	var lasting uint64 // since the first retransmission
	if r.started != 0 {
		lasting = now - r.started
	}
	if r.windowProbe(now) {
		return r.windowProbeGaveUp(now, lasting)
	}
	return r.writeTimeout(now, lasting)
}

// windowProbe reports whether the kernel, in the jiffy now, probes a closed window with the
// oldest segment in flight.
func (r *retransmission) windowProbe(now uint64) bool {
	return r.C.SendWindow == 0 && !r.orphanAt(now) && !r.connecting
}

// windowProbeGaveUp replays tcp_rtx_probe0_timed_out().
func (r *retransmission) windowProbeGaveUp(now, lasting uint64) Cause {
	silent, limit := uint64(Accepted(r.C))+now-r.C.Jiffies, 2*r.rtoMax
	switch {
	case r.timeout > 0 && lasting > r.timeout:
		return CauseUserTimeout
	case silent > limit && lasting > limit:
		return CauseWindowProbeTimeout
	}
	return CauseUnknown
}

// writeTimeout replays tcp_write_timeout().
func (r *retransmission) writeTimeout(now, lasting uint64) Cause {
	limit, by := r.retries(), CauseRetransmitTimeout
	if r.connecting && r.retransmits >= limit+r.linearSYNs() {
		return CauseConnectTimeout
	}
	if r.orphanAt(now) {
		limit, by = r.OrphanRetries(r.rto < r.rtoMax), CauseOrphanTimeout
	}
	if r.connecting {
		by = CauseConnectTimeout
	}
	if r.retransmits == 0 {
		return CauseUnknown
	}
	most := RetransmitTime(limit, r.base, r.rtoMax)
	if r.timeout > 0 {
		most, by = r.timeout, CauseUserTimeout
	}
	if lasting < most {
		return CauseUnknown
	}
	return by
}

// linearSYNs returns how many SYNs the kernel sends before it begins to count them.
func (r *retransmission) linearSYNs() int {
	if r.state == SynSent {
		return int(r.C.SynLinear)
	}
	return 0
}

// retransmit notes that the kernel sends again in the jiffy now. Probes of a closed
// window do not count as retransmissions.
func (r *retransmission) retransmit(now uint64) {
	if !r.windowProbe(now) {
		r.retransmits++
	}
	if r.started == 0 {
		r.started = now
	}
}

// nextRTO returns the retransmission timeout after a retransmission.
func (r *retransmission) nextRTO() uint64 {
	c := r.C
	switch {
	case r.state == SynRecv:
		return min(r.base<<min(r.retransmits, 32), r.rtoMax)
	case r.state == Established && c.ThinRto > 0 && r.retransmits <= thinLinearRetries:
		return uint64(c.ThinRto)
	case RTOReverting(c): // the kernel arms it again when the ICMP error comes, for what is left
		return max(r.firstRTO, 2) - 1
	case r.state == SynSent && r.retransmits <= int(c.SynLinear):
		return r.rto
	}
	return min(2*r.rto, r.rtoMax)
}

// nextWait returns the timeout, cut to what is left of TCP_USER_TIMEOUT
// (tcp_clamp_rto_to_user_timeout).
func (r *retransmission) nextWait(now uint64) uint64 {
	if r.timeout == 0 {
		return r.rto
	}
	return uint64(min(max(int64(r.timeout)-int64(now-r.started), 1), int64(r.rto)))
}

// RTOReverting reports whether ICMP errors answer the retransmissions: each takes back
// one doubling of the timeout (tcp_ld_RTO_revert, RFC 6069).
func RTOReverting(c *abi.Conn) bool {
	return c.Flags&abi.ConnSoftError != 0 && c.Backoff < c.Retransmits && c.ThinRto == 0 && StateOf(c.State) != SynSent
}

// RetransmitTime returns for how many jiffies the kernel retransmits when the limit is a
// number of retransmissions: as long as so many take if the first wait is base and each
// is twice the one before, at most rtoMax (tcp_model_timeout).
func RetransmitTime(retransmits int, base, rtoMax uint64) uint64 {
	doublings := log2(rtoMax / base)
	if retransmits <= doublings {
		return (2<<retransmits - 1) * base
	}
	return (2<<doublings-1)*base + uint64(retransmits-doublings)*rtoMax
}
