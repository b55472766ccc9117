// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// The connections of the tests, worst first.
var conns = []conn.Connection{
	{
		Cookie: 0x1a2b, At: noon, Netns: 4026531840, State: conn.Established,
		Local: netip.MustParseAddrPort("10.0.0.1:37024"), Remote: netip.MustParseAddrPort("10.0.0.2:5432"),
		Verdict: conn.Zombie, Since: noon.Add(-2400 * time.Millisecond), Evidence: conn.EvidenceKeepalive,
		Unanswered: 3, Idle: 131 * time.Minute, Silent: 12400 * time.Millisecond,
		Keepalive:   conn.Keepalive{Enabled: true, Time: 2 * time.Hour, Interval: 75 * time.Second, Probes: 9, ProbesOut: 3, PerSocket: true},
		UserTimeout: 1500 * time.Millisecond, RetransmitsTotal: 5, SendQueue: 1536, SendWindow: 64256, UnackedSegments: 2,
		SRTT: 400 * time.Microsecond, RTO: 204 * time.Millisecond, Accepted: true, UID: 1000,
		GivesUp: conn.Forecast{At: noon.Add(450 * time.Second), Latest: noon.Add(460 * time.Second), By: conn.CauseKeepaliveTimeout},
		Risks:   []conn.Risk{conn.RiskNoKeepalive, conn.RiskCloseWaitLeak},
		Process: &conn.Process{PID: 812, Comm: "postgres", FD: 9},
		Cgroup:  conn.Cgroup{Path: "/system.slice/postgresql.service", Unit: "postgresql.service"},
	},
	{
		Cookie: 0x3, At: noon, Netns: 4026531840, State: conn.CloseWait,
		Local: netip.MustParseAddrPort("[2001:db8::1]:443"), Remote: netip.MustParseAddrPort("[2001:db8::2]:50000"),
		Verdict: conn.Unguarded, Since: noon.Add(-76 * time.Hour), Idle: 76 * time.Hour, Silent: 76 * time.Hour, Accepted: true,
		Process: &conn.Process{PID: 7, Comm: "\x1b[2Jngin\xff"},
	},
	{
		Cookie: 0x4, At: noon, Netns: 1, State: conn.SynSent,
		Local: netip.MustParseAddrPort("10.0.0.1:1"), Remote: netip.MustParseAddrPort("10.0.0.3:80"),
		Verdict: conn.Active, Idle: -1, Silent: -1, Orphaned: true, Accepted: true,
	},
}

func document() api.Connections {
	doc := api.Connections{GeneratedAt: noon, Total: 245}
	for i := range conns {
		doc.Connections = append(doc.Connections, api.NewConnection(&conns[i]))
	}
	return doc
}

func TestConnectionTable(t *testing.T) {
	const want = "" +
		"VERDICT    UNANSWERED  SILENT   IDLE  GIVES UP  STATE        LOCAL              REMOTE               KEEPALIVE  OWNER               RUNS IN\n" +
		"zombie              3     12s  2h11m     7m30s  established  10.0.0.1:37024     10.0.0.2:5432        2h/75s×9   postgres[812]       postgresql.service\n" +
		"unguarded           0    3d4h   3d4h     never  close_wait   [2001:db8::1]:443  [2001:db8::2]:50000  off        \\x1b[2Jngin\\xff[7]  -\n" +
		"active              0       -      -     never  syn_sent     10.0.0.1:1         10.0.0.3:80          off        (orphaned)          -\n"
	var b bytes.Buffer
	if err := connectionTable(document().Connections, noon, false).write(&b, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestANarrowTerminalGetsTheMostImportantColumns(t *testing.T) {
	ipv4 := document().Connections[:1]
	for _, tt := range []struct {
		name  string
		conns []api.Connection
		room  int
		want  string // the columns
	}{
		{"all where there is room", ipv4, 134, "VERDICT UNANSWERED SILENT IDLE GIVES UP STATE LOCAL REMOTE KEEPALIVE OWNER RUNS IN"},
		{"one column less", ipv4, 133, "VERDICT UNANSWERED SILENT IDLE GIVES UP STATE LOCAL REMOTE OWNER RUNS IN"},
		{"120 columns", ipv4, 120, "VERDICT UNANSWERED SILENT GIVES UP STATE LOCAL REMOTE OWNER RUNS IN"},
		{"80 columns, and IPv4", ipv4, 80, "VERDICT SILENT GIVES UP LOCAL REMOTE OWNER"},
		{"what must stay stays where there is no room", document().Connections, 20, "VERDICT SILENT LOCAL REMOTE OWNER"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := connectionTable(tt.conns, noon, false)
			table.fit(tt.room)
			var titles []string
			for _, c := range table.columns {
				titles = append(titles, c.title)
			}
			if got := strings.Join(titles, " "); got != tt.want {
				t.Errorf("%s\nwant\n%s", got, tt.want)
			}
			var b bytes.Buffer
			table.write(&b, false)
			row := strings.Split(b.String(), "\n")[1]
			if width := columns(row); tt.room >= 80 && width > tt.room {
				t.Errorf("%d columns: %s", width, row)
			}
			for _, cell := range []string{"zombie ", "10.0.0.1:37024 ", "10.0.0.2:5432 ", "postgres[812]"} {
				if !strings.Contains(row, cell) {
					t.Errorf("no %sin %s", cell, row)
				}
			}
		})
	}
}

func TestDeathTable(t *testing.T) {
	reset := api.Death{Cause: "reset_by_peer", State: "established", Similar: 411, SimilarSince: &noon}
	for want, d := range map[string]api.Death{"reset_by_peer ×412": reset, "closed": {Cause: "closed"}} {
		table := deathTable([]api.Death{d}, false)
		if got := table.rows[0][1]; got != want {
			t.Errorf("the cause is shown as %q, want %q", got, want)
		}
	}
}

func TestWideTableHasEverythingKnown(t *testing.T) {
	table := connectionTable(document().Connections[:1], noon, true)
	got := make(map[string]string)
	for i, c := range table.columns {
		got[c.title] = table.rows[0][i]
	}
	want := map[string]string{
		"VERDICT": "zombie", "FOR": "2.4s", "UNANSWERED": "3 keepalive", "SILENT": "12s", "IDLE": "2h11m", "GIVES UP": "7m30s",
		"STATE": "established", "LOCAL": "10.0.0.1:37024", "REMOTE": "10.0.0.2:5432", "KEEPALIVE": "2h/75s×9 own",
		"USER-TIMEOUT": "1500ms", "RETRANS": "5", "RTO": "204ms", "FD": "9", "UNACKED": "2", "SEND-Q": "1.5K", "WINDOW": "62K", "RTT": "400µs",
		"RISKS": "no_keepalive,close_wait_leak", "NETNS": "4026531840", "COOKIE": "1a2b", "UID": "1000", "OWNER": "postgres[812]",
		"RUNS IN": "postgresql.service",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The server at --url may be hostile: for any answer, the output is only the table.
func FuzzTablesOfAStrangersAnswer(f *testing.F) {
	doc, err := json.Marshal(document())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"connections":[{"cookie":"\u001b[2J","state":"\n","verdict":"\u009b","risks":["\u202e"],"srtt_seconds":1e300,"idle_seconds":-1e300,"local":{"ip":"fe80::1%\u001b[2J"}}]}`))
	f.Add([]byte(`{"groups":[{"total":-1,"owner":{"kind":"pod","name":"\u001b[2J日本"},"remote":{"ip":"fe80::1%\u001b[2J"},"verdict":"\u009b","verdicts":{"\n":1,"zombie":1}}]}`))
	f.Add([]byte(`{"deaths":[{"cookie":"\u001b[2J","cause":"\n","errno":"\u009b","at":"2026-01-02T03:04:05Z","zombie_seconds":-1e300,"process":{"comm":"\u202e"}}]}`))
	prints := func(t *testing.T, table *table, rows int) {
		t.Helper()
		var b bytes.Buffer
		if err := table.write(&b, false); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(b.String(), "\n"); lines != rows+1 {
			t.Fatalf("%d rows are %d lines", rows, lines-1)
		}
		if strings.ContainsFunc(b.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Fatalf("%q", b.String())
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var connections api.Connections
		var deaths api.Deaths
		var groups api.Groups
		if json.Unmarshal(body, &connections) != nil || json.Unmarshal(body, &deaths) != nil || json.Unmarshal(body, &groups) != nil {
			return
		}
		prints(t, connectionTable(connections.Connections, noon, true), len(connections.Connections))
		prints(t, deathTable(deaths.Deaths, true), len(deaths.Deaths))
		for _, by := range []conn.Grouping{conn.ByOwner, conn.ByRemote, conn.ByVerdict, conn.ByNetns, conn.BySettings} {
			prints(t, groupTable(groups.Groups, by), len(groups.Groups))
		}
	})
}

// agentWith starts an agent that answers with this body, and records its requests.
func agentWith(t *testing.T, status int, body string) (url string, asked *string) {
	asked = new(string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = r.URL.String()
		w.WriteHeader(status)
		w.Write([]byte(body))
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}

func TestListAsksTheAgent(t *testing.T) {
	body, err := json.Marshal(document())
	if err != nil {
		t.Fatal(err)
	}
	url, asked := agentWith(t, http.StatusOK, string(body))
	status, stdout, stderr := halfopen(t, "list", "--url", url+"/", "--verdict=zombie", "--verdict=active", "--state=established",
		"--port=5432", "--pid=812", "--limit=3", "--owner=-", "--remote=10.1.2.3/8", "--remote=::ffff:10.0.0.2", "--risk=no_keepalive", "--netns=1")
	if want := "/api/v1/connections?limit=3&netns=1&owner=-&pid=812&port=5432&remote=10.0.0.0%2F8&remote=10.0.0.2%2F32&risk=no_keepalive" +
		"&state=established&verdict=zombie&verdict=active"; *asked != want {
		t.Errorf("asked for %s, want %s", *asked, want)
	}
	if want := "3 of 245 connections shown: 1 zombie, 1 unguarded, 1 active\n"; status != exitDone || stderr != want {
		t.Errorf("status %d, stderr %q, want %q", status, stderr, want)
	}
	if strings.Count(stdout, "\n") != 4 || !strings.HasPrefix(stdout, "VERDICT ") {
		t.Errorf("table\n%s", stdout)
	}

	for _, limit := range []string{"0", "2147483648"} {
		if halfopen(t, "list", "--url", url, "--limit", limit); *asked != "/api/v1/connections?limit=2147483647" {
			t.Errorf("%s connections are asked for as %s", limit, *asked)
		}
	}
}

func TestJSONOfAnAgentIsPassedOn(t *testing.T) {
	url, _ := agentWith(t, http.StatusOK, `{"generated_at":"2026-11-21T12:00:00Z","total":1,"connections":[{"later":1,"comm":"\u001b`+"\u009b日\U000e0041"+`"}]}`+"\n")
	status, stdout, stderr := halfopen(t, "list", "-o", "json", "--url", url)
	if want := `{"generated_at":"2026-11-21T12:00:00Z","total":1,"connections":[{"later":1,"comm":"\u001b\u009b日\udb40\udc41"}]}` + "\n"; status != exitDone || stdout != want || stderr != "" {
		t.Errorf("status %d, stderr %q, stdout\n%s\nwant\n%s", status, stderr, stdout, want)
	}
}

// Sockets that are not connections come after a connection.
func others() []api.Connection {
	socket := func(c conn.Connection) api.Connection {
		c.At, c.Idle, c.Silent = noon, -1, -1
		return api.NewConnection(&c)
	}
	return []api.Connection{
		document().Connections[0],
		socket(conn.Connection{
			Cookie: 5, State: conn.Listen, Local: netip.MustParseAddrPort("[::]:22"), Remote: netip.MustParseAddrPort("[::]:0"),
			Keepalive: conn.Keepalive{Enabled: true, Time: time.Minute, Interval: 10 * time.Second, Probes: 6, PerSocket: true},
			Accepted:  true, AcceptQueue: 5, AcceptLimit: 4, ListenDrops: 36, Process: &conn.Process{PID: 9, Comm: "sshd", FD: 3},
			Cgroup: conn.Cgroup{Unit: "ssh.service"},
		}),
		socket(conn.Connection{
			Cookie: 6, State: conn.SynRecv, Stub: true, Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.9:40000"),
		}),
		socket(conn.Connection{
			Cookie: 7, State: conn.TimeWait, Stub: true, Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.9:40001"),
			Accepted: true, Orphaned: true,
		}),
		socket(conn.Connection{
			Cookie: 8, State: conn.FinWait2, Stub: true, Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.9:40002"),
			Accepted: true, Orphaned: true,
		}),
	}
}

func TestTableOfAllSockets(t *testing.T) {
	for _, tt := range []struct {
		name  string
		conns []api.Connection
		room  int
		want  string
	}{
		{
			"80 columns show the state, since it is what there is to say", others(), 84, "" +
				"VERDICT  SILENT  STATE        LOCAL           REMOTE          OWNER\n" +
				"zombie      12s  established  10.0.0.1:37024  10.0.0.2:5432   postgres[812]\n" +
				"-             -  listen       [::]:22         -               sshd[9]\n" +
				"-             -  syn_recv     10.0.0.1:22     10.0.0.9:40000  (not accepted)\n" +
				"-             -  time_wait    10.0.0.1:22     10.0.0.9:40001  -\n" +
				"-             -  fin_wait2    10.0.0.1:22     10.0.0.9:40002  -\n",
		},
		{
			"columns that have nothing to show are left out", others()[1:2], 80, "" +
				"STATE   LOCAL    ACCEPT-Q  OVERFLOWS  KEEPALIVE  OWNER    RUNS IN\n" +
				"listen  [::]:22       5/4         36  1m/10s×6   sshd[9]  ssh.service\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := connectionTable(tt.conns, noon, false)
			table.fit(tt.room)
			var b bytes.Buffer
			table.write(&b, false)
			if diff := cmp.Diff(tt.want, b.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
	const want = "" +
		"STATE      LOCAL        REMOTE          ACCEPT-Q  OVERFLOWS  KEEPALIVE     OWNER    RUNS IN      FD  UID  NETNS  COOKIE\n" +
		"listen     [::]:22      -                    5/4         36  1m/10s×6 own  sshd[9]  ssh.service   3    0  0      5\n"
	var b bytes.Buffer
	connectionTable([]api.Connection{others()[1], others()[3]}, noon, true).write(&b, false)
	if !strings.HasPrefix(b.String(), want) {
		t.Errorf("\n%s", b.String())
	}
	counts := shownCounts{total: 5, verdicts: make(map[string]int)}
	counts.add(others())
	if got, want := counts.summary("socket"), "5 sockets: 1 zombie, 4 without a verdict"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestGroups(t *testing.T) {
	const verdicts = `"verdicts":{"zombie":2,"suspect":0,"unguarded":12,"active":1}`
	const head = `{"generated_at":"2026-11-21T12:00:00Z","total":`
	for _, tt := range []struct {
		name, args, body, asked, stdout, stderr string
	}{
		{
			"by owner", "--by=owner --limit=6 -a --owner=x",
			head + `9,"groups":[{"owner":{"kind":"pod","name":"5b3a8f0e-1111-2222-3333-444444444444"},"total":15,` + verdicts + `},
				{"owner":{"kind":"container","name":"3f2a9c8d7e6f"},"total":3},{"owner":{"kind":"unit","name":"x.service"},"total":2,"verdicts":{"idle":1}},
				{"owner":{"kind":"process","name":"\u001b[2J"},"total":1},{"total":1,"verdicts":null},{"owner":{"kind":"","name":""},"total":1}]}`,
			"/api/v1/groups?all=true&by=owner&limit=6&owner=x",
			"" +
				"TOTAL  ZOMBIE  UNGUARDED  IDLE  ACTIVE  OWNER\n" +
				"   15       2         12     -       1  pod 5b3a8f0e\n" +
				"    3       -          -     -       -  container 3f2a9c8d7e6f\n" +
				"    2       -          -     1       -  x.service\n" +
				"    1       -          -     -       -  \\x1b[2J\n" +
				"    1       -          -     -       -  -\n" +
				"    1       -          -     -       -  -\n",
			"6 of 9 groups shown, 23 sockets: 2 zombie, 12 unguarded, 1 idle, 1 active, 7 without a verdict\n",
		},
		{
			"by remote", "--by=remote",
			head + `3,"groups":[{"remote":{"ip":"10.0.0.2","port":5432},"total":15,` + verdicts + `},{"remote":{"ip":"2001:db8::2","port":null},"total":1},{"total":1}]}`,
			"/api/v1/groups?by=remote&limit=2147483647",
			"" +
				"TOTAL  ZOMBIE  UNGUARDED  ACTIVE  REMOTE\n" +
				"   15       2         12       1  10.0.0.2:5432\n" +
				"    1       -          -       -  2001:db8::2\n" +
				"    1       -          -       -  -\n",
			"3 groups, 17 connections: 2 zombie, 12 unguarded, 1 active, 2 without a verdict\n",
		},
		{
			"by verdict", "--by=verdict",
			head + `1,"groups":[{"verdict":"zombie","total":1,"verdicts":{"zombie":1}}]}`,
			"/api/v1/groups?by=verdict&limit=2147483647",
			"" +
				"TOTAL  VERDICT\n" +
				"    1  zombie\n",
			"1 group, 1 connection: 1 zombie\n",
		},
		{
			"by namespace", "--by=netns",
			head + `1,"groups":[{"netns":4026531840,"total":15,` + verdicts + `}]}`,
			"/api/v1/groups?by=netns&limit=2147483647",
			"" +
				"TOTAL  ZOMBIE  UNGUARDED  ACTIVE  NETNS\n" +
				"   15       2         12       1  4026531840\n",
			"1 group, 15 connections: 2 zombie, 12 unguarded, 1 active\n",
		},
		{
			"the settings of namespaces", "--by=netns --settings",
			head + `2,"groups":[{"netns":4026531840,"total":15,` + verdicts + `,"settings":{"sysctls":{"keepalive_time_seconds":7200,"keepalive_interval_seconds":75,"keepalive_probes":9,` +
				`"retries2":15,"syn_retries":6,"orphan_retries":0,"fin_timeout_seconds":60},"keepalive":{"on":3,"off":12,"own":2,"own_time":2,"own_interval":1,"own_probes":0},"user_timeout":1,"own_fin_timeout":0}},` +
				`{"netns":4026532000,"total":1,"verdicts":{"active":1},"settings":{"sysctls":null,"keepalive":{"on":1}}}]}`,
			"/api/v1/groups?by=netns&limit=2147483647&settings=true",
			"" +
				"TOTAL  KEEPALIVE OFF  ON  OWN  USER-TIMEOUT  KEEPALIVE SYSCTLS  RETRIES2  SYN-RETRIES  ORPHAN-RETRIES  FIN-TIMEOUT  NETNS\n" +
				"   15             12   3    2             1           2h/75s×9        15            6               0           1m  4026531840\n" +
				"    1              -   1    -             -                  -         -            -               -            -  4026532000\n",
			"2 groups, 16 connections: 2 zombie, 12 unguarded, 2 active\n",
		},
		{"none", "--by=verdict --risk=no_keepalive", head + `0,"groups":[]}`, "/api/v1/groups?by=verdict&limit=2147483647&risk=no_keepalive", "", "no connection matches\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, asked := agentWith(t, http.StatusOK, tt.body)
			status, stdout, stderr := halfopen(t, append([]string{"list", "--url", url}, strings.Fields(tt.args)...)...)
			if *asked != tt.asked || status != exitDone || stderr != tt.stderr {
				t.Errorf("asked for %s, want %s; status %d, stderr %q, want %q", *asked, tt.asked, status, stderr, tt.stderr)
			}
			if diff := cmp.Diff(tt.stdout, stdout); diff != "" {
				t.Error(diff)
			}
			status, stdout, _ = halfopen(t, append([]string{"list", "--url", url, "-o", "json"}, strings.Fields(tt.args)...)...)
			if !json.Valid([]byte(stdout)) || status != exitDone {
				t.Errorf("status %d, JSON\n%s", status, stdout)
			}
		})
	}
}

func TestWhatContradictsIsWrongUsage(t *testing.T) {
	for args, want := range map[string]string{
		"--all --verdict=zombie":    "--all cannot be combined with --verdict or --risk: leave out --all",
		"--all --risk=no_keepalive": "--all cannot be combined with --verdict or --risk: leave out --all",
		"--by=owner -o wide":        "--by has no wide table: leave out -o wide",
	} {
		status, stdout, stderr := halfopen(t, append([]string{"list"}, strings.Fields(args)...)...)
		if status != exitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

func TestDeaths(t *testing.T) {
	const body = `{"generated_at":"2026-11-21T12:00:00Z","total":9,"deaths":[{"cookie":"1a2b","family":"ipv4",
		"local":{"ip":"10.0.0.1","port":37024},"remote":{"ip":"10.0.0.2","port":5432},"netns":1,"process":{"pid":812,"comm":"postgres","fd":9},"uid":0,
		"at":"2026-11-21T11:59:00Z","cause":"user_timeout","during":"keepalive","state":"established","errno":"ETIMEDOUT",
		"unanswered":9,"evidence":"keepalive","silent_seconds":7875,"verdict":"zombie","zombie_seconds":450}]}`
	url, asked := agentWith(t, http.StatusOK, body)
	status, stdout, stderr := halfopen(t, "list", "--url", url, "--cause=user_timeout", "--cause=closed", "--limit=1")
	if want := "/api/v1/deaths?cause=user_timeout&cause=closed&limit=1"; *asked != want {
		t.Errorf("asked for %s, want %s", *asked, want)
	}
	at := noon.Add(-time.Minute).Local().Format(time.DateTime)
	want := "" +
		"DIED                 CAUSE         VERDICT  ZOMBIE-FOR  UNANSWERED  SILENT  STATE        LOCAL           REMOTE         OWNER\n" +
		at + "  user_timeout  zombie        7m30s           9   2h11m  established  10.0.0.1:37024  10.0.0.2:5432  postgres[812]\n"
	if diff := cmp.Diff(want, stdout); diff != "" || status != exitDone || stderr != "1 of 9 deaths shown\n" {
		t.Errorf("status %d, stderr %q\n%s", status, stderr, diff)
	}
}

func TestNothingToListIsASentence(t *testing.T) {
	url, _ := agentWith(t, http.StatusOK, `{"generated_at":"2026-11-21T12:00:00Z","total":0,"connections":[],"deaths":[]}`)
	for args, want := range map[string]string{
		"":                 "no connections\n",
		"--verdict=zombie": "no connection matches\n",
		"--cause=aborted":  "no death matches\n",
		"--cause=aborted --cause=closed": "no death matches: orderly ends (closed) are only counted, unless the connection was in trouble, " +
			"by the metric halfopen_tcp_deaths_total\n",
		"--state=close_wait --state=time_wait": "no connection matches: sockets in syn_recv and time_wait are not connections: " +
			"list them with --all\n",
		"--state=listen":           "no socket matches\n",
		"--risk=accept_queue_full": "no socket matches\n",
		"--all --state=listen":     "no socket matches\n",
		"--all":                    "no sockets\n",
		"--remote=::1":             "no connection matches\n",
	} {
		status, stdout, stderr := halfopen(t, append([]string{"list", "--url", url}, strings.Fields(args)...)...)
		if status != exitDone || stdout != "" || stderr != want {
			t.Errorf("%s: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

func TestJSONOfALook(t *testing.T) {
	doc := document()
	var b bytes.Buffer
	write := func(total int, conns []conn.Connection) error {
		return writeJSON(&b, func(w io.Writer) error {
			return api.WriteList(w, "connections", total, "", api.Values(conns), api.NewConnection)
		})
	}
	if err := write(doc.Total, conns); err != nil {
		t.Fatal(err)
	}
	var got api.Connections
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	doc.Connections[1].Process.Comm = "\x1b[2Jngin\ufffd" // JSON has no other bytes
	doc.GeneratedAt = got.GeneratedAt                     // it is now
	if diff := cmp.Diff(doc, got); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	if err := write(0, nil); err != nil || !json.Valid(b.Bytes()) {
		t.Errorf("no connections: error %v in\n%s", err, b.String())
	}
}
