// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/prometheus/common/version"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// newSummary returns the summary of a node without its deaths.
func newSummary(src Source, stats *collector.Stats, node string) api.Summary {
	opts := src.Options()
	s := api.Summary{
		Node: node, Version: version.Version, Ready: src.Ready(),
		Verdicts: make(map[string]int), AtRisk: make(map[string]int), Deaths: make(map[string]uint64),
		Idle: api.IdleTimes{Bounds: stats.Idle.Bounds, Counts: stats.Idle.Counts},
		Census: api.CensusSummary{
			Sockets: stats.Census.Sockets, Namespaces: stats.Census.Namespaces, IntervalSeconds: stats.Census.Interval.Seconds(),
		},
		Settings: api.Settings{
			IdleAfterSeconds: opts.IdleAfter.Seconds(), StalledAfterSeconds: opts.StalledAfter.Seconds(),
			ZombieUnanswered: opts.ZombieUnanswered, ZombieSilenceSeconds: opts.ZombieSilence.Seconds(),
			MiddleboxTimeoutSeconds: opts.Middleboxes.Default.Seconds(), UnreadAfterSeconds: opts.UnreadAfter.Seconds(),
		},
	}
	for prefix, timeout := range opts.Middleboxes.To {
		if s.Settings.MiddleboxTimeoutsSeconds == nil {
			s.Settings.MiddleboxTimeoutsSeconds = make(map[string]float64)
		}
		s.Settings.MiddleboxTimeoutsSeconds[prefix.String()] = timeout.Seconds()
	}
	if !stats.Census.At.IsZero() {
		s.Census.At = new(stats.Census.At.UTC())
	}
	for v := range conn.Verdict(conn.Verdicts) {
		s.Verdicts[v.String()] = 0
	}
	for _, verdicts := range stats.Connections {
		for v, n := range verdicts {
			s.Total += n
			s.Verdicts[conn.Verdict(v).String()] += int(n)
		}
	}
	for r, n := range stats.AtRisk {
		s.AtRisk[conn.Risk(r).String()] = int(n)
	}
	return s
}

// NewStatus returns the status of an agent, or of a collector that a command runs by
// itself, which began at started.
func NewStatus(src Source, started time.Time) (api.Status, error) {
	now := time.Now()
	stats, err := src.Stats()
	if err != nil {
		return api.Status{}, err
	}
	s := api.Status{
		At: now.UTC(), Summary: newSummary(src, &stats, hostName()), StartedAt: started.UTC(),
		Degraded: []api.Degraded{}, EventsLost: eventsLost(&stats), Detached: []string{},
	}
	s.DeathsSince = s.StartedAt
	for c := range conn.Cause(conn.Causes) {
		s.Deaths[c.String()] = stats.Kernel.Deaths[c]
	}
	for _, f := range stats.Degraded {
		s.Degraded = append(s.Degraded, api.Degraded{Reason: f.Reason.String(), Detail: f.Detail, Most: f.Most})
	}
	if why := notReady(src); why != "" {
		s.NotReady = &why
	}
	for program, attached := range stats.Attached {
		if !attached {
			s.Detached = append(s.Detached, program)
		}
	}
	slices.Sort(s.Detached)
	return s, nil
}

// hostName returns the name of the node, "" if it is not known.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// status answers /api/v1/status.
func (a *apiHandler) status(w http.ResponseWriter, r *http.Request) {
	if _, err := api.ParseParameters(r.URL.RawQuery); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	s, err := NewStatus(a.src, a.started)
	if err != nil {
		a.send(w, r, a.failed(r.Context(), r.URL.Path, err))
		return
	}
	writeJSON(w, http.StatusOK, &s)
}
