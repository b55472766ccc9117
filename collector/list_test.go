// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// crowdOf gives a kernel so many healthy connections, and before and after them sockets
// that a list of all sockets has in another order.
func crowdOf(k *fakeKernel, many int) {
	add := func(c abi.Conn) {
		c.Cookie = uint64(len(k.sockets) + 1)
		k.sockets = append(k.sockets, c)
	}
	listener := abi.Conn{State: abi.StateListen, Class: abi.ClassNone, Family: 2}
	add(listener)
	add(suspect(0, 3))
	for range many {
		add(healthy(0))
	}
	add(zombie(0))
	add(listener)
}

// runsOf ranges over a list, and returns how many connections of each verdict it has
// in a row, such as "1 zombie". Each must come once.
func runsOf(t *testing.T, connections iter.Seq2[*conn.Connection, error]) (runs []string) {
	t.Helper()
	last, n := "", 0
	end := func() {
		if n > 0 {
			runs = append(runs, fmt.Sprint(n, " ", last))
		}
	}
	seen := make(map[uint64]bool)
	for connection, err := range connections {
		if err != nil {
			t.Fatal(err)
		}
		if seen[connection.Cookie] {
			t.Fatalf("%d comes twice", connection.Cookie)
		}
		seen[connection.Cookie] = true
		verdict := "none"
		if connection.Judged() {
			verdict = connection.Verdict.String()
		}
		if verdict != last {
			end()
			last, n = verdict, 0
		}
		n++
	}
	end()
	return runs
}

func TestListIsSortedUpToABound(t *testing.T) {
	const many = SortedMost
	for _, tc := range []struct {
		name  string
		many  int // healthy connections; there are two in trouble besides
		q     Query
		total int
		want  []string
		scans int // one of them only counts
	}{
		{"as many as are sorted", many - 2, Query{}, many, []string{"1 zombie", "1 suspect", fmt.Sprint(many-2, " active")}, 1},
		{"one more", many - 1, Query{}, many + 1, []string{"1 zombie", "1 suspect", fmt.Sprint(many-1, " active")}, 6},
		{"more, of which as many are wanted as are sorted", many, Query{Limit: many}, many + 2, []string{"1 zombie", "1 suspect", fmt.Sprint(many-2, " active")}, 1},
		{"more are wanted", many + 100, Query{Limit: many + 1}, many + 102, []string{"1 zombie", "1 suspect", fmt.Sprint(many-1, " active")}, 5},
		{"with what has no verdict", many, Query{All: true}, many + 4, []string{"1 zombie", "1 suspect", fmt.Sprint(many, " active"), "2 none"}, 6},
		{"of one verdict", many + 1, Query{Verdicts: []conn.Verdict{conn.Active}}, many + 1, []string{fmt.Sprint(many+1, " active")}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newFakeKernel()
			crowdOf(k, tc.many)
			scans := 0
			k.onCensus = func(context.Context) error {
				scans++
				return nil
			}
			total, connections, err := New(k, Options{}).Connections(t.Context(), tc.q)
			if err != nil || total != tc.total {
				t.Fatalf("%d connections, error %v, want %d", total, err, tc.total)
			}
			if sorted := tc.q.Sorted(total); sorted != (tc.scans == 1) {
				t.Errorf("it is sorted: %v", sorted)
			}
			if got := runsOf(t, connections); !slices.Equal(got, tc.want) {
				t.Errorf("listed %q, want %q", got, tc.want)
			}
			if scans != tc.scans {
				t.Errorf("%d scans, want %d", scans, tc.scans)
			}
		})
	}
}

// While a long list is read, connections change their verdict in either direction, begin
// and end. Whichever is there all the time comes once.
func TestLongListWhileItsConnectionsChange(t *testing.T) {
	const better, worse, ended = 2, 7, 8
	k := newFakeKernel()
	crowdOf(k, SortedMost+10)
	scans, begun := 0, healthy(1<<40)
	k.onCensus = func(context.Context) error {
		if scans++; scans == 5 { // after zombies and suspects
			k.set(func() {
				k.sockets[better-1] = healthy(better)
				k.sockets[worse-1] = zombie(worse)
				k.sockets = append(slices.DeleteFunc(k.sockets, func(c abi.Conn) bool { return c.Cookie == ended }), begun)
			})
		}
		return nil
	}
	total, connections, err := New(k, Options{}).Connections(t.Context(), Query{})
	if err != nil || total != SortedMost+12 {
		t.Fatalf("%d connections, error %v", total, err)
	}
	want := []string{"1 zombie", "1 suspect", fmt.Sprint(SortedMost+9, " active"), "1 zombie"}
	if got := runsOf(t, connections); !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
}

// The owners of a long list are found by one search, of all sockets.
func TestLongListHasOwners(t *testing.T) {
	k := newFakeKernel()
	const many = SortedMost + 23
	for i := range uint64(many) {
		k.sockets = append(k.sockets, healthy(i+1))
		k.held[i+1] = []abi.FDHolder{heldBy(1<<30, "nginx")}
	}
	for _, q := range []Query{{}, {Owners: []string{"nginx"}}} {
		k.searched = nil
		_, connections, err := New(k, Options{}).Connections(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		listed := 0
		for connection, err := range connections {
			if err != nil {
				t.Fatal(err)
			}
			if listed++; connection.Process == nil || connection.Process.Comm != "nginx" {
				t.Fatalf("%d has the owner %+v", connection.Cookie, connection.Process)
			}
		}
		if listed != many {
			t.Errorf("%d are listed, want %d", listed, many)
		}
		if want := []int{0}; len(q.Owners) == 0 && !slices.Equal(k.searched, want) {
			t.Errorf("searches for the owners of %d sockets, want %d", k.searched, want)
		}
	}
}

// A long list ends with its error, or when its reader wants no more: then it reads no
// further.
func TestLongListEndsEarly(t *testing.T) {
	k := newFakeKernel()
	crowdOf(k, 2*SortedMost)
	scans, visited := 0, 0
	k.onVisit = func(*abi.Conn) { visited++ }
	fail := errors.New("no")
	k.onCensus = func(ctx context.Context) error {
		if scans++; scans == 5 {
			return fail
		}
		return ctx.Err()
	}
	list := func(ctx context.Context, most int) (listed int, last error) {
		t.Helper()
		scans = 0
		_, connections, err := New(k, Options{}).Connections(ctx, Query{})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range connections {
			if err != nil {
				last = err
				continue // it must be the last
			}
			if listed++; last != nil {
				t.Fatal("a connection after an error")
			}
			if listed == most {
				break
			}
		}
		return listed, last
	}
	if listed, err := list(t.Context(), 0); listed != 2 || !errors.Is(err, fail) {
		t.Errorf("%d are listed, error %v", listed, err)
	}
	if listed, err := list(t.Context(), 1); listed != 1 || err != nil || scans != 3 {
		t.Errorf("%d are listed, error %v, %d scans", listed, err, scans)
	}
	k.onOwners = func([]uint64) error { return fail }
	if listed, err := list(t.Context(), 0); listed != 0 || !errors.Is(err, fail) {
		t.Errorf("%d are listed although there was no search for owners, error %v", listed, err)
	}
	k.onOwners = nil
	ctx, cancel := context.WithCancel(t.Context())
	k.onVisit = func(*abi.Conn) {
		if scans > 2 {
			cancel()
		}
	}
	if _, err := list(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A reader that is slow with one connection delays no other query.
func TestReaderOfALongListHoldsNobodyUp(t *testing.T) {
	k := newFakeKernel()
	crowdOf(k, SortedMost)
	c := New(k, Options{})
	_, connections, err := c.Connections(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	for range connections {
		done := make(chan error)
		go func() {
			_, _, err := c.Connections(t.Context(), Query{Limit: 1})
			_, statsErr := c.Stats()
			done <- errors.Join(err, statsErr)
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("another query waits")
		}
		break
	}
}
