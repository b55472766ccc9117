// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// doing says what the socket is doing.
func (x *explainer) doing() []string {
	says := []string{x.inState()}
	if conn.Lingering(x.c) {
		says = append(says, "close(2) waits until the peer has acknowledged everything"+x.waits()+" (SO_LINGER).")
	}
	if !x.conn.Accepted {
		says = append(says, "No application has accepted it yet: it waits in the queue of its listener, and nobody reads what arrives.")
	}
	if !x.connecting() {
		says = append(says, x.traffic())
	}
	if s := x.queued(); s != "" {
		says = append(says, s)
	}
	if s := x.unread(); s != "" {
		says = append(says, s)
	}
	if s := x.judged(); s != "" {
		says = append(says, s)
	}
	for _, v := range x.conn.Also {
		says = append(says, "It is "+v.String()+", too.")
	}
	return says
}

// inState says what the state means.
func (x *explainer) inState() string {
	switch x.conn.State {
	case conn.Established:
		if x.conn.Verdict == conn.Zombie {
			return "The connection is established, as far as this kernel knows."
		}
		return "The connection is established: both ends can send."
	case conn.SynSent:
		return "The connection is being made: we have sent a SYN, and wait for the peer's answer." + x.resent(int(x.c.Retransmits))
	case conn.SynRecv:
		return "The connection is being made: we have answered the peer's SYN, and wait for its last word."
	case conn.FinWait1:
		return x.whoClosed() + " The peer has not acknowledged that yet."
	case conn.FinWait2:
		return x.whoClosed() + " The peer knows, and has not closed its side yet."
	case conn.Closing:
		return "Both ends have closed it at the same time, and the peer has not acknowledged our end yet."
	case conn.CloseWait:
		return "The peer has closed its side and waits for ours: the application has not closed the socket."
	case conn.LastAck:
		return "Both ends have closed it; the peer has not acknowledged our end yet."
	}
	return "The connection is in state " + x.conn.State.String() + "."
}

// whoClosed says who closed our side.
func (x *explainer) whoClosed() string {
	if x.conn.Orphaned {
		return "The application has closed it, and no process holds it any more."
	}
	if conn.Lingering(x.c) {
		return "The application has closed it."
	}
	return "The application has closed its sending side (shutdown), and still holds the socket."
}

// waits says for how long close(2) waits, and has waited.
func (x *explainer) waits() string {
	s := ", for up to " + humanize.Setting(x.rules.Duration(x.c.Linger))
	if x.c.Lingering != abi.AgeNone {
		s += ", of which " + humanize.Age(x.rules.Duration(x.c.Lingering)) + " are over"
	}
	return s
}

// resent says how often the SYN has been sent again.
func (x *explainer) resent(retransmits int) string {
	if retransmits == 0 {
		return ""
	}
	return fmt.Sprintf(" The SYN has been sent again %s.", times(retransmits))
}

// times returns how often, in words.
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// traffic says when data last moved and when the peer was last heard.
func (x *explainer) traffic() string {
	idle, silent := x.conn.Idle, x.conn.Silent
	// The kernel stamps a retransmission as data sent.
	if x.conn.Verdict == conn.Stuck {
		return fmt.Sprintf("The peer was last heard %s, but has not acknowledged what we sent for %s.", since(silent), humanize.Age(x.rules.UnacknowledgedFor(x.c)))
	}
	if x.conn.Verdict >= conn.Suspect || idle < 0 {
		return "Nothing has been heard from the peer for " + humanize.Age(silent) + "."
	}
	// The kernel stamps the making of a connection as data, too.
	if since(idle) == since(silent) {
		return fmt.Sprintf("The connection was made, or data last moved, %s; the peer was last heard then, too.", since(idle))
	}
	return fmt.Sprintf("The connection was made, or data last moved, %s; the peer was last heard %s.", since(idle), since(silent))
}

// since returns an age in words.
func since(d time.Duration) string {
	if d < time.Second {
		return "less than a second ago"
	}
	return humanize.Age(d) + " ago"
}

// queued says what is in flight and in the send queue; "" while the connection is made.
func (x *explainer) queued() string {
	c := x.c
	bytes := inBytes(c.SendQueue)
	switch {
	case x.connecting():
		return ""
	case x.flag(abi.ConnWindowClosed):
		return fmt.Sprintf("%s wait to be sent or acknowledged, but the peer's window is closed: it does not read, or is gone.", bytes)
	case x.flag(abi.ConnBlocked):
		return fmt.Sprintf("%s wait to be sent, and the peer has room for them, but nothing goes out: something on this host keeps them back, such as an output filter or a missing route.", bytes)
	case x.closedWindow():
		return fmt.Sprintf("%s wait to be sent, and nothing is in flight: the peer's window (%s) is too small for them.", bytes, humanize.Plural(int(c.SendWindow), "byte"))
	case c.PacketsOut > 0 && c.Retransmits > 0 && c.Attempts > 0:
		return fmt.Sprintf("%s not acknowledged; this host has tried to send the oldest again %s, and the newest %s failed (%s in the send queue).",
			are(int(c.PacketsOut), "segment"), times(int(c.Retransmits)), humanize.Plural(int(c.Attempts), "attempt"), bytes)
	case c.PacketsOut == 1 && c.Retransmits > 0:
		return fmt.Sprintf("1 segment is not acknowledged, and has been sent again %s (%s in the send queue).", times(int(c.Retransmits)), bytes)
	case c.PacketsOut > 0 && c.Retransmits > 0:
		return fmt.Sprintf("%d segments are not acknowledged; the oldest has been sent again %s (%s in the send queue).", c.PacketsOut, times(int(c.Retransmits)), bytes)
	case c.PacketsOut > 0:
		return fmt.Sprintf("%s in flight, and not acknowledged yet (%s in the send queue).", are(int(c.PacketsOut), "segment"), bytes)
	case c.SendQueue > 0:
		return bytes + " wait in the send queue, and nothing is in flight."
	}
	return "Nothing is in flight, and nothing waits to be sent."
}

// unread says what waits for the application; "" if nothing does, or is not due yet.
func (x *explainer) unread() string {
	if !x.flag(abi.ConnUnread) {
		return ""
	}
	have := "have"
	if x.c.ReceiveQueue == 1 {
		have = "has"
	}
	return fmt.Sprintf("%s %s arrived and %s not been read for %s%s.", inBytes(x.c.ReceiveQueue), have, have, humanize.Age(x.rules.Age(x.c.Unread)), x.heldBy())
}

// heldBy names the process that has the socket, after a colon; "" if it is not known.
func (x *explainer) heldBy() string {
	if p := x.conn.Process; p != nil {
		return fmt.Sprintf(": process %d holds the socket, as descriptor %d", p.PID, p.FD)
	}
	return ""
}

// inBytes returns a number of bytes in words.
func inBytes(n uint32) string {
	if n < 1024 {
		return humanize.Plural(int(n), "byte")
	}
	return humanize.Size(n) + " bytes"
}

// are returns "1 segment is" or "2 segments are".
func are(n int, thing string) string {
	if n == 1 {
		return humanize.Plural(n, thing) + " is"
	}
	return humanize.Plural(n, thing) + " are"
}

// because says the reason of the verdict, after a space; "" if it is unknown.
func (x *explainer) because() string {
	if x.conn.Reason.Detail == "" {
		return ""
	}
	return " " + x.conn.Reason.Detail
}

// suspected says why the connection is a suspect.
func (x *explainer) suspected(unanswered string) string {
	switch {
	case x.conn.Unanswered == 0:
		return fmt.Sprintf("This host has failed to send %s, which is not enough yet to call it blocked.", humanize.Plural(x.conn.Attempts, x.conn.Evidence.Solicitation()))
	case x.conn.State == conn.SynSent:
		return unanswered + " in a row went unanswered: there may be nobody at that address, or something on the way drops the packets."
	}
	return unanswered + " in a row went unanswered, which is not enough yet to call it a zombie."
}

// judged says why the connection has its verdict; "" if it has none.
func (x *explainer) judged() string {
	if !x.conn.State.Judged() {
		return ""
	}
	unanswered := humanize.Plural(x.conn.Unanswered, x.conn.Evidence.Solicitation())
	switch x.conn.Verdict {
	case conn.Zombie:
		peer := "the peer is most likely gone"
		if x.conn.Reason.Code == conn.ReasonPeerHostAlive {
			peer = "the peer does not answer on this connection"
		}
		return fmt.Sprintf("Verdict: zombie. %s in a row went unanswered: %s, and the kernel still waits.", unanswered, peer) + x.because()
	case conn.Stuck:
		return fmt.Sprintf("Verdict: stuck. %s in a row are not acknowledged, although the peer is heard: it is there, and something on the way, or its kernel, does not let these through.", unanswered) + x.because()
	case conn.Blocked:
		return fmt.Sprintf("Verdict: blocked. This host has failed to send %s in a row: nothing was asked, so this says nothing about the peer.", humanize.Plural(x.conn.Attempts, x.conn.Evidence.Solicitation())) + x.because()
	case conn.Suspect:
		return "Verdict: suspect. " + x.suspected(unanswered) + x.because()
	case conn.Stalled:
		return "Verdict: stalled. The peer answers, but has not made room for " + humanize.Age(x.rules.Age(x.c.WindowClosed)) + "."
	case conn.Unread:
		return "Verdict: unread. The peer and the way to it are well: the application of this host does not read. When its receive buffer is full, the peer can send no more."
	case conn.Unguarded:
		return "Verdict: unguarded. No data for " + humanize.Setting(x.rules.IdleAfter) + " or more, and keepalive is off: nothing would notice that the peer is gone."
	case conn.Idle:
		if x.flag(abi.ConnLocalPeer) && !x.flag(abi.ConnKeepalive) {
			return "Verdict: idle. No data for " + humanize.Setting(x.rules.IdleAfter) + " or more. The peer is in the same network namespace, and cannot vanish unnoticed."
		}
		return "Verdict: idle. No data for " + humanize.Setting(x.rules.IdleAfter) + " or more, but the kernel would notice that the peer is gone."
	}
	return "Verdict: active. The connection was made, or data moved, within the last " + humanize.Setting(x.rules.IdleAfter) + ", and nothing is overdue."
}
