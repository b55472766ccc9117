// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// maxViewers is the largest number of viewers at once, and maxClientViewers that of one
// client (see clientOf).
const (
	maxViewers       = 256
	maxClientViewers = maxViewers / 4
)

// A refusal is the reason why a viewer is not served.
type refusal struct {
	reason string // value of the metric's label
	status int
	err    error
}

var (
	refusedClient = &refusal{"client", http.StatusTooManyRequests, fmt.Errorf("this client has %d streams already: close some", maxClientViewers)}
	refusedAll    = &refusal{"all", http.StatusServiceUnavailable, fmt.Errorf("%d clients have the stream already: close some", maxViewers)}
)

// streamMetrics are the metrics about the viewers of a Live.
type streamMetrics struct {
	served  prometheus.Gauge
	refused *prometheus.CounterVec
}

func newStreamMetrics() streamMetrics {
	m := streamMetrics{
		served: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "halfopen_http_streams",
			Help: "Clients that are served the stream.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "halfopen_http_streams_refused_total",
			Help: "Streams refused or ended because there were too many, of one client or in all.",
		}, []string{"reason"}),
	}
	for _, r := range []*refusal{refusedClient, refusedAll} {
		m.refused.WithLabelValues(r.reason)
	}
	return m
}

// Describe implements prometheus.Collector.
func (l *Live) Describe(ch chan<- *prometheus.Desc) {
	l.metrics.served.Describe(ch)
	l.metrics.refused.Describe(ch)
}

// Collect implements prometheus.Collector.
func (l *Live) Collect(ch chan<- prometheus.Metric) {
	l.metrics.served.Collect(ch)
	l.metrics.refused.Collect(ch)
}

// makeRoom makes room for one more viewer of a client, and returns the reason if it must
// refuse the viewer. If maxViewers are served, it ends the oldest viewer of the client with
// most viewers, provided that the new viewer's client has fewer.
func (l *Live) makeRoom(client netip.Prefix) *refusal {
	all := slices.AppendSeq(slices.Clone(l.waiting), maps.Keys(l.viewers))
	count := make(map[netip.Prefix]int)
	for _, v := range all {
		count[v.client]++
	}
	switch {
	case count[client] >= maxClientViewers:
		return refusedClient
	case len(all) < maxViewers:
		return nil
	}
	oldest := slices.MinFunc(all, func(a, b *viewer) int {
		return cmp.Or(cmp.Compare(count[b.client], count[a.client]), a.joined.Compare(b.joined))
	})
	if count[oldest.client] <= count[client]+1 {
		return refusedAll
	}
	l.refuse(oldest, refusedAll)
	l.remove(oldest)
	return nil
}

func (l *Live) refuse(v *viewer, r *refusal) {
	l.metrics.refused.WithLabelValues(r.reason).Inc()
	v.refused = r
}

// remove ends the service of a viewer, or its wait. Both may have ended before.
func (l *Live) remove(v *viewer) {
	if l.viewers[v] {
		l.drop(v)
	}
	if i := slices.Index(l.waiting, v); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		close(v.frames)
	}
}
