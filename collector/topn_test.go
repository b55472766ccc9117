// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

var testRules = conn.Rules{
	IdleAfter:        5 * time.Minute,
	StalledAfter:     10 * time.Second,
	ZombieUnanswered: 3,
	ZombieSilence:    10 * time.Second,
	Middleboxes:      conn.Middleboxes{Default: 350 * time.Second},
	UnreadAfter:      30 * time.Second,
	HZ:               250,
}

// aNode returns records of all kinds, in random order, as a census reads them.
func aNode() (records []abi.Conn) {
	for i := range 997 {
		k := abi.Conn{
			Cookie: uint64(i + 1), Family: 2, State: abi.StateEstablished, Class: abi.ClassActive, Idle: uint32(i % 100 * testRules.HZ),
			Silent: uint32(i % 50 * testRules.HZ), Solicited: abi.AgeNone, WindowClosed: abi.AgeNone,
		}
		switch i % 7 {
		case 0:
			k.Class = abi.ClassUnguarded
		case 1:
			k.Class = abi.ClassIdle
		case 2:
			k.Class, k.Unanswered, k.Evidence = abi.ClassTrouble, uint16(i%9), abi.EvidenceRetransmit
		case 3:
			k.Class, k.State = abi.ClassNone, []uint8{abi.StateListen, abi.StateTimeWait, abi.StateFinWait2}[i%3]
		}
		records = append(records, k)
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records
}

func keep(limit int, records []abi.Conn) (shown []conn.Connection) {
	w := topN{limit: limit}
	for i := range records {
		connection := testRules.Describe(&records[i], time.Now())
		w.add(&records[i], &connection)
	}
	for _, r := range w.sorted() {
		shown = append(shown, r.describe(&testRules))
	}
	return shown
}

func TestWorstFirst(t *testing.T) {
	node := aNode()
	all := keep(0, node)
	if len(all) != len(node) {
		t.Fatalf("%d of %d without a limit", len(all), len(node))
	}
	if !slices.IsSortedFunc(all, func(a, b conn.Connection) int {
		if !a.Judged() || !b.Judged() {
			if a.Judged() != b.Judged() {
				return map[bool]int{true: -1, false: 1}[a.Judged()]
			}
			return cmp.Compare(b2i(a.Stub), b2i(b.Stub))
		}
		return cmp.Compare(b.Verdict, a.Verdict)
	}) {
		t.Error("not sorted: connections by verdict, then listeners, then stubs")
	}
	if all[0].Verdict != conn.Zombie || all[0].Silent != 49*time.Second {
		t.Errorf("the worst is %v, silent for %v", all[0].Verdict, all[0].Silent)
	}
	for _, limit := range []int{1, 2, 100, len(node), 2 * len(node)} {
		got := keep(limit, node)
		if len(got) != min(limit, len(node)) {
			t.Errorf("%d with a limit of %d", len(got), limit)
		}
		for i := range got {
			if got[i].Cookie != all[i].Cookie {
				t.Errorf("limit %d: %d is %d, without a limit %d", limit, i, got[i].Cookie, all[i].Cookie)
				break
			}
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What does not follow from the record must not get lost.
func TestCandidateKeepsWhatIsKnown(t *testing.T) {
	k := abi.Conn{Cookie: 1, Family: 2, State: abi.StateEstablished, Class: abi.ClassActive, Solicited: abi.AgeNone, WindowClosed: abi.AgeNone}
	connection := testRules.Describe(&k, time.Now())
	connection.Verdict, connection.Evidence, connection.Since = conn.Suspect, conn.EvidenceKeepalive, time.Now().Add(-time.Hour)
	connection.Process, connection.Cgroup = &conn.Process{PID: 1}, conn.Cgroup{Unit: "x.service", Path: "/x.service"}
	connection.Reason, connection.Risks = conn.Reason{Code: conn.ReasonNoRoute}, []conn.Risk{conn.RiskPeerHostSilent}
	connection.PeerHost = &conn.PeerHost{Connections: 2}
	w := topN{limit: 1}
	w.add(&k, &connection)
	got := w.sorted()[0].describe(&testRules)
	if got.Verdict != connection.Verdict || got.Evidence != connection.Evidence || got.Since != connection.Since || got.Process != connection.Process || got.Cgroup != connection.Cgroup ||
		got.Reason != connection.Reason || got.PeerHost != connection.PeerHost || !slices.Equal(got.Risks, connection.Risks) {
		t.Errorf("%+v, was %+v", got, connection)
	}
}

// Of hundreds of thousands of connections topN keeps a few.
func TestDroppedConnectionsAllocateNothing(t *testing.T) {
	k := abi.Conn{Cookie: 1, Family: 2, State: abi.StateEstablished, Class: abi.ClassActive, Solicited: abi.AgeNone, WindowClosed: abi.AgeNone}
	connection := testRules.Describe(&k, time.Now())
	w := topN{limit: 1}
	w.add(&k, &connection)
	k.Cookie, connection.Cookie = 2, 2
	if n := testing.AllocsPerRun(100, func() { w.add(&k, &connection) }); n > 0 {
		t.Errorf("%.0f allocations for a connection that is dropped", n)
	}
}

// A scan that has found enough connections reads no more of those that are less bad, and
// still knows how many there are.
func TestScanLeavesOutWhatIsNotAmongTheWorst(t *testing.T) {
	k := newFakeKernel()
	crowdOf(k, 1000)
	unguarded := healthy(0)
	unguarded.Class, unguarded.Idle = abi.ClassUnguarded, 1<<20
	for i := range 1000 {
		c := unguarded
		c.Cookie = uint64(2000 + i)
		k.sockets = append(k.sockets, c)
	}
	rand.Shuffle(len(k.sockets), func(i, j int) { k.sockets[i], k.sockets[j] = k.sockets[j], k.sockets[i] })
	for _, limit := range []int{0, 2, 10, 1500} {
		visited := 0
		k.onVisit = func(*abi.Conn) { visited++ }
		total, connections, err := New(k, Options{}).Connections(t.Context(), Query{Limit: limit})
		if err != nil || total != 2002 {
			t.Fatalf("limit %d: %d connections, error %v", limit, total, err)
		}
		verdicts := make(map[conn.Verdict]int)
		for connection, err := range connections {
			if err != nil {
				t.Fatal(err)
			}
			verdicts[connection.Verdict]++
		}
		most := 2002 // of those that may be visited
		switch limit {
		case 2, 10:
			most = 1900
		}
		if visited > most {
			t.Errorf("limit %d: %d are visited, expected %d at most", limit, visited, most)
		}
		if limit == 0 {
			limit = 2002
		}
		want := map[conn.Verdict]int{conn.Zombie: 1, conn.Suspect: 1}
		if n := min(limit-2, 1000); n > 0 {
			want[conn.Unguarded] = n
		}
		if n := limit - 2 - 1000; n > 0 {
			want[conn.Active] = n
		}
		if !maps.Equal(verdicts, want) {
			t.Errorf("limit %d: %v, expected %v", limit, verdicts, want)
		}
	}
}
