// SPDX-License-Identifier: Apache-2.0

package main

const preface = `<!-- Written by make generate (internal/metricsdoc) from the exporter's code. -->

# Metrics

` + "`halfopen agent`" + ` serves these metrics at ` + "`/metrics`" + `, in Prometheus's text format or as
OpenMetrics. Each metric has an example of a query. The agent also serves ` + "`go_*`" + ` and
` + "`process_*`" + ` about itself, and ` + "`promhttp_*`" + ` about its scrapes. An address, the port of a
client, a cookie or a pid is never a label. Every series whose label values are listed here
exists from the start, at 0.

[deploy/prometheus](../deploy/prometheus/README.md) has alerts that use them,
and [deploy/grafana](../deploy/grafana/README.md) has dashboards.
`

// A query is an example for one metric. It has a unit if the metric's name has none.
type query struct{ question, promql, unit string }

var queries = map[string]query{
	"halfopen_bpf_program_attached": {
		"Programs that are not attached (there should be none):",
		`halfopen_bpf_program_attached == 0`, "1 or 0",
	},
	"halfopen_build_info": {
		"The number of agents of each version:",
		`count by (version) (halfopen_build_info)`, "always 1",
	},
	"halfopen_census_duration_seconds": {
		"The slowest censuses of the fleet:",
		`topk(10, halfopen_census_duration_seconds)`, "",
	},
	"halfopen_census_interval_seconds": {
		"Nodes whose census interval is longer, to stay within `--census-cpu`:",
		`halfopen_census_interval_seconds > 15`, "",
	},
	"halfopen_census_namespaces": {
		"Namespaces on each node:",
		`halfopen_census_namespaces`, "network namespaces",
	},
	"halfopen_census_namespaces_own_table": {
		"Nodes with namespaces that have hash tables of their own (`net.ipv4.tcp_child_ehash_entries`), which a census may take minutes to walk; `halfopen doctor` names some:",
		`halfopen_census_namespaces_own_table > 0`, "network namespaces",
	},
	"halfopen_census_namespaces_unvisited": {
		"Nodes whose last census left namespaces out (a namespace that ended meanwhile counts, too):",
		`halfopen_census_namespaces_unvisited > 0`, "network namespaces",
	},
	"halfopen_census_sockets": {
		"The nodes with most sockets:",
		`topk(10, halfopen_census_sockets)`, "sockets",
	},
	"halfopen_census_timestamp_seconds": {
		"The age of the numbers of a node:",
		`time() - halfopen_census_timestamp_seconds`, "",
	},
	"halfopen_degraded": {
		"Nodes whose agent does not see everything, and why:",
		`halfopen_degraded == 1`, "1 or 0",
	},
	"halfopen_events_lost_total": {
		"The events lost in the last hour, by type:",
		`sum by (type) (increase(halfopen_events_lost_total[1h]))`, "events",
	},
	"halfopen_events_suppressed_total": {
		"Nodes with more events than the agent reports in detail:",
		`sum without (type) (rate(halfopen_events_suppressed_total[5m])) > 0`, "events",
	},
	"halfopen_events_total": {
		"Events per second on each node:",
		`sum without (type) (rate(halfopen_events_total[5m]))`, "events",
	},
	"halfopen_http_answers_cut_total": {
		"Agents with clients that read large answers too slowly:",
		`increase(halfopen_http_answers_cut_total[1h]) > 0`, "answers",
	},
	"halfopen_http_connections": {
		"The agents with most HTTP connections (from 512 on, or a quarter of the agent's limit on descriptors if that is less, each new one closes an old one):",
		`topk(10, halfopen_http_connections)`, "connections",
	},
	"halfopen_http_connections_closed_total": {
		"Agents to which clients open too many connections:",
		`sum without (state) (rate(halfopen_http_connections_closed_total[5m])) > 0`, "connections",
	},
	"halfopen_http_lookups_cpu_seconds_total": {
		"The share of one core that look-ups take (see `--web.lookup-cpu`):",
		`rate(halfopen_http_lookups_cpu_seconds_total[5m])`, "seconds",
	},
	"halfopen_http_lookups_refused_total": {
		"Agents that are asked for more than `--web.lookup-cpu` allows:",
		`sum without (reason) (increase(halfopen_http_lookups_refused_total[1h])) > 0`, "requests",
	},
	"halfopen_http_requests_refused_total": {
		"Agents that get requests for another host's name (see `--web.allowed-host`), or from other sites:",
		`increase(halfopen_http_requests_refused_total[1h]) > 0`, "requests",
	},
	"halfopen_http_streams": {
		"Live pages and other clients of the stream, in all:",
		`sum(halfopen_http_streams)`, "streams",
	},
	"halfopen_http_streams_refused_total": {
		"Agents with too many clients of the stream:",
		`sum without (reason) (increase(halfopen_http_streams_refused_total[1h])) > 0`, "streams",
	},
	"halfopen_tcp_at_risk_by_owner": {
		"Whose keepalive is off, over all nodes ([settings.md](settings.md#whose-keepalive-is-off) says who counts as the owner):",
		`topk(20, sum by (owner) (halfopen_tcp_at_risk_by_owner{risk=~"no_keepalive|half_closed_unguarded"}))`, "connections",
	},
	"halfopen_tcp_connection_idle_seconds": {
		"The share of established connections that have been idle for longer than 350 s, after which many middleboxes forget a flow (a histogram of the connections now: no `rate`; OpenMetrics writes the bound as `350.0`):",
		`1 - sum without (le) (halfopen_tcp_connection_idle_seconds_bucket{le=~"350(\\.0)?"}) / halfopen_tcp_connection_idle_seconds_count`, "",
	},
	"halfopen_tcp_connections": {
		"Established connections whose peer is gone:",
		`sum without (state, verdict) (halfopen_tcp_connections{state="established", verdict="zombie"})`, "sockets",
	},
	"halfopen_tcp_connections_at_risk": {
		"The nodes with most connections that a middlebox may forget:",
		`topk(10, halfopen_tcp_connections_at_risk{risk="keepalive_slower_than_middlebox"})`, "connections",
	},
	"halfopen_tcp_deaths_total": {
		"Connections that TCP gave up in the last hour, by cause:",
		`sum by (cause) (increase(halfopen_tcp_deaths_total{cause=~".+_timeout"}[1h]))`, "connections",
	},
	"halfopen_tcp_forecast_error_seconds": {
		"The share of deaths that came at the forecast time (OpenMetrics writes the bound as `0.0`):",
		`sum(increase(halfopen_tcp_forecast_error_seconds_bucket{le=~"0(\\.0)?"}[1d])) / sum(increase(halfopen_tcp_forecast_error_seconds_count[1d]))`, "",
	},
	"halfopen_tcp_keepalive_probes_answered_total": {
		"Unanswered probes per second:",
		`rate(halfopen_tcp_keepalive_probes_sent_total[5m]) - rate(halfopen_tcp_keepalive_probes_answered_total[5m])`, "probes",
	},
	"halfopen_tcp_keepalive_probes_sent_total": {
		"Probes per second:",
		`rate(halfopen_tcp_keepalive_probes_sent_total[5m])`, "probes",
	},
	"halfopen_tcp_listen_overflows_total": {
		"Nodes whose listeners lost connections in the last hour, and how many segments (the kernel counts a segment that it drops for each listener, `d` in `ss -ltm`, whatever the reason: `nstat TcpExtListenOverflows` in the network namespace has those of full accept queues alone; of a listener that ends, the last seconds are missing):",
		`increase(halfopen_tcp_listen_overflows_total[1h]) > 0`, "segments",
	},
	"halfopen_tcp_listeners": {
		"Listeners of each node:",
		`halfopen_tcp_listeners`, "sockets",
	},
	"halfopen_tcp_listeners_full": {
		"Nodes with applications that accept no connections, or too slowly (`halfopen list --risk accept_queue_full` names them):",
		`halfopen_tcp_listeners_full > 0`, "sockets",
	},
	"halfopen_tcp_retransmits_total": {
		"Retransmissions per second because no answer came at all:",
		`rate(halfopen_tcp_retransmits_total{type="timeout"}[5m])`, "retransmissions",
	},
	"halfopen_tcp_trouble_by_owner": {
		"Whose connections are stuck, and the port of the service, over all nodes:",
		`topk(20, sum by (owner, remote_port) (halfopen_tcp_trouble_by_owner{verdict="stuck"}))`, "connections",
	},
	"halfopen_tcp_zombie_oldest_seconds": {
		"Nodes where a zombie is older than 20 minutes:",
		`halfopen_tcp_zombie_oldest_seconds > 1200`, "",
	},
	"halfopen_tcp_zombie_seconds": {
		"The longest life of 95 % of the zombies of the last day:",
		`histogram_quantile(0.95, sum by (le) (rate(halfopen_tcp_zombie_seconds_bucket[1d])))`, "",
	},
	"halfopen_tcp_zombies_by_owner": {
		"The owners with most zombies, over all nodes:",
		`topk(20, sum by (owner, remote_port) (halfopen_tcp_zombies_by_owner))`, "connections",
	},
	"halfopen_watched_sockets": {
		"Nodes with many unanswered solicitations:",
		`halfopen_watched_sockets > 100`, "sockets",
	},
}
