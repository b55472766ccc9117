// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// node is the dashboard of one node.
func node() *builder {
	connections := func(matchers ...string) string { return "sum(" + of("halfopen_tcp_connections", matchers...) + ")" }
	d := board("halfopen-node", "halfopen / node", "The TCP connections of one node, and those whose peer is gone.", false)
	d.WithRow(dashboard.NewRowBuilder("Now")).
		WithPanel(number("Zombies", "Connections whose peer is most likely gone.", units.Short,
			connections(`verdict="zombie"`), steps(green, from(1, orange), from(10, red)))).
		WithPanel(number("Oldest zombie", "Time since it became a zombie.", units.Seconds,
			"max("+of("halfopen_tcp_zombie_oldest_seconds")+")", steps(green, from(1, yellow), from(1200, orange), from(3600, red)))).
		WithPanel(number("Stuck", "The peer is heard, but acknowledges nothing.", units.Short,
			connections(`verdict="stuck"`), steps(green, from(1, orange)))).
		WithPanel(number("Blocked", "This host fails to send.", units.Short,
			connections(`verdict="blocked"`), steps(green, from(1, orange)))).
		WithPanel(number("Suspects", "At least one solicitation is unanswered, but too few for a zombie.", units.Short,
			connections(`verdict="suspect"`), steps(green, from(10, yellow)))).
		WithPanel(number("Stalled", "The peer answers, but takes no data.", units.Short,
			connections(`verdict="stalled"`), steps(green, from(1, yellow)))).
		WithPanel(number("Unread", "Data waits, and the application does not read.", units.Short,
			connections(`verdict="unread"`), steps(green, from(1, yellow)))).
		WithPanel(number("Unguarded", "Idle without keepalive: the kernel will not notice a dead peer.", units.Short,
			connections(`verdict="unguarded"`), steps(blue))).
		WithPanel(number("Timeouts, last hour", "Connections that TCP gave up by itself.", units.Short,
			"sum(increase("+of("halfopen_tcp_deaths_total", timeouts)+"[1h]))", steps(green, from(5, yellow), from(50, orange))).Decimals(0)).
		WithPanel(number("Connections", "All connections that have a verdict.", units.Short,
			connections(`verdict!=""`), steps(blue))).
		WithPanel(number("Alerts firing", "Alerts of halfopen, without severity info.", units.Short,
			"count("+of("ALERTS", `alertname=~"Halfopen.*"`, `alertstate="firing"`, `severity!="info"`)+") or vector(0)",
			steps(green, from(1, red))))

	d.WithRow(dashboard.NewRowBuilder("Connections")).
		WithPanel(graph("In trouble", "Zombies, stuck and blocked connections, suspects, stalled and unread ones.", units.Short,
			query("sum by (verdict) ("+of("halfopen_tcp_connections", `verdict=~"zombie|stuck|blocked|suspect|stalled|unread"`)+")", "{{verdict}}"))).
		WithPanel(stacked(graph("Zombies by owner", "With the port of the remote service, if the peer is a service.", units.Short,
			query("sum by (owner, remote_port) ("+of("halfopen_tcp_zombies_by_owner", `owner=~"$owner"`)+")", "{{owner}} {{remote_port}}")))).
		WithPanel(stacked(graph("Stuck, blocked and unread by owner", "With the port of the remote service, if the peer is a service.", units.Short,
			query("sum by (owner, remote_port, verdict) ("+of("halfopen_tcp_trouble_by_owner", `owner=~"$owner"`)+")", "{{verdict}}: {{owner}} {{remote_port}}")))).
		WithPanel(stacked(graph("Not in trouble", "Active, idle (keepalive will notice a dead peer) and unguarded (the kernel will not notice one).", units.Short,
			query("sum by (verdict) ("+of("halfopen_tcp_connections", `verdict=~"active|idle|unguarded"`)+")", "{{verdict}}")))).
		WithPanel(stacked(graph("Sockets by state", "All TCP sockets, including listeners.", units.Short,
			query("sum by (state) ("+of("halfopen_tcp_connections")+")", "{{state}}")))).
		WithPanel(graph("At risk", "Connections, also healthy ones, with a setting or a condition that hides a dead peer.", units.Short,
			query("sum by (risk) ("+of("halfopen_tcp_connections_at_risk")+")", "{{risk}}"))).
		WithPanel(stacked(graph("Whose keepalive is off", "Connections for which the kernel would never notice a dead peer while they are silent, by the unit or pod that made the socket.", units.Short,
			query("sum by (owner) ("+of("halfopen_tcp_at_risk_by_owner", `risk=~"no_keepalive|half_closed_unguarded"`)+")", "{{owner}}")))).
		WithPanel(graph("Accept queues", "Listeners whose application does not accept, and segments of handshakes that listeners dropped in 5 minutes.", units.Short,
			query("sum("+of("halfopen_tcp_listeners_full")+")", "full"),
			query("sum(increase("+of("halfopen_tcp_listen_overflows_total")+"[5m]))", "dropped"))).
		WithPanel(idleness())

	endings(d)

	d.WithRow(dashboard.NewRowBuilder("The agent")).
		WithPanel(graph("Events", "Events per second that the kernel programs wrote, left out on purpose, or lost.", perSecond,
			query("sum by (type) (rate("+of("halfopen_events_total")+"[$__rate_interval]))", "{{type}}"),
			query("sum by (type) (rate("+of("halfopen_events_suppressed_total")+"[$__rate_interval]))", "{{type}}, suppressed"),
			query("sum by (type) (rate("+of("halfopen_events_lost_total")+"[$__rate_interval])) > 0 or sum(rate("+of("halfopen_events_lost_total")+"[$__rate_interval]))", "{{type}} lost"))).
		WithPanel(graph("Census", "The age of the last census, the interval between censuses, and the duration of one.", units.Seconds,
			query("time() - max("+of("halfopen_census_timestamp_seconds")+")", "age"),
			query("max("+of("halfopen_census_interval_seconds")+")", "interval"),
			query("max("+of("halfopen_census_duration_seconds")+")", "duration"))).
		WithPanel(graph("What it looks at", "", units.Short,
			query("sum("+of("halfopen_census_sockets")+")", "sockets"),
			query("sum("+of("halfopen_watched_sockets")+")", "watched"),
			query("sum("+of("halfopen_census_namespaces")+")", "namespaces"),
			query("sum("+of("halfopen_census_namespaces_unvisited")+")", "namespaces not entered"))).
		WithPanel(list("Not seen", "A reason with 1 holds: the agent does not see everything. The runbook of HalfopenDegraded explains what to do.",
			[]string{"sum by (reason) (" + of("halfopen_degraded") + ")"},
			[]column{{field: "reason", name: "Reason"}, {field: "Value", name: "Holds"}}, "Holds", false)).
		WithPanel(graph("Forecasts", "Share of the last day's deaths that came at the forecast time.", units.PercentUnit,
			// OpenMetrics writes the bound as 0.0.
			query("sum(increase("+of("halfopen_tcp_forecast_error_seconds_bucket", `le=~"0(\\.0)?"`)+"[1d])) / sum(increase("+of("halfopen_tcp_forecast_error_seconds_count")+"[1d]))", "in time")).
			Max(1)).
		WithPanel(graph("CPU", "Share of one core.", units.PercentUnit,
			query("sum(rate("+of("process_cpu_seconds_total", `job="halfopen"`)+"[$__rate_interval]))", "agent"))).
		WithPanel(graph("Memory", "Resident memory.", units.BytesIEC,
			query("sum("+of("process_resident_memory_bytes", `job="halfopen"`)+")", "agent"))).
		WithPanel(list("Kernel programs", "1: the program is attached.",
			[]string{"sum by (program) (" + of("halfopen_bpf_program_attached") + ")"},
			[]column{{field: "program", name: "Program"}, {field: "Value", name: "Attached"}}, "Program", true)).
		WithPanel(list("Version", "",
			[]string{"sum by (version, revision, goversion) (" + of("halfopen_build_info") + ")"},
			[]column{
				{field: "version", name: "Version"}, {field: "revision", name: "Revision"},
				{field: "goversion", name: "Go"}, {field: "Value", name: "Agents"},
			}, "Version", false))
	return d
}
