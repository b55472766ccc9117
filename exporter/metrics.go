// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("halfopen_"+name, help, labels, nil)
}

var (
	connectionsDesc = desc("tcp_connections",
		"TCP sockets of this node, by state and verdict; the verdict is empty where it has no meaning.", "state", "verdict", "excluded")
	zombieOldestDesc = desc("tcp_zombie_oldest_seconds",
		"For how long the oldest living zombie has been one, 0 if there is none.", "excluded")
	atRiskDesc = desc("tcp_connections_at_risk",
		"Connections with a setting or a condition that makes a dead peer go unnoticed or hides it; of accept_queue_full, listeners.", "risk")
	atRiskByOwnerDesc = desc("tcp_at_risk_by_owner",
		"Connections at risk, by risk and by the pod, container or unit that their socket was made in; at most 50 series, the rest as owner other.", "owner", "risk")
	listenersDesc = desc("tcp_listeners",
		"Listeners of this node.")
	listenersFullDesc = desc("tcp_listeners_full",
		"Listeners whose accept queue is full: they lose new connections.")
	listenOverflowsDesc = desc("tcp_listen_overflows_total",
		"SYNs and ACKs of handshakes that listeners dropped, nearly always since their accept queue was full.")
	idleDesc = desc("tcp_connection_idle_seconds",
		"Time since data last moved either way, of the established connections at the last census.")
	probesSentDesc = desc("tcp_keepalive_probes_sent_total",
		"Keepalive probes sent.")
	probesAnsweredDesc = desc("tcp_keepalive_probes_answered_total",
		"Keepalive probes answered.")
	retransmitsDesc = desc("tcp_retransmits_total",
		"Retransmissions, by what made the kernel send again; one may be of several segments.", "type")
	deathsDesc = desc("tcp_deaths_total",
		"Ended connections, by cause.", "cause")
	zombieSecondsDesc = desc("tcp_zombie_seconds",
		"For how long zombies were zombies, observed at death or recovery.")
	forecastErrorDesc = desc("tcp_forecast_error_seconds",
		"By how much deaths missed their forecast, before or after it; 0 if within it.")
	zombiesByOwnerDesc = desc("tcp_zombies_by_owner",
		"Living zombies, by owner and the service's port; at most 49, the rest as owner other.", "owner", "remote_port", "namespace", "pod", "container", "excluded")
	troubleByOwnerDesc = desc("tcp_trouble_by_owner",
		"Stuck, blocked and unread connections, by owner, the service's port and verdict; at most 47, the rest as owner other.", "owner", "remote_port", "namespace", "pod", "container", "verdict", "excluded")
	eventsDesc = desc("events_total",
		"Events the kernel programs wrote.", "type")
	eventsLostDesc = desc("events_lost_total",
		"Events that were not delivered, and faults inside the kernel programs.", "type")
	eventsSuppressedDesc = desc("events_suppressed_total",
		"Events left out on purpose because there were too many; they are counted all the same.", "type")
	censusDurationDesc = desc("census_duration_seconds",
		"How long the last census took, 0 before the first.")
	censusSocketsDesc = desc("census_sockets",
		"Sockets seen by the last census.")
	censusIntervalDesc = desc("census_interval_seconds",
		"Time between two censuses, stretched where a census costs too much.")
	censusTimestampDesc = desc("census_timestamp_seconds",
		"When the last census ended, in seconds since 1970 by this node's clock; 0 before the first.")
	censusNamespacesDesc = desc("census_namespaces",
		"Network namespaces known at the last census.")
	censusUnvisitedDesc = desc("census_namespaces_unvisited",
		"Network namespaces that the last census could not enter.")
	censusOwnTablesDesc = desc("census_namespaces_own_table",
		"Network namespaces with a hash table of connections of their own at the last census.")
	watchedDesc = desc("watched_sockets",
		"Sockets watched because something is unanswered.")
	degradedDesc = desc("degraded",
		"Whether the agent does not see everything, by reason: 1 while it holds, else 0.", "reason")
	attachedDesc = desc("bpf_program_attached",
		"Whether the kernel program is attached.", "program")

	descs = []*prometheus.Desc{
		connectionsDesc, zombieOldestDesc, atRiskDesc, atRiskByOwnerDesc, listenersDesc, listenersFullDesc, listenOverflowsDesc, idleDesc, probesSentDesc, probesAnsweredDesc,
		retransmitsDesc, deathsDesc, zombieSecondsDesc, forecastErrorDesc, zombiesByOwnerDesc, troubleByOwnerDesc, eventsDesc,
		eventsLostDesc, eventsSuppressedDesc, censusDurationDesc, censusSocketsDesc, censusIntervalDesc,
		censusTimestampDesc, censusNamespacesDesc, censusUnvisitedDesc, censusOwnTablesDesc, watchedDesc, degradedDesc, attachedDesc,
	}
)

type metrics struct {
	src                      Source
	zombies, trouble, atRisk *ownerPlaces
}

// NewMetrics makes a collector of the halfopen_* metrics in the source's Stats, which
// it reads at every scrape. If it cannot read them, the scrape has an error and none of
// these metrics.
func NewMetrics(src Source) prometheus.Collector {
	both := 1 // the rest of the owners, and that of excluded ones
	if len(src.Options().ExcludeOwners) > 0 {
		both = 2
	}
	return metrics{src, newOwnerPlaces(both), newOwnerPlaces(3 * both), newOwnerPlaces(conn.Risks)}
}

// Describe implements prometheus.Collector.
func (metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	stats, err := m.src.Stats()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(connectionsDesc, fmt.Errorf("read stats: %w", err))
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}

	m.collectConnections(&stats, gauge)
	for r, n := range stats.AtRisk {
		gauge(atRiskDesc, float64(n), conn.Risk(r).String())
	}
	gauge(listenersDesc, float64(stats.Unjudged[conn.Listen]))
	gauge(listenersFullDesc, float64(stats.AtRisk[conn.RiskAcceptQueueFull]))
	counter(listenOverflowsDesc, stats.Census.Overflows)
	ch <- histogram(idleDesc, stats.Idle)
	ch <- histogram(zombieSecondsDesc, stats.ZombieSeconds)
	ch <- histogram(forecastErrorDesc, stats.ForecastError)
	now := time.Now()
	for o, n := range m.zombies.choose(stats.ZombiesByOwner, now) {
		gauge(zombiesByOwnerDesc, float64(n), o.Name, o.RemotePort, o.Namespace, o.Pod, o.Container, o.Excluded)
	}
	for o, n := range m.trouble.choose(stats.TroubleByOwner, now) {
		gauge(troubleByOwnerDesc, float64(n), o.Name, o.RemotePort, o.Namespace, o.Pod, o.Container, o.Verdict, o.Excluded)
	}

	for o, n := range m.atRisk.choose(stats.AtRiskByOwner, now) {
		gauge(atRiskByOwnerDesc, float64(n), o.Name, o.Risk)
	}

	k := &stats.Kernel
	counter(probesSentDesc, k.ProbesSent)
	counter(probesAnsweredDesc, k.ProbesAnswered)
	for t := range conn.RetransmitType(conn.RetransmitTypes) {
		counter(retransmitsDesc, k.Retransmits[t], t.String())
	}
	for c := range conn.Cause(conn.Causes) {
		counter(deathsDesc, k.Deaths[c], c.String())
	}
	for t := range conn.EventType(conn.EventTypes) {
		counter(eventsDesc, k.Events[t], t.String())
		counter(eventsSuppressedDesc, k.Suppressed[t], t.String())
	}
	for name, n := range eventsLost(&stats) {
		counter(eventsLostDesc, n, name)
	}

	gauge(censusDurationDesc, stats.Census.Duration.Seconds())
	gauge(censusSocketsDesc, float64(stats.Census.Sockets))
	gauge(censusIntervalDesc, stats.Census.Interval.Seconds())
	ended := 0.0
	if at := stats.Census.At; !at.IsZero() {
		ended = float64(at.UnixMilli()) / 1000
	}
	gauge(censusTimestampDesc, ended)
	gauge(censusNamespacesDesc, float64(stats.Census.Namespaces))
	gauge(censusUnvisitedDesc, float64(stats.Census.Unvisited))
	gauge(censusOwnTablesDesc, float64(stats.Census.OwnTables))
	gauge(watchedDesc, float64(stats.Watched))
	var holds [collector.Reasons]float64
	for _, f := range stats.Degraded {
		holds[f.Reason] = 1
	}
	for r, v := range holds {
		gauge(degradedDesc, v, collector.Reason(r).String())
	}
	for program, attached := range stats.Attached {
		v := 0.0
		if attached {
			v = 1
		}
		gauge(attachedDesc, v, program)
	}
}

// collectConnections passes the numbers of connections to gauge, those of excluded owners apart.
func (m metrics) collectConnections(stats *collector.Stats, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	excludes := len(m.src.Options().ExcludeOwners) > 0
	for s := conn.Established; int(s) < conn.States; s++ {
		if !s.Judged() {
			gauge(connectionsDesc, float64(stats.Unjudged[s]), s.String(), "", "")
			continue
		}
		for v := range conn.Verdict(conn.Verdicts) {
			excluded := stats.Excluded[s][v]
			gauge(connectionsDesc, float64(stats.Connections[s][v]-excluded), s.String(), v.String(), "")
			if excludes && v.Alerts() {
				gauge(connectionsDesc, float64(excluded), s.String(), v.String(), conn.ExcludedOwner)
			}
		}
	}
	gauge(zombieOldestDesc, stats.ZombieOldest.Seconds(), "")
	if excludes {
		gauge(zombieOldestDesc, stats.ZombieOldestExcluded.Seconds(), conn.ExcludedOwner)
	}
}

// eventsLost returns how many events were not delivered, by type, and how many faults
// the kernel programs met.
func eventsLost(s *collector.Stats) map[string]uint64 {
	lost := map[string]uint64{"recursion": 0}
	for t := range conn.EventType(conn.EventTypes) {
		lost[t.String()] += s.Kernel.Lost[t]
	}
	for f := range conn.Fault(conn.Faults) {
		lost[f.String()] += s.Kernel.Faults[f]
	}
	for _, n := range s.Missed {
		lost["recursion"] += n
	}
	for name, n := range s.EventsLost {
		lost[name] += n
	}
	return lost
}

func histogram(d *prometheus.Desc, h conn.Histogram) prometheus.Metric {
	var count uint64
	buckets := make(map[float64]uint64, len(h.Bounds))
	for i, n := range h.Counts {
		count += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = count
		}
	}
	return prometheus.MustNewConstHistogram(d, count, h.Sum, buckets)
}
