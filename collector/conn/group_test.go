// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"net/netip"
	"slices"
	"testing"
)

func TestWhatConnectionsHaveInCommon(t *testing.T) {
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
		{"a client, whose port means nothing", server, ByRemote, GroupKey{Remote: netip.MustParseAddrPort("[2001:db8::2]:0")}},
		{"a service, as nobody listens there in this namespace", &elsewhere, ByRemote, GroupKey{Remote: server.Remote}},
		{"a client by its port, as its listener has gone", &orphan, ByRemote, GroupKey{Remote: netip.MustParseAddrPort("[2001:db8::2]:0")}},
		{"a listener goes nowhere", listener, ByRemote, GroupKey{}},
		{"what is left of a connection went somewhere", stub, ByRemote, GroupKey{Remote: client.Remote}},
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

func TestGroupsAreOrderedWorstFirst(t *testing.T) {
	tally := func(owner string, zombies, unguarded, idle, active int) Count {
		return Count{
			GroupKey: GroupKey{OwnerKind: OwnerProcess, Owner: owner}, Total: zombies + unguarded + idle + active,
			Verdicts: [Verdicts]int{Active: active, Idle: idle, Unguarded: unguarded, Zombie: zombies},
		}
	}
	want := []Count{tally("a", 2, 0, 0, 0), tally("b", 1, 0, 0, 900), tally("c", 0, 3, 0, 0), tally("d", 0, 0, 3, 4), tally("e", 0, 0, 6, 0), tally("f", 0, 0, 0, 6)}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, CompareCounts)
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestGroupingsAreParsed(t *testing.T) {
	for _, g := range []Grouping{ByOwner, ByRemote, ByVerdict} {
		if got, err := ParseGrouping(g.String()); got != g || err != nil {
			t.Errorf("%v is %v, %v", g, got, err)
		}
	}
	if _, err := ParseGrouping("port"); err == nil {
		t.Error("there is a grouping by port")
	}
}
