// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"iter"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// SortedMost is the most connections that a list sorts. They take about 6 MB.
	SortedMost = 20_000
	// listBatch is the greatest number of connections in one search for the owners of a
	// list.
	listBatch = 8192
)

// Sorted reports whether a list of the connections that the query selects is sorted, if
// these are total.
func (q *Query) Sorted(total int) bool {
	return total <= SortedMost || q.Limit > 0 && q.Limit <= SortedMost
}

// Connections reads the connections now. total is how many the query selects. connections
// yields at most q.Limit of them, and can be ranged over once. Process and Cgroup are set;
// their search runs for one batch at a time, and its error is yielded last, without a
// connection.
//
// If q.Sorted(total), connections yields what Connections has read, worst first. Otherwise
// connections reads the sockets again while it is ranged over, once for each verdict, so
// that the list takes little memory: those with the worst verdict come first, and those
// with one verdict in any order. It yields each connection once, as it is then: one whose
// verdict changes after its turn comes last. connections can yield more or fewer than total,
// since connections begin and end meanwhile. It holds no lock while the caller has a
// connection.
func (c *Collector) Connections(ctx context.Context, q Query) (total int, connections iter.Seq2[*conn.Connection, error], err error) {
	worst := topN{limit: SortedMost}
	if q.Limit > 0 {
		worst.limit = min(q.Limit, SortedMost)
	}
	var verdicts [conn.Verdicts]int // how many connections have each
	err = c.scan(ctx, &scanQuery{Query: q}, func(k *abi.Conn, connection *conn.Connection) {
		total++
		if connection.Judged() {
			verdicts[connection.Verdict]++
		}
		if q.Sorted(total) {
			worst.add(k, connection)
		} else {
			worst.candidates = nil
		}
	})
	if err != nil {
		return 0, nil, err
	}
	l := lister{c: c, ctx: ctx, q: &q}
	if !q.Sorted(total) {
		return total, l.byVerdict(total, &verdicts), nil
	}
	candidates := worst.sorted()
	batch := candidates[:min(len(candidates), listBatch)]
	if err := l.findHolders(batch); err != nil {
		return 0, nil, err
	}
	return total, func(yield func(*conn.Connection, error) bool) {
		for l.yield = yield; l.yieldBatch(batch) && len(batch) < len(candidates); {
			candidates = candidates[len(batch):]
			batch = candidates[:min(len(candidates), listBatch)]
			if err := l.findHolders(batch); err != nil {
				yield(nil, err)
				return
			}
		}
	}, nil
}

// lister yields the connections of a list.
type lister struct {
	c          *Collector
	ctx        context.Context
	q          *Query
	yield      func(*conn.Connection, error) bool
	found      *holders // of the batch; nil: the owners are known already
	processes  processCgroups
	connection conn.Connection // one for all: it escapes to the heap
}

// findHolders searches for the processes that hold the sockets of a batch, unless the
// query has found them already.
func (l *lister) findHolders(batch []*candidate) error {
	if err := l.ctx.Err(); err != nil || l.q.needsOwners() {
		return err
	}
	wanted := []uint64{}
	for _, k := range batch {
		outline := l.c.rules.Outline(&k.record, wall(k.record.At))
		if needsHolder(&outline, nil) {
			wanted = append(wanted, k.record.Cookie)
		}
	}
	l.found, l.processes = newHolders(nil), make(processCgroups)
	if len(wanted) == 0 {
		return nil
	}
	return l.c.kernel.FDHolders(wanted, l.found.add)
}

// yieldBatch yields a batch, and reports whether the caller wants more. findHolders must
// have been called for the batch.
func (l *lister) yieldBatch(batch []*candidate) bool {
	for i, k := range batch {
		l.connection = k.describe(&l.c.rules)
		batch[i] = nil // to free it, however slow the caller is
		if l.found != nil {
			l.c.fillOwner(&l.connection, l.found, l.processes)
		}
		if !l.yield(&l.connection, nil) {
			return false
		}
	}
	return true
}

// byVerdict yields the connections by verdict, the worst first. verdicts is how many had
// each verdict, and total how many sockets there were in all.
func (l *lister) byVerdict(total int, verdicts *[conn.Verdicts]int) iter.Seq2[*conn.Connection, error] {
	if l.q.Limit > 0 {
		total = min(total, l.q.Limit)
	}
	return func(yield func(*conn.Connection, error) bool) {
		listed, yielded := make(map[uint64]struct{}, total), 0
		l.yield = func(connection *conn.Connection, err error) bool {
			yielded++
			return yield(connection, err) && yielded != l.q.Limit
		}
		for v := conn.Verdict(conn.Verdicts); v > 0; v-- {
			one := *l.q
			one.Verdicts = []conn.Verdict{v - 1}
			if verdicts[v-1] > 0 && !l.yieldScan(&one, listed) {
				return
			}
		}
		l.yieldScan(l.q, listed) // those without a verdict, and those that no other scan has found
	}
}

// yieldScan reads the sockets, and yields the connections that the query selects, without
// those in listed. It adds the cookies of these to listed: a connection that moves to
// another chain of the hash table, or gets another verdict, can be read twice. It reports
// whether the caller wants more.
func (l *lister) yieldScan(q *Query, listed map[uint64]struct{}) (more bool) {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	batch := make([]*candidate, 0, listBatch)
	more = true
	yield := func() (err error) {
		if err = l.findHolders(batch); err == nil {
			more = l.yieldBatch(batch)
		}
		batch = batch[:0]
		return err
	}
	var failed error
	err := l.c.scan(ctx, &scanQuery{Query: *q}, func(k *abi.Conn, connection *conn.Connection) {
		if _, ok := listed[k.Cookie]; ok || failed != nil || !more {
			return
		}
		listed[k.Cookie] = struct{}{}
		batch = append(batch, newCandidate(k, connection))
		if len(batch) < listBatch {
			return
		}
		if failed = yield(); failed != nil || !more {
			cancel()
		}
	})
	switch {
	case failed != nil:
		err = failed
	case more && err == nil:
		err = yield()
	}
	if more && err != nil {
		l.yield(nil, err)
	}
	return more && err == nil
}
