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

// timing has the settings that decide when keepalive sends its probes.
type timing struct {
	idle, interval time.Duration
	probes         int
}

// notices returns the silence after which keepalive gives up, without a
// TCP_USER_TIMEOUT.
func (t timing) notices() time.Duration { return t.idle + time.Duration(t.probes)*t.interval }

// inForce returns the timing that is in force for the socket.
func (x *explainer) inForce() timing {
	return timing{x.conn.Keepalive.Time, x.conn.Keepalive.Interval, x.conn.Keepalive.Probes}
}

// middlebox returns for how long a NAT or load balancer on the way to the peer remembers a
// silent connection.
func (x *explainer) middlebox() time.Duration {
	return x.rules.Middleboxes.Timeout(x.conn.Remote.Addr())
}

// forgotten reports whether a NAT or load balancer on the way may forget the connection
// before keepalive with that timing sends its first probe.
func (x *explainer) forgotten(t timing) bool {
	return !x.flag(abi.ConnLocalPeer) && x.rules.FiresWithin(t.idle) >= x.middlebox()
}

// orLate says how much later than set the first probe may come, where that makes the
// difference.
func (x *explainer) orLate(t timing) string {
	if t.idle > x.middlebox() {
		return ""
	}
	return ", or up to " + humanize.Age(x.rules.FiresWithin(t.idle)) + ", since the kernel's timers may be late"
}

// suggested returns the timing to advise: the one in force if that is quick enough, else
// a quicker one.
func (x *explainer) suggested() timing {
	t := x.inForce()
	if !x.forgotten(t) && t.notices() <= soon {
		return t
	}
	t.interval, t.probes = min(t.interval, advisedIntvl), min(t.probes, advisedProbes)
	if x.forgotten(t) || t.notices() > soon {
		t.idle = min(advisedIdle, max(x.middlebox()/2, time.Second).Truncate(time.Second))
		t.interval = min(t.interval, t.idle)
	}
	return t
}

// suggestedTimeout returns the TCP_USER_TIMEOUT to advise. It gives up when keepalive does.
func (x *explainer) suggestedTimeout() time.Duration { return x.suggested().notices() }

// noticesWith returns the silence after which keepalive with that timing gives up on this
// socket. If TCP_USER_TIMEOUT is set, that is when it has passed and a probe is out.
func (x *explainer) noticesWith(t timing) time.Duration {
	timeout := x.conn.UserTimeout
	if timeout == 0 || t.interval == 0 {
		return t.notices()
	}
	intervals := max(1, (timeout-t.idle+t.interval-1)/t.interval)
	return t.idle + intervals*t.interval
}

// notices returns the silence after which the socket's keepalive gives up.
func (x *explainer) notices() time.Duration { return x.noticesWith(x.inForce()) }

// overdue reports whether the running keepalive timer fires more than a second later than
// one armed now would: a change of the sysctls does not change a running timer. A second
// is allowed for, because keepalive may have been turned on during a silence.
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

// keepaliveFires returns the time until the running keepalive timer fires.
func (x *explainer) keepaliveFires() time.Duration {
	at, _ := x.fires(x.c.KeepaliveExpires, x.c.KeepaliveLevel)
	return at.Sub(x.conn.At)
}

// adviseKeepalive advises on a connection that works, but whose peer may vanish or may
// have vanished.
func (x *explainer) adviseKeepalive() (assessment string, advice []Advice) {
	assessment, advice = x.assessKeepalive()
	if x.overdue() {
		assessment += fmt.Sprintf(" But the keepalive timer that is running fires only in %s: a changed sysctl leaves it as it is.", humanize.Age(x.keepaliveFires()))
	}
	if slices.Contains(x.conn.Risks, conn.RiskOneProbeEndsIt) {
		assessment += " Mind that TCP_USER_TIMEOUT is not longer than TCP_KEEPIDLE and TCP_KEEPINTVL together: one lost probe is enough to end the connection, whatever TCP_KEEPCNT says."
	}
	if x.slowInFlight() && x.conn.Verdict < conn.Suspect && x.conn.UserTimeout == 0 {
		advice = append(advice, x.boundData())
	}
	return assessment, advice
}

// slowInFlight reports whether a peer that vanishes while data is in flight is noticed
// too late.
func (x *explainer) slowInFlight() bool {
	return x.canSend() && x.retransmitsFor() > soon && !x.flag(abi.ConnLocalPeer)
}

// assessKeepalive says whether keepalive notices soon enough that the peer is gone, and
// what would make it sooner.
func (x *explainer) assessKeepalive() (assessment string, advice []Advice) {
	switch {
	case x.flag(abi.ConnLocalPeer) && !x.flag(abi.ConnKeepalive):
		return "Nothing needs changing: the peer is in the same network namespace. Nothing on the way can forget the connection, and when the process of the peer ends, the kernel closes it.", nil
	case !x.flag(abi.ConnKeepalive):
		return x.keepaliveOff()
	case x.forgotten(x.inForce()), x.notices() > soon:
		return x.keepaliveSlow()
	case x.overdue():
		return fmt.Sprintf("With what is set now, a peer that vanishes is noticed after %s of silence.", humanize.Age(x.notices())), []Advice{x.setAnew()}
	}
	return x.keepaliveWell(), nil
}

// keepaliveOff advises where keepalive is off.
func (x *explainer) keepaliveOff() (assessment string, advice []Advice) {
	assessment = "Keepalive is off: a peer that vanishes while nothing is in flight is never noticed."
	if x.conn.UserTimeout > 0 {
		assessment += " TCP_USER_TIMEOUT is set, but alone it only bounds data in flight."
	}
	advice = []Advice{x.turnOn()}
	if x.conn.State == conn.FinWait2 {
		advice = append(advice, Advice{
			Text: "Or let it close the socket: then net.ipv4.tcp_fin_timeout bounds the wait.",
			How:  []string{"close(fd)"},
		})
	}
	return assessment, advice
}

// keepaliveSlow advises where the first probe comes too late, or the end.
func (x *explainer) keepaliveSlow() (assessment string, advice []Advice) {
	t := x.inForce()
	switch {
	case x.forgotten(t):
		return fmt.Sprintf("The first probe comes after %s of silence%s. A NAT or load balancer on the way may have forgotten the connection after %s, and a dead peer is noticed after %s.",
			humanize.Setting(t.idle), x.orLate(t), humanize.Setting(x.middlebox()), humanize.Age(x.notices())), x.quicken()
	case x.conn.UserTimeout > t.notices():
		return fmt.Sprintf("TCP_USER_TIMEOUT overrides the number of probes: a dead peer is noticed after %s, and would be after %s without it.",
			humanize.Age(x.notices()), humanize.Age(t.notices())), []Advice{x.lowerTimeout()}
	}
	return fmt.Sprintf("A dead peer is noticed only after %s of silence.", humanize.Age(x.notices())), x.quicken()
}

// keepaliveWell says when the kernel notices where keepalive needs no change.
func (x *explainer) keepaliveWell() string {
	notices, retransmits := humanize.Age(x.notices()), humanize.Age(x.retransmitsFor())
	switch {
	case x.conn.Verdict >= conn.Suspect && x.conn.GivesUp.Ever():
		return fmt.Sprintf("No setting needs changing: the kernel gives up %s.", x.in(x.conn.GivesUp))
	case x.slowInFlight():
		return fmt.Sprintf("An idle peer that vanishes is noticed after %s of silence. But keepalive waits while data is unacknowledged: if the peer vanishes then, only retransmission ends the connection, after about %s.",
			notices, retransmits)
	case !x.canSend():
		return fmt.Sprintf("Nothing needs changing: a peer that vanishes is noticed after %s of silence.", notices)
	}
	return fmt.Sprintf("Nothing needs changing: a peer that vanishes is noticed after %s of silence, and with data in flight after about %s.",
		notices, retransmits)
}

// turnOn advises to turn keepalive on.
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

// setAnew advises to arm the keepalive timer again: it was armed before keepalive was made
// quicker.
func (x *explainer) setAnew() Advice {
	return Advice{
		Text: "Let the application set TCP_KEEPIDLE again, be it to the same value: that sets the running timer anew. Else what is set now applies from when it fires.",
		How:  keepaliveCalls("fd", x.inForce(), keepIdle),
		Then: x.with(rearm),
	}
}

// quicken advises to make keepalive quicker: its probes come too late or too rarely.
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
	var bySysctl changes // options that the socket has no value of its own for
	for _, s := range []struct {
		what  changes
		own   uint32
		key   string
		value int64
	}{
		{keepIdle, abi.ConnKeepaliveTimeSet, "tcp_keepalive_time", inSeconds(t.idle)},
		{keepIntvl, abi.ConnKeepaliveIntvlSet, "tcp_keepalive_intvl", inSeconds(t.interval)},
		{keepCnt, abi.ConnKeepaliveProbesSet, "tcp_keepalive_probes", int64(t.probes)},
	} {
		if changed&s.what != 0 && !x.flag(s.own) {
			bySysctl |= s.what
			commands = append(commands, sysctl(s.key, s.value))
		}
	}
	if bySysctl == changed {
		wait := ""
		if x.c.KeepaliveExpires != 0 {
			wait = fmt.Sprintf(", this one in %s", humanize.Age(x.keepaliveFires()))
		}
		advice = append(advice, x.inside(Advice{
			Text: "Or for all sockets of " + x.namespace() + " that have keepalive on and no values of their own. Those that exist keep their running keepalive timer until it fires" + wait + ".",
			Then: x.with(func(c *abi.Conn) { x.setTiming(c, t) }),
		}, commands...))
	}
	return advice
}

// lowerTimeout advises to lower a TCP_USER_TIMEOUT that makes keepalive wait.
func (x *explainer) lowerTimeout() Advice {
	timeout := x.inForce().notices()
	return Advice{
		Text: fmt.Sprintf("Let the application lower TCP_USER_TIMEOUT to what keepalive would take by itself, %s.", humanize.Setting(timeout)),
		How:  []string{userTimeoutCall(timeout)},
		Then: x.with(func(c *abi.Conn) { c.UserTimeout = uint32(timeout.Milliseconds()) }),
	}
}

// changes is a set of the keepalive options that an advice changes.
type changes uint8

const (
	soKeepalive changes = 1 << iota
	keepIdle
	keepIntvl
	keepCnt
	everything = soKeepalive | keepIdle | keepIntvl | keepCnt
)

// changed returns the options in which the timing differs from the one in force.
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

// setTiming changes the timing in a record, as setting the options or sysctls does.
func (x *explainer) setTiming(c *abi.Conn, t timing) {
	jiffies := func(d time.Duration) uint32 { return uint32(d * time.Duration(x.rules.HZ) / time.Second) }
	c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = jiffies(t.idle), jiffies(t.interval), uint8(t.probes)
}
