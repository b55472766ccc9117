// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

func decode[T any](t *testing.T, w *httptest.ResponseRecorder) T {
	t.Helper()
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type is %q", ct)
	}
	if cc := w.Header().Get("Cache-Control"); cc != "no-store" {
		t.Errorf("cache control is %q", cc)
	}
	var v T
	d := json.NewDecoder(w.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func wantError(t *testing.T, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	if w.Code != status {
		t.Errorf("status %d, want %d", w.Code, status)
	}
	if e := decode[api.Error](t, w); e.Error == "" || strings.Contains(e.Error, "\n") {
		t.Errorf("error is %q, want one line", e.Error)
	}
}

func checkGeneratedAt(t *testing.T, at, since time.Time) {
	t.Helper()
	if at.Before(since) || at.After(time.Now()) || at.Location() != time.UTC {
		t.Errorf("generated_at is %v", at)
	}
}

func TestConnectionsAreListed(t *testing.T) {
	first, second := contractConnection(), contractConnection()
	second.Cookie, second.Process.Comm = 0x2c3d, hostileComm
	src := &fakeSource{total: 23, conns: []conn.Connection{first, second}}
	start := time.Now()
	got := decode[api.Connections](t, request(t, newHandler(t, src), "GET", "/api/v1/connections"))
	checkGeneratedAt(t, got.GeneratedAt, start)
	wantSecond := api.NewConnection(&second)
	wantSecond.Process.Comm = strings.ToValidUTF8(hostileComm, "\uFFFD")
	want := api.Connections{GeneratedAt: got.GeneratedAt, Total: 23, Connections: []api.Connection{api.NewConnection(&first), wantSecond}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestGroupsAreListed(t *testing.T) {
	owned := func(kind conn.OwnerKind, name string) conn.Count {
		return conn.Count{
			GroupKey: conn.GroupKey{OwnerKind: kind, Owner: name}, Total: 9,
			Verdicts: [conn.Verdicts]int{conn.Zombie: 1, conn.Suspect: 2, conn.Stalled: 3, conn.Unguarded: 0, conn.Idle: 1, conn.Active: 1},
		}
	}
	const verdicts = `"total":9,"verdicts":{"active":1,"blocked":0,"idle":1,"stalled":3,"stuck":0,"suspect":2,"unguarded":0,"unread":0,"zombie":1}}`
	const nothing = `"total":0,"verdicts":{"active":0,"blocked":0,"idle":0,"stalled":0,"stuck":0,"suspect":0,"unguarded":0,"unread":0,"zombie":0}}`
	for _, tt := range []struct {
		by    string
		tally conn.Count
		want  string
	}{
		{"owner", owned(conn.OwnerUnit, "x.service"), `{"owner":{"kind":"unit","name":"x.service"},` + verdicts},
		{"owner", owned(conn.OwnerProcess, "\xff<b>"), `{"owner":{"kind":"process","name":"\ufffd\u003cb\u003e"},` + verdicts},
		{"owner", owned(conn.NoOwner, ""), "{" + verdicts},
		{"remote", conn.Count{GroupKey: conn.GroupKey{Remote: netip.MustParseAddrPort("10.0.0.2:5432")}}, `{"remote":{"ip":"10.0.0.2","port":5432},` + nothing},
		{"remote", conn.Count{GroupKey: conn.GroupKey{Remote: netip.MustParseAddrPort("[2001:db8::2]:0")}}, `{"remote":{"ip":"2001:db8::2","port":null},` + nothing},
		{"remote", conn.Count{}, "{" + nothing},
		{"verdict", conn.Count{GroupKey: conn.GroupKey{Judged: true, Verdict: conn.Active}}, `{"verdict":"active",` + nothing},
		{"verdict", conn.Count{}, "{" + nothing},
		{"netns", conn.Count{GroupKey: conn.GroupKey{Netns: 4026531840}}, `{"netns":4026531840,` + nothing},
		{"netns&settings=false", conn.Count{GroupKey: conn.GroupKey{Netns: 4026531840}}, `{"netns":4026531840,` + nothing},
		{"netns&settings=true", conn.Count{GroupKey: conn.GroupKey{Netns: 4026531840}, Settings: conn.Settings{
			Sysctls: &conn.Sysctls{
				KeepaliveTime: 2 * time.Hour, KeepaliveInterval: 75 * time.Second, KeepaliveProbes: 9, Retries2: 15, SynRetries: 6, OrphanRetries: 8, FinTimeout: time.Minute,
			},
			KeepaliveOn: 1, KeepaliveOff: 2, Own: 3, OwnTime: 4, OwnInterval: 5, OwnProbes: 6, UserTimeout: 7, OwnFinTimeout: 10,
		}}, `{"netns":4026531840,` + strings.TrimSuffix(nothing, "}") + `,"settings":{"sysctls":{"keepalive_time_seconds":7200,"keepalive_interval_seconds":75,"keepalive_probes":9,` +
			`"retries2":15,"syn_retries":6,"orphan_retries":8,"fin_timeout_seconds":60},"keepalive":{"on":1,"off":2,"own":3,"own_time":4,"own_interval":5,"own_probes":6},"user_timeout":7,"own_fin_timeout":10}}`},
	} {
		src := &fakeSource{total: 12, counts: []conn.Count{tt.tally}}
		since := time.Now()
		w := request(t, newHandler(t, src), "GET", "/api/v1/groups?by="+tt.by)
		if !strings.Contains(w.Body.String(), "\n"+tt.want+"\n") {
			t.Errorf("no %s in\n%s", tt.want, w.Body)
		}
		got := decode[api.Groups](t, w)
		if got.Total != 12 || len(got.Groups) != 1 {
			t.Errorf("%+v", got)
		}
		checkGeneratedAt(t, got.GeneratedAt, since)
	}
}

func TestDeathsAreListed(t *testing.T) {
	d := contractDeath()
	src := &fakeSource{total: 29, dead: []conn.Death{d}}
	start := time.Now()
	got := decode[api.Deaths](t, request(t, newHandler(t, src), "GET", "/api/v1/deaths"))
	checkGeneratedAt(t, got.GeneratedAt, start)
	if diff := cmp.Diff(api.Deaths{GeneratedAt: got.GeneratedAt, Total: 29, Deaths: []api.Death{api.NewDeath(&d)}}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEmptyListsAreListsNotNull(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	if got := decode[api.Connections](t, request(t, h, "GET", "/api/v1/connections")); got.Connections == nil {
		t.Error("connections is null")
	}
	if got := decode[api.Deaths](t, request(t, h, "GET", "/api/v1/deaths")); got.Deaths == nil {
		t.Error("deaths is null")
	}
}

func TestConnectionHasItsEventsAndExplanation(t *testing.T) {
	c := contractConnection()
	events := []conn.HistoryEntry{
		{At: noon, Kind: conn.HistorySolicitation, Evidence: conn.EvidenceKeepalive, Unanswered: 3},
		{At: noon, Kind: conn.HistoryVerdict, From: conn.Suspect, To: conn.Zombie},
	}
	e := contractExplanation()
	h := newHandler(t, &fakeSource{conns: []conn.Connection{c}, events: events, explains: e})
	got := decode[api.ConnectionDetail](t, request(t, h, "GET", "/api/v1/connections/1a2b"))
	want := api.NewConnectionDetail(&collector.Detail{Connection: c, History: events, Explanation: e})
	if len(want.Events) != 2 || want.Explanation.Assessment != "Too late." {
		t.Errorf("want %+v", want)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestQueriesReachTheCollector(t *testing.T) {
	asked := ""
	for query, want := range map[string]collector.Query{
		"":         {Limit: 1000},
		"?limit=7": {Limit: 7},
		"?verdict=zombie&verdict=suspect&state=established&state=close_wait&port=5432&port=65535&pid=1&pid=812": {
			Verdicts: []conn.Verdict{conn.Zombie, conn.Suspect},
			States:   []conn.State{conn.Established, conn.CloseWait},
			Ports:    []uint16{5432, 65535}, PIDs: []uint32{1, 812}, Limit: 1000,
		},
		"?owner=nginx&owner=-&remote=10.0.0.2&remote=2001:db8::/32&risk=no_keepalive&risk=close_wait_leak&netns=4026531840&all=true": {
			Owners:  []string{"nginx", "-"},
			Remotes: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("2001:db8::/32")},
			Risks:   []conn.Risk{conn.RiskNoKeepalive, conn.RiskCloseWaitLeak},
			Netns:   []uint32{4026531840}, All: true, Limit: 1000,
		},
		"?namespace=shop&namespace=default&pod=checkout-xhnvf": {
			Namespaces: []string{"shop", "default"}, Pods: []string{"checkout-xhnvf"}, Limit: 1000,
		},
		"?all=false": {Limit: 1000},
	} {
		asked += strings.Replace(query, "?", "&", 1)
		src := &fakeSource{}
		if w := request(t, newHandler(t, src), "GET", "/api/v1/connections"+query); w.Code != http.StatusOK {
			t.Errorf("%q: status %d", query, w.Code)
			continue
		}
		if diff := cmp.Diff(want, *src.query, comparePrefixes); diff != "" {
			t.Errorf("%q (-want +got)\n%s", query, diff)
		}
		if w := request(t, newHandler(t, src), "GET", "/api/v1/groups?by=remote"+strings.Replace(query, "?", "&", 1)); w.Code != http.StatusOK || src.by != conn.ByRemote {
			t.Errorf("groups of %q: status %d, by %v", query, w.Code, src.by)
			continue
		}
		if diff := cmp.Diff(want, *src.query, comparePrefixes); diff != "" {
			t.Errorf("groups of %q (-want +got)\n%s", query, diff)
		}
	}
	for i := range api.Filters {
		if name := api.Filters[i].Name; !strings.Contains(asked, "&"+name+"=") {
			t.Errorf("add the filter %s to a query of this test", name)
		}
	}
	src := &fakeSource{}
	request(t, newHandler(t, src), "GET", "/api/v1/deaths?cause=closed&cause=unknown&limit=3")
	if diff := cmp.Diff([]conn.Cause{conn.CauseClosed, conn.CauseUnknown}, src.causes); diff != "" || src.limit != 3 {
		t.Errorf("limit %d, causes (-want +got)\n%s", src.limit, diff)
	}
	request(t, newHandler(t, src), "GET", "/api/v1/deaths")
	if src.causes != nil || src.limit != 1000 {
		t.Errorf("without a query: limit %d, causes %v", src.limit, src.causes)
	}
}

func TestWrongQueries(t *testing.T) {
	const conns, groups, deaths = "/api/v1/connections", "/api/v1/groups", "/api/v1/deaths"
	for name, target := range map[string]string{
		"connections: a parameter nobody knows":     conns + "?verdicts=zombie",
		"connections: a parameter of deaths":        conns + "?cause=closed",
		"connections: a parameter without a name":   conns + "?=zombie",
		"connections: a parameter in capitals":      conns + "?Limit=1",
		"connections: a verdict nobody knows":       conns + "?verdict=dead",
		"connections: a verdict in capitals":        conns + "?verdict=Zombie",
		"connections: an empty verdict":             conns + "?verdict=",
		"connections: a good verdict and a bad one": conns + "?verdict=zombie&verdict=dead",
		"connections: a list in one verdict":        conns + "?verdict=zombie,idle",
		"connections: a state nobody knows":         conns + "?state=open",
		"connections: an empty state":               conns + "?state=",
		"connections: port 0":                       conns + "?port=0",
		"connections: a port above 65535":           conns + "?port=65536",
		"connections: a negative port":              conns + "?port=-1",
		"connections: a port by name":               conns + "?port=http",
		"connections: an empty port":                conns + "?port=",
		"connections: pid 0":                        conns + "?pid=0",
		"connections: a negative pid":               conns + "?pid=-1",
		"connections: a pid that no process has":    conns + "?pid=2147483648",
		"connections: a pid by name":                conns + "?pid=nginx",
		"connections: limit 0":                      conns + "?limit=0",
		"connections: a negative limit":             conns + "?limit=-1",
		"connections: a limit that is no integer":   conns + "?limit=1.5",
		"connections: a limit beyond all numbers":   conns + "?limit=99999999999999999999",
		"connections: an empty limit":               conns + "?limit=",
		"connections: a limit with a sign":          conns + "?limit=%2B1",
		"connections: a limit given twice":          conns + "?limit=1&limit=1",
		"connections: a broken escape":              conns + "?verdict=%zz",
		"connections: a semicolon":                  conns + "?verdict=zombie;limit=1",
		"connections: an empty owner":               conns + "?owner=",
		"connections: a remote that is a name":      conns + "?remote=localhost",
		"connections: a remote with its port":       conns + "?remote=10.0.0.2:5432",
		"connections: a remote with a long prefix":  conns + "?remote=10.0.0.0/33",
		"connections: an empty remote":              conns + "?remote=",
		"connections: a risk nobody knows":          conns + "?risk=rain",
		"connections: an empty risk":                conns + "?risk=",
		"connections: netns 0":                      conns + "?netns=0",
		"connections: a netns by name":              conns + "?netns=blue",
		"connections: a netns of 33 bits":           conns + "?netns=4294967296",
		"connections: all that is no truth":         conns + "?all=yes",
		"connections: an empty all":                 conns + "?all=",
		"connections: all given twice":              conns + "?all=true&all=true",
		"connections: a grouping":                   conns + "?by=owner",
		"groups: by nothing":                        groups,
		"groups: an empty grouping":                 groups + "?by=",
		"groups: a grouping nobody knows":           groups + "?by=port",
		"groups: two groupings":                     groups + "?by=owner&by=remote",
		"groups: a parameter nobody knows":          groups + "?by=owner&order=worst",
		"groups: settings of owners":                groups + "?by=owner&settings=true",
		"groups: settings that are no switch":       groups + "?by=netns&settings=yes",
		"groups: settings twice":                    groups + "?by=netns&settings=true&settings=true",
		"groups: a verdict nobody knows":            groups + "?by=owner&verdict=dead",
		"groups: limit 0":                           groups + "?by=owner&limit=0",
		"deaths: a parameter nobody knows":          deaths + "?causes=closed",
		"deaths: a parameter of connections":        deaths + "?verdict=zombie",
		"deaths: a cause nobody knows":              deaths + "?cause=murder",
		"deaths: an empty cause":                    deaths + "?cause=",
		"deaths: limit 0":                           deaths + "?limit=0",
		"deaths: a limit given twice":               deaths + "?limit=1&limit=2",
		"connection: any parameter":                 conns + "/1a2b?limit=1",
		"connection: a cookie that is not hex":      conns + "/xyz",
		"connection: a cookie with 0x":              conns + "/0x1a2b",
		"connection: a cookie with a sign":          conns + "/-1",
		"connection: a cookie of 65 bits":           conns + "/10000000000000000",
		"connection: a cookie of markup":            conns + "/%3Cimg%20src=x%3E",
	} {
		t.Run(name, func(t *testing.T) {
			src := &fakeSource{conns: []conn.Connection{contractConnection()}}
			wantError(t, request(t, newHandler(t, src), "GET", target), http.StatusBadRequest)
			if src.query != nil {
				t.Error("the collector was asked all the same")
			}
		})
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	for target, want := range map[string]string{
		"/api/v1/connections?limit=4294967296":      `limit "4294967296" is too large: at most 2147483647`,
		"/api/v1/deaths?limit=99999999999999999999": `limit "99999999999999999999" is too large: at most 2147483647`,
		"/api/v1/connections?limit=-4294967296":     `limit "-4294967296" is not a positive number`,
		"/api/v1/connections/6e5f":                  "no living connection has the cookie 6e5f; if it has died, /api/v1/deaths may still know it",
	} {
		if got := decode[api.Error](t, request(t, h, "GET", target)); got.Error != want {
			t.Errorf("%s: %s\nwant\n%s", target, got.Error, want)
		}
	}
}

func TestWhatIsNotThere(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	for name, target := range map[string]string{
		"a connection nobody knows":     "/api/v1/connections/1a2b",
		"an empty cookie":               "/api/v1/connections/",
		"a path below a connection":     "/api/v1/connections/1a2b/events",
		"an API path nobody knows":      "/api/v1/sockets",
		"an API version nobody knows":   "/api/v2/connections",
		"an API path with markup in it": "/api/%3Cimg%20src=x%3E",
		"the root of the API":           "/api/",
	} {
		t.Run(name, func(t *testing.T) { wantError(t, request(t, h, "GET", target), http.StatusNotFound) })
	}
	for _, target := range []string{"/favicon.ico", "/metrics/x", "/-/quit", "/index.html", "/debug/pprof/"} {
		if w := request(t, h, "GET", target); w.Code != http.StatusNotFound {
			t.Errorf("%s: status %d", target, w.Code)
		}
	}
}

func TestOtherMethodsAreNotAllowed(t *testing.T) {
	h := newHandler(t, &fakeSource{conns: []conn.Connection{contractConnection()}})
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		for _, target := range []string{"/api/v1/connections", "/api/v1/connections/1a2b", "/api/v1/deaths"} {
			w := request(t, h, method, target)
			wantError(t, w, http.StatusMethodNotAllowed)
			if a := w.Header().Get("Allow"); a != "GET, HEAD" {
				t.Errorf("%s %s: Allow is %q", method, target, a)
			}
		}
		for _, target := range []string{"/", "/metrics", "/-/healthy", "/-/ready"} {
			w := request(t, h, method, target)
			if a := w.Header().Get("Allow"); w.Code != http.StatusMethodNotAllowed || a != "GET, HEAD" {
				t.Errorf("%s %s: status %d, Allow %q", method, target, w.Code, a)
			}
		}
	}
}

func TestHeadIsGetWithoutABody(t *testing.T) {
	srv := httptest.NewServer(newHandler(t, &fakeSource{conns: []conn.Connection{contractConnection()}}))
	defer srv.Close()
	for target, status := range map[string]int{
		"/": 200, "/metrics": 200, "/-/healthy": 200, "/-/ready": 200, "/api/v1/connections": 200,
		"/api/v1/connections/1a2b": 200, "/api/v1/deaths": 200, "/api/v1/connections/1": 404, "/api/v1/deaths?limit=0": 400,
	} {
		resp, err := srv.Client().Head(srv.URL + target)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status || len(body) > 0 || err != nil {
			t.Errorf("%s: status %d, %d bytes, %v", target, resp.StatusCode, len(body), err)
		}
	}
}

func TestCollectorErrorIsAnErrorOfTheServer(t *testing.T) {
	h := newHandler(t, &fakeSource{err: errors.New("read census: device busy")})
	for _, target := range []string{"/api/v1/connections", "/api/v1/connections/1a2b"} {
		wantError(t, request(t, h, "GET", target), http.StatusInternalServerError)
	}
}

func TestHealthyAtOnceReadyAfterTheFirstCensus(t *testing.T) {
	src := &fakeSource{notReady: true}
	h := newHandler(t, src)
	check := func(target string, status int) {
		t.Helper()
		w := request(t, h, "GET", target)
		if w.Code != status || w.Body.Len() == 0 {
			t.Errorf("%s: status %d, body %q, want %d and a short text", target, w.Code, w.Body, status)
		}
	}
	check("/-/healthy", http.StatusOK)
	check("/-/ready", http.StatusServiceUnavailable)
	src.notReady = false
	check("/-/ready", http.StatusOK)
}

func TestNotReadyWhereMostIsNotSeen(t *testing.T) {
	src := &fakeSource{}
	h := newHandler(t, src)
	finding := func(r collector.Reason, most bool) collector.Finding {
		return collector.Finding{Reason: r, Detail: "operation not permitted", Most: most}
	}
	for _, tt := range []struct {
		findings []collector.Finding
		status   int
		body     string
	}{
		{nil, http.StatusOK, "ready\n"},
		{[]collector.Finding{finding(collector.ReasonNamespacesRefused, false), finding(collector.ReasonCgroupsRefused, false)}, http.StatusOK, "ready\n"},
		{
			[]collector.Finding{finding(collector.ReasonNamespacesRefused, true), finding(collector.ReasonProcessesHidden, true), finding(collector.ReasonCgroupsRefused, false)},
			http.StatusServiceUnavailable, "not ready: most of this node is not seen: namespaces_refused, processes_hidden (halfopen doctor says what to do)\n",
		},
		{nil, http.StatusOK, "ready\n"}, // they are over
	} {
		src.stats.Degraded = tt.findings
		if w := request(t, h, "GET", "/-/ready"); w.Code != tt.status || w.Body.String() != tt.body {
			t.Errorf("%+v: status %d, %q, want %d, %q", tt.findings, w.Code, w.Body, tt.status, tt.body)
		}
		if w := request(t, h, "GET", "/-/healthy"); w.Code != http.StatusOK {
			t.Errorf("%+v: healthy is %d", tt.findings, w.Code)
		}
	}
}

func TestNothingIsSniffed(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	for _, target := range []string{"/", "/metrics", "/-/ready", "/api/v1/deaths", "/api/nothing", "/nothing"} {
		if got := request(t, h, "GET", target).Header().Get("X-Content-Type-Options"); got != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options is %q", target, got)
		}
	}
}

func BenchmarkConnections(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			src := &fakeSource{conns: make([]conn.Connection, n)}
			for i := range src.conns {
				src.conns[i] = contractConnection()
			}
			h := NewHandler(src, NewLive(src, nil), NewLookups(1000), nil)
			r := httptest.NewRequest("GET", "/api/v1/connections", nil)
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(discard{http.Header{}}, r)
			}
		})
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// endless is a source that makes each connection when the reader takes it.
type endless struct {
	fakeSource
	asked   chan struct{}
	proceed chan struct{}
	fails   error // after the first
	total   int
}

func (e *endless) Connections(context.Context, collector.Query) (int, iter.Seq2[*conn.Connection, error], error) {
	e.asked <- struct{}{}
	return e.total, func(yield func(*conn.Connection, error) bool) {
		c := contractConnection()
		if !yield(&c, nil) {
			return
		}
		<-e.proceed
		if e.fails != nil {
			yield(nil, e.fails)
			return
		}
		yield(&c, nil)
	}, nil
}

// Each answer takes memory in proportion to the node, and every user may ask.
func TestLargeAnswersAreMadeOneAtATime(t *testing.T) {
	src := &endless{asked: make(chan struct{}, 9), proceed: make(chan struct{}), total: 1001}
	server := httptest.NewServer(newHandler(t, src))
	defer server.Close()
	proceed := sync.OnceFunc(func() { close(src.proceed) })
	defer proceed() // else the server would wait for its answers
	status := make(chan int, 9)
	ask := func(ctx context.Context, limit string) {
		r, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/api/v1/connections?limit="+limit, nil)
		if err != nil {
			t.Error(err)
		}
		w, err := http.DefaultClient.Do(r)
		if err != nil {
			status <- 0
			return
		}
		defer w.Body.Close()
		_, _ = io.Copy(io.Discard, w.Body)
		status <- w.StatusCode
	}
	go ask(t.Context(), "1001")
	<-src.asked
	impatient, leave := context.WithCancel(t.Context())
	go ask(impatient, "1001")
	go ask(t.Context(), "5000")
	go ask(t.Context(), "1000") // not large
	<-src.asked
	select {
	case <-src.asked:
		t.Fatal("two large answers at a time")
	case <-time.After(200 * time.Millisecond):
	}
	leave()
	if got := <-status; got != 0 {
		t.Errorf("status %d for who has left", got)
	}
	proceed()
	for range 3 {
		if got := <-status; got != http.StatusOK {
			t.Errorf("status %d", got)
		}
	}
}

func TestAnAnswerThatFailsHalfWayIsNotComplete(t *testing.T) {
	src := &endless{asked: make(chan struct{}, 2), proceed: make(chan struct{}), fails: errors.New("no memory"), total: 1001}
	close(src.proceed)
	h := newHandler(t, src)
	wantError(t, request(t, h, "GET", "/api/v1/connections"), http.StatusInternalServerError)
	server := httptest.NewServer(h)
	defer server.Close()
	w, err := http.Get(server.URL + "/api/v1/connections?limit=1001")
	if err != nil {
		return // cut off before anything was sent
	}
	defer w.Body.Close()
	if body, err := io.ReadAll(w.Body); err == nil {
		t.Errorf("a whole answer, status %d:\n%s", w.StatusCode, body)
	}
}
