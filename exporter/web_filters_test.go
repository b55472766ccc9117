// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/pagetest"
)

// pageFilters are the filters of the page, as filters.js has them.
type pageFilters struct {
	Verdict []string `json:"verdict"`
	Risk    []string `json:"risk"`
	Cause   []string `json:"cause"`
	Search  string   `json:"search"`
	Sort    string   `json:"sort"`
	Cookie  string   `json:"cookie"`
}

func noFilters() pageFilters {
	return pageFilters{Verdict: []string{}, Risk: []string{}, Cause: []string{}, Sort: "verdict"}
}

func TestPageFiltersAndTheirAddress(t *testing.T) {
	page := newPage(t)
	with := func(change func(*pageFilters)) pageFilters {
		f := noFilters()
		change(&f)
		return f
	}
	for _, tt := range []struct {
		name, query string
		want        pageFilters
		address     string // "": the query
	}{
		{"nothing is chosen", "", noFilters(), ""},
		{"verdicts", "?verdict=zombie&verdict=suspect", with(func(f *pageFilters) { f.Verdict = []string{"zombie", "suspect"} }), ""},
		{"any risk", "?risk=any", with(func(f *pageFilters) { f.Risk = []string{"any"} }), ""},
		{"a risk and a cause", "?risk=no_keepalive&cause=refused", with(func(f *pageFilters) { f.Risk, f.Cause = []string{"no_keepalive"}, []string{"refused"} }), ""},
		{"words", "?q=a%26b+%3D%23%C3%BC", with(func(f *pageFilters) { f.Search = "a&b =#ü" }), ""},
		{"reverse order", "?sort=-silent", with(func(f *pageFilters) { f.Sort = "-silent" }), ""},
		{"a story", "?conn=1a2b", with(func(f *pageFilters) { f.Cookie = "1a2b" }), ""},
		{"everything", "?verdict=idle&risk=any&cause=timeout&q=x&sort=owner&conn=f", pageFilters{
			[]string{"idle"}, []string{"any"}, []string{"timeout"}, "x", "owner", "f"}, ""},
		{"names that do not exist", "?verdict=dead&risk=high&sort=size&conn=xyz&page=2", noFilters(), "-"},
		{"names of every object", "?verdict=constructor&risk=toString&sort=constructor", noFilters(), "-"},
		{"no column", "?sort=-", noFilters(), "-"},
		{"a column twice in reverse", "?sort=--silent", noFilters(), "-"},
		{"markup as a cookie", "?conn=%3Cb%3E", noFilters(), "-"},
		{"a cookie that is too long", "?conn=" + strings.Repeat("f", 17), noFilters(), "-"},
		{"the default order", "?sort=verdict", noFilters(), "-"},
	} {
		got := pagetest.Eval[pageFilters](page, "filters.parseFilters(%s)", tt.query)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		address := strings.TrimPrefix(tt.address, "-")
		if tt.address == "" {
			address = tt.query
		}
		if got := pagetest.Eval[string](page, "filters.formatFilters(%s)", got); got != address {
			t.Errorf("%s: the address is %q, want %q", tt.name, got, address)
		}
	}
	if got := pagetest.Eval[pageFilters](page, "filters.parseFilters(%s)", "?"+strings.Repeat("cause=refused&", 30)); len(got.Cause) != 20 {
		t.Errorf("an address may name %d causes", len(got.Cause))
	}
}

// The address of the page names verdicts, risks and causes as queries of the API do, which
// Go parses.
func TestPageFiltersAreQueriesOfTheAPI(t *testing.T) {
	page := newPage(t)
	src := &fakeSource{}
	h := newHandler(t, src)
	for v := range conn.Verdict(conn.Verdicts) {
		for r := range conn.Risk(conn.Risks) {
			query := "?verdict=" + v.String() + "&risk=" + r.String()
			address := pagetest.Eval[string](page, "filters.formatFilters(filters.parseFilters(%s))", query)
			if w := request(t, h, "GET", "/api/v1/connections"+address); w.Code != http.StatusOK {
				t.Fatalf("%s: %s", address, w.Body)
			}
			if want := []conn.Verdict{v}; !cmp.Equal(src.query.Verdicts, want) {
				t.Errorf("%s selects the verdicts %v", address, src.query.Verdicts)
			}
			if want := []conn.Risk{r}; !cmp.Equal(src.query.Risks, want) {
				t.Errorf("%s selects the risks %v", address, src.query.Risks)
			}
		}
	}
	for c := range conn.Cause(conn.Causes) {
		address := pagetest.Eval[string](page, "filters.formatFilters(filters.parseFilters(%s))", "?cause="+c.String())
		if w := request(t, h, "GET", "/api/v1/deaths"+address); w.Code != http.StatusOK || !cmp.Equal(src.causes, []conn.Cause{c}) {
			t.Errorf("%s: %s, causes %v", address, w.Body, src.causes)
		}
	}
}

func TestPageFiltersRows(t *testing.T) {
	page := newPage(t)
	rows := []map[string]any{
		{"cookie": "1", "local": "10.0.0.1:40000", "remote": "10.0.0.2:5432", "verdict": "zombie", "state": "established", "netns": 4026531840, "comm": "Payments", "pid": 77},
		{"cookie": "2", "local": "10.0.0.1:40001", "remote": "10.0.0.2:443", "verdict": "suspect", "state": "close_wait", "risks": []string{"close_wait_leak"}, "group": "nginx.service"},
		{"cookie": "3", "local": "[2001:db8::1]:443", "remote": "[2001:db8::2]:50000", "verdict": "idle", "state": "established", "risks": []string{"no_keepalive", "keepalive_masked_by_unacked_data"}},
		{"cookie": "4", "local": "10.0.0.1:40003", "remote": "10.0.0.3:5432", "verdict": "active", "state": "fin_wait1", "risks": []string{}, "held": "orphaned"},
	}
	for _, tt := range []struct{ name, query, want string }{
		{"all", "", "1 2 3 4"},
		{"a verdict", "?verdict=idle", "3"},
		{"one of two verdicts", "?verdict=zombie&verdict=suspect", "1 2"},
		{"any risk", "?risk=any", "2 3"},
		{"a risk", "?risk=no_keepalive", "3"},
		{"one of two risks", "?risk=no_keepalive&risk=close_wait_leak", "2 3"},
		{"a verdict and a risk", "?verdict=suspect&risk=no_keepalive", ""},
		{"a port", "?q=:5432", "1 4"},
		{"all words, in any case", "?q=PAYMENTS+5432", "1"},
		{"a unit", "?q=nginx", "2"},
		{"an IPv6 address", "?q=%5B2001:db8::2", "3"},
		{"a pid", "?q=77", "1"},
		{"who holds it", "?q=orphaned", "4"},
		{"nothing has all words", "?q=payments+nginx", ""},
		{"blanks are no words", "?q=++", "1 2 3 4"},
	} {
		got := pagetest.Eval[string](page, "%s.filter(filters.rowFilter(filters.parseFilters(%s))).map((row) => row.cookie).join(' ')", rows, tt.query)
		if got != tt.want {
			t.Errorf("%s: rows %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPageFiltersDeaths(t *testing.T) {
	page := newPage(t)
	causes := []string{"keepalive_timeout", "refused", "closed"}
	for _, tt := range []struct{ name, query, shown, chosen string }{
		{"all but orderly ends", "", "keepalive_timeout refused", ""},
		{"a cause", "?cause=refused", "refused", "refused"},
		{"orderly ends", "?cause=closed", "closed", "closed"},
		{"timeouts", "?cause=timeout", "keepalive_timeout", "keepalive_timeout"},
		{"a cause that does not exist", "?cause=boredom", "", ""},
	} {
		for function, want := range map[string]string{"showsCause": tt.shown, "choosesCause": tt.chosen} {
			if got := pagetest.Eval[string](page, "%s.filter((cause) => filters."+function+"(filters.parseFilters(%s), cause)).join(' ')", causes, tt.query); got != want {
				t.Errorf("%s: %s is true of %q, want %q", tt.name, function, got, want)
			}
		}
	}
	for expression, want := range map[string][]string{
		`filters.toggleTimeouts([])`:                           {"timeout"},
		`filters.toggleTimeouts(['refused'])`:                  {"timeout"},
		`filters.toggleTimeouts(['timeout'])`:                  {},
		`filters.toggleCause(['timeout'], 'refused')`:          {"refused"},
		`filters.toggleCause(['refused'], 'user_timeout')`:     {"refused", "user_timeout"},
		`filters.toggleCause(['refused', 'closed'], 'closed')`: {"refused"},
	} {
		if got := pagetest.Eval[[]string](page, expression); !cmp.Equal(got, want) {
			t.Errorf("%s is %q, want %q", expression, got, want)
		}
	}
}

func TestPageSortsRows(t *testing.T) {
	page := newPage(t)
	rows := []map[string]any{
		{"cookie": "a", "local": "10.0.0.1:9", "remote": "10.0.0.10:80", "verdict": "idle", "state": "established", "heard_at": 5000, "data_at": 1000, "comm": "b", "pid": 2},
		{"cookie": "b", "local": "10.0.0.1:80", "remote": "10.0.0.9:80", "verdict": "zombie", "state": "last_ack", "heard_at": 2000, "data_at": 4000, "unanswered": 3, "gives_up_at": 9000},
		{"cookie": "c", "local": "10.0.0.1:443", "remote": "10.0.0.9:8080", "verdict": "zombie", "state": "established", "heard_at": 1000, "data_at": 6000, "unanswered": 5, "gives_up_at": 8000, "group": "a.service"},
		{"cookie": "d", "local": "10.0.0.1:444", "remote": "10.0.0.9:8080", "verdict": "suspect", "state": "syn_sent", "unanswered": 1, "held": "orphaned"},
	}
	for verdict, want := range map[string]string{"zombie": "q p", "stuck": "q p", "blocked": "q p", "suspect": "q p", "stalled": "p q", "unread": "p q", "unguarded": "p q", "idle": "p q", "active": "p q"} {
		got := pagetest.Eval[string](page, "[{ cookie: 'p', verdict: %[1]s, heard_at: 2, data_at: 1 }, { cookie: 'q', verdict: %[1]s, heard_at: 1, data_at: 2 }].sort(columns.comparator('verdict')).map((row) => row.cookie).join(' ')", verdict)
		if got != want { // zombies and suspects by how long they are silent, others by how long they are idle
			t.Errorf("%s: %s, want %s", verdict, got, want)
		}
	}
	for _, tt := range []struct{ sort, want string }{
		{"verdict", "c b d a"},
		{"-verdict", "a d b c"},
		{"unanswered", "c b d a"},
		{"-unanswered", "a d b c"},
		{"silent", "d c b a"}, // never heard is the longest silence
		{"idle", "d a b c"},
		{"gives_up", "c b d a"}, // never comes last; of equal rows the worst is first
		{"-gives_up", "d a b c"},
		{"state", "c a b d"},
		{"local", "a b c d"}, // ports by value
		{"remote", "b c d a"},
		{"owner", "c a d b"}, // without an owner last
	} {
		got := pagetest.Eval[string](page, "%s.sort(columns.comparator(%s)).map((row) => row.cookie).join(' ')", rows, tt.sort)
		if got != tt.want {
			t.Errorf("by %s: %s, want %s", tt.sort, got, tt.want)
		}
	}
	for column := range pagetest.Eval[map[string]any](page, "columns.columns") {
		got := pagetest.Eval[string](page, "[%[2]s, %[2]s].map((row, i) => ({ ...row, cookie: 'yx'[i] })).sort(columns.comparator(%[1]s)).map((row) => row.cookie).join(' ')", column, rows[0])
		if got != "x y" {
			t.Errorf("by %s, rows that are equal are in the order %s, want that of their cookies", column, got)
		}
	}
}
