// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Forecast says when the kernel gives a connection up, provided that nothing more is
// heard from its peer. The zero value means never.
type Forecast struct {
	At, Latest time.Time // the kernel gives up between these two
	By         Cause
}

// Ever reports whether the kernel gives the connection up at all.
func (f Forecast) Ever() bool { return f.By != CauseUnknown }

// miss returns by how much a death came before At (negative) or after Latest
// (positive); 0 if it came between them.
func (f Forecast) miss(died time.Time) time.Duration {
	if early := died.Sub(f.At); early < 0 {
		return early
	}
	return max(died.Sub(f.Latest), 0)
}

// Forecast returns when the kernel gives up a connection whose record, read at that
// time, is c.
//
// It replays the connection's timers: the same tests in the same order, timer after
// timer (net/ipv4/tcp_timer.c, alike in all that matters from 5.10 to 7.x). At assumes
// that every timer fires in the jiffy of its bucket in the timer wheel, Latest that
// each one is Lateness late. Latest is after At by at most the granularities of all
// these buckets, plus 1 % of the time until At.
//
// While ICMP errors answer the retransmissions, it is not known when that of the last one comes, if
// it has not: the interval holds the end if it comes now, and if it does not. Likewise, while close(2)
// waits (SO_LINGER), it is not known exactly when it ceases to.
func (r *Rules) Forecast(c *abi.Conn, at time.Time) Forecast {
	reverting := RTOReverting(c) && c.Backoff > 0 && c.Flags&abi.ConnRtoReverted == 0
	orphanFirst, orphanLast := lingersUntil(c)
	first, last, by := r.replay(c, reverting, orphanFirst)
	if by == CauseUnknown || first < c.Jiffies { // no kernel has such a clock
		return Forecast{}
	}
	widen := func(reverted bool, orphanFrom uint64) {
		earlier, later, other := r.replay(c, reverted, orphanFrom)
		if other != CauseUnknown && earlier < first {
			first, by = earlier, other
		}
		last = max(last, later)
	}
	if reverting { // without the error, the timer fires later, and may give up at once
		widen(false, orphanFirst)
	}
	if orphanFirst != orphanLast { // tcp_retries2 may end it before, or sooner than an orphan
		widen(false, orphanLast)
	}
	return r.Between(c, at, first, last, by)
}

// replay returns the jiffies between which the kernel gives a connection up, and the cause;
// CauseUnknown means never. The arguments are those of [Timers].
func (r *Rules) replay(c *abi.Conn, reverted bool, orphanFrom uint64) (first, last uint64, by Cause) {
	early := Timers{C: c, Hz: uint64(r.HZ), Reverted: reverted, OrphanFrom: orphanFrom}
	late := Timers{C: c, Hz: uint64(r.HZ), Late: Lateness, Reverted: reverted, OrphanFrom: orphanFrom}
	first, by = early.GivesUp()
	last, _ = late.GivesUp()
	return first, min(max(first, last), first+early.slack), by
}

// Between returns a forecast that begins with the jiffy first and ends with the jiffy
// last, for a connection whose record, read at that time, is c.
func (r *Rules) Between(c *abi.Conn, at time.Time, first, last uint64, by Cause) Forecast {
	into := time.Duration(c.IntoJiffy) * time.Microsecond
	from := r.Duration64(first-c.Jiffies) - into
	to := r.Duration64(last-c.Jiffies) - into
	return Forecast{At: at.Add(from), Latest: at.Add(to + max(from, 0)/100), By: by}
}

// Duration64 returns how long n jiffies are, at most a century.
func (r *Rules) Duration64(n uint64) time.Duration {
	const century = 100 * 365 * 24 * 60 * 60 // in seconds
	hz := uint64(r.HZ)
	return time.Duration(min(n/hz, century))*time.Second + time.Duration(n%hz)*time.Second/time.Duration(hz)
}

// Lateness is the worst delay, in jiffies, of a timer on a busy CPU.
const Lateness = 2
