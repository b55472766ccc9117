// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// fleet returns the dashboard of many nodes. It shows which nodes need attention.
func fleet() *builder {
	const (
		nodeLink  = "/d/halfopen-node?var-datasource=${datasource}&${cluster:queryparam}&var-node=${__data.fields.Node}&${__url_time_range}"
		perNode   = "sum by (cluster, instance) ("
		ofZombies = `verdict="zombie"`
	)
	zombiesOf := of("halfopen_tcp_zombies_by_owner", `owner=~"$owner"`)
	largest := "topk(50, sum by (owner, remote_port) (" + zombiesOf + "))"
	d := board("halfopen-fleet", "halfopen / fleet", "The TCP connections of many nodes: where peers are gone.", true)
	d.WithRow(dashboard.NewRowBuilder("Now")).
		WithPanel(number("Agents up", "Agents that Prometheus scrapes.", units.Short,
			"sum("+of("up", `job="halfopen"`)+")", steps(blue))).
		WithPanel(number("Agents down", "Nodes on which zombies go unnoticed.", units.Short,
			"count("+of("up", `job="halfopen"`)+" == 0) or vector(0)", steps(green, from(1, orange)))).
		WithPanel(number("Nodes with zombies", "", units.Short,
			"count("+perNode+of("halfopen_tcp_connections", ofZombies)+") > 0) or vector(0)", steps(green, from(1, yellow)))).
		WithPanel(number("Zombies", "Connections whose peer is most likely gone.", units.Short,
			"sum("+of("halfopen_tcp_connections", ofZombies)+")", steps(green, from(1, orange), from(100, red)))).
		WithPanel(number("Oldest zombie", "Time since it became a zombie.", units.Seconds,
			"max("+of("halfopen_tcp_zombie_oldest_seconds")+")", steps(green, from(1, yellow), from(1200, orange), from(3600, red)))).
		WithPanel(number("Unguarded", "Idle without keepalive: the kernel will not notice a dead peer.", units.Short,
			"sum("+of("halfopen_tcp_connections", `verdict="unguarded"`)+")", steps(blue))).
		WithPanel(number("Timeouts, last hour", "Connections that TCP gave up by itself.", units.Short,
			"sum(increase("+of("halfopen_tcp_deaths_total", timeouts)+"[1h]))", steps(green, from(50, yellow), from(500, orange))).Decimals(0)).
		WithPanel(number("Alerts firing", "Alerts of halfopen, without severity info.", units.Short,
			"count("+of("ALERTS", `alertname=~"Halfopen.*"`, `alertstate="firing"`, `severity!="info"`)+") or vector(0)",
			steps(green, from(1, red))))

	d.WithRow(dashboard.NewRowBuilder("Where")).
		WithPanel(list("Nodes", "Most zombies first. A node's name links to its dashboard.",
			[]string{
				perNode + of("halfopen_tcp_connections", ofZombies) + ")",
				"max by (cluster, instance) (" + of("halfopen_tcp_zombie_oldest_seconds") + ")",
				perNode + of("halfopen_tcp_connections", `verdict="suspect"`) + ")",
				perNode + of("halfopen_tcp_connections", `verdict="stuck"`) + ")",
				perNode + of("halfopen_tcp_connections", `verdict="blocked"`) + ")",
				perNode + of("halfopen_tcp_connections", `verdict="unread"`) + ")",
				perNode + of("halfopen_tcp_connections", `verdict="unguarded"`) + ")",
				perNode + "increase(" + of("halfopen_tcp_deaths_total", timeouts) + "[1h]))",
			},
			[]column{
				{field: "cluster", name: "Cluster"}, {field: "instance", name: "Node", link: nodeLink},
				{field: "Value #A", name: "Zombies"}, {field: "Value #B", name: "Oldest", unit: units.Seconds},
				{field: "Value #C", name: "Suspects"}, {field: "Value #D", name: "Stuck"}, {field: "Value #E", name: "Blocked"},
				{field: "Value #F", name: "Unread"}, {field: "Value #G", name: "Unguarded"},
				{field: "Value #H", name: "Timeouts, last hour", unit: units.Short},
			}, "Zombies", false).Span(2 * graphWidth)).
		WithPanel(list("Owners", "The owners of zombies, and the port of the remote service, if the peer is a service.",
			[]string{
				largest,
				"count by (owner, remote_port) (" + zombiesOf + ") and " + largest,
			},
			[]column{
				{field: "owner", name: "Owner"}, {field: "remote_port", name: "Remote port"},
				{field: "Value #A", name: "Zombies"}, {field: "Value #B", name: "Nodes"},
			}, "Zombies", false)).
		WithPanel(list("Alerts", "Firing or pending; docs/runbooks has a page on each alert.",
			[]string{"sum by (alertname, severity, alertstate, instance) (" + of("ALERTS", `alertname=~"Halfopen.*"`) + ")"},
			[]column{
				{field: "alertname", name: "Alert"}, {field: "severity", name: "Severity"},
				{field: "alertstate", name: "State"}, {field: "instance", name: "Node", link: nodeLink},
				{field: "Value", name: "Alerts"},
			}, "Severity", true)) // in the alphabet, critical comes first

	d.WithRow(dashboard.NewRowBuilder("Connections")).
		WithPanel(stacked(graph("Zombies by node", "The ten nodes with most.", units.Short,
			query("topk(10, "+perNode+of("halfopen_tcp_connections", ofZombies)+"))", "{{cluster}} {{instance}}")))).
		WithPanel(stacked(graph("Zombies by owner", "The ten owners with most.", units.Short,
			query("topk(10, sum by (owner, remote_port) ("+zombiesOf+"))", "{{owner}} {{remote_port}}")))).
		WithPanel(graph("Unguarded by node", "The ten nodes with most. Load rises and falls; a leak only rises.", units.Short,
			query("topk(10, "+of("instance:halfopen_tcp_unguarded:sum")+")", "{{cluster}} {{instance}}"))).
		WithPanel(graph("At risk", "Connections, also healthy ones, with a setting or a condition that hides a dead peer.", units.Short,
			query("sum by (risk) ("+of("halfopen_tcp_connections_at_risk")+")", "{{risk}}"))).
		WithPanel(graph("Zombies as a share of established connections", "The ten nodes with most.", units.PercentUnit,
			query("topk(10, "+of("instance:halfopen_tcp_zombies:sum")+" / ("+of("instance:halfopen_tcp_established:sum")+" > 0))", "{{cluster}} {{instance}}"))).
		WithPanel(idleness())

	endings(d)

	d.WithRow(dashboard.NewRowBuilder("The agents")).
		WithPanel(graph("Events lost", "In the last 10 minutes: the ten nodes with most.", units.Short,
			query("topk(10, "+perNode+"increase("+of("halfopen_events_lost_total")+"[10m])))", "{{cluster}} {{instance}}"))).
		WithPanel(graph("Not seen", "Agents that do not see all of their node, by reason.", units.Short,
			query("sum by (reason) ("+of("halfopen_degraded")+")", "{{reason}}"))).
		WithPanel(graph("Census intervals", "The ten longest intervals.", units.Seconds,
			query("topk(10, "+of("halfopen_census_interval_seconds")+")", "{{cluster}} {{instance}}"))).
		WithPanel(graph("CPU", "Share of one core: the ten agents that take most.", units.PercentUnit,
			query("topk(10, "+perNode+"rate("+of("process_cpu_seconds_total", `job="halfopen"`)+"[$__rate_interval])))", "{{cluster}} {{instance}}"))).
		WithPanel(list("Versions", "",
			[]string{"count by (version, revision) (" + of("halfopen_build_info") + ")"},
			[]column{{field: "version", name: "Version"}, {field: "revision", name: "Revision"}, {field: "Value", name: "Agents"}}, "Agents", false))
	return d
}
