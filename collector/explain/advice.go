// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// Advice is one thing that would make a dead peer be noticed sooner.
type Advice struct {
	Text string   // what to do, by whom, and what comes of it
	How  []string // the exact calls or commands
	// Then is when the kernel would give the connection up if that were done
	// at the moment of the look, and nothing more were heard; none where that
	// is no sooner than without.
	Then conn.Forecast
}

// soon is a time within which a dead peer should be noticed: most applications
// wait no longer for anything.
const soon = 5 * time.Minute

// What is advised where nothing better is known: dead peers are noticed within
// 90 seconds, three lost packets apart, at the cost of a packet a minute.
const (
	advisedIdle        = time.Minute
	advisedIntvl       = 10 * time.Second
	advisedProbes      = 3
	advisedRetries2    = 8 // 102 s; RFC 1122 (4.2.3.5) asks for 100 at least
	advisedSynRetries  = 3
	advisedConnect     = 10 * time.Second
	advisedOrphanTries = 3
)

// with is when the kernel would give the connection up with other settings, if
// that is sooner.
func (x *explainer) with(change func(*abi.Conn)) conn.Forecast {
	changed := *x.c
	change(&changed)
	f := x.rules.Forecast(&changed, x.conn.At)
	if now := x.conn.GivesUp; now.Ever() && !f.At.Before(now.At) {
		return conn.Forecast{}
	}
	return f
}

// rearm sets the keepalive timer as setting SO_KEEPALIVE or TCP_KEEPIDLE does
// (tcp_sock_set_keepidle_locked).
func rearm(c *abi.Conn) {
	var wait uint64
	if c.KeepaliveTime > c.Silent {
		wait = uint64(c.KeepaliveTime - c.Silent)
	}
	c.KeepaliveExpires = c.Jiffies + wait
	c.KeepaliveLevel = uint8(conn.LevelOf(c.Jiffies, c.KeepaliveExpires))
}

// advise says whether a peer that is gone is noticed soon enough, and what would
// make it sooner.
func (x *explainer) advise() (assessment string, advice []Advice) {
	assessment, advice = x.assess()
	if x.conn.Verdict == conn.Zombie && x.conn.State.Judged() {
		told := " The application gets ECONNABORTED."
		if x.conn.Orphaned { // bac76cf89816 "tcp: fix forever orphan socket caused by tcp_abort"
			told = " Kernels before 6.11 may do nothing about a closed socket."
		}
		advice = append(advice, Advice{
			Text: "To end this one now, as root in " + x.namespace() + " (where the kernel has CONFIG_INET_DIAG_DESTROY)." + told,
			How:  []string{x.inside(fmt.Sprintf("ss -K src %s dst %s", x.conn.Local, x.conn.Remote))},
		})
	}
	return assessment, advice
}

func (x *explainer) assess() (assessment string, advice []Advice) {
	switch {
	case x.conn.State == conn.SynSent:
		return x.adviseConnecting()
	case x.conn.State == conn.SynRecv:
		return "Nothing needs changing: the kernel sees to it that this ends.", nil
	case x.conn.Orphaned:
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
		advice = append(advice, Advice{
			Text: "Or for all sockets of " + x.namespace() + " that have no TCP_SYNCNT of their own; those that are connecting follow at their next retransmission.",
			How:  []string{x.sysctl("tcp_syn_retries", advisedSynRetries)},
			Then: x.with(func(c *abi.Conn) { c.Retries = advisedSynRetries }),
		})
	}
	return "A peer that does not answer keeps the application waiting for long, unless it has a timeout of its own.", advice
}

func (x *explainer) adviseOrphan() (string, []Advice) {
	const nobody = "No application waits for this: it costs the kernel some memory, and ends by itself."
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
		return nobody, []Advice{{
			Text: "For all sockets of " + x.namespace() + " that are closed from then on; this one keeps its time.",
			How:  []string{x.sysctl("tcp_fin_timeout", int64(defaultFinTimeout/time.Second))},
		}}
	case c.UserTimeout > 0 || x.t.OrphanRetries(true) <= advisedOrphanTries:
		return nobody + " No setting needs changing.", nil
	}
	return nobody, []Advice{{
		Text: "If there are very many of these, for all sockets of " + x.namespace() + " that their applications have closed; they follow at their next retransmission. A TCP_USER_TIMEOUT set before the close bounds it too.",
		How:  []string{x.sysctl("tcp_orphan_retries", advisedOrphanTries)},
		Then: x.with(func(c *abi.Conn) { c.Retries = advisedOrphanTries }),
	}}
}

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

func (x *explainer) adviseCloseWait() (string, []Advice) {
	for _, risk := range x.conn.Risks {
		if risk == conn.RiskCloseWaitLeak {
			return "The application leaks it: the peer has closed, and no data has moved for " + humanize.Age(x.conn.Idle) + ". The kernel does not close a socket that an application holds.",
				[]Advice{{
					Text: "The application has to close the socket when it reads the end of the stream (read returns 0). No socket option and no sysctl does that for it; ending the application does.",
					How:  []string{"close(fd)"},
				}}
		}
	}
	return "Nothing needs changing, as long as the application closes the socket soon.", nil
}

func (x *explainer) adviseClosedWindow() (string, []Advice) {
	if x.c.UserTimeout > 0 && x.conn.UserTimeout <= soon {
		return "No setting needs changing: TCP_USER_TIMEOUT bounds how long the peer may refuse to read.", nil
	}
	timeout := max(soon, x.rules.StalledAfter)
	bound := Advice{
		Text: fmt.Sprintf("Let the application set TCP_USER_TIMEOUT to the longest time that a peer may refuse to read, for example %s. That ends the connection even if the peer is alive and only slow. It is looked at when the next window probe is due.",
			humanize.Setting(timeout)),
		How:  []string{userTimeoutCall(timeout)},
		Then: x.with(func(c *abi.Conn) { c.UserTimeout = uint32(timeout.Milliseconds()) }),
	}
	switch {
	case x.conn.Verdict < conn.Suspect:
		return "A peer that answers without ever reading is waited for without end; keepalive does not help, since data waits to be sent.", []Advice{bound}
	case bound.Then.Ever(), !x.conn.GivesUp.Ever():
		return "The peer does not answer, and only unanswered window probes end the connection; keepalive does not help, since data waits to be sent.", []Advice{bound}
	}
	return fmt.Sprintf("No setting needs changing: the kernel gives up %s.", x.in(x.conn.GivesUp)), nil
}

// adviseInFlight is for what only retransmission can end.
func (x *explainer) adviseInFlight() (string, []Advice) {
	for_ := x.retransmitsFor()
	if for_ <= soon {
		return fmt.Sprintf("No setting needs changing: data that is not acknowledged ends the connection after about %s.", humanize.Age(for_)), nil
	}
	what, masked := "Data is in flight", ""
	if !x.canSend() {
		what = "The end of our side is not acknowledged"
	}
	if x.flag(abi.ConnKeepalive) {
		masked = " Keepalive is on, but does not help while data is in flight."
	}
	return fmt.Sprintf("%s, so only retransmission can end the connection, after about %s.%s", what, humanize.Age(for_), masked), x.boundRetransmission()
}

// boundRetransmission is how data in flight is given up sooner.
func (x *explainer) boundRetransmission() []Advice {
	timeout := x.suggestedTimeout()
	advice := []Advice{{
		Text: fmt.Sprintf("Let the application set TCP_USER_TIMEOUT: it bounds how long sent data may stay unacknowledged, here to %s.%s", humanize.Setting(timeout), x.whenRead()),
		How:  []string{userTimeoutCall(timeout)},
		Then: x.with(func(c *abi.Conn) { c.UserTimeout = uint32(timeout.Milliseconds()) }),
	}}
	if x.c.UserTimeout == 0 && x.c.Retries > advisedRetries2 {
		limit := x.rules.Jiffies64(conn.RetransmitTime(advisedRetries2, x.t.Hz/5, uint64(x.c.RtoMax)))
		advice = append(advice, Advice{
			Text: fmt.Sprintf("Or for all sockets of %s that have no TCP_USER_TIMEOUT, existing ones too: about %s instead of %s.", x.namespace(), humanize.Age(limit), humanize.Age(x.retransmitsFor())),
			How:  []string{x.sysctl("tcp_retries2", advisedRetries2)},
			Then: x.with(func(c *abi.Conn) { c.Retries = advisedRetries2 }),
		})
	}
	return advice
}

// whenRead says when a user timeout acts that is set now.
func (x *explainer) whenRead() string {
	if x.c.PacketsOut > 0 && x.c.Retransmits > 0 {
		return " It is looked at when the next retransmission is due."
	}
	return ""
}

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

// adviseKeepalive is for a connection with which nothing is wrong but that its
// peer may vanish, or may have.
func (x *explainer) adviseKeepalive() (string, []Advice) {
	t := x.inForce()
	on, slow := x.flag(abi.ConnKeepalive), x.notices() > soon
	forgotten := t.idle > x.rules.MiddleboxTimeout
	gap := x.canSend() && x.retransmitsFor() > soon
	var advice []Advice
	var says string
	switch {
	case !on:
		says = "Keepalive is off: a peer that vanishes while nothing is in flight is never noticed."
		if x.conn.UserTimeout > 0 {
			says += " TCP_USER_TIMEOUT is set, but alone it only bounds data in flight."
		}
		advice = append(advice, x.turnOn())
		if x.conn.State == conn.FinWait2 {
			advice = append(advice, Advice{
				Text: "Or let it close the socket: then net.ipv4.tcp_fin_timeout bounds the wait.",
				How:  []string{"close(fd)"},
			})
		}
	case forgotten:
		says = fmt.Sprintf("The first probe comes after %s of silence. A NAT or load balancer on the way may have forgotten the connection after %s, and a dead peer is noticed after %s.",
			humanize.Setting(t.idle), humanize.Setting(x.rules.MiddleboxTimeout), humanize.Age(x.notices()))
		advice = append(advice, x.quicken()...)
	case slow && x.conn.UserTimeout > t.notices():
		says = fmt.Sprintf("TCP_USER_TIMEOUT overrides the number of probes: a dead peer is noticed after %s, and would be after %s without it.", humanize.Age(x.notices()), humanize.Age(t.notices()))
		advice = append(advice, x.lowerTimeout())
	case slow:
		says = fmt.Sprintf("A dead peer is noticed only after %s of silence.", humanize.Age(x.notices()))
		advice = append(advice, x.quicken()...)
	case x.overdue():
		says = fmt.Sprintf("With what is set now, a peer that vanishes is noticed after %s of silence.", humanize.Age(x.notices()))
		advice = append(advice, x.setAnew())
	case x.conn.Verdict >= conn.Suspect && x.conn.GivesUp.Ever():
		says = fmt.Sprintf("No setting needs changing: the kernel gives up %s.", x.in(x.conn.GivesUp))
	case gap:
		says = fmt.Sprintf("An idle peer that vanishes is noticed after %s of silence. But keepalive waits while data is unacknowledged: if the peer vanishes then, only retransmission ends the connection, after about %s.",
			humanize.Age(x.notices()), humanize.Age(x.retransmitsFor()))
	case !x.canSend():
		says = fmt.Sprintf("Nothing needs changing: a peer that vanishes is noticed after %s of silence.", humanize.Age(x.notices()))
	default:
		says = fmt.Sprintf("Nothing needs changing: a peer that vanishes is noticed after %s of silence, and with data in flight after about %s.",
			humanize.Age(x.notices()), humanize.Age(x.retransmitsFor()))
	}
	if x.overdue() {
		says += fmt.Sprintf(" But the keepalive timer that is running fires only in %s: a changed sysctl leaves it as it is.", humanize.Age(x.keepaliveFires()))
	}
	if on && x.conn.UserTimeout > 0 && x.conn.UserTimeout <= t.idle {
		says += " Mind that TCP_USER_TIMEOUT is not longer than TCP_KEEPIDLE: one lost probe is enough to end the connection, whatever TCP_KEEPCNT says."
	}
	if gap && x.conn.Verdict < conn.Suspect && x.conn.UserTimeout == 0 {
		advice = append(advice, x.boundData())
	}
	return says, advice
}

// turnOn is for a connection without keepalive.
func (x *explainer) turnOn() Advice {
	t := x.suggested()
	a := Advice{
		Text: fmt.Sprintf("Let the application turn keepalive on, which no sysctl can, and set when to ask: with these a dead peer is noticed after %s of silence.", humanize.Age(x.noticesWith(t))),
		How:  keepaliveCalls("fd", t, x.changed(t)|soKeepalive),
		Then: x.with(func(c *abi.Conn) {
			c.Flags |= abi.ConnKeepalive
			x.setTiming(c, t)
			rearm(c)
		}),
	}
	if x.changed(t) == 0 {
		a.Text = fmt.Sprintf("Let the application turn keepalive on, which no sysctl can; the rest is set well already. A dead peer is then noticed after %s of silence.", humanize.Age(x.noticesWith(t)))
	}
	return a
}

// setAnew is for a keepalive timer that was set before keepalive was made quicker.
func (x *explainer) setAnew() Advice {
	return Advice{
		Text: "Let the application set TCP_KEEPIDLE again, be it to the same value: that sets the running timer anew. Else what is set now applies from when it fires.",
		How:  keepaliveCalls("fd", x.inForce(), keepIdle),
		Then: x.with(rearm),
	}
}

// keepaliveFires is in how long the keepalive timer fires that is running.
func (x *explainer) keepaliveFires() time.Duration {
	at, _ := x.fires(x.c.KeepaliveExpires, x.c.KeepaliveLevel)
	return at.Sub(x.conn.At)
}

// quicken is for keepalive that asks too late or too rarely.
func (x *explainer) quicken() []Advice {
	t := x.suggested()
	changed := x.changed(t)
	set := changed
	if x.overdue() {
		set |= keepIdle
	}
	these := "these"
	if set&(set-1) == 0 {
		these = "this"
	}
	a := Advice{
		Text: fmt.Sprintf("Let the application set %s: a dead peer is then noticed after %s of silence.", these, humanize.Age(t.notices())),
		How:  keepaliveCalls("fd", t, set),
		Then: x.with(func(c *abi.Conn) {
			x.setTiming(c, t)
			if set&keepIdle != 0 {
				rearm(c)
			}
			if c.UserTimeout > 0 {
				c.UserTimeout = uint32(t.notices().Milliseconds())
			}
		}),
	}
	if x.conn.UserTimeout > 0 {
		a.How = append(a.How, userTimeoutCall(t.notices()))
		a.Text += " TCP_USER_TIMEOUT is set, and would override the number of probes: it has to follow."
	}
	advice := []Advice{a}
	if x.conn.UserTimeout > 0 {
		return advice
	}
	var commands []string
	var open changes // those that the socket has no value of its own for
	for _, s := range []struct {
		what  changes
		own   uint16
		key   string
		value int64
	}{
		{keepIdle, abi.ConnKeepaliveTimeSet, "tcp_keepalive_time", inSeconds(t.idle)},
		{keepIntvl, abi.ConnKeepaliveIntvlSet, "tcp_keepalive_intvl", inSeconds(t.interval)},
		{keepCnt, abi.ConnKeepaliveProbesSet, "tcp_keepalive_probes", int64(t.probes)},
	} {
		if changed&s.what != 0 && !x.flag(s.own) {
			open |= s.what
			commands = append(commands, x.sysctl(s.key, s.value))
		}
	}
	if open == changed {
		wait := ""
		if x.c.KeepaliveExpires != 0 {
			wait = fmt.Sprintf(", this one in %s", humanize.Age(x.keepaliveFires()))
		}
		advice = append(advice, Advice{
			Text: "Or for all sockets of " + x.namespace() + " that have keepalive on and no values of their own. Those that exist keep their running keepalive timer until it fires" + wait + ".",
			How:  commands,
			Then: x.with(func(c *abi.Conn) { x.setTiming(c, t) }),
		})
	}
	return advice
}

// lowerTimeout is for a TCP_USER_TIMEOUT that makes keepalive wait.
func (x *explainer) lowerTimeout() Advice {
	timeout := x.inForce().notices()
	return Advice{
		Text: fmt.Sprintf("Let the application lower TCP_USER_TIMEOUT to what keepalive would take by itself, %s.", humanize.Setting(timeout)),
		How:  []string{userTimeoutCall(timeout)},
		Then: x.with(func(c *abi.Conn) { c.UserTimeout = uint32(timeout.Milliseconds()) }),
	}
}

// boundData is for the time in which data is in flight, of a connection that has
// no trouble now.
func (x *explainer) boundData() Advice {
	timeout := x.suggestedTimeout()
	text := fmt.Sprintf("For a peer that vanishes while data is in flight: let the application set TCP_USER_TIMEOUT. After %s without an acknowledgement the kernel gives up, instead of after about %s.",
		humanize.Setting(timeout), humanize.Age(x.retransmitsFor()))
	switch {
	case x.changed(x.suggested()) != 0:
		text += " It then decides for keepalive as well, instead of TCP_KEEPCNT: this value goes with the settings above."
	case x.flag(abi.ConnKeepalive):
		text += " It then decides for keepalive as well, instead of TCP_KEEPCNT: this value leaves that as it is."
	}
	a := Advice{Text: text, How: []string{userTimeoutCall(timeout)}}
	if x.waiting() {
		a.Then = x.with(func(c *abi.Conn) { c.UserTimeout = uint32(timeout.Milliseconds()) })
	}
	return a
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

// keepaliveCalls has TCP_KEEPIDLE last: it is what sets the timer anew, and by
// then the others should be in force.
func keepaliveCalls(fd string, t timing, what changes) []string {
	var calls []string
	for _, o := range []struct {
		what        changes
		level, name string
		value       int64
	}{
		{soKeepalive, "SOL_SOCKET", "SO_KEEPALIVE", 1},
		{keepIntvl, "IPPROTO_TCP", "TCP_KEEPINTVL", inSeconds(t.interval)},
		{keepCnt, "IPPROTO_TCP", "TCP_KEEPCNT", int64(t.probes)},
		{keepIdle, "IPPROTO_TCP", "TCP_KEEPIDLE", inSeconds(t.idle)},
	} {
		if what&o.what != 0 {
			calls = append(calls, strings.Replace(call(o.level, o.name, o.value), "(fd", "("+fd, 1))
		}
	}
	return calls
}

func userTimeoutCall(d time.Duration) string {
	return call("IPPROTO_TCP", "TCP_USER_TIMEOUT", d.Milliseconds())
}

// call is setsockopt(2) with the value itself, as most languages have it.
func call(level, name string, value int64) string {
	return fmt.Sprintf("setsockopt(fd, %s, %s, %d)", level, name, value)
}

func (x *explainer) sysctl(key string, value int64) string {
	return x.inside(fmt.Sprintf("sysctl -w net.ipv4.%s=%d", key, value))
}

// inside is a command for the connection's network namespace.
func (x *explainer) inside(command string) string {
	if !plainPath.MatchString(x.netns) {
		return command
	}
	return "nsenter --net=" + x.netns + " " + command
}

// plainPath is a path that a shell takes as it is.
var plainPath = regexp.MustCompile(`^/[\w./@+-]+$`)

func (x *explainer) namespace() string {
	return fmt.Sprintf("network namespace %d", x.conn.Netns)
}
