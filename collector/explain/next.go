// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"strings"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// in returns a forecast in words: "in 5s", "in 2m10s to 2m30s".
func (x *explainer) in(f conn.Forecast) string {
	from, spread := max(0, f.At.Sub(x.conn.At)), f.Latest.Sub(f.At)
	if spread < time.Second || spread < from/20 {
		return "in " + humanize.Age(from)
	}
	return "in " + humanize.Age(from) + " to " + humanize.Age(from+spread)
}

// next says what happens next, and when.
func (x *explainer) next() []string {
	f := x.conn.GivesUp
	if !f.Ever() {
		return []string{x.never()}
	}
	var says []string
	switch x.t.GiveUpPath() {
	case conn.ByKeepalive:
		says = append(says, x.probing())
	case conn.ByWindowProbe:
		if x.flag(abi.ConnBlocked) {
			says = append(says, "The kernel tries to send again "+x.intervals()+".")
		} else {
			says = append(says, "The kernel goes on asking the peer for room. "+x.answering())
		}
	case conn.ByRetransmission:
		says = append(says, x.retransmitting()...)
	}
	says = append(says, x.end(f))
	if x.t.GiveUpPath() == conn.ByKeepalive && x.canSend() && x.conn.UserTimeout == 0 && x.conn.Unanswered == 0 && x.conn.Verdict != conn.Blocked {
		says = append(says, fmt.Sprintf("Should the application send meanwhile, keepalive waits, and only retransmission can end the connection: after about %s.",
			humanize.Age(x.retransmitsFor())))
	}
	return says
}

// retransmitting says what the kernel does while data in flight is not acknowledged;
// nothing if it has not sent it again yet.
func (x *explainer) retransmitting() []string {
	what := "it"
	if x.conn.State == conn.SynSent {
		what = "the SYN"
	}
	switch {
	case x.conn.Verdict == conn.Blocked, x.c.Attempts > 0:
		return []string{"The kernel goes on trying to send, " + x.intervals() + "."}
	case x.closedWindow():
		return []string{"The kernel goes on asking the peer for room. " + x.answering()}
	case x.c.Retransmits > 0:
		return []string{"The kernel sends " + what + " again at growing intervals. " + x.setsBack()}
	}
	return nil
}

// intervals says how the kernel tries again to send.
func (x *explainer) intervals() string {
	if conn.Congested(x.c) {
		return "every half second, since the device does not take it"
	}
	return "at growing intervals"
}

// never says why the kernel will not notice that the peer is gone.
func (x *explainer) never() string {
	switch {
	case conn.Congested(x.c) && !x.waiting():
		return "Never, as long as this host drops its keepalive probes: the kernel tries again every half second, and counts none of them."
	case x.waiting():
		return "No timer is running at this very moment: data is just being sent or acknowledged. Look again."
	case x.conn.State == conn.FinWait2:
		return "Never, by itself: keepalive is off and nothing is in flight, so the kernel asks nothing. It waits for the peer to close its side for as long as the application holds the socket."
	case x.conn.State == conn.CloseWait:
		return "Never, by itself: the connection stays in close_wait until the application closes the socket. Keepalive is off and nothing is in flight, so the kernel asks nothing."
	case x.flag(abi.ConnKeepalive):
		return "The keepalive timer is not running at this very moment. Look again."
	case !x.conn.Accepted:
		return "Never, by itself: keepalive is off and nothing is in flight, so the kernel asks nothing. It waits until the application accepts it."
	}
	return "Never: keepalive is off and nothing is in flight, so the kernel asks nothing. A peer that is gone is not noticed until the application sends something."
}

// probing says when keepalive sends probes and when it gives up.
func (x *explainer) probing() string {
	c, r := x.c, x.rules
	interval := humanize.Setting(r.Duration(c.KeepaliveIntvl))
	limit := fmt.Sprintf("gives up when %s unanswered", all(int(c.KeepaliveProbes), "probe"))
	if c.UserTimeout > 0 {
		limit = fmt.Sprintf("gives up once a probe is out and the peer has been silent for %s (TCP_USER_TIMEOUT; TCP_KEEPCNT then means nothing)",
			humanize.Setting(x.conn.UserTimeout))
	}
	switch {
	case x.conn.Verdict == conn.Blocked:
		return fmt.Sprintf("The kernel goes on trying to send keepalive probes. It counts %d as unanswered, although this host failed to send the newest %d, and %s.",
			c.ProbesOut, x.conn.Attempts, limit)
	case c.ProbesOut > 0:
		silent := "stays silent"
		if x.conn.Verdict == conn.Stuck {
			silent = "acknowledges none"
		}
		return fmt.Sprintf("%s out. If the peer %s, the kernel sends one every %s, and %s. %s",
			are(int(c.ProbesOut), "probe"), silent, interval, limit, x.setsBack())
	}
	first := max(r.Duration(c.KeepaliveTime)-r.Duration(conn.Accepted(c)), 0)
	at, _ := x.fires(c.KeepaliveExpires, c.KeepaliveLevel)
	first = max(first, at.Sub(x.conn.At))
	return fmt.Sprintf("If the peer stays silent, the first keepalive probe goes out in %s; from then on the kernel sends one every %s, and %s.",
		humanize.Age(first), interval, limit)
}

// setsBack says what ends the trouble of a connection that is asking.
func (x *explainer) setsBack() string {
	if x.conn.Verdict == conn.Stuck {
		return "An acknowledgement sets all of this back; other segments of the peer do not."
	}
	return "An answer sets all of this back."
}

// answering says what happens if the peer answers and keeps its window closed.
func (x *explainer) answering() string {
	switch {
	case x.conn.Orphaned:
		return "No application waits for it."
	case conn.Lingering(x.c):
		return "It becomes an orphan when close(2) returns."
	case x.conn.UserTimeout > 0:
		return "TCP_USER_TIMEOUT ends it even if the peer answers."
	case x.conn.Verdict >= conn.Suspect:
		return x.setsBack()
	}
	return "As long as the peer answers and its window stays closed, it never gives up."
}

// endings has, for each cause that is a timeout, what the application gets.
var endings = [conn.Causes]string{
	conn.CauseKeepaliveTimeout:   "the application gets ETIMEDOUT",
	conn.CauseUserTimeout:        "the application gets ETIMEDOUT",
	conn.CauseRetransmitTimeout:  "the application gets ETIMEDOUT",
	conn.CauseWindowProbeTimeout: "the application gets ETIMEDOUT",
	conn.CauseConnectTimeout:     "connect(2) fails with ETIMEDOUT",
	conn.CauseOrphanTimeout:      "no application is told",
}

// end says when the kernel gives up, and what happens then.
func (x *explainer) end(f conn.Forecast) string {
	then := endings[f.By]
	switch {
	case x.closed():
		then = endings[conn.CauseOrphanTimeout]
	case x.connecting():
		then = endings[conn.CauseConnectTimeout]
	}
	if x.flag(abi.ConnSoftError) { // tcp_write_err()
		then = strings.Replace(then, "ETIMEDOUT", "the network error that was reported meanwhile, such as EHOSTUNREACH, or else ETIMEDOUT", 1)
	}
	if x.orphanedFinWait2() {
		return fmt.Sprintf("If the peer does not close its side, the kernel gives up %s (%s): %s.", x.in(f), f.By, then)
	}
	unless := "If nothing is heard from the peer"
	switch x.conn.Verdict {
	case conn.Stuck:
		unless = "If the peer acknowledges nothing"
	case conn.Blocked:
		unless = "If this host sends nothing until then"
	}
	return fmt.Sprintf("%s, the kernel gives up %s (%s): %s.", unless, x.in(f), f.By, then)
}
