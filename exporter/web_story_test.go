// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/explain"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/pagetest"
)

func TestPageTellsOfADeath(t *testing.T) {
	page := newPage(t)
	for _, tt := range []struct {
		name     string
		change   func(*conn.Death)
		sentence string // the text after the time
		facts    []string
	}{
		{"a death without further facts", func(*conn.Death) {}, "refused.", []string{}},
		{"a timeout with an errno", func(d *conn.Death) { d.Cause, d.Errno = conn.CauseKeepaliveTimeout, 110 }, "keepalive timeout (ETIMEDOUT).", []string{}},
		{"the death of a zombie", func(d *conn.Death) { d.ZombieFor = 95 * time.Second }, "refused, after being a zombie for 1m35s.", []string{"a zombie for 1m35s"}},
		{"a user timeout, with the unanswered solicitation", func(d *conn.Death) {
			d.Cause, d.During, d.Errno = conn.CauseUserTimeout, conn.EvidenceWindowProbe, 110
		}, "user timeout during window probe (ETIMEDOUT).", []string{"during window probe"}},
		{"a death at the forecast time", func(d *conn.Death) {
			d.Forecast = conn.Forecast{At: noon, Latest: noon, By: conn.CauseKeepaliveTimeout}
		}, "refused.", []string{"as forecast"}},
		{"a death before the forecast", func(d *conn.Death) {
			d.Forecast, d.ForecastError = conn.Forecast{At: noon, Latest: noon, By: conn.CauseKeepaliveTimeout}, -1200*time.Millisecond
		}, "refused.", []string{"1.2s before the forecast"}},
		{"a death after the forecast", func(d *conn.Death) {
			d.Forecast, d.ForecastError = conn.Forecast{At: noon, Latest: noon, By: conn.CauseKeepaliveTimeout}, 40*time.Millisecond
		}, "refused.", []string{"40ms after the forecast"}},
		{"a death that stands for others", func(d *conn.Death) {
			d.Similar, d.SimilarSince = 2, noon.Add(-time.Hour)
		}, "refused.", []string{"and 2 deaths alike since TIME"}},
	} {
		d := conn.Death{Connection: contractConnection(), DiedAt: noon, Cause: conn.CauseRefused}
		tt.change(&d)
		object := api.NewDeath(&d)
		if got, want := pagetest.Eval[string](page, "storytext.deathText(deaths.deathFromAPI(%s)).replace(/.*at (\\d+ \\w+ )?\\d\\d:\\d\\d:\\d\\d: /, '')", object), tt.sentence; got != want {
			t.Errorf("%s: %q, want %q", tt.name, got, want)
		}
		if diff := cmp.Diff(tt.facts, pagetest.Eval[[]string](page, "deaths.deathFacts(%s).map((fact) => fact.replace(/(\\d+ \\w+ )?\\d\\d:\\d\\d:\\d\\d/, 'TIME'))", object)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	counts := map[string]int{"closed": 50, "refused": 2, "keepalive_timeout": 7, "destroyed": 0}
	for query, want := range map[string]string{"": "keepalive_timeout:7:timeout refused:2:other", "?cause=closed&cause=destroyed": "closed:50:orderly keepalive_timeout:7:timeout refused:2:other destroyed:0:other"} {
		got := pagetest.Eval[string](page, "deaths.causeCounts(%s, filters.parseFilters(%s)).map(([cause, n]) => cause + ':' + n + ':' + deaths.severity(cause)).join(' ')", counts, query)
		if got != want {
			t.Errorf("the query %q lists the causes %s, want %s", query, got, want)
		}
	}
}

func TestPageTellsOfAConnection(t *testing.T) {
	page := newPage(t)
	encode := func(e conn.HistoryEntry) string {
		e.At = noon
		return pagetest.Eval[string](page, "storytext.eventText(%s)", api.NewEvent(&e))
	}
	for _, tt := range []struct{ name, got, want string }{
		{"a probe", encode(conn.HistoryEntry{Kind: conn.HistorySolicitation, Evidence: conn.EvidenceKeepalive, Unanswered: 3}), "keepalive probe 3 in a row went unanswered"},
		{"a retransmission", encode(conn.HistoryEntry{Kind: conn.HistorySolicitation, Evidence: conn.EvidenceRetransmit, Unanswered: 1}), "retransmission 1 in a row went unanswered"},
		{"an answer", encode(conn.HistoryEntry{Kind: conn.HistoryAnswer, Took: 2500 * time.Millisecond}), "the peer was heard, 2.5s after the last probe or retransmission"},
		{"an answer at once", encode(conn.HistoryEntry{Kind: conn.HistoryAnswer}), "the peer was heard, 0s after the last probe or retransmission"},
		{"an answer without an earlier solicitation", encode(conn.HistoryEntry{Kind: conn.HistoryAnswer, Took: -1}), "the peer was heard"},
		{"a verdict", encode(conn.HistoryEntry{Kind: conn.HistoryVerdict, From: conn.Suspect, To: conn.Zombie}), "the verdict changed from suspect to zombie"},
		{"one thing unanswered", pagetest.Eval[string](page, "storytext.unansweredText({ verdict: 'suspect', evidence: 'window_probe', unanswered: 1 })"), "1 window probe unanswered"},
		{"several", pagetest.Eval[string](page, "storytext.unansweredText({ verdict: 'zombie', evidence: 'keepalive', unanswered: 5 })"), "5 keepalive probes unanswered"},
		{"a peer that is heard", pagetest.Eval[string](page, "storytext.unansweredText({ verdict: 'stuck', evidence: 'retransmit', unanswered: 5 })"), "5 retransmissions not acknowledged"},
		{"what this host did not send", pagetest.Eval[string](page, "storytext.unansweredText({ verdict: 'blocked', evidence: 'keepalive', unanswered: 0, attempts: 4 })"), "4 keepalive probes that this host failed to send"},
		{"nothing", pagetest.Eval[string](page, "storytext.unansweredText({ verdict: 'active', evidence: null, unanswered: 0 })"), ""},
		{"the title of the advice for a zombie", pagetest.Eval[string](page, "storytext.adviceTitle('zombie')"), "How to notice a dead peer sooner"},
		{"the title of the advice for what is stuck", pagetest.Eval[string](page, "storytext.adviceTitle('stuck')"), "What to do"},
		{"an advice", pagetest.Eval[string](page, "storytext.adviceText({ in_seconds: 90, by: 'keepalive_timeout' })"), "If you did this now, the kernel would give up in 1m30s (keepalive timeout)."},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	for _, tt := range []struct {
		setting       explain.Setting
		value, source string
	}{
		{explain.Setting{Option: "SO_KEEPALIVE", Value: 1, Unit: "switch", Source: explain.SourceSocket}, "on", "set on the socket"},
		{explain.Setting{Option: "SO_KEEPALIVE", Unit: "switch", Source: explain.SourceDefault}, "off", "default, not set on the socket"},
		{explain.Setting{Sysctl: "net.ipv4.tcp_keepalive_time", Value: 7200, Unit: "seconds", Source: explain.SourceDefault}, "7200 s (2h)", "default of net.ipv4.tcp_keepalive_time"},
		{explain.Setting{Sysctl: "net.ipv4.tcp_keepalive_intvl", Value: 15, Unit: "seconds", Source: explain.SourceSysctl}, "15 s", "sysctl net.ipv4.tcp_keepalive_intvl"},
		{explain.Setting{Option: "TCP_USER_TIMEOUT", Value: 690_000, Unit: "milliseconds", Source: explain.SourceSocket}, "690s", "set on the socket"},
		{explain.Setting{Option: "TCP_USER_TIMEOUT", Unit: "milliseconds", Source: explain.SourceDefault}, "off", "default, not set on the socket"},
		{explain.Setting{Sysctl: "net.ipv4.tcp_retries2", Value: 15, Unit: "retransmissions", Source: explain.SourceDefault}, "15", "default of net.ipv4.tcp_retries2"},
	} {
		d := collector.Detail{Connection: contractConnection(), Explanation: explain.Explanation{Settings: []explain.Setting{tt.setting}}}
		s := api.NewConnectionDetail(&d).Explanation.Settings[0]
		if got := pagetest.Eval[string](page, "storytext.settingValue(%s)", s); got != tt.value {
			t.Errorf("the value of %+v is %q, want %q", tt.setting, got, tt.value)
		}
		if got := pagetest.Eval[string](page, "storytext.settingSource(%s)", s); got != tt.source {
			t.Errorf("the source of %+v is %q, want %q", tt.setting, got, tt.source)
		}
	}
}

func TestPageDrawsATimeline(t *testing.T) {
	page := newPage(t)
	c := contractConnection()
	event := func(ago time.Duration, e conn.HistoryEntry) conn.HistoryEntry {
		e.At = c.At.Add(-ago)
		return e
	}
	d := collector.Detail{Connection: c, History: []conn.HistoryEntry{
		event(10*time.Second, conn.HistoryEntry{Kind: conn.HistorySolicitation, Evidence: conn.EvidenceKeepalive, Unanswered: 1}),
		event(8*time.Second, conn.HistoryEntry{Kind: conn.HistoryVerdict, From: conn.Idle, To: conn.Suspect}),
		event(5*time.Second, conn.HistoryEntry{Kind: conn.HistorySolicitation, Evidence: conn.EvidenceKeepalive, Unanswered: 2}),
		event(time.Second, conn.HistoryEntry{Kind: conn.HistoryVerdict, From: conn.Suspect, To: conn.Zombie}),
	}}
	d.Explanation.At = c.At
	d.Explanation.Timers = []explain.Timer{
		{Name: "keepalive", At: c.At.Add(5 * time.Second), Latest: c.At.Add(5 * time.Second)},
		{Name: "retransmission"}, // not running
	}
	page.Run(fmt.Sprintf("const now = %d; let c = null, model = null, x = null;", c.At.UnixMilli()))
	load := func() {
		t.Helper()
		pagetest.Eval[bool](page, `(c = %s, model = timelinemodel.timelineModel(c, now), x = timelinemodel.timeScale(model.moments, 74, 700), true)`, api.NewConnectionDetail(&d))
	}
	load()
	type span struct {
		From, To float64
		Verdict  string
	}
	at := func(ago time.Duration) float64 { return float64(c.At.Add(-ago).UnixMilli()) }
	first := pagetest.Eval[float64](page, "model.moments[0]")
	want := []span{{first, at(8 * time.Second), "idle"}, {at(8 * time.Second), at(time.Second), "suspect"}, {at(time.Second), at(0), "zombie"}}
	if diff := cmp.Diff(want, pagetest.Eval[[]span](page, "model.verdicts")); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
	if heard := pagetest.Eval[float64](page, "model.heard"); heard != at(12400*time.Millisecond) || heard != first {
		t.Errorf("the peer was last heard at %v, and the timeline begins at %v: want both at 12.4 s ago", heard, first)
	}
	positions := pagetest.Eval[[]float64](page, "model.moments.map(x)")
	if !slices.IsSorted(positions) || positions[0] != 74 || positions[len(positions)-1] != 700 {
		t.Errorf("the moments have the positions %v, want them sorted from 74 to 700", positions)
	}
	if got, want := pagetest.Eval[string](page, "timelinemodel.timelineText(c, model)"),
		"Timeline. Data moved 12s ago. The peer was last heard 12s ago. Since then 3 keepalive probes went unanswered, of which the timeline shows 2. The kernel gives up in 7m30s, by keepalive timeout."; got != want {
		t.Errorf("the timeline is %q, want %q", got, want)
	}
	d.Connection.Verdict = conn.Stuck
	load()
	if got, want := pagetest.Eval[string](page, "timelinemodel.timelineText(c, model)"), " 3 keepalive probes not acknowledged, of which the timeline shows 2."; !strings.Contains(got, want) {
		t.Errorf("the timeline is %q, which has no %q", got, want)
	}
	d.Connection.Verdict = conn.Zombie
	load()
	labels := pagetest.Eval[[]struct {
		Text    string
		X, Room float64
	}](page, "timelinemodel.axisLabels(model, x, 74, 718)")
	var texts []string
	for i, l := range labels {
		texts = append(texts, l.Text)
		for _, other := range labels[:i] {
			if l.X-l.Room/2 < other.X+other.Room/2 && l.X+l.Room/2 > other.X-other.Room/2 {
				t.Errorf("%q covers %q", l.Text, other.Text)
			}
		}
	}
	if got := strings.Join(texts, ", "); !strings.HasPrefix(got, "now, gives up in 7m30s, 12s ago, +5s") {
		t.Errorf("the labels of the axis are %s", got)
	}

	// While the kernel counts unanswered retransmissions, the last data moved is a retransmission.
	d.Connection.RetransmitsUnanswered = 1
	d.Connection.GivesUp, d.Connection.Silent, d.History, d.Explanation.Timers = conn.Forecast{}, -1, nil, nil
	load()
	if got, want := pagetest.Eval[string](page, "[model.data, model.heard, model.ends, model.moments.length, timelinemodel.timelineText(c, model)].join('; ')"),
		"; ; ; 1; Timeline. The peer was never heard. Since then 3 keepalive probes went unanswered, of which the timeline shows 0. The kernel never gives up."; got != want {
		t.Errorf("the timeline is %q, want %q", got, want)
	}
}
