// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"iter"
	"math"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// SortedMost is the most connections that a list sorts. They take about 8 MB.
const SortedMost = 20_000

// Sorted reports whether a list of the connections that the query selects is sorted, if
// these are total.
func (q *Query) Sorted(total int) bool {
	return total <= SortedMost || q.Limit > 0 && q.Limit <= SortedMost
}

// Connections reads the connections now. total is how many the query selects. connections
// yields at most q.Limit of them, and can be ranged over once. Process and Cgroup are set.
//
// If q.Sorted(total), connections yields what Connections has read, worst first. Otherwise
// connections searches for all owners and reads the sockets again while it is ranged over,
// once for each verdict, so that the list takes little memory: about 18 bytes for each socket
// of the machine. Those with the worst verdict come first, and those with one verdict in any
// order. An error is yielded last, without a connection. connections yields each connection once, as it is then: one whose
// verdict changes after its turn comes last. connections can yield more or fewer than total,
// since connections begin and end meanwhile. It holds no lock while the caller has a
// connection.
func (c *Collector) Connections(ctx context.Context, q Query) (total int, connections iter.Seq2[*conn.Connection, error], err error) {
	worst := topN{limit: SortedMost}
	if q.Limit > 0 {
		worst.limit = min(q.Limit, SortedMost)
	}
	var verdicts [conn.Verdicts]int // how many connections have each
	read := scanQuery{Query: q}
	few := q.everyConnection() && q.Sorted(math.MaxInt)
	res, err := c.scan(ctx, &read, func(k *abi.Conn, connection *conn.Connection) {
		total++
		if connection.Judged() {
			verdicts[connection.Verdict]++
		}
		if q.Sorted(total) {
			worst.add(k, connection)
		} else {
			worst.candidates = nil
		}
		if few {
			worst.narrow(read.selected)
		}
	})
	if err != nil {
		return 0, nil, err
	}
	if s := read.selected; s.Classes != read.classes() || s.Idle != (bpf.Selection{}).Idle { // not all have been visited
		total = int(res.Connections())
	}
	l := lister{c: c, ctx: ctx, q: &q}
	if !q.Sorted(total) {
		return total, l.byVerdict(&verdicts), nil
	}
	candidates := worst.sorted()
	if !q.needsOwners() { // else the scan has found them
		if err := c.findProcesses(candidates); err != nil {
			return 0, nil, err
		}
	}
	return total, l.sorted(candidates), nil
}

// findProcesses searches for the processes that hold the sockets of candidates.
func (c *Collector) findProcesses(candidates []*candidate) error {
	wanted := make([]uint64, 0, len(candidates))
	for _, r := range candidates {
		outline := c.rules.Outline(&r.record, wall(r.record.At))
		if needsHolder(&outline, nil) {
			wanted = append(wanted, r.record.Cookie)
		}
	}
	found, err := c.findHolders(wanted, nil)
	if err != nil {
		return err
	}
	defer found.free()
	for _, r := range candidates {
		if p := found.process(r.record.Cookie); p != nil {
			r.process = p
		}
	}
	return nil
}

// lister yields the connections of a list.
type lister struct {
	c          *Collector
	ctx        context.Context
	q          *Query
	yield      func(*conn.Connection, error) bool
	connection conn.Connection // one for all: it escapes to the heap
}

// sorted yields candidates, whose processes are known.
func (l *lister) sorted(candidates []*candidate) iter.Seq2[*conn.Connection, error] {
	return func(yield func(*conn.Connection, error) bool) {
		processes := make(processCgroups)
		for i, r := range candidates {
			candidates[i] = nil // to free it, however slow the caller is
			l.connection = r.describe(&l.c.rules)
			l.c.fillCgroup(&l.connection, processes)
			if !yield(&l.connection, nil) {
				return
			}
		}
	}
}

// byVerdict yields the connections by verdict, the worst first. verdicts is how many had
// each verdict.
func (l *lister) byVerdict(verdicts *[conn.Verdicts]int) iter.Seq2[*conn.Connection, error] {
	return func(yield func(*conn.Connection, error) bool) {
		found, err := l.c.findAllHolders(l.ctx, newSet(l.q.PIDs))
		if err != nil {
			yield(nil, err)
			return
		}
		defer found.free()
		yielded := 0
		l.yield = func(connection *conn.Connection, err error) bool {
			yielded++
			return yield(connection, err) && yielded != l.q.Limit
		}
		for v := conn.Verdict(conn.Verdicts); v > 0; v-- {
			one := *l.q
			one.Verdicts = []conn.Verdict{v - 1}
			if verdicts[v-1] > 0 && !l.yieldScan(&one, found) {
				return
			}
		}
		l.yieldScan(l.q, found) // those without a verdict, and those that no other scan has found
	}
}

// yieldScan reads the sockets, and yields the connections that the query selects, without
// those listed in found. It lists these there: a connection that moves to another chain of
// the hash table, or gets another verdict, can be read twice. It reports whether the caller
// wants more.
func (l *lister) yieldScan(q *Query, found *holders) (more bool) {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	more = true
	var failed error
	_, err := l.c.scan(ctx, &scanQuery{Query: *q, owners: true, holders: found}, func(k *abi.Conn, connection *conn.Connection) {
		if failed != nil || !more {
			return
		}
		var first bool
		if first, failed = found.list(k.Cookie); failed == nil && first {
			l.connection = *connection
			if k.Class != abi.ClassNone {
				l.connection.GivesUp = l.c.rules.Forecast(k, connection.At)
			}
			more = l.yield(&l.connection, nil)
		}
		if failed != nil || !more {
			cancel()
		}
	})
	if failed != nil {
		err = failed
	}
	if more && err != nil {
		l.yield(nil, err)
	}
	return more && err == nil
}
