// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// newRowReplay returns a replay whose tracker keeps rows.
func newRowReplay(t *testing.T) *replay {
	t.Helper()
	r := newReplay(t)
	r.FollowRows()
	if _, complete := r.Rows(); complete {
		t.Fatal("rows are complete before a census")
	}
	return r
}

// healthy returns the record of a connection that has just exchanged data.
func healthy(cookie uint64, after time.Duration) abi.Conn {
	return *stamp(conntest.With(func(c *abi.Conn) { c.Cookie, c.Family = cookie, 2 }), after)
}

// applyCensus applies a census that has rows of these connections.
func (r *replay) applyCensus(began, ended time.Duration, conns ...abi.Conn) {
	c := &Census{Began: r.at(began), Counts: census(0, 0, 0), Rows: []Observation{}}
	for i := range conns {
		o := Observation{Conn: conns[i], At: r.at(time.Duration(conns[i].At))}
		c.Rows = append(c.Rows, o)
		if conns[i].Flags&abi.ConnTrouble != 0 {
			c.Troubled = append(c.Troubled, o)
		}
	}
	r.Apply(&Fact{Kind: FactCensus, At: r.at(ended), Census: c})
}

// change has the parts of a RowChange that the tests compare.
type change struct {
	New, Gone  bool
	Verdict    Verdict
	Unanswered int
	PID        uint32
}

// wantChanges fails the test unless want has exactly the changes of rows since the last call
// of TakeRowChanges.
func (r *replay) wantChanges(want map[uint64]change) {
	r.t.Helper()
	got := make(map[uint64]change)
	for _, c := range r.TakeRowChanges() {
		if c.New == nil {
			got[c.Cookie] = change{Gone: true}
			continue
		}
		got[c.Cookie] = change{New: c.Old == nil, Verdict: c.New.Verdict, Unanswered: c.New.Unanswered, PID: c.New.PID}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("changes of rows (-want +got):\n%s", diff)
	}
}

func TestRowsChangeWithTheirConnections(t *testing.T) {
	const second = time.Second
	r := newRowReplay(t)
	r.applyCensus(0, second, healthy(1, 0), healthy(2, 0))
	r.wantChanges(map[uint64]change{1: {New: true}, 2: {New: true}})
	if rows, complete := r.Rows(); len(rows) != 2 || !complete {
		t.Errorf("%d rows, complete: %v", len(rows), complete)
	}

	// A census changes no row if only the jitter of its clocks differs.
	same := healthy(1, 15*second+100*time.Millisecond)
	same.Idle, same.Silent = same.Idle+conntest.Ago(15*second), same.Silent+conntest.Ago(15*second)
	other := healthy(2, 15*second)
	other.Idle, other.Silent = other.Idle+conntest.Ago(15*second), other.Silent+conntest.Ago(15*second)
	r.applyCensus(14*second, 16*second, same, other)
	r.wantChanges(map[uint64]change{})

	// This census read connection 1 before the event, and is applied after the event: the row
	// keeps the values of the event.
	silent := conntest.Silent(abi.EvidenceKeepalive, 4, time.Minute)
	silent.Cookie, silent.Family = 1, 2
	r.solicit(20*second, silent)
	r.wantChanges(map[uint64]change{1: {Verdict: Zombie, Unanswered: 4}})
	r.applyCensus(19*second, 21*second, healthy(1, 19*second), other)
	r.wantChanges(map[uint64]change{})

	// A census removes the rows of connections that it did not read, unless the row is newer
	// than the beginning of the census.
	fresh := conntest.Silent(abi.EvidenceKeepalive, 4, time.Minute)
	fresh.Cookie, fresh.Family = 3, 2
	r.solicit(33*second, fresh)
	r.wantChanges(map[uint64]change{3: {New: true, Verdict: Zombie, Unanswered: 4}})
	still := *stamp(silent, 31*second)
	for _, age := range []*uint32{&still.Silent, &still.Idle, &still.Solicited} {
		*age += conntest.Ago(11 * second)
	}
	r.applyCensus(30*second, 34*second, still)
	if _, ok := r.rows.current[3]; !ok {
		t.Error("the census removed a row that is newer than its beginning")
	}
	r.wantChanges(map[uint64]change{2: {Gone: true}})

	// The tracker ignores a fact that is older than the row.
	late := conntest.Silent(abi.EvidenceKeepalive, 1, time.Minute)
	late.Cookie, late.Family = 1, 2
	r.solicit(10*second, late)
	r.wantChanges(map[uint64]change{})
}

// A census that read a connection before its death and is applied after the death adds no row.
func TestRowsOfDeadConnectionsStayRemoved(t *testing.T) {
	r := newRowReplay(t)
	r.applyCensus(0, 0, healthy(1, 0), healthy(2, 0), healthy(3, 0))
	r.TakeRowChanges()
	died := healthy(1, 2*time.Second)
	r.die(2*time.Second, CauseResetByPeer, &died)
	r.wantChanges(map[uint64]change{1: {Gone: true}})
	young := healthy(4, 2*time.Second) // has no row yet
	r.die(2*time.Second, CauseResetByPeer, &young)
	// More connections die than the tracker remembers, so it forgets the first two deaths.
	for i := range maxRecentCookies {
		c := healthy(uint64(i+100), 2*time.Second)
		r.die(2*time.Second, CauseClosed, &c)
	}
	r.applyCensus(time.Second, 3*time.Second, healthy(1, time.Second), healthy(2, time.Second), healthy(3, time.Second), healthy(4, time.Second))
	for _, cookie := range []uint64{1, 4} {
		if _, ok := r.rows.current[cookie]; ok {
			t.Errorf("the census added a row of connection %d, which is dead", cookie)
		}
	}
	// TakeRowChanges leaves out a connection that appeared and died since the last call.
	silent := conntest.Silent(abi.EvidenceKeepalive, 4, time.Minute)
	silent.Cookie, silent.Family = 9, 2
	r.TakeRowChanges()
	r.solicit(4*time.Second, silent)
	r.die(5*time.Second, CauseKeepaliveTimeout, silent)
	r.wantChanges(map[uint64]change{})
	// The event of a solicitation that comes after the death adds no row: of connection
	// 100000, which the tracker remembers, before and after a census, and of connection 1,
	// which it has forgotten, before one.
	r.die(5*time.Second, CauseResetByPeer, &died)
	for i := range maxRecentCookies {
		c := healthy(uint64(i+100000), 5*time.Second)
		r.die(5*time.Second, CauseClosed, &c)
	}
	forgotten := *silent
	forgotten.Cookie = 1
	r.solicit(4*time.Second, &forgotten)
	last := *silent
	last.Cookie = 100000
	r.solicit(4*time.Second, &last)
	r.wantChanges(map[uint64]change{})
	r.applyCensus(5*time.Second, 6*time.Second)
	r.TakeRowChanges()
	r.solicit(4*time.Second, &last)
	r.wantChanges(map[uint64]change{})
}

func TestRowsHaveOwners(t *testing.T) {
	r := newRowReplay(t)
	orphan := healthy(2, 0)
	orphan.Flags |= abi.ConnOrphan
	r.applyCensus(0, 0, healthy(1, 0), orphan)
	r.TakeRowChanges()
	wanted := r.NeedOwners(r.at(time.Second), r.at(0))
	if _, ok := wanted[1]; !ok || len(wanted) != 1 {
		t.Errorf("NeedOwners returned %v, expected connection 1", wanted)
	}
	r.Apply(&Fact{Kind: FactOwners, At: r.at(time.Second), Owners: map[uint64]Ownership{1: {Process: &Process{PID: 7, Comm: "x"}}}})
	r.wantChanges(map[uint64]change{1: {PID: 7}})
	if wanted := r.NeedOwners(r.at(2*time.Second), r.at(0)); len(wanted) != 0 {
		t.Errorf("NeedOwners returned %v soon after a search", wanted)
	}
	if wanted := r.NeedOwners(r.at(time.Second+OwnersRetry+1), r.at(0)); len(wanted) != 1 {
		t.Errorf("after %v NeedOwners returned %v, expected connection 1", OwnersRetry, wanted)
	}
	// Every notice has the owner of the connection, even the notice of its death.
	var notices []Notice
	r.notify = func(n Notice) { notices = append(notices, n) }
	silent := conntest.Silent(abi.EvidenceKeepalive, 4, time.Minute)
	silent.Cookie, silent.Family = 1, 2
	r.solicit(3*time.Second, silent)
	end := *silent
	end.Flags |= abi.ConnOrphan
	r.die(4*time.Second, CauseKeepaliveTimeout, &end)
	if len(notices) != 3 {
		t.Fatalf("%d notices, expected 3", len(notices))
	}
	for _, n := range notices {
		p := n.Connection.Process
		if n.Death != nil {
			p = n.Death.Process
		}
		if p == nil || p.PID != 7 {
			t.Errorf("the owner in notice %v is %v", n.Kind, p)
		}
	}
}

func TestRowsAreBounded(t *testing.T) {
	r := newRowReplay(t)
	var all []abi.Conn
	for i := range MaxRows {
		all = append(all, healthy(uint64(i+1), 0))
	}
	r.applyCensus(0, 0, all...)
	for i := range MaxRows + 23 {
		c := conntest.Silent(abi.EvidenceKeepalive, 4, time.Minute)
		c.Cookie, c.Family = uint64(MaxRows+i+1), 2
		r.solicit(time.Second, c)
	}
	if n := len(r.rows.current); n != 2*MaxRows {
		t.Errorf("%d rows, expected %d", n, 2*MaxRows)
	}
	r.ForgetRows()
	if rows, complete := r.Rows(); len(rows) != 0 || complete || r.FollowsRows() {
		t.Errorf("after ForgetRows: %d rows, complete: %v, FollowsRows: %v", len(rows), complete, r.FollowsRows())
	}
	r.applyCensus(2*time.Second, 2*time.Second, all...)
	if rows, _ := r.Rows(); len(rows) != 0 {
		t.Errorf("a census added %d rows after ForgetRows", len(rows))
	}
}
