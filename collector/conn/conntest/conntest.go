// SPDX-License-Identifier: Apache-2.0

package conntest

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// HZ is the number of jiffies a second of these records.
const HZ = 250

// Ago returns a duration in jiffies.
func Ago(d time.Duration) uint32 { return uint32(d * HZ / time.Second) }

// With returns the record of a healthy established connection whose data moved a
// second ago, changed by f.
func With(f func(*abi.Conn)) *abi.Conn {
	c := &abi.Conn{
		Cookie: 0x1a2b, State: abi.StateEstablished, Class: abi.ClassActive, Flags: abi.ConnKeepalive,
		Idle: Ago(time.Second), Silent: Ago(time.Second), Solicited: abi.AgeNone, WindowClosed: abi.AgeNone, Unread: abi.AgeNone,
		KeepaliveTime: Ago(2 * time.Hour), KeepaliveIntvl: Ago(75 * time.Second), KeepaliveProbes: 9,
	}
	f(c)
	return c
}

// Silent returns the record of a connection whose peer has been silent for that long, with
// that many unanswered solicitations, the last of them 100 ms ago.
func Silent(evidence uint8, unanswered uint16, silent time.Duration) *abi.Conn {
	return With(func(c *abi.Conn) {
		c.Flags |= abi.ConnTrouble
		c.Evidence, c.Unanswered = evidence, unanswered
		c.Silent, c.Idle = Ago(silent), Ago(silent)
		c.Solicited = Ago(100 * time.Millisecond)
	})
}

// Jiffies is the time of the records: in the midst of a bucket of each level of the
// timer wheel.
const Jiffies = 1<<32 + 123457

// Arm returns when a timer expires that is armed at c.Jiffies for that long, and the
// level of the timer wheel that it is put into (kernel/time/timer.c calc_wheel_index:
// level n takes what is at least 63 * 8^n jiffies ahead).
func Arm(c *abi.Conn, wait time.Duration) (expires uint64, level uint8) {
	ahead := uint64(Ago(wait))
	for least := uint64(63); level < 8 && ahead >= least; least *= 8 {
		level++
	}
	return c.Jiffies + ahead, level
}

// Timed returns the record of a connection with the default settings of its timers,
// changed by f. None of them is armed.
func Timed(f func(*abi.Conn)) *abi.Conn {
	return With(func(c *abi.Conn) {
		c.Jiffies = Jiffies
		c.Rto, c.RtoMax = Ago(204*time.Millisecond), Ago(120*time.Second)
		c.Retries, c.Retries2, c.FinTime, c.SendWindow = 15, 15, Ago(time.Minute), 65536
		c.Retransmitting = abi.AgeNone
		c.Idle, c.Silent = 0, 0
		f(c)
	})
}

// Idle returns the record of a connection whose keepalive timer is armed for 2 h,
// changed by f.
func Idle(f func(*abi.Conn)) *abi.Conn {
	return Timed(func(c *abi.Conn) {
		c.KeepaliveExpires, c.KeepaliveLevel = Arm(c, 2*time.Hour)
		f(c)
	})
}

// InFlight returns the record of a connection with one segment in flight, changed by
// f, and then its retransmission timer armed for its Rto.
func InFlight(f func(*abi.Conn)) *abi.Conn {
	return Timed(func(c *abi.Conn) {
		c.PacketsOut, c.SendQueue, c.Pending = 1, 100, abi.PendingRetransmit
		f(c)
		c.WriteExpires, c.WriteLevel = Arm(c, time.Duration(c.Rto)*time.Second/HZ)
	})
}

// Guarded returns the record of a connection that has been idle for ten seconds, with
// these keepalive settings, and TCP_USER_TIMEOUT in milliseconds, set on the socket.
func Guarded(idle, interval time.Duration, probes uint8, userTimeout uint32) *abi.Conn {
	return Timed(func(c *abi.Conn) {
		c.Flags |= abi.ConnKeepaliveTimeSet | abi.ConnKeepaliveIntvlSet | abi.ConnKeepaliveProbesSet
		c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes, c.UserTimeout = Ago(idle), Ago(interval), probes, userTimeout
		c.Silent, c.Idle = Ago(10*time.Second), Ago(10*time.Second)
		c.KeepaliveExpires, c.KeepaliveLevel = Arm(c, idle-10*time.Second)
	})
}

// Unanswer makes a connection one in trouble, with that many unanswered solicitations,
// the last of them five seconds ago. It returns c.
func Unanswer(c *abi.Conn, evidence uint8, unanswered uint16) *abi.Conn {
	c.Flags |= abi.ConnTrouble
	c.Evidence, c.Unanswered, c.Solicited = evidence, unanswered, Ago(5*time.Second)
	return c
}

// KeepaliveOff turns keepalive off.
func KeepaliveOff(c *abi.Conn) { c.Flags &^= abi.ConnKeepalive }

// Unguarded returns the record of a connection without keepalive that has been idle
// for six minutes.
func Unguarded() *abi.Conn {
	return Timed(func(c *abi.Conn) {
		KeepaliveOff(c)
		c.Class, c.Risks = abi.ClassUnguarded, 1<<abi.RiskNoKeepalive
		c.Silent, c.Idle = Ago(6*time.Minute), Ago(6*time.Minute)
	})
}

// KeepaliveZombie returns the record of a zombie with four unanswered probes.
func KeepaliveZombie() *abi.Conn {
	return Unanswer(Idle(func(c *abi.Conn) {
		c.Silent, c.Idle, c.ProbesOut = Ago(7430*time.Second), Ago(7430*time.Second), 4
		c.KeepaliveExpires, c.KeepaliveLevel = Arm(c, 70*time.Second)
	}), abi.EvidenceKeepalive, 4)
}

// Unacknowledged returns the record of a zombie with data in flight, changed by f.
func Unacknowledged(f func(*abi.Conn)) *abi.Conn {
	return Unanswer(InFlight(func(c *abi.Conn) {
		c.SendQueue, c.Retransmits, c.Retransmitting = 14, 6, Ago(15*time.Second)
		c.Silent, c.Rto = Ago(16*time.Second), Ago(13*time.Second)
		f(c)
	}), abi.EvidenceRetransmit, 6)
}

// ClosedWindow returns the record of a connection whose peer has kept its window
// closed for 20 s and answers the probes, changed by f.
func ClosedWindow(f func(*abi.Conn)) *abi.Conn {
	return Timed(func(c *abi.Conn) {
		KeepaliveOff(c)
		c.Flags |= abi.ConnWindowClosed | abi.ConnTrouble
		c.SendWindow, c.SendQueue, c.Pending, c.Backoff = 0, 600000, abi.PendingWindowProbe, 6
		c.WindowClosed, c.Silent, c.Idle = Ago(20*time.Second), Ago(4*time.Second), Ago(20*time.Second)
		c.WriteExpires, c.WriteLevel = Arm(c, 9*time.Second)
		f(c)
	})
}

// Connecting returns the record of a connection in SYN_SENT with three SYNs
// retransmitted, changed by f.
func Connecting(f func(*abi.Conn)) *abi.Conn {
	return Unanswer(Timed(func(c *abi.Conn) {
		KeepaliveOff(c)
		c.State, c.Silent, c.Idle = abi.StateSynSent, abi.AgeNone, abi.AgeNone
		c.Retries, c.SynLinear, c.Retransmits, c.Rto = 6, 4, 3, Ago(time.Second)
		c.PacketsOut, c.SendQueue, c.SendWindow, c.Pending, c.Retransmitting = 1, 1, 0, abi.PendingRetransmit, Ago(3*time.Second)
		c.WriteExpires, c.WriteLevel = Arm(c, 500*time.Millisecond)
		f(c)
	}), abi.EvidenceRetransmit, 3)
}

// Orphan returns the record of a connection in FIN_WAIT1 that its application has
// closed, changed by f.
func Orphan(f func(*abi.Conn)) *abi.Conn {
	return Unacknowledged(func(c *abi.Conn) {
		KeepaliveOff(c)
		c.State, c.Retries = abi.StateFinWait1, 0
		c.Flags |= abi.ConnOrphan
		f(c)
	})
}

// Lingering returns the record of a connection in FIN_WAIT1 whose close(2) has waited for 5 s of
// 20, changed by f.
func Lingering(f func(*abi.Conn)) *abi.Conn {
	return Orphan(func(c *abi.Conn) {
		c.Flags ^= abi.ConnOrphan | abi.ConnLingering
		c.Linger, c.Lingering = Ago(20*time.Second), Ago(5*time.Second)
		f(c)
	})
}

// Leave makes a connection one whose application has left that many bytes for so long, which is
// unread. It returns c.
func Leave(c *abi.Conn, bytes uint32, unread time.Duration) *abi.Conn {
	c.Flags |= abi.ConnUnread
	c.ReceiveQueue, c.Unread = bytes, Ago(unread)
	return c
}

// FromBytes returns the record that begins with these bytes; missing bytes are 0.
func FromBytes(data []byte) abi.Conn {
	var c abi.Conn
	size := binary.Size(&c)
	data = slices.Concat(data[:min(len(data), size)], make([]byte, size))[:size]
	if _, err := binary.Decode(data, binary.NativeEndian, &c); err != nil {
		panic(err)
	}
	return c
}

// Bytes is the reverse of [FromBytes].
func Bytes(c *abi.Conn) []byte {
	data, err := binary.Append(nil, binary.NativeEndian, c)
	if err != nil {
		panic(err)
	}
	return data
}

// Seeds returns records for each timer that can end a connection.
func Seeds() []*abi.Conn {
	return []*abi.Conn{
		Idle(func(*abi.Conn) {}),
		Idle(func(c *abi.Conn) { c.UserTimeout, c.ProbesOut = 30000, 2 }),
		InFlight(func(c *abi.Conn) { c.Retransmits, c.Retransmitting = 3, Ago(3*time.Second) }),
		InFlight(func(c *abi.Conn) { c.SendWindow = 0 }),
		Unacknowledged(func(c *abi.Conn) { c.Pending = abi.PendingTailLossProbe }),
		ClosedWindow(func(*abi.Conn) {}),
		Connecting(func(*abi.Conn) {}),
		Orphan(func(*abi.Conn) {}),
		Lingering(func(*abi.Conn) {}),
		Lingering(func(c *abi.Conn) { c.Lingering = abi.AgeNone }),
		Unanswer(KeepaliveZombie(), abi.EvidenceKeepalive, 4),
		Unguarded(),
		Leave(Unguarded(), 11584, time.Minute),
		Leave(ClosedWindow(func(*abi.Conn) {}), 600000, time.Minute),
	}
}
