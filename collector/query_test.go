// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

func TestQueryMatches(t *testing.T) {
	connection := &abi.Conn{
		Netns: 4026531840, State: abi.StateEstablished, Class: abi.ClassIdle, Family: 2, Lport: 37024, Rport: 5432,
		Raddr: [16]byte{10, 0, 0, 2}, Risks: 1 << conn.RiskCloseWaitLeak,
	}
	listens := &abi.Conn{Netns: 4026531840, State: abi.StateListen, Family: 2, Lport: 5432}
	remotes := func(s ...string) (p []netip.Prefix) {
		for _, s := range s {
			one, err := conn.ParsePrefix(s)
			if err != nil {
				t.Fatal(err)
			}
			p = append(p, one)
		}
		return p
	}
	for _, tt := range []struct {
		name           string
		q              Query
		conn, listener bool
	}{
		{"anything", Query{}, true, true},
		{"its state", Query{States: []conn.State{conn.Closing, conn.Established}}, true, false},
		{"either port", Query{Ports: []uint16{5432}}, true, true},
		{"another port", Query{Ports: []uint16{5433}}, false, false},
		{"its namespace", Query{Netns: []uint32{1, 4026531840}}, true, true},
		{"another namespace", Query{Netns: []uint32{1}}, false, false},
		{"its risk among others", Query{Risks: []conn.Risk{conn.RiskNoKeepalive, conn.RiskCloseWaitLeak}}, true, false},
		{"another risk", Query{Risks: []conn.Risk{conn.RiskNoKeepalive}}, false, false},
		{"its remote address", Query{Remotes: remotes("10.0.0.2")}, true, false},
		{"its remote address as an IPv6 socket has it", Query{Remotes: remotes("::ffff:10.0.0.2")}, true, false},
		{"its network", Query{Remotes: remotes("192.168.0.0/16", "10.9.9.9/8")}, true, false},
		{"another network", Query{Remotes: remotes("10.0.1.0/24")}, false, false},
		{"every address, which a listener does not have", Query{Remotes: remotes("0.0.0.0/0")}, true, false},
		{"every IPv6 address", Query{Remotes: remotes("::/0")}, false, false},
		{"one of two fields", Query{Netns: []uint32{4026531840}, Ports: []uint16{1}}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.q.matcher().matches(connection); got != tt.conn {
				t.Errorf("the connection matches: %v", got)
			}
			if tt.q.matcher().matches(listens) {
				t.Error("the listener matches without All")
			}
			tt.q.All = true
			if got := tt.q.matcher().matches(listens); got != tt.listener {
				t.Errorf("the listener matches: %v", got)
			}
		})
	}
}

// Each field with values leaves out the connections that have none of them.
func TestEveryFieldOfAQuerySelects(t *testing.T) {
	record := &abi.Conn{Class: abi.ClassActive, State: abi.StateSynSent, Family: 2}
	connection := &conn.Connection{State: conn.SynSent}
	for field := range reflect.TypeFor[Query]().Fields() {
		if field.Name == "All" || field.Name == "Limit" {
			continue
		}
		var value reflect.Value // one that the connection does not have
		switch kind := field.Type.Elem(); {
		case kind == reflect.TypeFor[netip.Prefix]():
			value = reflect.ValueOf(netip.MustParsePrefix("192.0.2.1/32"))
		case kind.Kind() == reflect.String:
			value = reflect.ValueOf("none")
		default:
			value = reflect.ValueOf(1).Convert(kind)
		}
		var q Query
		values := reflect.ValueOf(&q).Elem().FieldByIndex(field.Index)
		values.Set(reflect.Append(values, value))
		m := q.matcher()
		if m.matches(record) && m.matchesVerdict(connection) && m.matchesOwner(connection) {
			t.Errorf("query.go: neither matches nor matchesOwner has a condition for Query.%s", field.Name)
		}
		if q.everyConnection() {
			t.Errorf("query.go: everyConnection is true although Query.%s has a value", field.Name)
		}
		if !m.matchesOwner(connection) && !q.needsOwners() {
			t.Errorf("query.go: matchesOwner has a condition for Query.%s, and needsOwners is false", field.Name)
		}
	}
}

func TestOtherSocketsAreReadOnlyWithAll(t *testing.T) {
	none := func(q scanQuery) bool { return q.classes()&bpf.ClassesOf(abi.ClassNone) != 0 }
	if none(scanQuery{}) || none(scanQuery{Query: Query{States: []conn.State{conn.TimeWait, conn.FinWait2}}}) {
		t.Error("though nobody said all")
	}
	if !none(scanQuery{Query: Query{All: true}}) {
		t.Error("not with all")
	}
	if !none(scanQuery{listeners: map[conn.Listener]bool{}}) {
		t.Error("not where listeners are wanted")
	}
	for _, q := range []Query{{All: true, Verdicts: []conn.Verdict{conn.Active}}, {All: true, Risks: []conn.Risk{conn.RiskNoKeepalive}}} {
		if none(scanQuery{Query: q}) || q.matcher().matches(&abi.Conn{Class: abi.ClassNone, State: abi.StateListen, Risks: 0xff}) {
			t.Error("though it has neither verdict nor risk")
		}
	}
}

// The tracker adds a risk that no record has.
func TestRiskThatOnlyTheTrackerKnows(t *testing.T) {
	k := &abi.Conn{State: abi.StateEstablished, Class: abi.ClassIdle, Family: 2, Risks: 1 << abi.RiskNoKeepalive}
	m := (&Query{Risks: []conn.Risk{conn.RiskPeerHostSilent}}).matcher()
	risks := []conn.Risk{conn.RiskNoKeepalive}
	if m.matches(k) && m.matchesVerdict(&conn.Connection{State: conn.Established, Risks: risks}) {
		t.Error("it matches without the risk")
	}
	if !m.matches(k) || !m.matchesVerdict(&conn.Connection{State: conn.Established, Risks: append(risks, conn.RiskPeerHostSilent)}) {
		t.Error("it does not match with the risk")
	}
}

// Listeners are selected by their state, and by the risk that only they have. Stubs are not.
func TestListenersAreSelected(t *testing.T) {
	listens := &abi.Conn{State: abi.StateListen, Family: 2, Lport: 80}
	full := &abi.Conn{State: abi.StateListen, Family: 2, Lport: 80, Risks: 1 << abi.RiskAcceptQueueFull}
	stub := &abi.Conn{State: abi.StateTimeWait, Family: 2, Lport: 80, Rport: 40000}
	states, risk := []conn.State{conn.Listen, conn.TimeWait}, []conn.Risk{conn.RiskNoKeepalive, conn.RiskAcceptQueueFull}
	for name, tt := range map[string]struct {
		q                   Query
		listens, full, stub bool
	}{
		"connections":                        {Query{}, false, false, false},
		"their state":                        {Query{States: states}, true, true, false},
		"their state and all":                {Query{States: states, All: true}, true, true, true},
		"their risk":                         {Query{Risks: risk}, false, true, false},
		"their risk and all":                 {Query{Risks: risk, All: true}, false, true, false},
		"their state and their risk":         {Query{States: states, Risks: risk}, false, true, false},
		"their state and another risk":       {Query{States: states, Risks: risk[:1]}, false, false, false},
		"another state and their risk":       {Query{States: []conn.State{conn.Established}, Risks: risk}, false, false, false},
		"their state, risk and a verdict":    {Query{States: states, Risks: risk, Verdicts: []conn.Verdict{conn.Active}}, false, false, false},
		"their state and another port":       {Query{States: states, Ports: []uint16{81}}, false, false, false},
		"their state and a remote address":   {Query{States: states, Remotes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, false, false, false},
		"another state, though all are read": {Query{States: []conn.State{conn.TimeWait}, All: true}, false, false, true},
	} {
		m := tt.q.matcher()
		if m.matches(listens) != tt.listens || m.matches(full) != tt.full || m.matches(stub) != tt.stub {
			t.Errorf("%s: a listener is selected: %v, a full one: %v, a stub: %v", name, m.matches(listens), m.matches(full), m.matches(stub))
		}
		if read := tt.q.classes()&bpf.ClassesOf(abi.ClassNone) != 0; !read && (tt.listens || tt.full || tt.stub) {
			t.Errorf("%s: they are not read", name)
		}
	}
}

func TestParseRemote(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.2":             "10.0.0.2/32",
		"10.1.2.3/8":           "10.0.0.0/8",
		"::ffff:10.0.0.2":      "10.0.0.2/32",
		"::ffff:10.0.0.0/104":  "10.0.0.0/8",
		"2001:db8::1":          "2001:db8::1/128",
		"fe80::1%eth0":         "",
		"2001:db8:0:1::1/32":   "2001:db8::/32",
		"0.0.0.0/0":            "0.0.0.0/0",
		"":                     "",
		"10.0.0":               "",
		"10.0.0.0/33":          "",
		"10.0.0.2:5432":        "",
		"db.example.org":       "",
		"fe80::1%eth0/64":      "",
		"10.0.0.0/255.0.0.0":   "",
		"-1":                   "",
		"[2001:db8::1]":        "",
		"2001:db8::1/":         "",
		"10.0.0.2,10.0.0.3":    "",
		"10.0.0.2\t":           "",
		"::ffff:10.0.0.0/-104": "",
	} {
		p, err := conn.ParsePrefix(s)
		if want == "" {
			if err == nil {
				t.Errorf("%q is parsed as %s", s, p)
			}
			continue
		}
		if err != nil || p.String() != want {
			t.Errorf("%q is parsed as %s, error %v, want %s", s, p, err, want)
		}
	}
}

func TestOwnedBy(t *testing.T) {
	const container, pod = "3f2a9c8d7e6f0123456789abcdef0123456789abcdef0123456789abcdef0123", "5b3a8f0e-1111-2222-3333-444444444444"
	process := &conn.Process{PID: 812, Comm: "postgres"}
	for _, tt := range []struct {
		name     string
		c        conn.Connection
		yes, not []string
	}{
		{"nobody's", conn.Connection{}, []string{"-"}, []string{"postgres", ".service"}},
		{"a process's", conn.Connection{Process: process}, []string{"postgres"}, []string{"-", "postgre", "Postgres", "812"}},
		{
			"a unit's", conn.Connection{Process: process, Cgroup: conn.Cgroup{Unit: "postgresql.service"}},
			[]string{"postgres", "postgresql", "postgresql.service"}, []string{"-", "postgresql.scope", "postgresq"},
		},
		{
			"a pod's", conn.Connection{Cgroup: conn.Cgroup{ContainerID: container, PodUID: pod}},
			[]string{container, container[:12], container[:8], pod, "5b3a8f0e"}, []string{"-", container[:7], "5b3a8f0", container + "0", "", "/"},
		},
		{
			"a named pod's", conn.Connection{Cgroup: conn.Cgroup{ContainerID: container, PodUID: pod, Namespace: "shop", Pod: "checkout", Container: "server"}},
			[]string{container[:8], "5b3a8f0e", "checkout", "shop/checkout", "server"}, []string{"-", "shop", "check", "shop/", "shop/server"},
		},
		{
			"a named container's", conn.Connection{Cgroup: conn.Cgroup{ContainerID: container, Container: "db"}},
			[]string{container[:8], "db"}, []string{"-", "", "/"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range tt.yes {
				if !conn.NewOwnerSet([]string{name}).Owns(&tt.c) {
					t.Errorf("not owned by %q", name)
				}
			}
			for _, name := range tt.not {
				if conn.NewOwnerSet([]string{name}).Owns(&tt.c) {
					t.Errorf("owned by %q", name)
				}
			}
			if name := tt.c.Owner(); name != "" && !conn.NewOwnerSet([]string{name}).Owns(&tt.c) {
				t.Errorf("not owned by %q, the owner that it shows", name)
			}
		})
	}
}

func TestNamesInKubernetes(t *testing.T) {
	c := conn.Connection{Cgroup: conn.Cgroup{Namespace: "shop", Pod: "checkout", Container: "server"}}
	for _, tt := range []struct {
		name        string
		q           Query
		named, none bool
	}{
		{"anything", Query{}, true, true},
		{"its namespace", Query{Namespaces: []string{"x", "shop"}}, true, false},
		{"another namespace", Query{Namespaces: []string{"checkout"}}, false, false},
		{"its pod", Query{Pods: []string{"checkout", "x"}}, true, false},
		{"another pod", Query{Pods: []string{"shop", "server"}}, false, false},
		{"both", Query{Namespaces: []string{"shop"}, Pods: []string{"checkout"}}, true, false},
		{"one of two", Query{Namespaces: []string{"default"}, Pods: []string{"checkout"}}, false, false},
	} {
		m := tt.q.matcher()
		if got := m.matchesOwner(&c); got != tt.named {
			t.Errorf("%s: the connection matches: %v", tt.name, got)
		}
		if got := m.matchesOwner(&conn.Connection{}); got != tt.none {
			t.Errorf("%s: one without names matches: %v", tt.name, got)
		}
		if got := tt.q.needsOwners(); got == tt.none {
			t.Errorf("%s: needs owners: %v", tt.name, got)
		}
	}
}

func TestListenersAndStubsHaveOnlyWhatIsKnown(t *testing.T) {
	r, start := testRules, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	got := r.Describe(&abi.Conn{
		Cookie: 7, Netns: 1, State: abi.StateListen, Class: abi.ClassNone, Family: 2, Lport: 22, AcceptQueue: 5, AcceptLimit: 4,
		TotalRetrans: 36, Flags: abi.ConnKeepalive | abi.ConnKeepaliveTimeSet, KeepaliveTime: 250 * 60, KeepaliveIntvl: 250 * 10, KeepaliveProbes: 6,
		UserTimeout: 1500, UID: 5, Cgroup: 9, Risks: 1 << abi.RiskAcceptQueueFull, SendQueue: 99, Idle: 250, Unanswered: 3,
	}, start)
	want := conn.Connection{
		Cookie: 7, At: start, Netns: 1, State: conn.Listen, Local: netip.MustParseAddrPort("0.0.0.0:22"), Remote: netip.MustParseAddrPort("0.0.0.0:0"),
		Idle: -1, Silent: -1, Accepted: true, AcceptQueue: 5, AcceptLimit: 4, ListenDrops: 36, Risks: []conn.Risk{conn.RiskAcceptQueueFull}, UID: 5, CgroupID: 9, UserTimeout: 1500e6,
		Keepalive: conn.Keepalive{Enabled: true, Time: 60e9, Interval: 10e9, Probes: 6, PerSocket: true},
	}
	diff := func(want, got conn.Connection) string {
		return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
	}
	if d := diff(want, got); d != "" || got.Judged() {
		t.Errorf("judged %v, (-want +got)\n%s", got.Judged(), d)
	}
	got = r.Describe(&abi.Conn{
		Cookie: 8, Netns: 1, State: abi.StateFinWait2, Class: abi.ClassNone, Family: 2, Lport: 22, Rport: 40000, Flags: abi.ConnOrphan,
	}, start)
	want = conn.Connection{
		Cookie: 8, At: start, Netns: 1, State: conn.FinWait2, Local: netip.MustParseAddrPort("0.0.0.0:22"), Remote: netip.MustParseAddrPort("0.0.0.0:40000"),
		Idle: -1, Silent: -1, Stub: true, Orphaned: true, Accepted: true,
	}
	if d := diff(want, got); d != "" || got.Judged() || got.Held() {
		t.Errorf("judged %v, (-want +got)\n%s", got.Judged(), d)
	}
	if got := r.Describe(&abi.Conn{State: abi.StateNewSynRecv, Class: abi.ClassNone, Flags: abi.ConnUnaccepted}, start); got.State != conn.SynRecv || got.Held() || !got.Stub {
		t.Errorf("a request socket is described as %+v", got)
	}
}

// Sets find what a scan of all values finds.
func TestSetsFindWhatAScanFinds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.Addr { // near each other, so that prefixes are within others
		if rng.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(rng.IntN(3)), byte(rng.IntN(4)), byte(rng.IntN(8))})
		}
		return netip.AddrFrom16([16]byte{0: 0x20, 1: byte(rng.IntN(2)), 14: byte(rng.IntN(3)), 15: byte(rng.IntN(8))})
	}
	id := func() string { return strings.Repeat("a", rng.IntN(5)+5) + string(rune('a'+rng.IntN(3))) }
	for range 500 {
		var wanted []netip.Prefix
		var names []string
		for range rng.IntN(12) {
			a := addr()
			wanted = append(wanted, netip.PrefixFrom(a, rng.IntN(a.BitLen()+1)))
			names = append(names, id())
		}
		sorted, owners := newPrefixes(wanted), conn.NewOwnerSet(names)
		for range 100 {
			a := addr()
			if got, want := sorted.contain(a), slices.ContainsFunc(wanted, func(p netip.Prefix) bool { return p.Contains(a) }); got != want {
				t.Fatalf("%v contain %v: %v, want %v", wanted, a, got, want)
			}
			c := conn.Connection{Cgroup: conn.Cgroup{ContainerID: id() + id()}}
			want := slices.ContainsFunc(names, func(name string) bool { return len(name) >= 8 && strings.HasPrefix(c.Cgroup.ContainerID, name) })
			if got := owners.Owns(&c); got != want {
				t.Fatalf("%q own %s: %v, want %v", names, c.Cgroup.ContainerID, got, want)
			}
		}
	}
}

// BenchmarkQuery matches a connection with none of the most values that filters take.
func BenchmarkQuery(b *testing.B) {
	var q Query
	for i := range 64 {
		q.Ports, q.Netns, q.PIDs = append(q.Ports, uint16(i+1)), append(q.Netns, uint32(i+1)), append(q.PIDs, uint32(i+1))
		q.Owners = append(q.Owners, strings.Repeat("f", 8+i))
		q.Remotes = append(q.Remotes, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i)}), 16))
	}
	k := &abi.Conn{State: abi.StateEstablished, Family: 2, Lport: 1, Rport: 5432, Netns: 1, Raddr: [16]byte{10}}
	c := &conn.Connection{Process: &conn.Process{PID: 1, Comm: "postgres"}, Cgroup: conn.Cgroup{Unit: "postgresql.service", ContainerID: strings.Repeat("e", 64)}}
	m := q.matcher()
	for b.Loop() {
		if m.matches(k) || m.matchesOwner(c) {
			b.Fatal("it matches")
		}
	}
}
