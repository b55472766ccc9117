// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// adviseClosedWindow advises on a connection whose peer has no room for data.
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

// adviseInFlight advises on a connection that only retransmission can end.
func (x *explainer) adviseInFlight() (string, []Advice) {
	limit := x.retransmitsFor()
	if limit <= soon {
		return fmt.Sprintf("No setting needs changing: data that is not acknowledged ends the connection after about %s.", humanize.Age(limit)), nil
	}
	what, masked := "Data is in flight", ""
	if !x.canSend() {
		what = "The end of our side is not acknowledged"
	}
	if x.flag(abi.ConnKeepalive) {
		masked = " Keepalive is on, but does not help while data is in flight."
	}
	return fmt.Sprintf("%s, so only retransmission can end the connection, after about %s.%s", what, humanize.Age(limit), masked), x.boundRetransmission()
}

// boundRetransmission advises how to make the kernel give up data in flight sooner.
func (x *explainer) boundRetransmission() []Advice {
	timeout := x.suggestedTimeout()
	advice := []Advice{{
		Text: fmt.Sprintf("Let the application set TCP_USER_TIMEOUT: it bounds how long sent data may stay unacknowledged, here to %s.%s", humanize.Setting(timeout), x.whenRead()),
		How:  []string{userTimeoutCall(timeout)},
		Then: x.with(func(c *abi.Conn) { c.UserTimeout = uint32(timeout.Milliseconds()) }),
	}}
	if x.c.UserTimeout == 0 && x.c.Retries > advisedRetries2 {
		limit := x.rules.Duration64(conn.RetransmitTime(advisedRetries2, x.t.Hz/5, uint64(x.c.RtoMax)))
		advice = append(advice, x.inside(Advice{
			Text: fmt.Sprintf("Or for all sockets of %s that have no TCP_USER_TIMEOUT, existing ones too: about %s instead of %s.", x.namespace(), humanize.Age(limit), humanize.Age(x.retransmitsFor())),
			Then: x.with(func(c *abi.Conn) { c.Retries = advisedRetries2 }),
		}, sysctl("tcp_retries2", advisedRetries2)))
	}
	return advice
}

// whenRead says when a TCP_USER_TIMEOUT that is set now takes effect.
func (x *explainer) whenRead() string {
	if x.c.PacketsOut > 0 && x.c.Retransmits > 0 {
		return " It is looked at when the next retransmission is due."
	}
	return ""
}

// boundData advises how to bound the time that data is in flight, for a connection that
// is not in trouble.
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
