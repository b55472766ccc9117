// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/explain"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/exporter/api/apitest"
)

// fakeSource returns the values that a test gives it, and records the queries.
type fakeSource struct {
	notReady bool
	excluded conn.OwnerGlobs
	stats    collector.Stats
	conns    []conn.Connection
	events   []conn.HistoryEntry
	explains explain.Explanation
	counts   []conn.Count
	dead     []conn.Death
	notices  chan conn.Notice
	owned    chan conn.Notice
	rows     []*conn.Row
	changes  chan []conn.RowChange // each for one call of RowChanges
	changed  chan struct{}
	follows  bool
	total    int
	err      error

	query  *collector.Query
	by     conn.Grouping
	causes []conn.Cause
	limit  int
}

func (f *fakeSource) Ready() bool { return !f.notReady }

func (f *fakeSource) Degraded() []collector.Finding { return f.stats.Degraded }

func (f *fakeSource) Stats() (collector.Stats, error) { return f.stats, f.err }

func (f *fakeSource) Connections(_ context.Context, q collector.Query) (int, iter.Seq2[*conn.Connection, error], error) {
	f.query = &q
	return f.total, api.Values(f.conns), f.err
}

func (f *fakeSource) CountConnections(_ context.Context, q collector.Query, by conn.Grouping) (int, []conn.Count, error) {
	f.query, f.by = &q, by
	return f.total, f.counts, f.err
}

func (f *fakeSource) Connection(_ context.Context, cookie uint64) (*collector.Detail, error) {
	for _, c := range f.conns {
		if c.Cookie == cookie {
			return &collector.Detail{Connection: c, History: f.events, Explanation: f.explains}, f.err
		}
	}
	return nil, f.err
}

func (f *fakeSource) Deaths(causes []conn.Cause, limit int) (int, []conn.Death) {
	f.causes, f.limit = causes, limit
	return f.total, f.dead
}

func (f *fakeSource) Subscribe(int) *collector.Subscription {
	return &collector.Subscription{C: f.notices}
}

func (f *fakeSource) SubscribeOwned(int) *collector.Subscription {
	return &collector.Subscription{C: f.owned}
}

func (f *fakeSource) FollowRows(on bool) { f.follows = on }

func (f *fakeSource) Rows() ([]*conn.Row, bool) { return f.rows, true }

func (f *fakeSource) RowChanges() []conn.RowChange {
	select {
	case c := <-f.changes:
		return c
	default:
		return nil
	}
}

func (f *fakeSource) RowsChanged() <-chan struct{} { return f.changed }

// change makes rows change.
func (f *fakeSource) change(changes ...conn.RowChange) {
	f.changes <- changes
	f.changed <- struct{}{}
}

func (f *fakeSource) Options() collector.Options {
	return collector.Options{IdleAfter: 5 * time.Minute, ExcludeOwners: f.excluded, Middleboxes: conn.Middleboxes{
		Default: 350 * time.Second, To: map[netip.Prefix]time.Duration{netip.MustParsePrefix("10.0.0.0/8"): 240 * time.Second, netip.MustParsePrefix("fd00::/8"): time.Hour},
	}}
}

func newDiscardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newHandler(t *testing.T, src Source, metrics ...prometheus.Collector) http.Handler {
	t.Helper()
	logger := newDiscardLogger()
	return NewHandler(src, NewLive(src, logger), NewLookups(1), logger, metrics...)
}

func request(t *testing.T, h http.Handler, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

// The objects of the tests, one of each.
const hostileComm = apitest.HostileComm

var (
	noon                = apitest.Noon
	contractConnection  = apitest.Connection
	contractExplanation = apitest.Explanation
	contractDeath       = apitest.Death
)

// contractRow is the row of contractConnection.
func contractRow() *conn.Row {
	return &conn.Row{
		Cookie: 0x1a2b, At: noon.Add(13 * time.Second),
		Local:  netip.MustParseAddrPort("10.0.0.1:37024"),
		Remote: netip.MustParseAddrPort("10.0.0.2:5432"),
		Netns:  4026531840, State: conn.Established, Verdict: conn.Zombie, Since: noon.UnixMilli(),
		Evidence: conn.EvidenceKeepalive, Unanswered: 3, DataAt: noon.UnixMilli() + 600, HeardAt: noon.UnixMilli() + 600,
		GivesUpAt: noon.UnixMilli() + 463000, GivesUpLatest: noon.UnixMilli() + 473000, GivesUpBy: conn.CauseKeepaliveTimeout,
		Risks: 1 << conn.RiskKeepaliveSlowerThanMiddlebox, PID: 812, Comm: "postgres", FD: 9,
		Cgroup:    conn.Cgroup{Path: "/system.slice/x.service", Unit: "x.service"},
		Keepalive: true, KeepaliveTime: 7200000, KeepaliveIntvl: 75000, Probes: 9,
	}
}

// fullStats has a different number everywhere.
func fullStats() collector.Stats {
	s := collector.Stats{
		TrackerStats: conn.TrackerStats{
			ZombieOldest: 90500 * time.Millisecond,
			ZombieSeconds: conn.Histogram{
				Bounds: []float64{10, 100}, Counts: []uint64{11, 13, 17}, Sum: 12345.25,
			},
			ForecastError: conn.Histogram{
				Bounds: []float64{0, 0.5}, Counts: []uint64{37, 41, 43}, Sum: 54.5,
			},
			ZombiesByOwner: map[conn.OwnerLabel]int{
				{Name: "postgres", RemotePort: "5432"}: 3,
				{Name: "nginx"}:                        2,
				{Name: hostileComm, RemotePort: "443"}: 1,
				{Name: "", RemotePort: "8080"}:         4,
				{Name: "other", RemotePort: "5432"}:    5,
				{Name: "shop/checkout-xhnvf", RemotePort: "5432", Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"}: 8,
				{Name: "shop/\x1b[2J", Namespace: "shop", Pod: "\x1b[2J", Container: "\u202e"}:                                   9,
				{Name: "\xff\xfeworker", RemotePort: "1"}:                                                                        6,
				{Name: "\uFFFDworker", RemotePort: "1"}:                                                                          7,
			},
			TroubleByOwner: map[conn.OwnerLabel]int{
				{Name: "postgres", RemotePort: "5432", Verdict: "stuck"}:   8,
				{Name: "postgres", RemotePort: "5432", Verdict: "blocked"}: 9,
				{Name: "postgres", RemotePort: "5432", Verdict: "unread"}:  7,
				{Name: "other", Verdict: "blocked"}:                        10,
			},
			Watched: 19,
		},
		Idle: conn.Histogram{Bounds: []float64{1, 60, 350}, Counts: []uint64{2, 3, 5, 7}, Sum: 9876.5},
		Census: collector.CensusStats{
			At: noon, Duration: 23 * time.Millisecond, Interval: 15 * time.Second,
			Sockets: 200003, Namespaces: 29, Unvisited: 1, OwnTables: 2, Overflows: 47,
		},
		Missed:     map[string]uint64{"set_state": 31, "retransmit_skb": 6},
		Attached:   map[string]bool{"set_state": true, "retransmit_skb": false},
		EventsLost: map[string]uint64{"undecodable": 41},
		Degraded:   []collector.Finding{{Reason: collector.ReasonCgroupsRefused, Detail: "operation not permitted"}},
	}
	for i := range s.Connections {
		for j := range s.Connections[i] {
			s.Connections[i][j] = uint64(100*i + j)
		}
		s.Unjudged[i] = uint64(1000 + i)
	}
	for i := range s.AtRisk {
		s.AtRisk[i] = uint64(50 + i)
	}
	s.AtRiskByOwner = map[conn.OwnerLabel]int{
		{Name: "shop/checkout-xhnvf", Risk: "no_keepalive"}: 61, {Name: "x.service", Risk: "no_keepalive"}: 62,
		{Name: "x.service", Risk: "close_wait_leak"}: 63, {Name: hostileComm, Risk: "no_keepalive"}: 64,
		{Risk: "no_keepalive"}: 65, {Name: "other", Risk: "no_keepalive"}: 66,
	}
	k := &s.Kernel
	k.ProbesSent, k.ProbesAnswered = 2003, 1999
	for i := range k.Deaths {
		k.Deaths[i] = uint64(300 + i)
	}
	for i := range k.Retransmits {
		k.Retransmits[i] = uint64(400 + i)
	}
	for i := range conn.EventTypes {
		k.Events[i], k.Lost[i], k.Suppressed[i] = uint64(500+i), uint64(600+i), uint64(700+i)
	}
	for i := range k.Faults {
		k.Faults[i] = uint64(800 + i)
	}
	return s
}
