// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
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
	MiddleboxTimeout: 350 * time.Second,
	HZ:               250,
}

// aNode is connections of all kinds, in the order in which a census comes by them.
func aNode() (written []abi.Conn) {
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
		written = append(written, k)
	}
	rand.Shuffle(len(written), func(i, j int) { written[i], written[j] = written[j], written[i] })
	return written
}

func keep(limit int, written []abi.Conn) (shown []conn.Connection) {
	w := topN{limit: limit}
	for i := range written {
		connection := testRules.Describe(&written[i], time.Now())
		w.add(&written[i], &connection)
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

// What only the tracker and a process's descriptors tell must not get lost.
func TestKeptIsWhatWasKnown(t *testing.T) {
	k := abi.Conn{Cookie: 1, Family: 2, State: abi.StateEstablished, Class: abi.ClassActive, Solicited: abi.AgeNone, WindowClosed: abi.AgeNone}
	connection := testRules.Describe(&k, time.Now())
	connection.Verdict, connection.Evidence, connection.Since = conn.Suspect, conn.EvidenceKeepalive, time.Now().Add(-time.Hour)
	connection.Process, connection.Cgroup = &conn.Process{PID: 1}, conn.Cgroup{Unit: "x.service", Path: "/x.service"}
	w := topN{limit: 1}
	w.add(&k, &connection)
	got := w.sorted()[0].describe(&testRules)
	if got.Verdict != connection.Verdict || got.Evidence != connection.Evidence || got.Since != connection.Since || got.Process != connection.Process || got.Cgroup != connection.Cgroup {
		t.Errorf("%+v, was %+v", got, connection)
	}
}

// There may be hundreds of thousands, of which a few are kept.
func TestNothingIsKeptOfWhatIsNotShown(t *testing.T) {
	k := abi.Conn{Cookie: 1, Family: 2, State: abi.StateEstablished, Class: abi.ClassActive, Solicited: abi.AgeNone, WindowClosed: abi.AgeNone}
	connection := testRules.Describe(&k, time.Now())
	w := topN{limit: 1}
	w.add(&k, &connection)
	k.Cookie, connection.Cookie = 2, 2
	if n := testing.AllocsPerRun(100, func() { w.add(&k, &connection) }); n > 0 {
		t.Errorf("%.0f allocations for one that is not kept", n)
	}
}
