// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

type meaning struct{ value, meaning string }

// verdicts and the others have the order in which docs/metrics.md lists them.
var (
	verdicts = append(meanings[conn.Verdict](conn.Verdicts), meaning{"", "the state has no verdict"})
	states   = []meaning{
		{"established", "open both ways"},
		{"syn_sent", "connecting"},
		{"syn_recv", "half-made inbound connections; no verdict"},
		{"fin_wait1", "closed here, not acknowledged yet"},
		{"fin_wait2", "closed here, the peer has not closed"},
		{"close_wait", "the peer has closed, the application here has not"},
		{"last_ack", "closed by both, the last acknowledgement is missing"},
		{"closing", "closed by both at once"},
		{"time_wait", "a stub that the kernel keeps of an ended connection for a minute; no verdict"},
		{"close", "sockets that are not connected; no verdict"},
		{"listen", "listeners; no verdict"},
	}
	risks       = meanings[conn.Risk](conn.Risks)
	causes      = meanings[conn.Cause](conn.Causes)
	retransmits = []meaning{
		{"timeout", "the retransmission timer fired: nothing came back in time"},
		{"fast", "the peer's acknowledgements showed a gap"},
		{"tail_loss_probe", "a test whether the last segment was lost"},
		{"syn", "the SYN of a connection attempt, sent again"},
		{"synack", "the answer to a SYN, sent again"},
	}
	events = []meaning{
		{"solicitation", "a probe or retransmission, from the second unanswered one in a row on"},
		{"death", "a connection that ended without an orderly close, or that was in trouble"},
	}
	losses = append(events[:len(events):len(events)],
		meaning{"watch_full", "no room to watch a socket; the census still sees it"},
		meaning{"no_cookie", "a timer fired for a socket that has no cookie yet"},
		meaning{"remember_full", "no room to record a deferred timer, a reset or a death: a cause may be `unknown`"},
		meaning{"census_full", "more network namespaces with sockets that have no cookie, or with a hash table of their own, than a census remembers"},
		meaning{"recursion", "the kernel skipped a program that was running already"},
		meaning{"undecodable", "an event that this agent cannot read"},
		meaning{"pass_failed", "a pass over the sockets failed; the log says why (`pass_fails`)"},
		meaning{"table_full", "no room to follow a connection in trouble; it is counted all the same"},
	)
)

// meanings returns the meanings that package conn gives the values, with flags as code.
func meanings[T interface {
	~uint8
	String() string
	Meaning() string
}](n int) []meaning {
	var all []meaning
	for v := range T(n) {
		all = append(all, meaning{v.String(), flags.ReplaceAllString(v.Meaning(), "`$0`")})
	}
	return all
}

var flags = regexp.MustCompile(`--[a-z-]+`)

// reasons returns the collector's reasons, each with its loss.
func reasons() []meaning {
	var all []meaning
	for r := range collector.Reason(collector.Reasons) {
		all = append(all, meaning{r.String(), r.Lost()})
	}
	return all
}

// values has the meanings of label values, by metric and label.
var values = map[string][]meaning{
	"halfopen_tcp_connections state":        states,
	"halfopen_tcp_connections verdict":      verdicts,
	"halfopen_tcp_trouble_by_owner verdict": {verdicts[conn.Unread], verdicts[conn.Blocked], verdicts[conn.Stuck]},
	"halfopen_tcp_connections_at_risk risk": risks,
	"halfopen_tcp_at_risk_by_owner risk":    risks,
	"halfopen_tcp_deaths_total cause":       causes,
	"halfopen_degraded reason":              reasons(),
	"halfopen_tcp_retransmits_total type":   retransmits,
	"halfopen_events_total type":            events,
	"halfopen_events_suppressed_total type": events,
	"halfopen_events_lost_total type":       losses,
	"halfopen_http_connections_closed_total state": {
		{"new", "the client had not sent a whole request"},
		{"active", "the agent was answering a request"},
		{"idle", "the connection was between two requests"},
	},
	"halfopen_http_lookups_refused_total reason": {
		{"client", "this client has used up its part of the share, or has too many requests that wait (429)"},
		{"all", "all clients together have used up the share, or have too many requests that wait (503)"},
	},
	"halfopen_http_requests_refused_total reason": {
		{"host", "the Host is not a name of this agent (421)"},
		{"cross_site", "a browser sent it for a page of another site (403)"},
	},
	"halfopen_http_streams_refused_total reason": {
		{"client", "the client had 64 already (429)"},
		{"all", "256 were served already: this one was refused (503), or it ended for a client that had fewer"},
	},
}
