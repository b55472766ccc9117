// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// Timer is one of the kernel's timers of a connection.
type Timer struct {
	Name    string // keepalive, retransmission, window_probe, tail_loss_probe, reordering, fin_wait2
	Purpose string // a sentence
	// The timer fires between At and Latest; both are zero if it is not running.
	At, Latest time.Time
	Then       string // what it does when it fires if nothing is heard before; or why it is not running
}

// Pending reports whether the timer is running.
func (t *Timer) Pending() bool { return !t.At.IsZero() }

func (x *explainer) timers() []Timer { return []Timer{x.keepaliveTimer(), x.writeTimer()} }

// fires returns the times between which an armed timer fires.
func (x *explainer) fires(expires uint64, level uint8) (at, latest time.Time) {
	late := x.t
	late.Late = conn.Lateness
	f := x.rules.Between(x.c, x.conn.At, x.t.FiresAt(expires, level), late.FiresAt(expires, level), conn.CauseUnknown)
	return later(f.At, x.conn.At), later(f.Latest, x.conn.At)
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// keepaliveTimer explains the keepalive timer.
func (x *explainer) keepaliveTimer() Timer {
	c := x.c
	t := Timer{
		Name:    "keepalive",
		Purpose: "Asks a silent peer for a sign of life, as long as nothing of ours is unacknowledged.",
	}
	if c.KeepaliveExpires != 0 {
		t.At, t.Latest = x.fires(c.KeepaliveExpires, c.KeepaliveLevel)
	}
	switch {
	case x.orphanedFinWait2():
		t.Name, t.Purpose = "fin_wait2", "Bounds the wait for the peer to close its side, since no application waits for it."
		t.Then = "Frees the socket; what is left of the wait, a small time_wait entry takes over."
		if c.KeepaliveExpires == 0 {
			t.Then = "Not running at this moment."
		}
	case !x.flag(abi.ConnKeepalive):
		t.At, t.Latest = time.Time{}, time.Time{}
		t.Then = "Not running: SO_KEEPALIVE is off."
	case x.conn.State == conn.SynSent:
		t.At, t.Latest = time.Time{}, time.Time{}
		t.Then = "Not running: it begins once the connection is made."
	case c.KeepaliveExpires == 0:
		t.Then = "Not running at this moment."
	default:
		t.Then = x.keepaliveThen()
	}
	return t
}

// keepaliveThen says what the keepalive timer does when it fires (tcp_keepalive_timer).
func (x *explainer) keepaliveThen() string {
	c, r := x.c, x.rules
	now := x.t.FiresAt(c.KeepaliveExpires, c.KeepaliveLevel)
	silent := uint64(conn.Accepted(c)) + now - c.Jiffies
	timeout := x.t.MsecsToJiffies(c.UserTimeout)
	idle := humanize.Setting(r.Duration(c.KeepaliveTime))
	switch {
	case x.waiting():
		return "Sends nothing while data is unacknowledged, and waits for another " + idle + "."
	case silent < uint64(c.KeepaliveTime):
		return "The peer has not been silent for " + idle + " by then: it waits for the rest."
	case timeout > 0 && silent >= timeout && c.ProbesOut > 0:
		return "Gives the connection up: TCP_USER_TIMEOUT has passed."
	case timeout == 0 && c.ProbesOut >= c.KeepaliveProbes:
		return fmt.Sprintf("Gives the connection up: %s unanswered.", all(int(c.KeepaliveProbes), "probe"))
	case conn.Congested(c):
		return "Tries again to send a probe; the next wait is half a second, as long as the device takes nothing."
	case timeout > 0:
		return fmt.Sprintf("Sends probe %d, and looks again %s later whether TCP_USER_TIMEOUT has passed.", c.ProbesOut+1, humanize.Setting(r.Duration(c.KeepaliveIntvl)))
	}
	return fmt.Sprintf("Sends probe %d of %d; the next one, or the end, is %s later.", c.ProbesOut+1, c.KeepaliveProbes, humanize.Setting(r.Duration(c.KeepaliveIntvl)))
}

// all returns "the only probe is" or "all 9 probes are".
func all(n int, thing string) string {
	if n == 1 {
		return "the only " + thing + " is"
	}
	return fmt.Sprintf("all %d %ss are", n, thing)
}

// writeTimer explains the timer of everything but keepalive, which has one of several
// purposes at a time.
func (x *explainer) writeTimer() Timer {
	c := x.c
	t := Timer{
		Name:    "retransmission",
		Purpose: "Sends again what the peer has not acknowledged, and gives up after long enough.",
		Then:    "Not running: nothing is in flight.",
	}
	if x.waiting() {
		t.Then = "Not running at this moment."
	}
	if c.WriteExpires == 0 || c.Pending == 0 {
		return t
	}
	givesUp := false // when it fires
	if path := x.t.GiveUpPath(); path == conn.ByRetransmission || path == conn.ByWindowProbe {
		jiffy, by := x.t.GivesUp()
		givesUp = by != conn.CauseUnknown && jiffy == x.t.FiresAt(c.WriteExpires, c.WriteLevel) && c.Pending != abi.PendingTailLossProbe && c.Pending != abi.PendingReorder
	}
	switch {
	case c.Pending == abi.PendingTailLossProbe:
		t.Name, t.Purpose = "tail_loss_probe", "Sends the newest segment again early, in case only that was lost."
		t.Then = "Sends it, and sets the retransmission timer."
	case c.Pending == abi.PendingReorder:
		t.Name, t.Purpose = "reordering", "Waits a moment for segments that may only have been overtaken."
		t.Then = "Sends again what is lost by then, and sets the retransmission timer."
	case c.Pending == abi.PendingWindowProbe:
		t.Name, t.Purpose = "window_probe", "Asks a peer that has closed its window whether there is room again."
		t.Then = fmt.Sprintf("Sends a window probe; the next wait is twice as long, %s at most.", humanize.Setting(x.rules.Duration(c.RtoMax)))
		if x.flag(abi.ConnBlocked) {
			t.Purpose = "Tries again what this host has not let out."
		}
	case c.Pending != abi.PendingRetransmit:
		return t
	case x.conn.State == conn.SynSent:
		t.Purpose = "Sends the SYN again until the peer answers, and gives up after long enough."
		t.Then = fmt.Sprintf("Sends the SYN again (retransmission %d).", c.Retransmits+1)
	case c.SendWindow == 0 && !x.conn.Orphaned && !x.connecting():
		t.Purpose = "Asks a peer that has closed its window under data in flight whether there is room again."
		t.Then = "Sends the oldest segment again; the next wait is longer, " + humanize.Setting(x.rules.Duration(c.RtoMax)) + " at most."
	default:
		t.Then = fmt.Sprintf("Sends the oldest segment again (retransmission %d in a row); the next wait is longer, %s at most.",
			c.Retransmits+1, humanize.Setting(x.rules.Duration(c.RtoMax)))
	}
	if conn.Congested(c) {
		t.Then = "Tries again; the next wait is half a second, as long as the device takes nothing."
	}
	if givesUp {
		t.Then = "Gives the connection up, unless the peer is heard before."
	}
	t.At, t.Latest = x.fires(c.WriteExpires, c.WriteLevel)
	return t
}
