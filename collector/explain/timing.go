// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// timing is when keepalive asks.
type timing struct {
	idle, interval time.Duration
	probes         int
}

// notices is after how much silence it gives up.
func (t timing) notices() time.Duration { return t.idle + time.Duration(t.probes)*t.interval }

// inForce is the socket's own.
func (x *explainer) inForce() timing {
	return timing{x.conn.Keepalive.Time, x.conn.Keepalive.Interval, x.conn.Keepalive.Probes}
}

// suggested is the socket's own where that is quick enough, and else quicker.
func (x *explainer) suggested() timing {
	t := x.inForce()
	if t.idle <= x.rules.MiddleboxTimeout && t.notices() <= soon {
		return t
	}
	t.interval, t.probes = min(t.interval, advisedIntvl), min(t.probes, advisedProbes)
	if t.idle > x.rules.MiddleboxTimeout || t.notices() > soon {
		t.idle = min(advisedIdle, max(x.rules.MiddleboxTimeout/2, time.Second).Truncate(time.Second))
		t.interval = min(t.interval, t.idle)
	}
	return t
}

// suggestedTimeout is the TCP_USER_TIMEOUT that gives up when keepalive does.
func (x *explainer) suggestedTimeout() time.Duration { return x.suggested().notices() }

// noticesWith is after how much silence such keepalive gives up where a
// TCP_USER_TIMEOUT may be set: when a probe is out and that has passed.
func (x *explainer) noticesWith(t timing) time.Duration {
	timeout := x.conn.UserTimeout
	if timeout == 0 || t.interval == 0 {
		return t.notices()
	}
	intervals := max(1, (timeout-t.idle+t.interval-1)/t.interval)
	return t.idle + intervals*t.interval
}

// notices is after how much silence the socket's own keepalive gives up.
func (x *explainer) notices() time.Duration { return x.noticesWith(x.inForce()) }

// overdue tells whether the keepalive timer that is running fires later than one
// that were set now: it keeps the time that it was set for, whatever the sysctls
// say since. By more than a second, since keepalive may have been turned on in
// the midst of a silence.
func (x *explainer) overdue() bool {
	if !x.flag(abi.ConnKeepalive) || x.c.KeepaliveExpires == 0 {
		return false
	}
	now := *x.c
	rearm(&now)
	due := now.KeepaliveExpires
	if x.c.ProbesOut > 0 {
		due = max(due, x.c.Jiffies+uint64(x.c.KeepaliveIntvl))
	}
	return x.c.KeepaliveExpires > due+uint64(x.rules.HZ)
}

// changes are the options of keepalive that a piece of advice changes.
type changes uint8

const (
	soKeepalive changes = 1 << iota
	keepIdle
	keepIntvl
	keepCnt
	everything = soKeepalive | keepIdle | keepIntvl | keepCnt
)

func (x *explainer) changed(t timing) changes {
	var c changes
	now := x.inForce()
	if t.idle != now.idle {
		c |= keepIdle
	}
	if t.interval != now.interval {
		c |= keepIntvl
	}
	if t.probes != now.probes {
		c |= keepCnt
	}
	return c
}

// setTiming changes what is in force, as if those options or sysctls were set.
func (x *explainer) setTiming(c *abi.Conn, t timing) {
	jiffies := func(d time.Duration) uint32 { return uint32(d * time.Duration(x.rules.HZ) / time.Second) }
	c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = jiffies(t.idle), jiffies(t.interval), uint8(t.probes)
}
