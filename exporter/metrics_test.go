// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const golden = "testdata/metrics.golden"

// scrape is the text format of the collector's own metrics.
func scrape(t *testing.T, stats collector.Stats) []byte {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	logger := slog.New(slog.DiscardHandler)
	src := &fakeSource{stats: stats}
	reg.MustRegister(NewMetrics(src), NewLive(src, logger), NewLookups(1), NewGuard(nil, nil), NewConnLimit(logger))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// samplesOf is every sample of a collector, by name and labels.
func samplesOf(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return parseText(t, w.Body.Bytes())
}

// parseText is every sample of a gauge or counter, by name and labels.
func parseText(t *testing.T, text []byte) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	samples := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.GetMetric() {
			key := name
			for _, l := range m.GetLabel() {
				key += fmt.Sprintf(" %s=%q", l.GetName(), l.GetValue())
			}
			samples[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return samples
}

func TestScrapeMatchesGolden(t *testing.T) {
	got := scrape(t, fullStats())
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("if this is meant: go test ./exporter -update (-want +got)\n%s", diff)
	}
}

func TestPromtoolFindsNothingToCorrect(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool (Debian: prometheus)")
	}
	file, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	all := request(t, newHandler(t, &fakeSource{stats: fullStats()}), "GET", "/metrics").Body.Bytes()
	for name, text := range map[string][]byte{"the golden file": file, "a whole scrape": all} {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: promtool: %v\n%s", name, err, out)
		}
	}
}

// The names are written out here as the contract has them.
func TestEverythingIsPresentAtZeroFromTheStart(t *testing.T) {
	got := parseText(t, scrape(t, collector.Stats{}))
	want := map[string]float64{}
	series := func(name string, labels ...string) {
		if len(labels) == 0 {
			want[name] = 0
		}
		for _, l := range labels {
			want[name+" "+l] = 0
		}
	}
	label := func(name, values string) (out []string) {
		for v := range strings.FieldsSeq(values) {
			out = append(out, fmt.Sprintf("%s=%q", name, v))
		}
		return out
	}
	for _, state := range label("state", "established syn_sent fin_wait1 fin_wait2 close_wait last_ack closing") {
		for _, verdict := range label("verdict", "active idle unguarded unread stalled suspect blocked stuck zombie") {
			series("halfopen_tcp_connections", `excluded="" `+state+" "+verdict)
		}
	}
	for _, state := range label("state", "syn_recv time_wait close listen") {
		series("halfopen_tcp_connections", `excluded="" `+state+` verdict=""`)
	}
	series("halfopen_tcp_zombie_oldest_seconds", `excluded=""`)
	series("halfopen_tcp_connections_at_risk", label("risk", `no_keepalive keepalive_slower_than_middlebox
		user_timeout_overrides_keepcnt keepalive_masked_by_unacked_data close_wait_leak
		half_closed_unguarded one_probe_ends_it accept_queue_full peer_host_silent`)...)
	series("halfopen_tcp_listeners")
	series("halfopen_tcp_listeners_full")
	series("halfopen_tcp_listen_overflows_total")
	series("halfopen_tcp_connection_idle_seconds")
	series("halfopen_tcp_keepalive_probes_sent_total")
	series("halfopen_tcp_keepalive_probes_answered_total")
	series("halfopen_tcp_retransmits_total", label("type", "timeout fast tail_loss_probe syn synack")...)
	series("halfopen_tcp_deaths_total", label("cause", `keepalive_timeout user_timeout retransmit_timeout
		window_probe_timeout connect_timeout orphan_timeout reset_by_peer refused unreachable aborted
		destroyed out_of_memory closed unknown`)...)
	series("halfopen_tcp_zombie_seconds")
	series("halfopen_tcp_forecast_error_seconds")
	series("halfopen_events_total", label("type", "solicitation death")...)
	series("halfopen_events_lost_total", label("type",
		"solicitation death watch_full no_cookie remember_full census_full recursion")...)
	series("halfopen_events_suppressed_total", label("type", "solicitation death")...)
	series("halfopen_census_duration_seconds")
	series("halfopen_census_sockets")
	series("halfopen_census_interval_seconds")
	series("halfopen_census_timestamp_seconds")
	series("halfopen_census_namespaces")
	series("halfopen_census_namespaces_own_table")
	series("halfopen_census_namespaces_unvisited")
	series("halfopen_watched_sockets")
	series("halfopen_http_connections")
	series("halfopen_http_connections_closed_total", label("state", "new active idle")...)
	series("halfopen_http_answers_cut_total")
	series("halfopen_http_lookups_cpu_seconds_total")
	series("halfopen_http_lookups_refused_total", label("reason", "client all")...)
	series("halfopen_http_requests_refused_total", label("reason", "host cross_site")...)
	series("halfopen_http_streams")
	series("halfopen_http_streams_refused_total", label("reason", "client all")...)
	series("halfopen_degraded", label("reason", `namespaces_refused namespaces_hidden processes_hidden
		descriptors_refused cgroups_refused cookies_missing pass_hangs pass_fails tables_late drops_unwatched`)...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the scrape does not have the series that this test lists (-list +scrape)\n%s", diff)
	}
}

// The series of excluded owners are there from the start where there can be any, and add up
// with the others to what there is.
func TestExcludedOwnersHaveSeriesOfTheirOwn(t *testing.T) {
	src := &fakeSource{excluded: conn.OwnerGlobs{"chaos"}}
	src.stats.Connections[conn.Established][conn.Zombie] = 23
	src.stats.Excluded[conn.Established][conn.Zombie] = 19
	src.stats.ZombieOldest, src.stats.ZombieOldestExcluded = 3*time.Second, 5*time.Second
	src.stats.ZombiesByOwner = map[conn.OwnerLabel]int{{Name: "chaos", Excluded: "true"}: 19, {Name: "api"}: 4}
	got := parseText(t, request(t, newHandler(t, src), "GET", "/metrics").Body.Bytes())
	for name, want := range map[string]float64{
		`halfopen_tcp_connections excluded="" state="established" verdict="zombie"`:                                   4,
		`halfopen_tcp_connections excluded="true" state="established" verdict="zombie"`:                               19,
		`halfopen_tcp_connections excluded="true" state="close_wait" verdict="stuck"`:                                 0,
		`halfopen_tcp_connections excluded="true" state="established" verdict="blocked"`:                              0,
		`halfopen_tcp_zombie_oldest_seconds excluded=""`:                                                              3,
		`halfopen_tcp_zombie_oldest_seconds excluded="true"`:                                                          5,
		`halfopen_tcp_zombies_by_owner container="" excluded="" namespace="" owner="api" pod="" remote_port=""`:       4,
		`halfopen_tcp_zombies_by_owner container="" excluded="true" namespace="" owner="chaos" pod="" remote_port=""`: 19,
	} {
		if n, has := got[name]; !has || n != want {
			t.Errorf("%s: %v, %v, want %v", name, n, has, want)
		}
	}
	if n, has := got[`halfopen_tcp_connections excluded="true" state="established" verdict="unguarded"`]; has {
		t.Errorf("%v unguarded ones are excluded, whose owners are not known", n)
	}
}

func TestHostileOwnerIsAValidLabel(t *testing.T) {
	h := newHandler(t, &fakeSource{stats: fullStats()})
	got := parseText(t, request(t, h, "GET", "/metrics").Body.Bytes())
	name := fmt.Sprintf(`halfopen_tcp_zombies_by_owner container="" excluded="" namespace="" owner=%q pod="" remote_port=%q`, `<img src=x>"\n\xff`, "443")
	if got[name] != 1 {
		t.Errorf("%s is %v, want 1", name, got[name])
	}
}

func TestZombiesByOwnerAreBounded(t *testing.T) {
	type owners = map[conn.OwnerLabel]int
	many := func(n int) owners {
		o := owners{}
		for i := range n {
			o[conn.OwnerLabel{Name: fmt.Sprintf("app%03d", i), RemotePort: "80"}] = 1000 - i
		}
		return o
	}
	with := func(o owners, name, port string, n int) owners {
		o[conn.OwnerLabel{Name: name, RemotePort: port}] = n
		return o
	}
	ties := owners{}
	for i := range 60 {
		ties[conn.OwnerLabel{Name: fmt.Sprintf("app%03d", i)}] = 2
	}
	other := func(o owners) int { return o[conn.OwnerLabel{Name: "other"}] }
	for name, tc := range map[string]struct {
		in            owners
		series, other int
		has, hasNot   conn.OwnerLabel
	}{
		"forty-nine are all shown": {
			in: many(49), series: 49,
			has: conn.OwnerLabel{Name: "app048", RemotePort: "80"}, hasNot: conn.OwnerLabel{Name: "other"},
		},
		"of fifty-one the two smallest are summed": {
			in: many(51), series: 50, other: 951 + 950,
			has: conn.OwnerLabel{Name: "app048", RemotePort: "80"}, hasNot: conn.OwnerLabel{Name: "app049", RemotePort: "80"},
		},
		"a tie goes by name": {
			in: ties, series: 50, other: 22,
			has: conn.OwnerLabel{Name: "app048"}, hasNot: conn.OwnerLabel{Name: "app049"},
		},
		"an owner named other is one more of the rest, however large": {
			in: with(many(60), "other", "", 5000), series: 50, other: 5000 + 10406,
			has: conn.OwnerLabel{Name: "app048", RemotePort: "80"}, hasNot: conn.OwnerLabel{Name: "app049", RemotePort: "80"},
		},
		"an owner named other is shown where there is no rest": {
			in: with(many(49), "other", "", 1), series: 50, other: 1,
			has: conn.OwnerLabel{Name: "app048", RemotePort: "80"}, hasNot: conn.OwnerLabel{Name: "other", RemotePort: "80"},
		},
		"an owner named other with a port is nothing special": {
			in: with(many(60), "other", "80", 5000), series: 50, other: 11358,
			has: conn.OwnerLabel{Name: "other", RemotePort: "80"}, hasNot: conn.OwnerLabel{Name: "app048", RemotePort: "80"},
		},
		"names that are not UTF-8 stay apart": {
			in: with(with(many(1), "\xff", "80", 1), "\xfe", "80", 1), series: 3,
			has: conn.OwnerLabel{Name: `\xff`, RemotePort: "80"}, hasNot: conn.OwnerLabel{Name: "\xff", RemotePort: "80"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after int
			for _, n := range tc.in {
				before += n
			}
			got := newOwnerPlaces(1).choose(tc.in, noon)
			for _, n := range got {
				after += n
			}
			if len(got) != tc.series || other(got) != tc.other || before != after {
				t.Errorf("%d series, %d under other, %d in all; want %d, %d, %d", len(got), other(got), after, tc.series, tc.other, before)
			}
			if _, ok := got[tc.has]; !ok {
				t.Errorf("no series for %q", tc.has)
			}
			if _, ok := got[tc.hasNot]; ok {
				t.Errorf("a series for %q", tc.hasNot)
			}
		})
	}
}

func TestOpenMetricsWhenAsked(t *testing.T) {
	h := newHandler(t, &fakeSource{stats: fullStats()})
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if ct := w.Header().Get("Content-Type"); !strings.HasPrefix(ct, "application/openmetrics-text") {
		t.Errorf("content type is %q", ct)
	}
	if !strings.HasSuffix(w.Body.String(), "# EOF\n") {
		t.Error("the scrape does not end in # EOF")
	}
}

func TestTheUsualMetricsAreThere(t *testing.T) {
	body := request(t, newHandler(t, &fakeSource{}), "GET", "/metrics").Body.String()
	for _, name := range []string{"halfopen_build_info{", "go_goroutines ", "process_open_fds "} {
		if !strings.Contains(body, "\n"+name) {
			t.Errorf("no %s", name)
		}
	}
}

func TestFailedStatsCostOnlyTheirOwnMetrics(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	src := &fakeSource{err: errors.New("no such map")}
	h := NewHandler(src, NewLive(src, logger), NewLookups(1), logger)
	request(t, h, "GET", "/metrics")
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "read stats: no such map") {
		t.Errorf("want one line with the reason, got:\n%s", log.String())
	}
	w := request(t, h, "GET", "/metrics")
	if w.Code != http.StatusOK {
		t.Errorf("status %d", w.Code)
	}
	body := w.Body.String()
	for _, want := range []string{"go_goroutines ", `promhttp_metric_handler_errors_total{cause="gathering"} 1`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(body, "halfopen_tcp_") {
		t.Error("metrics that could not be read are shown")
	}
}
