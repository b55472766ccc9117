// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
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
