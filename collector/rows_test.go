// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// verdictsOf returns the verdicts of the rows, by cookie.
func verdictsOf(rows []*conn.Row) map[uint64]conn.Verdict {
	verdicts := make(map[uint64]conn.Verdict)
	for _, r := range rows {
		verdicts[r.Cookie] = r.Verdict
	}
	return verdicts
}

func TestRowsComeWithTheCensus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.sockets = []abi.Conn{healthy(1), zombie(2)}
		k.held[1] = []abi.FDHolder{heldBy(1<<30, "nginx")}
		c := collect(t, k, Options{CensusInterval: time.Minute})
		_, censuses, _ := k.passes()

		// The first census with rows begins at once, and the next in its turn.
		c.FollowRows(true)
		<-c.RowsChanged()
		rows, complete := c.Rows()
		if got := verdictsOf(rows); !complete || len(got) != 2 || got[1] != conn.Active || got[2] != conn.Zombie {
			t.Errorf("rows are %v, complete: %v", got, complete)
		}
		if _, n, _ := k.passes(); n != censuses+1 {
			t.Errorf("%d censuses for rows, expected 1", n-censuses)
		}
		// Then the owners of all of them.
		time.Sleep(5 * time.Second)
		changes := c.RowChanges()
		if len(changes) != 1 || changes[0].New == nil || changes[0].New.Comm != "nginx" {
			t.Errorf("changes are %+v", changes)
		}
		// What an event says, the row says at once.
		<-c.RowsChanged()
		k.emit(solicitation(zombie(3)))
		<-c.RowsChanged()
		if changes := c.RowChanges(); len(changes) != 1 || changes[0].Cookie != 3 || changes[0].New.Verdict != conn.Zombie {
			t.Errorf("changes are %+v", changes)
		}

		// Who comes back before the next census finds the rows, and costs none.
		c.FollowRows(false)
		c.FollowRows(true)
		if _, complete := c.Rows(); !complete {
			t.Error("the rows are gone already")
		}
		// After it they are gone.
		c.FollowRows(false)
		time.Sleep(2 * time.Minute)
		if rows, _ := c.Rows(); len(rows) != 0 {
			t.Errorf("%d rows that nobody follows", len(rows))
		}
		if _, n, _ := k.passes(); n > censuses+4 {
			t.Errorf("%d censuses in two minutes", n-censuses)
		}
	})
}

// Nobody waits for rows for ever.
func TestRowsAfterACensusThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		k.set(func() { k.onCensus = func(context.Context) error { return errors.New("no memory") } })
		c.FollowRows(true)
		<-c.RowsChanged()
		if rows, complete := c.Rows(); !complete || len(rows) != 0 {
			t.Errorf("%d rows, complete: %v", len(rows), complete)
		}
	})
}

func TestNoticesWaitForTheirOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		for cookie := range uint64(4) {
			k.held[cookie] = []abi.FDHolder{heldBy(1<<30, "nginx")}
		}
		c := collect(t, k, Options{})
		usual, owned := c.Subscribe(10), c.SubscribeOwned(10)
		defer usual.Close()
		defer owned.Close()
		k.emit(death(1, abi.CauseResetByPeer), death(2, abi.CauseResetByPeer))
		for want := range uint64(2) {
			if n := <-usual.C; n.Connection.Cookie != want+1 || n.Death.Process != nil {
				t.Errorf("the usual notice is of %d, its process %v", n.Connection.Cookie, n.Death.Process)
			}
		}
		began := time.Now()
		for want := range uint64(2) {
			n := <-owned.C
			if n.Connection.Cookie != want+1 || n.Death.Process == nil || n.Death.Process.Comm != "nginx" {
				t.Errorf("the notice with an owner is of %d, its process %v", n.Connection.Cookie, n.Death.Process)
			}
		}
		if took := time.Since(began); took > awaitingTimeout/2 {
			t.Errorf("the owners came after %v", took)
		}

		// A search that hangs holds notices up for awaitingTimeout, and what needs none waits
		// only for those before it.
		k.set(func() { k.onOwners = func([]uint64) error { time.Sleep(time.Minute); return nil } })
		time.Sleep(time.Minute)
		began = time.Now()
		orphan := death(5, abi.CauseOrphanTimeout)
		orphan.Conn.Flags |= abi.ConnOrphan
		k.emit(death(3, abi.CauseResetByPeer), orphan)
		for _, want := range []uint64{3, 5} {
			if n := <-owned.C; n.Connection.Cookie != want {
				t.Errorf("a notice of %d, expected %d", n.Connection.Cookie, want)
			}
		}
		if took := time.Since(began); took < awaitingTimeout || took > 2*awaitingTimeout {
			t.Errorf("they came after %v, expected %v", took, awaitingTimeout)
		}
	})
}

// However many connections a scan has to know the owners of, it searches twice: for all
// sockets, and for those that were opened since.
func TestAScanByOwnerSearchesTwice(t *testing.T) {
	k := newFakeKernel()
	const many = 3*ownersBatch + 23
	var late []abi.Conn
	for i := range uint64(many) {
		k.sockets = append(k.sockets, healthy(i+1))
		k.held[i+1] = []abi.FDHolder{heldBy(1<<30, "nginx")}
	}
	// The last 23 are opened after the search for all.
	late = k.sockets[many-23:]
	k.onOwners = func(cookies []uint64) error {
		if cookies == nil {
			for i := range late {
				delete(k.held, late[i].Cookie)
			}
			return nil
		}
		for i := range late {
			k.held[late[i].Cookie] = []abi.FDHolder{heldBy(1<<30-1, "postgres")}
		}
		return nil
	}
	_, counts, err := New(k, Options{}).CountConnections(t.Context(), Query{}, conn.ByOwner)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for _, n := range counts {
		got[n.Owner] = n.Total
	}
	if got["nginx"] != many-23 || got["postgres"] != 23 || len(got) != 2 {
		t.Errorf("by owner: %v", got)
	}
	if len(k.searched) != 2 || k.searched[0] != 0 || k.searched[1] != 23 {
		t.Errorf("searches for %v sockets, expected all, and then 23", k.searched)
	}
}
