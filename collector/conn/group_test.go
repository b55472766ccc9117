// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"net/netip"
	"slices"
	"testing"
)

func TestGroupKeyOf(t *testing.T) {
	client := &Connection{
		Netns: 1, State: Established, Verdict: Zombie, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:5432"),
		Process: &Process{Comm: "app"}, Cgroup: Cgroup{Unit: "app.service"},
	}
	server := &Connection{Netns: 1, State: Established, Local: netip.MustParseAddrPort("[2001:db8::1]:50051"), Remote: netip.MustParseAddrPort("[2001:db8::2]:1025")}
	elsewhere, orphan := *server, *server
	elsewhere.Netns = 2
	orphan.Local, orphan.Remote = netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8::2]:50000")
	listeners := map[Listener]bool{{Netns: 1, Port: 50051}: true, {Netns: 1, Port: 22}: true}
	listener := &Connection{State: Listen, Remote: netip.MustParseAddrPort("0.0.0.0:0")}
	stub := &Connection{State: FinWait2, Stub: true, Local: client.Local, Remote: netip.MustParseAddrPort("10.0.0.2:5432")}
	for _, tt := range []struct {
		name string
		c    *Connection
		by   Grouping
		want GroupKey
	}{
		{"an owner", client, ByOwner, GroupKey{OwnerKind: OwnerUnit, Owner: "app.service"}},
		{"no owner", stub, ByOwner, GroupKey{}},
		{"a service", client, ByRemote, GroupKey{Remote: client.Remote}},
		{"a client, without its port", server, ByRemote, GroupKey{Remote: netip.MustParseAddrPort("[2001:db8::2]:0")}},
		{"a service: this namespace has no listener on the port", &elsewhere, ByRemote, GroupKey{Remote: server.Remote}},
		{"a client by its high port: the listener has gone", &orphan, ByRemote, GroupKey{Remote: netip.MustParseAddrPort("[2001:db8::2]:0")}},
		{"a listener has no remote end", listener, ByRemote, GroupKey{}},
		{"a stub has a remote end", stub, ByRemote, GroupKey{Remote: client.Remote}},
		{"a verdict", client, ByVerdict, GroupKey{Judged: true, Verdict: Zombie}},
		{"no verdict", stub, ByVerdict, GroupKey{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := GroupKeyOf(tt.c, tt.by, listeners); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestCompareCountsOrdersWorstFirst(t *testing.T) {
	count := func(owner string, zombies, unguarded, idle, active int) Count {
		return Count{
			GroupKey: GroupKey{OwnerKind: OwnerProcess, Owner: owner}, Total: zombies + unguarded + idle + active,
			Verdicts: [Verdicts]int{Active: active, Idle: idle, Unguarded: unguarded, Zombie: zombies},
		}
	}
	want := []Count{count("a", 2, 0, 0, 0), count("b", 1, 0, 0, 900), count("c", 0, 3, 0, 0), count("d", 0, 0, 3, 4), count("e", 0, 0, 6, 0), count("f", 0, 0, 0, 6)}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, CompareCounts)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, expected %v", got, want)
	}
}

func TestParseGrouping(t *testing.T) {
	for _, g := range []Grouping{ByOwner, ByRemote, ByVerdict} {
		if got, err := ParseGrouping(g.String()); got != g || err != nil {
			t.Errorf("%q is parsed as %v, error %v", g, got, err)
		}
	}
	if _, err := ParseGrouping("port"); err == nil {
		t.Error("the grouping \"port\" is accepted")
	}
}
