// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/pagetest"
)

type figure struct {
	Number  int
	AtLeast bool
	Text    string
	Title   string
}

const figureEnv = `
	const all = new rows.Rows(), now = 1_000_000_000;
	const fill = (list) => all.apply({ all: true, rows: list.map((r, i) => ({ cookie: String(i), local: 'a:1', remote: 'b:2', ...r })), gone: [] });
	const ago = (seconds) => now - seconds * 1000;
	let summary = { verdicts: { zombie: 21, stuck: 25, blocked: 26, suspect: 22, stalled: 23, unread: 27, unguarded: 24 }, deaths: {}, deaths_since: new Date(ago(3600)).toISOString() };
	const figuresNow = () => figures.tileFigures(all, summary, now);
`

func TestPageCountsForItsTiles(t *testing.T) {
	const nothing = "Connections that ended other than by an orderly close. Press to list the timeouts only."
	for _, tt := range []struct {
		name, steps string
		want        map[string]figure
	}{
		{"nothing", ``, map[string]figure{"zombie": {}, "stuck": {}, "blocked": {}, "suspect": {}, "stalled": {}, "unread": {}, "unguarded": {}, "at_risk": {}, "deaths": {Title: nothing}}},
		{"each kind of trouble", `fill([
			{ verdict: 'zombie', since: ago(17) }, { verdict: 'zombie', since: ago(95) }, { verdict: 'zombie' },
			{ verdict: 'suspect', evidence: 'keepalive' }, { verdict: 'suspect', evidence: 'window_probe' }, { verdict: 'suspect', evidence: 'keepalive' },
			{ verdict: 'stuck', since: ago(31) }, { verdict: 'stuck', since: ago(30) }, { verdict: 'blocked', since: ago(12) },
			{ verdict: 'stalled', since: ago(20) }, { verdict: 'unread', since: ago(40) },
			{ verdict: 'unguarded', since: ago(5), data_at: ago(7200) }, { verdict: 'unguarded' },
			{ verdict: 'active' }, { verdict: 'idle', since: ago(99999) }])`,
			map[string]figure{
				"zombie": {Number: 3, Text: "oldest 1m35s"}, "suspect": {Number: 3, Text: "2 keepalive, 1 window probe"},
				"stuck": {Number: 2, Text: "oldest 31s"}, "blocked": {Number: 1, Text: "oldest 12s"},
				"stalled": {Number: 1, Text: "longest 20s"}, "unread": {Number: 1, Text: "longest 40s"}, "unguarded": {Number: 2, Text: "idle up to 2h"},
				"at_risk": {}, "deaths": {Title: nothing},
			}},
		{"risks", `fill([
			{ verdict: 'idle', risks: ['close_wait_leak', 'no_keepalive'] }, { verdict: 'active', risks: ['no_keepalive'] }, { verdict: 'active', risks: [] }])`,
			map[string]figure{"zombie": {}, "stuck": {}, "blocked": {}, "suspect": {}, "stalled": {}, "unread": {}, "unguarded": {}, "at_risk": {Number: 2, Text: "2 no keepalive"}, "deaths": {Title: nothing}}},
		{"deaths", `summary = { ...summary, deaths: { closed: 9000, refused: 1, keepalive_timeout: 1200, aborted: 3, destroyed: 0 }, deaths_since: new Date(ago(600)).toISOString() }`,
			map[string]figure{"zombie": {}, "stuck": {}, "blocked": {}, "suspect": {}, "stalled": {}, "unread": {}, "unguarded": {}, "at_risk": {}, "deaths": {
				Number: 1204, Text: "1,200 keepalive timeout\n3 aborted",
				Title: "Connections that ended other than by an orderly close: 1,200 keepalive timeout, 3 aborted, 1 refused. Press to list the timeouts only.",
			}}},
		{"no deaths since the agent started", `summary = { ...summary, deaths: { closed: 5 }, deaths_since: new Date(ago(125)).toISOString() }`,
			map[string]figure{"zombie": {}, "stuck": {}, "blocked": {}, "suspect": {}, "stalled": {}, "unread": {}, "unguarded": {}, "at_risk": {}, "deaths": {Text: "in 2m5s", Title: nothing}}},
		{"the worst ten thousand of more", `fill(Array.from({ length: 10000 }, (_, i) => ({ verdict: i ? 'unguarded' : 'zombie', risks: ['no_keepalive'], data_at: ago(9) })))`,
			map[string]figure{
				"zombie": {Number: 21}, "stuck": {Number: 25}, "blocked": {Number: 26}, "suspect": {Number: 22}, "stalled": {Number: 23}, "unread": {Number: 27}, "unguarded": {Number: 24, Text: "idle up to 9s"},
				"at_risk": {Number: 10000, AtLeast: true, Text: "10,000 no keepalive"}, "deaths": {Title: nothing},
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			page := newPage(t)
			page.Run(figureEnv)
			page.Run(tt.steps)
			if diff := cmp.Diff(tt.want, pagetest.Eval[map[string]figure](page, "figuresNow()")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// The tile of risks has a name for each that fits there.
func TestPageHasShortNamesOfAllRisks(t *testing.T) {
	page := newPage(t)
	page.Run(figureEnv)
	seen := make(map[string]bool)
	for r := range conn.Risk(conn.Risks) {
		name := pagetest.Eval[string](page, "(fill([{ verdict: 'active', risks: [%s] }]), figuresNow().at_risk.text)", r.String())
		if seen[name] || len(name) > len("1 close_wait leak") {
			t.Errorf("%v is %q, which is too long, or another's", r, name)
		}
		seen[name] = true
	}
}

func TestPageSaysWhatItShows(t *testing.T) {
	page := newPage(t)
	page.Run(figureEnv + `
		const idle = { bounds: [60, 300, 350, 600], counts: [1000, 2, 3, 4, 5] };
		const census = (at) => ({ at, sockets: 12345, namespaces: 1 });
		const parse = (query) => filters.parseFilters(query);`)
	for _, tt := range []struct{ name, expression, want string }{
		{"everything is shown", `figures.shownText(50, 50, 50, parse(''))`, "50"},
		{"some match", `figures.shownText(3, 5000, 5000, parse('?q=x'))`, "3 of 5,000"},
		{"only the worst are known", `figures.shownText(10000, 10000, 200000, parse(''))`, "worst 10,000 of 200,000"},
		{"order and story leave nothing out", `figures.shownText(50, 50, 50, parse('?sort=idle&conn=1&cause=refused'))`, "50"},
		{"a census", `figures.censusText(census(new Date(ago(14)).toISOString()), now)`, "12,345 sockets in 1 network namespace, census 14s ago"},
		{"no census", `figures.censusText(census(null), now)`, "the first census is running"},
		{"idle longer than a middlebox remembers", `figures.idleText(idle, [350, 350])`, "9 of 1,014 have been idle for longer than a NAT or load balancer may remember (5m50s)."},
		{"middleboxes by destination", `figures.idleText(idle, figures.middleboxTimeouts({ middlebox_timeout_seconds: 350, middlebox_timeouts_seconds: { '10.0.0.0/8': 300, '::/0': 600 } }))`, "12 of 1,014 have been idle for longer than some NAT or load balancer may remember (5m), and 5 for longer than any (10m)."},
		{"one timeout", `figures.idleText(idle, figures.middleboxTimeouts({ middlebox_timeout_seconds: 350 }))`, "9 of 1,014 have been idle for longer than a NAT or load balancer may remember (5m50s)."},
		{"idle for longer than any bound", `figures.idleText(idle, [600, 600])`, "5 of 1,014 have been idle for longer than a NAT or load balancer may remember (10m)."},
		{"no census of idle times", `figures.idleText({ bounds: null, counts: null }, [350, 350])`, "0 of 0 have been idle for longer than a NAT or load balancer may remember (5m50s)."},
		{"a retry", `figures.retryText(12_001, 10_000)`, "lost, retrying in 3s"},
		{"a retry under way", `figures.retryText(9_000, 10_000)`, "lost, retrying"},
		{"a title without zombies", `figures.pageTitle(0, 'node7')`, "halfopen · node7"},
		{"a title with zombies", `figures.pageTitle(3, '')`, "(3) halfopen"},
	} {
		if got := pagetest.Eval[string](page, tt.expression); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPageAnnouncesZombiesNowAndThen(t *testing.T) {
	page := newPage(t)
	page.Run("const announcer = new figures.ZombieAnnouncer()")
	for _, step := range []struct {
		zombies, now int
		want         string
	}{
		{2, 0, ""}, // there when the page was opened
		{2, 1000, ""},
		{3, 2000, "3 zombies now, 2 before"},
		{4, 3000, ""}, // too soon
		{5, 11_000, ""},
		{5, 12_001, "5 zombies now, 3 before"},
		{5, 60_000, ""},
		{1, 61_000, "1 zombie now, 5 before"},
		{5, 62_000, ""},
		{1, 99_000, ""}, // as it was announced
	} {
		if got := pagetest.Eval[string](page, "announcer.next(%s, %s)", step.zombies, step.now); got != step.want {
			t.Errorf("%d zombies at %d: %q, want %q", step.zombies, step.now, got, step.want)
		}
	}
}
