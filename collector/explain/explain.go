// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// Explanation explains one connection in plain sentences. Path has names of devices, which
// a user may have chosen: escape them where they are shown. No other sentence has a word
// that a process or a peer has chosen, except the path of a mounted network namespace, and
// that only if a shell takes it without quotes.
type Explanation struct {
	At         time.Time // the time of the record; "in 5s" counts from here
	Doing      []string  // what the socket is doing
	Path       []string  // how the kernel would send to the peer: see [Path]
	Timers     []Timer
	Settings   []Setting // of these timers
	Next       []string  // what happens next, and when
	Assessment string    // whether the kernel notices soon enough that the peer is gone
	Advice     []Advice  // what would make it sooner; nil if nothing needs to
}

// Explain explains the connection whose record is c and whose description is connection.
// netns is the way into its network namespace.
func Explain(r *conn.Rules, c *abi.Conn, connection *conn.Connection, netns Netns) Explanation {
	x := explainer{rules: r, c: c, conn: connection, netns: netns, t: conn.Timers{C: c, Hz: uint64(r.HZ)}}
	e := Explanation{
		At:       connection.At,
		Doing:    x.doing(),
		Timers:   x.timers(),
		Settings: x.settings(),
		Next:     x.next(),
	}
	e.Assessment, e.Advice = x.advise()
	return e
}

// Netns is the way from a shell of the machine into a network namespace. Its zero value
// is that none is known.
type Netns struct {
	Path string // of a file for nsenter(1); "": none is known
	Host bool   // it is the machine's own namespace: no way is needed
}

// explainer explains one connection at one moment.
type explainer struct {
	rules *conn.Rules
	c     *abi.Conn
	conn  *conn.Connection
	netns Netns
	t     conn.Timers // a replay with every timer on time
}

// flag reports whether the record has a flag, one of abi.Conn….
func (x *explainer) flag(f uint32) bool { return x.c.Flags&f != 0 }

// waiting reports whether data is in flight or queued.
func (x *explainer) waiting() bool { return x.c.PacketsOut > 0 || x.c.SendQueue > 0 }

// canSend reports whether the application can still send data.
func (x *explainer) canSend() bool {
	return (x.conn.State == conn.Established || x.conn.State == conn.CloseWait) && !x.conn.Orphaned
}

// closedWindow reports whether the peer's window is too small for the data to send.
func (x *explainer) closedWindow() bool {
	return x.flag(abi.ConnWindowClosed) || x.t.GiveUpPath() == conn.ByWindowProbe && !x.flag(abi.ConnBlocked)
}

// connecting reports whether the connection is still being made.
func (x *explainer) connecting() bool {
	return x.conn.State == conn.SynSent || x.conn.State == conn.SynRecv
}

// closed reports whether the application has closed the socket.
func (x *explainer) closed() bool { return x.conn.Orphaned || conn.Lingering(x.c) }

// orphanedFinWait2 reports whether the connection is in fin_wait2 without an application.
// Only there the keepalive timer ends a connection without keepalive.
func (x *explainer) orphanedFinWait2() bool {
	return x.conn.State == conn.FinWait2 && x.conn.Orphaned
}

// retransmitsFor returns about how long the kernel retransmits unacknowledged data with
// the settings of this socket, once it is connected.
func (x *explainer) retransmitsFor() time.Duration {
	c := x.c
	if c.UserTimeout > 0 {
		return x.conn.UserTimeout
	}
	retries := int(c.Retries)
	if x.closed() {
		retries = x.t.OrphanRetries(true)
	}
	return x.rules.Duration64(conn.RetransmitTime(retries, x.t.Hz/5, uint64(c.RtoMax)))
}
