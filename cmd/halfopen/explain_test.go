// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/explain"
	"github.com/halfopen/halfopen/exporter/api"
)

// detail is the first of conns, explained; it has one of everything.
func detail() api.ConnectionDetail {
	return api.NewConnectionDetail(&collector.Detail{Connection: conns[0], Explanation: explain.Explanation{
		At: noon,
		Doing: []string{
			"The connection is established, as far as this kernel knows.",
			"Nothing has been heard from the peer for 12s.", "Verdict: zombie.",
		},
		Path: []string{
			"Local address 10.0.0.1 is on eth0.", "Route to 10.0.0.2 by gateway 10.0.0.254 on eth0 (up, MTU 1500).", "Neighbour 10.0.0.254 REACHABLE.",
		},
		Timers: []explain.Timer{
			{Name: "keepalive", Purpose: "Asks a silent peer.", At: noon.Add(50 * time.Second), Latest: noon.Add(52 * time.Second), Then: "Sends probe 4 of 9; the next one, or the end, is 75s later."},
			{Name: "retransmission", Purpose: "Sends again.", Then: "Not running: nothing is in flight."},
		},
		Settings: []explain.Setting{
			{Option: "SO_KEEPALIVE", Value: 1, Unit: "switch", Source: explain.SourceSocket, Means: "Whether to ask a silent peer"},
			{Option: "TCP_KEEPIDLE", Sysctl: "net.ipv4.tcp_keepalive_time", Value: 7200, Unit: "seconds", Source: explain.SourceDefault, Means: "Silence before the first probe"},
			{Option: "TCP_USER_TIMEOUT", Unit: "milliseconds", Source: explain.SourceDefault, Means: "How long the peer may stay silent while it owes an answer; overrides the counts"},
			{Option: "TCP_RTO_MAX_MS", Sysctl: "net.ipv4.tcp_rto_max_ms", Value: 1500, Unit: "milliseconds", Source: explain.SourceSysctl, Means: "The longest wait"},
			{Sysctl: "net.ipv4.tcp_retries2", Value: 15, Unit: "retransmissions", Source: explain.SourceDefault, Means: "Before it gives up on data in flight"},
		},
		Next:       []string{"3 probes are out.", "If nothing is heard from the peer, the kernel gives up in 7m30s (keepalive_timeout)."},
		Assessment: "A dead peer is noticed only after 2h11m of silence.",
		Advice: []explain.Advice{
			{
				Text: "Let the application set these: a dead peer is then noticed after 1m30s of silence.",
				How:  []string{"setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10)", "setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)"},
				Then: conn.Forecast{At: noon.Add(30 * time.Second), Latest: noon.Add(31 * time.Second), By: conn.CauseKeepaliveTimeout},
			},
			{Text: "Or close it.", How: []string{"close(fd)"}},
		},
	}})
}

func TestExplanationAsText(t *testing.T) {
	at := func(d time.Duration) string { return noon.Add(d).Local().Format(time.TimeOnly) }
	want := `10.0.0.1:37024 → 10.0.0.2:5432
established, zombie; postgres[812]
cookie 1a2b, network namespace 4026531840

WHAT IT IS DOING
  The connection is established, as far as this kernel knows. Nothing has been
  heard from the peer for 12s. Verdict: zombie.

PATH
  Local address 10.0.0.1 is on eth0. Route to 10.0.0.2 by gateway 10.0.0.254 on
  eth0 (up, MTU 1500). Neighbour 10.0.0.254 REACHABLE.

TIMERS
  keepalive: fires in 50s, between ` + at(50*time.Second) + ` and ` + at(52*time.Second) + `
    Asks a silent peer.
    Then: Sends probe 4 of 9; the next one, or the end, is 75s later.
  retransmission: not running: nothing is in flight.

SETTINGS
  SO_KEEPALIVE      on           set on the socket
                    Whether to ask a silent peer
  TCP_KEEPIDLE      7200 s (2h)  default of net.ipv4.tcp_keepalive_time
                    Silence before the first probe
  TCP_USER_TIMEOUT  off          default, not set on the socket
                    How long the peer may stay silent while it owes an answer;
                    overrides the counts
  TCP_RTO_MAX_MS    1500 ms      sysctl net.ipv4.tcp_rto_max_ms
                    The longest wait
  tcp_retries2      15           default of net.ipv4.tcp_retries2
                    Before it gives up on data in flight

WHAT HAPPENS NEXT
  3 probes are out. If nothing is heard from the peer, the kernel gives up in
  7m30s (keepalive_timeout).
  That would be between ` + at(450*time.Second) + ` and ` + at(460*time.Second) + `.

NOTICING SOONER
  A dead peer is noticed only after 2h11m of silence.

  1. Let the application set these: a dead peer is then noticed after 1m30s of
     silence.
       setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10)
       setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)
     Done now, the kernel would give up in 30s (keepalive_timeout).

  2. Or close it.
       close(fd)
`
	body, err := json.Marshal(detail())
	if err != nil {
		t.Fatal(err)
	}
	url, asked := agentWith(t, http.StatusOK, string(body))
	status, stdout, stderr := halfopen(t, "explain", "--url", url, "1a2b")
	if diff := cmp.Diff(want, stdout); diff != "" || status != exitDone || stderr != "" {
		t.Errorf("status %d, stderr %q\n%s", status, stderr, diff)
	}
	if *asked != "/api/v1/connections/1a2b" {
		t.Errorf("asked for %s", *asked)
	}
	if status, stdout, _ := halfopen(t, "explain", "-o", "json", "--url", url, "sk:1a2b"); status != exitDone || stdout != string(body) {
		t.Errorf("status %d, not as the agent has it\n%s", status, stdout)
	}
}

func TestClockNamesAnotherDay(t *testing.T) {
	local := time.Date(2026, 11, 21, 23, 59, 30, 0, time.Local)
	if got := clock(local.Add(20*time.Second), local); got != "23:59:50" {
		t.Error(got)
	}
	if got := clock(local.Add(time.Minute), local); got != "2026-11-22 00:00:30" {
		t.Error(got)
	}
}

// The server at --url may be hostile, and its answer may have any text.
func FuzzExplanationOfAStranger(f *testing.F) {
	doc, err := json.Marshal(detail())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"cookie":"\u001b","state":"\n","process":{"comm":"\u202e","pid":1},"explanation":{"doing":["\u001b[2J"],"path":["\u001b[2J \u202e"],"assessment":"\u009b","settings":[{"option":"\n","sysctl":"\u001b","value":-9223372036854775808,"unit":"seconds"}],"timers":[{"name":"\r","then":"\u001b"}],"advice":[{"text":"\n","how":["\u001b]0;x\u0007"]}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var doc api.ConnectionDetail
		if json.Unmarshal(body, &doc) != nil {
			return
		}
		for l := range strings.SplitSeq(explanation(&doc, 80, false), "\n") {
			for _, r := range l {
				if !unicode.IsPrint(r) {
					t.Fatalf("%U in %q", r, l)
				}
			}
		}
	})
}

func TestTargets(t *testing.T) {
	for arg, want := range map[string]target{
		"1a2b":                {cookie: 0x1a2b},
		"5432":                {cookie: 0x5432},
		"sk:5432":             {cookie: 0x5432},
		"ffffffffffffffff":    {cookie: 1<<64 - 1},
		":5432":               {port: 5432},
		"*:5432":              {port: 5432},
		"10.0.0.1:5432":       {port: 5432, addr: netip.MustParseAddr("10.0.0.1")},
		"[2001:db8::1]:443":   {port: 443, addr: netip.MustParseAddr("2001:db8::1")},
		"[::ffff:10.0.0.1]:1": {port: 1, addr: netip.MustParseAddr("10.0.0.1")},
		"[fe80::1%eth0]:1":    {port: 1, addr: netip.MustParseAddr("fe80::1")},
	} {
		want.text = arg
		if got, err := parseTarget(arg); err != nil || got != want {
			t.Errorf("%s: %+v, %v", arg, got, err)
		}
	}
	for arg, want := range map[string]string{
		"":                  `"" is not a socket cookie`,
		"0":                 "no socket has the cookie 0",
		"postgres":          `"postgres" is not a socket cookie (hexadecimal, as ss -e prints it after sk:)`,
		"0x1a2b":            "is not a socket cookie",
		"10.0.0.1":          `"10.0.0.1" is an address without its port: write it as 10.0.0.1:37024`,
		"2001:db8::1":       `"2001:db8::1" is an address without its port: write it as [2001:db8::1]:37024`,
		"1ffffffffffffffff": "is not a socket cookie",
		":0":                `"0" is not a port from 1 to 65535`,
		"10.0.0.1:http":     `"http" is not a port from 1 to 65535`,
		"localhost:5432":    `"localhost:5432" is not an address and a port, such as 10.0.0.1:37024, [2001:db8::1]:443 or :443`,
		"2001:db8::1:443":   `"2001:db8::1:443" is an address without its port: write it as [2001:db8::1:443]:37024`,
		"[2001:db8::g]:443": "is not an address and a port",
	} {
		status, stdout, stderr := halfopen(t, "explain", arg)
		if status != exitUsage || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, stderr %q, want %q", arg, status, stderr, want)
		}
	}
}

func TestWhichConnectionIsMeant(t *testing.T) {
	at := func(cookie, local, remote string) api.Connection {
		l, r := netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
		return api.Connection{
			Cookie: cookie, Netns: 4026531840, Local: api.Endpoint{IP: l.Addr().String(), Port: l.Port()},
			Remote: api.Endpoint{IP: r.Addr().String(), Port: r.Port()},
		}
	}
	node := []api.Connection{
		at("a", "10.0.0.1:443", "10.0.0.9:1001"), at("b", "10.0.0.1:443", "10.0.0.9:1002"), at("c", "10.0.0.2:443", "10.0.0.9:1003"),
		at("d", "10.0.0.1:443", "10.0.0.9:1004"), at("e", "10.0.0.1:443", "10.0.0.9:1005"), at("f", "10.0.0.1:2000", "10.0.0.8:5432"),
		at("10", "[2001:db8::1]:2000", "[2001:db8::2]:443"),
		at("11", "10.0.0.3:3000", "10.0.0.9:1001"), at("12", "10.0.0.3:3000", "10.0.0.9:1001"),
	}
	node[len(node)-1].Netns = 4026532317
	for arg, want := range map[string]string{
		"10.0.0.2:443":       "c",
		":1001":              "no connection has the local port 1001, but for 10.0.0.1:443 it is the remote one: explain that by its cookie, a",
		"10.0.0.1:443":       "4 connections have the local address 10.0.0.1:443; choose one by its cookie: a (to 10.0.0.9:1001), b (to 10.0.0.9:1002), d (to 10.0.0.9:1004) and 1 more, see halfopen list -o wide --port 443",
		":2000":              "2 connections have the local port 2000; choose one by its cookie: f (to 10.0.0.8:5432), 10 (to [2001:db8::2]:443)",
		":3000":              "2 connections have the local port 3000; choose one by its cookie: 11 (to 10.0.0.9:1001, in network namespace 4026531840), 12 (to 10.0.0.9:1001, in network namespace 4026532317)",
		"[2001:db8::1]:2000": "10",
		"10.0.0.8:5432":      "no connection has the local address 10.0.0.8:5432, but for 10.0.0.1:2000 it is the remote one: explain that by its cookie, f",
		":80":                "no connection has the local port 80: it has ended (the stub that stays in time_wait or fin_wait2 has nothing to explain), is a listener, or never existed: see halfopen list --all",
	} {
		parsed, err := parseTarget(arg)
		if err != nil {
			t.Fatal(err)
		}
		cookie, err := parsed.choose(node)
		got := conn.FormatCookie(cookie)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", arg, got, want)
		}
	}
}

func TestExplainAsksTheAgentWhichOne(t *testing.T) {
	list, err := json.Marshal(document())
	if err != nil {
		t.Fatal(err)
	}
	one, err := json.Marshal(detail())
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		if strings.HasSuffix(r.URL.Path, "connections") {
			w.Write(list)
			return
		}
		w.Write(one)
	}))
	defer srv.Close()
	status, stdout, stderr := halfopen(t, "explain", "--url", srv.URL, "10.0.0.1:37024")
	if status != exitDone || stderr != "" || !strings.HasPrefix(stdout, "10.0.0.1:37024 → 10.0.0.2:5432\n") {
		t.Errorf("status %d, stderr %q, stdout\n%s", status, stderr, stdout)
	}
	want := []string{"/api/v1/connections?limit=2147483647&port=37024", "/api/v1/connections/1a2b"}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("asked (-want +got)\n%s", diff)
	}
	for arg, want := range map[string]string{
		":37025": "no connection has the local port 37025: it has ended (the stub that stays in time_wait or fin_wait2 has nothing to explain), is a listener, or never existed: see halfopen list --all",
		":80":    "no connection has the local port 80, but for 10.0.0.1:1 it is the remote one: explain that by its cookie, 4",
	} {
		wantFailure(t, want, "explain", "--url", srv.URL, arg)
	}
}

func TestExplainWhatAnAgentDoesNot(t *testing.T) {
	url, _ := agentWith(t, http.StatusNotFound, `{"error":"no such path: /prefix/api/v1/connections/1a2b"}`)
	wantFailure(t, "ask "+url+": no such path: /prefix/api/v1/connections/1a2b", "explain", "--url", url, "1a2b")
	for _, body := range []string{"", "<html>", "{}", `{"cookie":"1a2b","events":[]}`, `{"explanation":null}`, `{"explanation":{}}`} {
		url, _ := agentWith(t, http.StatusOK, body)
		want := "what answers at " + url + " is not a halfopen agent: check the address and port of --url"
		wantFailure(t, want, "explain", "--url", url, "1a2b")
		wantFailure(t, want, "explain", "--url", url, "1a2b", "-o", "json")
	}
}

func TestUnknownCookie(t *testing.T) {
	for arg, want := range map[string]string{
		"fffff": "no connection has the cookie fffff: it has ended, is a listener, or never existed: halfopen list -o wide lists the current connections",
		"8080":  "no connection has the cookie 8080: it has ended, is a listener, or never existed: halfopen list -o wide lists the current connections, or write :8080 if you mean the port",
	} {
		parsed, err := parseTarget(arg)
		if err != nil {
			t.Fatal(err)
		}
		if got := parsed.unknown().Error(); got != want {
			t.Errorf("%s\nwant\n%s", got, want)
		}
		// An agent's word for it is the same.
		url, _ := agentWith(t, http.StatusNotFound, `{"error":"no living connection has the cookie `+arg+`; see elsewhere"}`)
		wantFailure(t, want, "explain", "--url", url, arg)
	}
}
