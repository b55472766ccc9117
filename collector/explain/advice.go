// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// Advice is one thing to do so that the kernel notices a dead peer sooner or, if the
// connection is stuck, blocked or unread, to find and mend what holds it up.
type Advice struct {
	Text string   // what to do, by whom, and what comes of it
	How  []string // the exact calls or commands
	// Then is when the kernel would give the connection up if that were done at
	// Explanation.At and nothing more were heard. It is the zero value if that is not
	// sooner than now.
	Then conn.Forecast
}

// soon is the time within which the kernel should notice a dead peer. Most applications
// do not wait longer for anything.
const soon = 5 * time.Minute

// The values to advise. With them the kernel notices a dead peer within 90 seconds, after
// three lost probes, at the cost of one packet a minute.
const (
	advisedIdle        = time.Minute
	advisedIntvl       = 10 * time.Second
	advisedProbes      = 3
	advisedRetries2    = 8 // 102 s; RFC 1122 (4.2.3.5) asks for 100 at least
	advisedSynRetries  = 3
	advisedConnect     = 10 * time.Second
	advisedOrphanTries = 3
)

// with returns when the kernel would give the connection up if change were applied to its
// record, or the zero value if that is not sooner.
func (x *explainer) with(change func(*abi.Conn)) conn.Forecast {
	changed := *x.c
	change(&changed)
	f := x.rules.Forecast(&changed, x.conn.At)
	if now := x.conn.GivesUp; now.Ever() && !f.At.Before(now.At) {
		return conn.Forecast{}
	}
	return f
}

// rearm arms the keepalive timer in a record, as setting SO_KEEPALIVE or TCP_KEEPIDLE
// does (tcp_sock_set_keepidle_locked).
func rearm(c *abi.Conn) {
	var wait uint64
	if c.KeepaliveTime > conn.Accepted(c) {
		wait = uint64(c.KeepaliveTime - conn.Accepted(c))
	}
	c.KeepaliveExpires = c.Jiffies + wait
	c.KeepaliveLevel = uint8(conn.WheelLevel(c.Jiffies, c.KeepaliveExpires))
}

// advise says whether the kernel notices soon enough that the peer is gone, and what would
// make it sooner.
func (x *explainer) advise() (assessment string, advice []Advice) {
	assessment, advice = x.assess()
	if slices.Contains(x.conn.Also, conn.Unread) && x.conn.Accepted {
		advice = append(advice, x.adviseReading()...)
	}
	if x.conn.Verdict == conn.Zombie && x.conn.State.Judged() {
		effect := " The application gets ECONNABORTED."
		if x.conn.Orphaned { // bac76cf89816 "tcp: fix forever orphan socket caused by tcp_abort"
			effect = " Kernels before 6.11 may do nothing about a closed socket."
		} else if conn.Lingering(x.c) {
			effect = " close(2) then returns."
		}
		advice = append(advice, x.inside(Advice{
			Text: "To end this one now, as root in " + x.namespace() + " (where the kernel has CONFIG_INET_DIAG_DESTROY)." + effect,
		}, fmt.Sprintf("ss -K src %s dst %s", x.conn.Local, x.conn.Remote)))
	}
	return assessment, advice
}

// assess is advise without the advice to end a zombie.
func (x *explainer) assess() (assessment string, advice []Advice) {
	switch {
	case x.conn.Verdict == conn.Stuck && !x.conn.Orphaned:
		return x.adviseStuck()
	case x.conn.Verdict == conn.Blocked && !x.conn.Orphaned:
		return x.adviseBlocked()
	case x.conn.Verdict == conn.Unread && x.conn.Accepted:
		return "The data is here, so keepalive would change nothing: find out why the application does not read.", x.adviseReading()
	case x.conn.State == conn.SynSent:
		return x.adviseConnecting()
	case x.conn.State == conn.SynRecv:
		return "Nothing needs changing: the kernel sees to it that this ends.", nil
	case x.closed():
		return x.adviseOrphan()
	case !x.conn.Accepted:
		return x.adviseUnaccepted()
	case x.conn.State == conn.CloseWait && !x.waiting():
		return x.adviseCloseWait()
	case x.closedWindow():
		return x.adviseClosedWindow()
	case x.conn.State == conn.FinWait1, x.conn.State == conn.Closing, x.conn.State == conn.LastAck,
		x.c.PacketsOut > 0 && x.c.Retransmits > 0:
		return x.adviseInFlight()
	}
	return x.adviseKeepalive()
}

// adviseConnecting advises on a connection whose SYN is not answered yet.
func (x *explainer) adviseConnecting() (string, []Advice) {
	c := x.c
	if c.UserTimeout > 0 && x.conn.UserTimeout <= 2*advisedConnect || c.Retries <= advisedSynRetries {
		return "Nothing needs changing: a peer that does not answer is given up soon.", nil
	}
	advice := []Advice{
		{
			Text: fmt.Sprintf("Let the application bound the connect to %s with TCP_USER_TIMEOUT, or use a timeout of its own and close the socket. The option stays in force for the connection that is made.",
				humanize.Setting(advisedConnect)),
			How:  []string{userTimeoutCall(advisedConnect)},
			Then: x.with(func(c *abi.Conn) { c.UserTimeout = uint32(advisedConnect.Milliseconds()) }),
		},
		{
			Text: "Or let it have fewer SYNs sent.",
			How:  []string{call("IPPROTO_TCP", "TCP_SYNCNT", advisedSynRetries)},
			Then: x.with(func(c *abi.Conn) { c.Retries = advisedSynRetries }),
		},
	}
	if !x.flag(abi.ConnSynRetriesSet) {
		advice = append(advice, x.inside(Advice{
			Text: "Or for all sockets of " + x.namespace() + " that have no TCP_SYNCNT of their own; those that are connecting follow at their next retransmission.",
			Then: x.with(func(c *abi.Conn) { c.Retries = advisedSynRetries }),
		}, sysctl("tcp_syn_retries", advisedSynRetries)))
	}
	return "A peer that does not answer keeps the application waiting for long, unless it has a timeout of its own.", advice
}

// adviseOrphan advises on a connection that its application has closed.
func (x *explainer) adviseOrphan() (string, []Advice) {
	nobody := "No application waits for this: it costs the kernel some memory, and ends by itself."
	if conn.Lingering(x.c) {
		nobody = "A thread waits in close(2), until the peer has acknowledged everything or the time is over; then the kernel treats it as any closed socket."
	}
	c := x.c
	switch {
	case x.orphanedFinWait2():
		if fin := x.rules.Age(c.FinTime); fin <= defaultFinTimeout {
			return nobody, nil
		} else if x.flag(abi.ConnFinTimeSet) {
			return nobody, []Advice{{
				Text: fmt.Sprintf("The application asked for %s with TCP_LINGER2 before it closed the socket; it can ask for less on later ones.", humanize.Setting(fin)),
				How:  []string{call("IPPROTO_TCP", "TCP_LINGER2", int64(defaultFinTimeout/time.Second))},
			}}
		}
		return nobody, []Advice{x.inside(Advice{
			Text: "For all sockets of " + x.namespace() + " that are closed from then on; this one keeps its time.",
		}, sysctl("tcp_fin_timeout", int64(defaultFinTimeout/time.Second)))}
	case c.UserTimeout > 0 || x.t.OrphanRetries(true) <= advisedOrphanTries:
		return nobody + " No setting needs changing.", nil
	}
	return nobody, []Advice{x.inside(Advice{
		Text: "If there are very many of these, for all sockets of " + x.namespace() + " that their applications have closed; they follow at their next retransmission. A TCP_USER_TIMEOUT set before the close bounds it too.",
		Then: x.with(func(c *abi.Conn) { c.Retries = advisedOrphanTries }),
	}, sysctl("tcp_orphan_retries", advisedOrphanTries))}
}

// adviseUnaccepted advises on a connection that waits in the queue of its listener.
func (x *explainer) adviseUnaccepted() (string, []Advice) {
	advice := []Advice{{
		Text: "The application has to accept the connection. If it never does, it is stuck, or its queue is longer than it can serve.",
		How:  []string{"accept(listener, ...)"},
	}}
	if !x.flag(abi.ConnKeepalive) {
		advice = append(advice, Advice{
			Text: "Options set on the listener are those of the connections that it accepts later: turn keepalive on there, and dead ones do not pile up in the queue.",
			How:  keepaliveCalls("listener", x.suggested(), everything),
		})
	}
	return "Nobody has accepted the connection, so no application can notice anything.", advice
}

// adviseCloseWait advises on a connection that only its peer has closed.
func (x *explainer) adviseCloseWait() (string, []Advice) {
	for _, risk := range x.conn.Risks {
		if risk == conn.RiskCloseWaitLeak {
			return "The application leaks it: the peer has closed, and nothing has come from it for " + humanize.Age(x.conn.Silent) + ". The kernel does not close a socket that an application holds.",
				[]Advice{{
					Text: "The application has to close the socket when it reads the end of the stream (read returns 0). No socket option and no sysctl does that for it; ending the application does.",
					How:  []string{"close(fd)"},
				}}
		}
	}
	return "Nothing needs changing, as long as the application closes the socket soon.", nil
}
