// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api/apitest"
)

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The contract's example, but for the container, in the contract's order.
const contractJSON = `{"cookie":"1a2b","family":"ipv4","local":{"ip":"10.0.0.1","port":37024},"remote":{"ip":"10.0.0.2","port":5432},` +
	`"netns":4026531840,"state":"established","verdict":"zombie","since":"2025-11-21T12:00:00.123456789Z",` +
	`"evidence":"keepalive","reason":null,"unanswered":3,"attempts":0,"idle_seconds":12.4,"silent_seconds":12.4,"segments_in":33,` +
	`"keepalive":{"enabled":true,"time_seconds":7200,"interval_seconds":75,"probes":9,"probes_out":3,"per_socket":false},` +
	`"user_timeout_seconds":0,"retransmits":{"unanswered":0,"total":5},` +
	`"unacked_segments":0,"send_queue_bytes":0,"receive_queue_bytes":7,"send_window_bytes":64256,"srtt_seconds":0.0004,"rto_seconds":0.204,` +
	`"gives_up":{"at":"2025-11-21T12:07:43.123456789Z","in_seconds":450,"latest_in_seconds":460,"by":"keepalive_timeout"},` +
	`"risks":["keepalive_slower_than_middlebox"],"also":[],"accept_queue":null,"peer_host":null,` +
	`"process":{"pid":812,"comm":"postgres","fd":9},"uid":1000,"cgroup":"/system.slice/x.service","namespace":null,"pod":null,"container":null,"container_id":null,"pod_uid":null,"unit":"x.service"}`

const contractDeathJSON = `{"cookie":"1a2b","family":"ipv4","local":{"ip":"10.0.0.1","port":37024},"remote":{"ip":"10.0.0.2","port":5432},` +
	`"netns":4026531840,"process":{"pid":812,"comm":"postgres","fd":9},"uid":1000,"cgroup":"/system.slice/x.service","namespace":null,"pod":null,"container":null,"container_id":null,"pod_uid":null,"unit":"x.service",` +
	`"at":"2025-11-21T12:01:00.123456789Z","cause":"user_timeout","during":"keepalive","state":"established","errno":"ETIMEDOUT",` +
	`"unanswered":3,"evidence":"keepalive","silent_seconds":12.4,"verdict":"zombie","zombie_seconds":60,"forecast_error_seconds":-0.5,"similar":0,"similar_since":null}`

const contractExplanationJSON = `{"at":"2025-11-21T12:00:13.123456789Z","doing":["It is established.","It waits."],"path":["It is on eth0."],` +
	`"timers":[{"name":"keepalive","purpose":"Asks.","fires":{"at":"2025-11-21T12:01:03.123456789Z","in_seconds":50,"latest_in_seconds":52},"then":"Sends probe 4 of 9."},` +
	`{"name":"retransmission","purpose":"Sends again.","fires":null,"then":"Not running."}],` +
	`"settings":[{"option":"TCP_KEEPIDLE","sysctl":"net.ipv4.tcp_keepalive_time","value":7200,"unit":"seconds","source":"default","means":"Silence"},` +
	`{"option":"TCP_USER_TIMEOUT","sysctl":null,"value":1500,"unit":"milliseconds","source":"socket","means":"Timeout"},` +
	`{"option":null,"sysctl":"net.ipv4.tcp_retries2","value":8,"unit":"retransmissions","source":"sysctl","means":"Limit"}],` +
	`"next":["It ends."],"assessment":"Too late.",` +
	`"advice":[{"text":"Set it.","how":["setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)"],` +
	`"gives_up":{"at":"2025-11-21T12:00:43.123456789Z","in_seconds":30,"latest_in_seconds":31,"by":"keepalive_timeout"}},` +
	`{"text":"Or close it.","how":["close(fd)"],"gives_up":null}]}`

func TestDetailIsTheConnectionWithItsEventsAndExplanation(t *testing.T) {
	eth0 := &conn.Device{Name: "eth0", Up: true, LowerUp: true, OperState: "up", MTU: 1500}
	d := collector.Detail{Connection: apitest.Connection(), Explanation: apitest.Explanation(), Path: &conn.Path{
		LocalDevice: eth0, Route: conn.Route{Type: conn.RouteUnicast, Gateway: netip.MustParseAddr("10.0.0.254"), Device: eth0},
		Neighbour: &conn.Neighbour{Addr: netip.MustParseAddr("10.0.0.254"), State: "reachable"}, Mark: new(uint32(42)),
	}}
	const device = `{"name":"eth0","up":true,"lower_up":true,"operstate":"up","mtu":1500}`
	want := strings.TrimSuffix(contractJSON, "}") + `,"path":{"local_device":` + device + `,"route":{"type":"unicast","errno":null,"gateway":"10.0.0.254","device":` + device +
		`},"neighbour":{"ip":"10.0.0.254","state":"reachable"},"mark":42},"events":[],"explanation":` + contractExplanationJSON + "}"
	if diff := cmp.Diff(want, encode(t, NewConnectionDetail(&d))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	d.Path = &conn.Path{Route: conn.Route{Type: conn.RouteNone, Errno: "ENETUNREACH"}}
	if got := encode(t, NewConnectionDetail(&d)); !strings.Contains(got, `"path":{"local_device":null,"route":{"type":"none","errno":"ENETUNREACH","gateway":null,"device":null},"neighbour":null,"mark":null}`) {
		t.Errorf("a path to nowhere: %s", got)
	}
	d.Path = nil
	if got := encode(t, NewConnectionDetail(&d)); !strings.Contains(got, `"path":null,"events"`) {
		t.Errorf("no path: %s", got)
	}
	d.Explanation.Advice, d.Explanation.Timers, d.Explanation.Settings = nil, nil, nil
	if got := encode(t, NewConnectionDetail(&d)); !strings.Contains(got, `"advice":[]`) || !strings.Contains(got, `"timers":[],"settings":[]`) {
		t.Errorf("what there is none of is an empty list: %s", got)
	}
}

func TestConnectionIsEncodedAsInTheContract(t *testing.T) {
	c := apitest.Connection()
	if diff := cmp.Diff(contractJSON, encode(t, NewConnection(&c))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPeerHostIsEncoded(t *testing.T) {
	c := apitest.Connection()
	c.PeerHost = &conn.PeerHost{Connections: 40, Zombies: 3, Heard: 812 * time.Second}
	if got, want := encode(t, NewConnection(&c)), `"peer_host":{"connections":40,"zombies":3,"heard_seconds":812}`; !strings.Contains(got, want) {
		t.Errorf("%s has no %s", got, want)
	}
	c.PeerHost.Heard = -1
	if got, want := encode(t, NewConnection(&c)), `"heard_seconds":null}`; !strings.Contains(got, want) {
		t.Errorf("%s has no %s", got, want)
	}
}

func TestWhatIsNoConnection(t *testing.T) {
	listener := conn.Connection{
		State: conn.Listen, Local: netip.MustParseAddrPort("0.0.0.0:22"), Remote: netip.MustParseAddrPort("0.0.0.0:0"),
		Idle: -1, Silent: -1, Accepted: true, AcceptQueue: 5, AcceptLimit: 4, ListenDrops: 36, Risks: []conn.Risk{conn.RiskAcceptQueueFull},
	}
	if got := encode(t, NewConnection(&listener)); !strings.Contains(got, `"state":"listen","verdict":null,`) ||
		!strings.Contains(got, `"risks":["accept_queue_full"],"also":[],"accept_queue":{"length":5,"limit":4,"overflows":36},"peer_host":null,"process":null,"uid":0`) {
		t.Errorf("a listener: %s", got)
	}
	stub := conn.Connection{
		State: conn.FinWait2, Stub: true, Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.2:50000"),
		Idle: -1, Silent: -1, Orphaned: true, Accepted: true,
	}
	if got := encode(t, NewConnection(&stub)); !strings.Contains(got, `"state":"fin_wait2","verdict":null,`) || !strings.Contains(got, `"accept_queue":null`) {
		t.Errorf("a stub: %s", got)
	}
}

func TestDeathIsEncodedAsInTheContract(t *testing.T) {
	d := apitest.Death()
	if diff := cmp.Diff(contractDeathJSON, encode(t, NewDeath(&d))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEncodedObjectsDecodeToThemselves(t *testing.T) {
	c, d := apitest.Connection(), apitest.Death()
	wantC, wantD := NewConnection(&c), NewDeath(&d)
	var gotC Connection
	var gotD Death
	if err := json.Unmarshal([]byte(encode(t, wantC)), &gotC); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(encode(t, wantD)), &gotD); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantC, gotC); diff != "" {
		t.Errorf("connection (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(wantD, gotD); diff != "" {
		t.Errorf("death (-want +got)\n%s", diff)
	}
}

func TestConnectionFields(t *testing.T) {
	owned := `"process":{"pid":812,"comm":"postgres","fd":9},"uid":1000,"cgroup":"/system.slice/x.service","namespace":null,"pod":null,"container":null,"container_id":null,"pod_uid":null,"unit":"x.service"}`
	unowned := `"process":null,"uid":null,"cgroup":null,"namespace":null,"pod":null,"container":null,"container_id":null,"pod_uid":null,"unit":null}`
	risks := `"risks":["keepalive_slower_than_middlebox"],`
	for name, tc := range map[string]struct {
		change   func(*conn.Connection)
		from, to string // what that changes in contractJSON
	}{
		"an orphan has no owner": {
			func(c *conn.Connection) { c.Orphaned = true }, owned, unowned,
		},
		"one not yet accepted says so and has no owner": {
			func(c *conn.Connection) { c.Accepted = false }, owned, `"accepted":false,` + unowned,
		},
		"one whose process was not found still has its user": {
			func(c *conn.Connection) { c.Process = nil },
			`"process":{"pid":812,"comm":"postgres","fd":9}`, `"process":null`,
		},
		"root's is 0, not null": {
			func(c *conn.Connection) { c.UID = 0 }, `"uid":1000`, `"uid":0`,
		},
		"a peer never heard has no silence": {
			func(c *conn.Connection) { c.Silent = -1 }, `"silent_seconds":12.4`, `"silent_seconds":null`,
		},
		"one that never moved data has no idle time": {
			func(c *conn.Connection) { c.Idle = -1 }, `"idle_seconds":12.4`, `"idle_seconds":null`,
		},
		"no idle time at all is 0, not null": {
			func(c *conn.Connection) { c.Idle = 0 }, `"idle_seconds":12.4`, `"idle_seconds":0`,
		},
		"a verdict of unknown age has no since": {
			func(c *conn.Connection) { c.Since = time.Time{} },
			`"since":"2025-11-21T12:00:00.123456789Z"`, `"since":null`,
		},
		"since is in UTC wherever the agent runs": {
			func(c *conn.Connection) { c.Since = c.Since.In(time.FixedZone("", 3600)) }, "", "",
		},
		"no evidence is null": {
			func(c *conn.Connection) { c.Evidence = conn.NoEvidence },
			`"evidence":"keepalive"`, `"evidence":null`,
		},
		"no risks are an empty list": {
			func(c *conn.Connection) { c.Risks = nil }, risks, `"risks":[],`,
		},
		"other verdicts hold, too": {
			func(c *conn.Connection) { c.Also = []conn.Verdict{conn.Stalled, conn.Unread} }, `"also":[]`, `"also":["stalled","unread"]`,
		},
		"a state that is not judged has no verdict": {
			func(c *conn.Connection) { c.State = conn.SynRecv },
			`"state":"established","verdict":"zombie"`, `"state":"syn_recv","verdict":null`,
		},
		"an IPv6 connection is one": {
			func(c *conn.Connection) {
				c.Local = netip.MustParseAddrPort("[fe80::1]:37024")
				c.Remote = netip.MustParseAddrPort("[fe80::2]:5432")
			},
			`"family":"ipv4","local":{"ip":"10.0.0.1","port":37024},"remote":{"ip":"10.0.0.2","port":5432}`,
			`"family":"ipv6","local":{"ip":"fe80::1","port":37024},"remote":{"ip":"fe80::2","port":5432}`,
		},
		"one that the kernel never gives up": {
			func(c *conn.Connection) { c.GivesUp = conn.Forecast{} },
			`{"at":"2025-11-21T12:07:43.123456789Z","in_seconds":450,"latest_in_seconds":460,"by":"keepalive_timeout"}`, `null`,
		},
		"a forecast is to the millisecond": {
			func(c *conn.Connection) { c.At = c.At.Add(333_333) }, // they are 449.999666667 and 459.999666667
			"", "",
		},
		"ages and settings are to the millisecond": {
			func(c *conn.Connection) {
				c.Idle, c.Keepalive.Time, c.UserTimeout = 3564363263, 1_000_400_000, 3_333_333_333
			},
			`"idle_seconds":12.4,"silent_seconds":12.4,"segments_in":33,"keepalive":{"enabled":true,"time_seconds":7200,"interval_seconds":75,"probes":9,"probes_out":3,"per_socket":false},"user_timeout_seconds":0`,
			`"idle_seconds":3.564,"silent_seconds":12.4,"segments_in":33,"keepalive":{"enabled":true,"time_seconds":1,"interval_seconds":75,"probes":9,"probes_out":3,"per_socket":false},"user_timeout_seconds":3.333`,
		},
		"a reason is an object": {
			func(c *conn.Connection) { c.Reason = conn.Reason{Code: conn.ReasonPathMTU, Detail: "It is <small>."} },
			`"reason":null`, `"reason":{"code":"path_mtu","detail":"It is \u003csmall\u003e."}`,
		},
		"attempts that this host failed to send": {
			func(c *conn.Connection) { c.Unanswered, c.Attempts = 0, 4 }, `"unanswered":3,"attempts":0`, `"unanswered":0,"attempts":4`,
		},
		"a round trip is to the microsecond": {
			func(c *conn.Connection) { c.SRTT = 1234567 * time.Microsecond }, `"srtt_seconds":0.0004`, `"srtt_seconds":1.234567`,
		},
		"the largest cookie has every digit": {
			func(c *conn.Connection) { c.Cookie = math.MaxUint64 }, `"1a2b"`, `"ffffffffffffffff"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := apitest.Connection()
			tc.change(&c)
			if !strings.Contains(contractJSON, tc.from) {
				t.Fatalf("the contract has no %s", tc.from)
			}
			want := strings.Replace(contractJSON, tc.from, tc.to, 1)
			if diff := cmp.Diff(want, encode(t, NewConnection(&c))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestDeathFields(t *testing.T) {
	for name, tc := range map[string]struct {
		change   func(*conn.Death)
		from, to string
	}{
		"a death without an error has none": {
			func(d *conn.Death) { d.Errno = 0 }, `"errno":"ETIMEDOUT"`, `"errno":null`,
		},
		"an error without a name keeps its number": {
			func(d *conn.Death) { d.Errno = 4095 }, `"errno":"ETIMEDOUT"`, `"errno":"errno 4095"`,
		},
		"during is null but for user_timeout": {
			func(d *conn.Death) { d.Cause, d.During = conn.CauseResetByPeer, conn.NoEvidence },
			`"cause":"user_timeout","during":"keepalive"`, `"cause":"reset_by_peer","during":null`,
		},
		"one that was no zombie has no time as one": {
			func(d *conn.Death) { d.ZombieFor = 0 }, `"zombie_seconds":60`, `"zombie_seconds":null`,
		},
		"a time as a zombie is to the millisecond": {
			func(d *conn.Death) { d.ZombieFor = 3564363263 }, `"zombie_seconds":60`, `"zombie_seconds":3.564`,
		},
		"one that came when it was forecast": {
			func(d *conn.Death) { d.ForecastError = 0 }, `"forecast_error_seconds":-0.5`, `"forecast_error_seconds":0`,
		},
		"one that was not forecast, or not so": {
			func(d *conn.Death) { d.Forecast, d.ForecastError = conn.Forecast{}, 0 },
			`"forecast_error_seconds":-0.5`, `"forecast_error_seconds":null`,
		},
		"a miss is to the millisecond": {
			func(d *conn.Death) { d.ForecastError = -3564363263 },
			`"forecast_error_seconds":-0.5`, `"forecast_error_seconds":-3.564`,
		},
		"one that stands for others": {
			func(d *conn.Death) {
				d.Similar, d.SimilarSince = 411, time.Date(2026, 1, 2, 4, 4, 5, 0, time.FixedZone("", 3600))
			},
			`"similar":0,"similar_since":null`, `"similar":411,"similar_since":"2026-01-02T03:04:05Z"`,
		},
		"an orphan has no owner": {
			func(d *conn.Death) { d.Orphaned = true },
			`"process":{"pid":812,"comm":"postgres","fd":9},"uid":1000,"cgroup":"/system.slice/x.service","namespace":null,"pod":null,"container":null,"container_id":null,"pod_uid":null,"unit":"x.service"`,
			`"process":null,"uid":null,"cgroup":null,"namespace":null,"pod":null,"container":null,"container_id":null,"pod_uid":null,"unit":null`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := apitest.Death()
			tc.change(&d)
			want := strings.Replace(contractDeathJSON, tc.from, tc.to, 1)
			if diff := cmp.Diff(want, encode(t, NewDeath(&d))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestEventsAndNotices(t *testing.T) {
	connection, death := apitest.Connection(), apitest.Death()
	const at = `"at":"2025-11-21T12:00:00.123456789Z"`
	for name, tc := range map[string]struct {
		got  any
		want string
	}{
		"a solicitation names its evidence and count": {
			NewEvent(&conn.HistoryEntry{At: apitest.Noon, Kind: conn.HistorySolicitation, Evidence: conn.EvidenceRetransmit, Unanswered: 2}),
			`{` + at + `,"kind":"solicitation","evidence":"retransmit","unanswered":2}`,
		},
		"an answer tells how long it took": {
			NewEvent(&conn.HistoryEntry{At: apitest.Noon, Kind: conn.HistoryAnswer, Unanswered: 2, Took: 1500 * time.Millisecond}),
			`{` + at + `,"kind":"answer","unanswered":2,"took_seconds":1.5}`,
		},
		"an answer to a question that nobody saw took nobody knows how long": {
			NewEvent(&conn.HistoryEntry{At: apitest.Noon, Kind: conn.HistoryAnswer, Took: -1}),
			`{` + at + `,"kind":"answer"}`,
		},
		"a change of verdict names both": {
			NewEvent(&conn.HistoryEntry{At: apitest.Noon, Kind: conn.HistoryVerdict, From: conn.Active, To: conn.Suspect}),
			`{` + at + `,"kind":"verdict","from":"active","to":"suspect"}`,
		},
		"a notice of a verdict has the connection and both verdicts": {
			NewNotice(&conn.Notice{Kind: conn.NoticeVerdict, At: apitest.Noon, Connection: connection, From: conn.Suspect}),
			`{"event":"verdict",` + at + `,"connection":` + contractJSON + `,"from":"suspect","to":"zombie"}`,
		},
		"a notice of what was so already has no verdict before": {
			NewNotice(&conn.Notice{Kind: conn.NoticeVerdict, At: apitest.Noon, Connection: connection, From: conn.Suspect, Initial: true}),
			`{"event":"verdict",` + at + `,"connection":` + contractJSON + `,"to":"zombie"}`,
		},
		"a notice of a solicitation has the connection": {
			NewNotice(&conn.Notice{Kind: conn.NoticeSolicitation, At: apitest.Noon, Connection: connection}),
			`{"event":"solicitation",` + at + `,"connection":` + contractJSON + `}`,
		},
		"a notice of a death has the death": {
			NewNotice(&conn.Notice{Kind: conn.NoticeDeath, At: apitest.Noon, Connection: connection, Death: &death}),
			`{"event":"death",` + at + `,"death":` + contractDeathJSON + `}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, encode(t, tc.got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestNamesOfContainersAreEncoded(t *testing.T) {
	c := apitest.Connection()
	c.Cgroup = conn.Cgroup{Path: "/x", ContainerID: "aa", PodUID: "u", Namespace: "shop", Pod: apitest.HostileComm, Container: "server"}
	encoded := NewConnection(&c)
	out := encode(t, encoded)
	if want := `"namespace":"shop","pod":"`; !strings.Contains(out, want) || !utf8.ValidString(out) || strings.ContainsAny(out, "<>\n") {
		t.Errorf("no %s, or not safe to embed: %s", want, out)
	}
	if got := encoded.Group(); got != c.Cgroup {
		t.Errorf("the group is %+v, want %+v", got, c.Cgroup)
	}
}

func TestHostileCommStaysValidJSON(t *testing.T) {
	c := apitest.Connection()
	c.Process.Comm = apitest.HostileComm
	out := encode(t, NewConnection(&c))
	if !utf8.ValidString(out) || strings.ContainsAny(out, "<>\n") {
		t.Errorf("not safe to embed: %s", out)
	}
	var back Connection
	if err := json.Unmarshal([]byte(out), &back); err != nil {
		t.Fatal(err)
	}
	if want := "<img src=x>\"\n\uFFFD"; back.Process.Comm != want {
		t.Errorf("comm is %q, want %q", back.Process.Comm, want)
	}
}
