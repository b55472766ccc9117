// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf"
)

const testHZ = 250

// ago is an age in the kernel's unit.
func ago(d time.Duration) uint32 { return uint32(d * testHZ / time.Second) }

// connWith makes the record of a healthy connection whose data moved a second
// ago, changed by f.
func connWith(f func(*bpf.Conn)) *bpf.Conn {
	c := &bpf.Conn{
		Cookie: 0x1a2b, State: bpf.StateEstablished, Class: bpf.ClassActive, Flags: bpf.ConnKeepalive,
		Idle: ago(time.Second), Silent: ago(time.Second), Solicited: bpf.AgeNone, WindowClosed: bpf.AgeNone,
		KeepaliveTime: ago(2 * time.Hour), KeepaliveIntvl: ago(75 * time.Second), KeepaliveProbes: 9,
	}
	f(c)
	return c
}

// silentWith makes one that has been silent, with so many solicitations since.
func silentWith(evidence uint8, unanswered uint16, silent time.Duration) *bpf.Conn {
	return connWith(func(c *bpf.Conn) {
		c.Flags |= bpf.ConnTrouble
		c.Evidence, c.Unanswered = evidence, unanswered
		c.Silent, c.Idle = ago(silent), ago(silent)
		c.Solicited = ago(100 * time.Millisecond)
	})
}

// forecastFrom is some jiffy in the midst of every bucket.
const forecastFrom = 1<<32 + 123457

// armed returns when a timer expires that is armed at c.Jiffies for that long, and the
// level of the timer wheel that it is put into (kernel/time/timer.c calc_wheel_index:
// level n takes what is at least 63 * 8^n jiffies ahead).
func armed(c *bpf.Conn, wait time.Duration) (expires uint64, level uint8) {
	ahead := uint64(ago(wait))
	for least := uint64(63); level < 8 && ahead >= least; least *= 8 {
		level++
	}
	return c.Jiffies + ahead, level
}

func forecastConn(f func(*bpf.Conn)) *bpf.Conn {
	return connWith(func(c *bpf.Conn) {
		c.Jiffies = forecastFrom
		c.Rto, c.RtoMax = ago(204*time.Millisecond), ago(120*time.Second)
		c.Retries, c.Retries2, c.FinTime, c.SendWindow = 15, 15, ago(time.Minute), 65536
		c.Retransmitting = bpf.AgeNone
		c.Idle, c.Silent = 0, 0
		f(c)
	})
}

func idleConn(f func(*bpf.Conn)) *bpf.Conn {
	return forecastConn(func(c *bpf.Conn) {
		c.KeepaliveExpires, c.KeepaliveLevel = armed(c, 2*time.Hour)
		f(c)
	})
}

func inFlight(f func(*bpf.Conn)) *bpf.Conn {
	return forecastConn(func(c *bpf.Conn) {
		c.PacketsOut, c.SendQueue, c.Pending = 1, 100, bpf.PendingRetransmit
		f(c)
		c.WriteExpires, c.WriteLevel = armed(c, time.Duration(c.Rto)*time.Second/testHZ)
	})
}

// guarded is idle for ten seconds, with these settings of its own.
func guarded(idle, interval time.Duration, probes uint8, userTimeout uint32) *bpf.Conn {
	return forecastConn(func(c *bpf.Conn) {
		c.Flags |= bpf.ConnKeepaliveTimeSet | bpf.ConnKeepaliveIntvlSet | bpf.ConnKeepaliveProbesSet
		c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes, c.UserTimeout = ago(idle), ago(interval), probes, userTimeout
		c.Silent, c.Idle = ago(10*time.Second), ago(10*time.Second)
		c.KeepaliveExpires, c.KeepaliveLevel = armed(c, idle-10*time.Second)
	})
}

// zombied makes a zombie of it, with so many unanswered.
func zombied(c *bpf.Conn, evidence uint8, unanswered uint16) *bpf.Conn {
	c.Flags |= bpf.ConnTrouble
	c.Evidence, c.Unanswered, c.Solicited = evidence, unanswered, ago(5*time.Second)
	return c
}

func off(c *bpf.Conn) { c.Flags &^= bpf.ConnKeepalive }

func unguarded() *bpf.Conn {
	return forecastConn(func(c *bpf.Conn) {
		off(c)
		c.Class, c.Risks = bpf.ClassUnguarded, 1<<bpf.RiskNoKeepalive
		c.Silent, c.Idle = ago(6*time.Minute), ago(6*time.Minute)
	})
}

func keepaliveZombie() *bpf.Conn {
	return zombied(idleConn(func(c *bpf.Conn) {
		c.Silent, c.Idle, c.ProbesOut = ago(7430*time.Second), ago(7430*time.Second), 4
		c.KeepaliveExpires, c.KeepaliveLevel = armed(c, 70*time.Second)
	}), bpf.EvidenceKeepalive, 4)
}

// unacknowledged is a zombie with data in flight.
func unacknowledged(f func(*bpf.Conn)) *bpf.Conn {
	return zombied(inFlight(func(c *bpf.Conn) {
		c.SendQueue, c.Retransmits, c.Retransmitting = 14, 6, ago(15*time.Second)
		c.Silent, c.Rto = ago(16*time.Second), ago(13*time.Second)
		f(c)
	}), bpf.EvidenceRetransmit, 6)
}

func closedWindow(f func(*bpf.Conn)) *bpf.Conn {
	return forecastConn(func(c *bpf.Conn) {
		off(c)
		c.Flags |= bpf.ConnWindowClosed | bpf.ConnTrouble
		c.SendWindow, c.SendQueue, c.Pending, c.Backoff = 0, 600000, bpf.PendingWindowProbe, 6
		c.WindowClosed, c.Silent, c.Idle = ago(20*time.Second), ago(4*time.Second), ago(20*time.Second)
		c.WriteExpires, c.WriteLevel = armed(c, 9*time.Second)
		f(c)
	})
}

func connecting(f func(*bpf.Conn)) *bpf.Conn {
	return zombied(forecastConn(func(c *bpf.Conn) {
		off(c)
		c.State, c.Silent, c.Idle = bpf.StateSynSent, bpf.AgeNone, bpf.AgeNone
		c.Retries, c.SynLinear, c.Retransmits, c.Rto = 6, 4, 3, ago(time.Second)
		c.PacketsOut, c.SendQueue, c.SendWindow, c.Pending, c.Retransmitting = 1, 1, 0, bpf.PendingRetransmit, ago(3*time.Second)
		c.WriteExpires, c.WriteLevel = armed(c, 500*time.Millisecond)
		f(c)
	}), bpf.EvidenceRetransmit, 3)
}

func orphan(f func(*bpf.Conn)) *bpf.Conn {
	return unacknowledged(func(c *bpf.Conn) {
		off(c)
		c.State, c.Retries = bpf.StateFinWait1, 0
		c.Flags |= bpf.ConnOrphan
		f(c)
	})
}

// connFrom returns the record that begins with these bytes; what is missing is 0.
func connFrom(data []byte) bpf.Conn {
	var c bpf.Conn
	size := binary.Size(&c)
	data = slices.Concat(data[:min(len(data), size)], make([]byte, size))[:size]
	if _, err := binary.Decode(data, binary.NativeEndian, &c); err != nil {
		panic(err)
	}
	return c
}

// bytesFrom is the reverse of connFrom.
func bytesFrom(c *bpf.Conn) []byte {
	data, err := binary.Append(nil, binary.NativeEndian, c)
	if err != nil {
		panic(err)
	}
	return data
}

// fuzzSeeds are records of each timer that can end a connection.
func fuzzSeeds() []*bpf.Conn {
	return []*bpf.Conn{
		idleConn(func(*bpf.Conn) {}),
		idleConn(func(c *bpf.Conn) { c.UserTimeout, c.ProbesOut = 30000, 2 }),
		inFlight(func(c *bpf.Conn) { c.Retransmits, c.Retransmitting = 3, ago(3*time.Second) }),
		inFlight(func(c *bpf.Conn) { c.SendWindow = 0 }),
		unacknowledged(func(c *bpf.Conn) { c.Pending = bpf.PendingTailLossProbe }),
		closedWindow(func(*bpf.Conn) {}),
		connecting(func(*bpf.Conn) {}),
		orphan(func(*bpf.Conn) {}),
		zombied(keepaliveZombie(), bpf.EvidenceKeepalive, 4),
		unguarded(),
	}
}
