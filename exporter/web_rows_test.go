// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/pagetest"
)

// What the page shows after events of kind rows, which may come late, twice, or about
// connections that it does not know.
func TestPageAppliesRows(t *testing.T) {
	const whole = `{"all":true,"rows":[{"cookie":"1","local":"a:1","remote":"b:1","verdict":"idle"},{"cookie":"2","local":"a:2","remote":"b:2","verdict":"suspect","unanswered":1}],"gone":[]}`
	for _, tt := range []struct {
		name   string
		events []string
		want   string // cookie:verdict:unanswered, worst first
	}{
		{"the stream begins", []string{whole}, "2:suspect:1 1:idle:"},
		{"a row changes", []string{whole, `{"rows":[{"cookie":"1","verdict":"zombie","unanswered":3}],"gone":[]}`}, "1:zombie:3 2:suspect:1"},
		{"a change comes twice", []string{whole,
			`{"rows":[{"cookie":"2","unanswered":2}],"gone":[]}`,
			`{"rows":[{"cookie":"2","unanswered":2}],"gone":[]}`}, "2:suspect:2 1:idle:"},
		{"a row comes twice", []string{whole,
			`{"rows":[{"cookie":"3","local":"a:3","remote":"b:3","verdict":"zombie"}],"gone":[]}`,
			`{"rows":[{"cookie":"3","local":"a:3","remote":"b:3","verdict":"zombie"}],"gone":[]}`}, "3:zombie: 2:suspect:1 1:idle:"},
		{"a whole row replaces what was known", []string{whole,
			`{"rows":[{"cookie":"2","local":"a:2","remote":"b:2","verdict":"active"}],"gone":[]}`}, "1:idle: 2:active:"},
		{"a row is gone", []string{whole, `{"rows":[],"gone":["2"]}`}, "1:idle:"},
		{"a row is gone twice", []string{whole, `{"rows":[],"gone":["2"]}`, `{"rows":[],"gone":["2"]}`}, "1:idle:"},
		{"a row is gone before it was known", []string{whole, `{"rows":[],"gone":["9"]}`}, "2:suspect:1 1:idle:"},
		{"a change comes after the row is gone", []string{whole, `{"rows":[],"gone":["2"]}`, `{"rows":[{"cookie":"2","unanswered":7}],"gone":[]}`}, "1:idle:"},
		{"a change comes before the row", []string{whole,
			`{"rows":[{"cookie":"4","verdict":"zombie"}],"gone":[]}`,
			`{"rows":[{"cookie":"4","local":"a:4","remote":"b:4","verdict":"suspect"}],"gone":[]}`}, "2:suspect:1 4:suspect: 1:idle:"},
		{"a row comes back", []string{whole, `{"rows":[],"gone":["2"]}`,
			`{"rows":[{"cookie":"2","local":"a:2","remote":"b:2","verdict":"zombie"}],"gone":[]}`}, "2:zombie: 1:idle:"},
		{"the stream begins again, with less", []string{whole,
			`{"all":true,"rows":[{"cookie":"2","local":"a:2","remote":"b:2","verdict":"active"}],"gone":[]}`}, "2:active:"},
		{"the stream begins again, with the same", []string{whole, whole}, "2:suspect:1 1:idle:"},
		{"the stream begins with nothing", []string{whole, `{"all":true,"rows":[],"gone":[]}`}, ""},
		{"a name of every object is a cookie like another", []string{
			`{"all":true,"rows":[{"cookie":"__proto__","local":"a:1","remote":"b:1","verdict":"idle"}],"gone":["constructor"]}`}, "__proto__:idle:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			page := newPage(t)
			page.Run(`const all = new rows.Rows(), none = filters.parseFilters('');
				const shown = () => all.view(none).map((r) => r.cookie + ':' + r.verdict + ':' + (r.unanswered || '')).join(' ');`)
			for _, event := range tt.events {
				page.Run("all.apply(" + event + "); shown();") // drawing between two events must not matter
			}
			if got := pagetest.Eval[string](page, "shown()"); got != tt.want {
				t.Errorf("the page shows %q, want %q", got, tt.want)
			}
			if got, want := pagetest.Eval[int](page, "all.size"), len(strings.Fields(tt.want)); got != want {
				t.Errorf("%d rows, want %d", got, want)
			}
		})
	}
}

func TestPageSaysWhichRowsChanged(t *testing.T) {
	page := newPage(t)
	page.Run(`const all = new rows.Rows();
		all.apply({ all: true, rows: [{ cookie: '1', local: 'a:1', remote: 'b:1', verdict: 'idle' }, { cookie: '2', local: 'a:2', remote: 'b:2', verdict: 'zombie' }], gone: [] });`)
	type change struct{ Changed, Suspected []string }
	got := pagetest.Eval[change](page, `all.apply({ rows: [
		{ cookie: '1', verdict: 'suspect' }, { cookie: '2', unanswered: 9 }, { cookie: '3', verdict: 'zombie' },
		{ cookie: '4', local: 'a:4', remote: 'b:4', verdict: 'zombie' }, { cookie: '5', local: 'a:5', remote: 'b:5', verdict: 'stuck' },
		{ cookie: '6', local: 'a:6', remote: 'b:6', verdict: 'blocked' }, { cookie: '7', local: 'a:7', remote: 'b:7', verdict: 'stalled' }], gone: [] })`)
	if diff := cmp.Diff(change{[]string{"1", "2", "4", "5", "6", "7"}, []string{"1", "4", "5", "6"}}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A row caches the values by which it is searched and ordered; a change of the row updates them.
func TestPageFindsRowsByWhatTheyAreNow(t *testing.T) {
	page := newPage(t)
	page.Run(`const all = new rows.Rows();
		all.apply({ all: true, rows: [{ cookie: '1', local: 'a:1', remote: 'b:1', verdict: 'idle' }, { cookie: '2', local: 'a:2', remote: 'b:2', verdict: 'idle', comm: 'm', pid: 5 }], gone: [] });
		const found = (query) => all.view(filters.parseFilters(query)).map((row) => row.cookie).join(' ');`)
	for _, step := range []struct{ statement, query, want string }{
		{"", "?q=nginx", ""},
		{"", "?sort=owner", "2 1"},
		{`all.apply({ rows: [{ cookie: '1', comm: 'a nginx', pid: 7 }], gone: [] })`, "?q=nginx", "1"},
		{"", "?sort=owner", "1 2"},
	} {
		page.Run(step.statement)
		if got := pagetest.Eval[string](page, "found(%s)", step.query); got != step.want {
			t.Errorf("after %q, %s finds %q, want %q", step.statement, step.query, got, step.want)
		}
	}
}

// rowJSON returns a connection as a row of the stream: whole, or what differs from before.
func rowJSON(c, before *conn.Connection) string {
	var old *conn.Row
	if before != nil {
		old = conn.NewRow(before)
	}
	return string(appendRow(nil, conn.NewRow(c), old))
}

// After any changes of a connection, the page has the row that it would have if it had been
// opened only then: the agent sends what differs, and leaves out what is zero.
func TestPageRowsFollowTheAgents(t *testing.T) {
	page := newPage(t)
	page.Run(`const all = new rows.Rows();
		const known = (row) => Object.entries(row)
			.filter(([name, value]) => value && String(value) && !/Key|Text/.test(name) && (name !== 'gives_up_by' || row.gives_up_at)) // not by whom, if never
			.sort().join('\n');`)
	seed := uint64(1)
	chance := func(n int) int { // of a fixed sequence (Knuth's MMIX)
		seed = seed*6364136223846793005 + 1442695040888963407
		return int((seed >> 33) % uint64(n))
	}
	pick := func(values ...time.Duration) time.Duration { return values[chance(len(values))] }
	connection := func() conn.Connection {
		c := contractConnection()
		c.At = noon.Add(time.Duration(chance(1e6)) * time.Millisecond)
		c.State = []conn.State{conn.Established, conn.CloseWait, conn.SynSent}[chance(3)]
		c.Verdict = conn.Verdict(chance(conn.Verdicts))
		c.Evidence = conn.Evidence(chance(4))
		c.Unanswered = chance(3)
		c.Since = []time.Time{{}, noon, c.At}[chance(3)]
		c.Idle, c.Silent = pick(-1, 0, time.Minute), pick(-1, 0, time.Hour)
		c.GivesUp = []conn.Forecast{{}, {At: c.At, Latest: c.At, By: conn.Cause(1 + chance(3))}}[chance(2)]
		c.Risks = []conn.Risk{conn.RiskNoKeepalive, conn.RiskCloseWaitLeak}[:chance(3)]
		c.Process = []*conn.Process{nil, {PID: 7, Comm: "nginx"}, {PID: 7, Comm: hostileComm}}[chance(3)]
		c.Cgroup = []conn.Cgroup{{}, {Unit: "nginx.service"}, {PodUID: "6f1c4a5e-0000-4000-8000-1234567890ab"}}[chance(3)]
		c.Keepalive.Enabled, c.Orphaned, c.Accepted = chance(2) == 0, chance(4) == 0, chance(4) > 0
		c.UserTimeout = pick(0, time.Second)
		return c
	}
	before := connection()
	page.Run(`all.apply({ all: true, rows: [` + rowJSON(&before, nil) + `], gone: [] })`)
	for range 500 {
		c := connection()
		difference, whole := rowJSON(&c, &before), rowJSON(&c, nil)
		page.Run(`all.apply({ rows: [` + difference + `], gone: [] }); all.view(filters.parseFilters('?q=x&sort=owner'))`)
		if got, want := pagetest.Eval[string](page, "known(all.get('1a2b'))"), pagetest.Eval[string](page, "known("+strings.ReplaceAll(whole, "%", "%%")+")"); got != want {
			t.Fatalf("after %s the page has\n%s\nwant\n%s", difference, got, want)
		}
		before = c
	}
}

// ownedConnections are connections with every kind of owner.
func ownedConnections() map[string]conn.Connection {
	owned := func(change func(*conn.Connection)) conn.Connection {
		c := contractConnection()
		c.Process, c.Cgroup, c.Accepted, c.Orphaned = nil, conn.Cgroup{}, true, false
		change(&c)
		return c
	}
	id := strings.Repeat("0123456789abcdef", 4)
	return map[string]conn.Connection{
		"nobody is known": owned(func(*conn.Connection) {}),
		"a process":       owned(func(c *conn.Connection) { c.Process = &conn.Process{PID: 7, Comm: hostileComm, FD: 3} }),
		"a unit": owned(func(c *conn.Connection) {
			c.Process, c.Cgroup = &conn.Process{PID: 7, Comm: "nginx"}, conn.Cgroup{Path: "/x", Unit: "nginx.service"}
		}),
		"a container": owned(func(c *conn.Connection) { c.Cgroup = conn.Cgroup{Unit: "docker.service", ContainerID: id} }),
		"a pod": owned(func(c *conn.Connection) {
			c.Cgroup = conn.Cgroup{Unit: "x", ContainerID: id, PodUID: "6f1c4a5e-0000-4000-8000-1234567890ab"}
		}),
		"a named container": owned(func(c *conn.Connection) { c.Cgroup = conn.Cgroup{ContainerID: id, Container: "shop_db_1"} }),
		"a named pod": owned(func(c *conn.Connection) {
			c.Cgroup = conn.Cgroup{ContainerID: id, PodUID: "6f1c4a5e-0000-4000-8000-1234567890ab", Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"}
		}),
		"a hostile pod": owned(func(c *conn.Connection) {
			c.Cgroup = conn.Cgroup{PodUID: "6f1c4a5e-0000-4000-8000-1234567890ab", Namespace: "\u202e", Pod: "<b>\n\x1b[2J"}
		}),
		"a hostile unit":         owned(func(c *conn.Connection) { c.Cgroup.Unit = "\u202e\n<b>.service" }),
		"closed by its owner":    owned(func(c *conn.Connection) { c.Orphaned, c.Cgroup.Unit = true, "nginx.service" }),
		"not accepted":           owned(func(c *conn.Connection) { c.Accepted, c.Cgroup.Unit = false, "nginx.service" }),
		"closed in the queue":    owned(func(c *conn.Connection) { c.Accepted, c.Orphaned = false, true }),
		"of IPv6":                owned(func(c *conn.Connection) { c.Local = netip.MustParseAddrPort("[2001:db8::1]:443") }),
		"of IPv6 with a v4 tail": owned(func(c *conn.Connection) { c.Remote = netip.MustParseAddrPort("[64:ff9b::192.0.2.1]:443") }),
	}
}

// A row of the stream and an object of the API name the ends and the owner of a connection
// in different ways; the page shows the same.
func TestPageNamesOwnersAsTheAgentDoes(t *testing.T) {
	page := newPage(t)
	for name, c := range ownedConnections() {
		page.Run("var row = " + rowJSON(&c, nil))
		ofRow := pagetest.Eval[[]string](page, "[row.local, row.remote, ...owners.ownerParts(row)]")
		ofAPI := pagetest.Eval[[]string](page, "((c) => [format.endpoint(c.local), format.endpoint(c.remote), ...owners.ownerParts(owners.ownership(c))])(%s)", api.NewConnection(&c))
		if diff := cmp.Diff(ofRow, ofAPI); diff != "" {
			t.Errorf("%s (-row +API):\n%s", name, diff)
		}
		death := conn.Death{Connection: c, DiedAt: noon, Cause: conn.CauseRefused}
		ofDeath := pagetest.Eval[[]string](page, "((d) => [d.local, d.remote, ...owners.ownerParts(d)])(deaths.deathFromAPI(%s))", api.NewDeath(&death))
		if diff := cmp.Diff(ofRow, ofDeath); diff != "" {
			t.Errorf("%s (-row +death):\n%s", name, diff)
		}
	}
}

func TestPageKeepsDeaths(t *testing.T) {
	type death struct {
		Cookie string `json:"cookie"`
		At     int    `json:"at"`
		Cause  string `json:"cause"`
	}
	page := newPage(t)
	page.Run(`const kept = new deaths.Deaths(), none = filters.parseFilters('');
		const shown = (query = '') => kept.view(filters.parseFilters(query)).map((d) => d.cookie + '@' + d.at).join(' ');`)
	add := func(want bool, d ...death) {
		t.Helper()
		if got := pagetest.Eval[bool](page, "kept.add(%s)", d); got != want {
			t.Errorf("adding %v: new is %v, want %v", d, got, want)
		}
	}
	shows := func(want, query string) {
		t.Helper()
		if got := pagetest.Eval[string](page, "shown(%s)", query); got != want {
			t.Errorf("%q shows %q, want %q", query, got, want)
		}
	}
	add(true, death{"1", 100, "refused"}, death{"2", 300, "keepalive_timeout"})
	add(true, death{"3", 200, "closed"}) // late
	add(false, death{"1", 100, "refused"})
	add(true, death{"1", 400, "aborted"}, death{"1", 400, "aborted"}) // the second one connected again and was reported twice
	shows("1@400 2@300 1@100", "")
	shows("3@200", "?cause=closed")
	shows("2@300", "?cause=timeout")
	if got := pagetest.Eval[string](page, "kept.find('1').cause"); got != "aborted" {
		t.Errorf("the last death of 1 is %s", got)
	}

	// The API's answer replaces the deaths that the page had when it sent the request.
	page.Run("const before = kept.snapshot()")
	add(true, death{"4", 500, "refused"}) // meanwhile
	page.Run(`kept.replace(before, [{ cookie: '5', at: 450, cause: 'refused' }, { cookie: '4', at: 500, cause: 'refused' }])`)
	shows("4@500 5@450", "")

	var many []death
	for i := range 500 {
		many = append(many, death{"6", 1000 + i, "refused"})
	}
	add(true, many...)
	if got := pagetest.Eval[[]string](page, "shown().split(' ')"); len(got) != 200 || got[0] != "6@1499" || got[199] != "6@1300" {
		t.Errorf("%d deaths are kept, from %s to %s", len(got), got[0], got[len(got)-1])
	}
	// Many deaths of one cause push out none of another.
	add(true, death{"7", 900, "keepalive_timeout"})
	for i := range many {
		many[i].At += 1000
	}
	add(true, many...)
	if got := pagetest.Eval[[]string](page, "shown().split(' ')"); len(got) != 200 || got[199] != "7@900" {
		t.Errorf("%d deaths are kept, the last is %s", len(got), got[len(got)-1])
	}
}

func TestPageFollowsTheClockOfTheAgent(t *testing.T) {
	page := newPage(t)
	page.Run("let local = 1_000_000; const clock = new agentclock.AgentClock(() => local)")
	for _, step := range []struct {
		name        string
		pass, agent int64 // ms that pass; what a message of then says, 0: there is none
		want        int64 // by how much the agent's clock is ahead
	}{
		{"before the first message", 0, 0, 0},
		{"the first message", 0, 1_000_000 - 300, -300},
		{"a faster one", 1000, 1_001_000 - 50, -50},
		{"a slower one says less", 1000, 1_002_000 - 400, -50},
		{"time passes", 500, 0, -50},
		{"after a minute any one counts", 60_001, 1_062_501 - 200, -200},
		{"the agent's clock was set back", 1000, 1_063_501 - 3_600_000, -3_600_000},
		{"the agent's clock was set forward", 1000, 1_064_501 + 3_600_000, 3_600_000},
	} {
		page.Run(fmt.Sprintf("local += %d", step.pass))
		if step.agent != 0 {
			page.Run(fmt.Sprintf("clock.synchronise(%d)", step.agent))
		}
		if got := pagetest.Eval[int64](page, "clock.now() - local"); got != step.want {
			t.Errorf("%s: the agent is %d ms ahead, want %d", step.name, got, step.want)
		}
	}
}
