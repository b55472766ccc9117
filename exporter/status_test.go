// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

func TestStatusHasWhatTheMetricsHave(t *testing.T) {
	src := &fakeSource{stats: fullStats()}
	src.stats.Degraded = []collector.Finding{
		{Reason: collector.ReasonNamespacesRefused, Detail: "3 of 4 network namespaces cannot be entered", Most: true},
		{Reason: collector.ReasonCgroupsRefused, Detail: "operation not permitted"},
	}
	for s := range src.stats.Connections { // those that there cannot be
		if s == 0 || !conn.State(s).Judged() {
			clear(src.stats.Connections[s][:])
		}
	}
	since := time.Now()
	h := newHandler(t, src)
	got := decode[api.Status](t, request(t, h, "GET", "/api/v1/status"))
	checkGeneratedAt(t, got.At, since)
	if got.StartedAt.Before(since) || got.StartedAt.After(got.At) || got.DeathsSince != got.StartedAt {
		t.Errorf("started at %v, deaths since %v", got.StartedAt, got.DeathsSince)
	}
	checkCounts(t, &got, samplesOf(t, NewMetrics(src)))
	if got.NotReady == nil || *got.NotReady != "most of this node is not seen: namespaces_refused (halfopen doctor says what to do)" {
		t.Errorf("not_ready is %v", got.NotReady)
	}
	if diff := cmp.Diff([]api.Degraded{
		{Reason: "namespaces_refused", Detail: "3 of 4 network namespaces cannot be entered", Most: true},
		{Reason: "cgroups_refused", Detail: "operation not permitted"},
	}, got.Degraded); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"retransmit_skb"}, got.Detached); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if at := got.Census.At; at == nil || !at.Equal(noon) || got.Census.Sockets != 200003 || got.Settings.MiddleboxTimeoutSeconds != 350 || len(got.Idle.Counts) != 4 {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff(map[string]float64{"10.0.0.0/8": 240, "fd00::/8": 3600}, got.Settings.MiddleboxTimeoutsSeconds); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// checkCounts checks the counts of a status against the samples of the metrics.
func checkCounts(t *testing.T, got *api.Status, samples map[string]float64) {
	t.Helper()
	sum := func(prefix, label string) (sum float64) {
		for name, v := range samples {
			if strings.HasPrefix(name, "halfopen_"+prefix) && strings.Contains(name, label) {
				sum += v
			}
		}
		return sum
	}
	for _, of := range []struct {
		metric, label string
		names         []string
		count         func(name string) float64
	}{
		{"tcp_connections ", "verdict", conn.VerdictNames(), func(name string) float64 { return float64(got.Verdicts[name]) }},
		{"tcp_connections_at_risk ", "risk", conn.RiskNames(), func(name string) float64 { return float64(got.AtRisk[name]) }},
		{"tcp_deaths_total ", "cause", conn.CauseNames(), func(name string) float64 { return float64(got.Deaths[name]) }},
	} {
		for _, name := range of.names {
			if want := sum(of.metric, of.label+`="`+name+`"`); of.count(name) != want || want == 0 {
				t.Errorf("%s %s: %v, the metric has %v", of.label, name, of.count(name), want)
			}
		}
	}
	if want := sum("events_lost_total ", ""); float64(got.Lost()) != want || want == 0 {
		t.Errorf("%d events lost, the metric has %v", got.Lost(), want)
	}
}

func TestStatusOfAnAgentThatHasJustStarted(t *testing.T) {
	w := request(t, newHandler(t, &fakeSource{notReady: true}), "GET", "/api/v1/status")
	for _, want := range []string{
		`"ready":false,`, `"not_ready":"the first census is not done"`, `"degraded":[]`, `"detached":[]`, `"census":{"at":null,`, `"zombie":0`, `"closed":0`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
	wantError(t, request(t, newHandler(t, &fakeSource{}), "GET", "/api/v1/status?verdict=zombie"), http.StatusBadRequest)
	wantError(t, request(t, newHandler(t, &fakeSource{err: errors.New("busy")}), "GET", "/api/v1/status"), http.StatusInternalServerError)
}
