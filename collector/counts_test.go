// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// There can be as many groups as connections. They are all counted, a part at a time, and
// the worst are returned.
func TestManyGroupsAreCountedInParts(t *testing.T) {
	const many = 2*GroupsMost + 23
	k := newFakeKernel()
	for i := range uint64(many) {
		c := healthy(i + 1)
		c.Family = abi.FamilyInet
		binary.BigEndian.PutUint32(c.Raddr[:], uint32(i+1))
		k.sockets = append(k.sockets, c)
	}
	worst, second := zombie(many+1), suspect(many+2, 3)
	worst.Family, worst.Raddr = abi.FamilyInet, k.sockets[7].Raddr
	second.Family, second.Raddr = abi.FamilyInet, k.sockets[9].Raddr
	k.sockets = append(k.sockets, worst, second)
	for _, tc := range []struct{ limit, want int }{{0, GroupsMost}, {100, 100}} {
		total, counts, err := New(k, Options{}).CountConnections(t.Context(), Query{Limit: tc.limit}, conn.ByRemote)
		if err != nil || total != many || len(counts) != tc.want {
			t.Fatalf("%d groups of %d, error %v, want %d of %d", len(counts), total, err, tc.want, many)
		}
		if !slices.IsSortedFunc(counts, conn.CompareCounts) || counts[0].Verdicts[conn.Zombie] != 1 || counts[1].Verdicts[conn.Suspect] != 1 {
			t.Errorf("the worst are %+v", counts[:2])
		}
		keys := make(map[conn.GroupKey]bool)
		for _, n := range counts {
			keys[n.GroupKey] = true
		}
		if len(keys) != len(counts) {
			t.Errorf("%d groups of %d are different", len(keys), len(counts))
		}
	}
	// As many groups as are counted at a time.
	k.sockets = k.sockets[:GroupsMost]
	if total, counts, err := New(k, Options{}).CountConnections(t.Context(), Query{}, conn.ByRemote); err != nil || total != GroupsMost || len(counts) != GroupsMost {
		t.Errorf("%d groups of %d, error %v", len(counts), total, err)
	}
}

// Listeners have settings, too, but are no connections.
func TestSettingsOfNamespaces(t *testing.T) {
	k := newFakeKernel()
	add := func(netns, flags, userTimeout uint32, class uint8) {
		c := healthy(uint64(len(k.sockets) + 1))
		c.Netns, c.Flags, c.UserTimeout, c.Class = netns, flags, userTimeout, class
		if class == abi.ClassNone {
			c.State = abi.StateListen
		}
		k.sockets = append(k.sockets, c)
	}
	const on, off = abi.ConnKeepalive, 0
	add(7, on, 0, abi.ClassIdle)
	add(7, on|abi.ConnKeepaliveTimeSet|abi.ConnKeepaliveIntvlSet, 0, abi.ClassIdle)
	add(7, on|abi.ConnKeepaliveProbesSet, 30000, abi.ClassActive)
	add(7, off|abi.ConnKeepaliveTimeSet|abi.ConnFinTimeSet, 0, abi.ClassUnguarded)
	add(7, on|abi.ConnKeepaliveTimeSet, 1000, abi.ClassNone)
	add(8, off, 0, abi.ClassActive)
	k.sysctls = map[uint32]abi.NetnsSysctls{
		7: {Netns: 7, KeepaliveTime: 7200 * conntest.HZ, KeepaliveIntvl: 75 * conntest.HZ, FinTimeout: 60 * conntest.HZ, KeepaliveProbes: 9, Retries2: 15, SynRetries: 6, OrphanRetries: 8},
		9: {Netns: 9},
	}
	_, counts, err := New(k, Options{}).CountConnections(t.Context(), Query{All: true}, conn.BySettings)
	if err != nil || len(counts) != 2 {
		t.Fatalf("%+v, %v", counts, err)
	}
	got := map[uint32]conn.Settings{counts[0].Netns: counts[0].Settings, counts[1].Netns: counts[1].Settings}
	want := map[uint32]conn.Settings{
		7: {
			Sysctls: &conn.Sysctls{
				KeepaliveTime: 2 * time.Hour, KeepaliveInterval: 75 * time.Second, KeepaliveProbes: 9, Retries2: 15, SynRetries: 6, OrphanRetries: 8, FinTimeout: time.Minute,
			},
			KeepaliveOn: 3, KeepaliveOff: 1, Own: 2, OwnTime: 1, OwnInterval: 1, OwnProbes: 1, UserTimeout: 1, OwnFinTimeout: 1,
		},
		8: {KeepaliveOff: 1}, // it has ended meanwhile
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	_, counts, err = New(k, Options{}).CountConnections(t.Context(), Query{}, conn.ByNetns)
	if err != nil || len(counts) != 2 || counts[0].Netns+counts[1].Netns != 15 || counts[0].Settings != (conn.Settings{}) {
		t.Errorf("without settings: %+v, %v", counts, err)
	}
}
