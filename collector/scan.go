// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// scan is what a look at the connections is for.
type scan struct {
	Query
	owners    bool                   // who owns them is asked for
	listeners map[conn.Listener]bool // if not nil, those that there are, as they are found
}

// classes are those that the census has to write out.
func (q *scan) classes() []uint8 {
	classes := []uint8{abi.ClassTrouble}
	for _, class := range []uint8{abi.ClassActive, abi.ClassIdle, abi.ClassUnguarded} {
		if anyOf(q.Verdicts, conn.VerdictOfClass(class)) {
			classes = append(classes, class)
		}
	}
	if q.All && len(q.Verdicts)+len(q.Risks) == 0 || q.listeners != nil {
		classes = append(classes, abi.ClassNone)
	}
	return classes
}

// ownersBatch is the number of connections whose owners are searched for at once.
const ownersBatch = 16384

// scan reads what the query selects now, and calls visit for each: as the kernel wrote it
// and as it is to be described, with its owner if that is asked for or decides. The kernel
// has the listeners of a network namespace come before its connections. What visit is given
// is not kept, so that a scan takes no more memory than what the visitor keeps.
func (c *Collector) scan(ctx context.Context, q *scan, visit func(*abi.Conn, *conn.Connection)) error {
	c.catchUp()
	owned := ownedScan{c: c, q: q, visit: visit, processes: make(processCgroups)}
	var connection conn.Connection // one for all: visit makes it escape
	res, err := c.kernel.Census(ctx, q.classes(), func(k *abi.Conn) {
		if q.listeners != nil && conn.StateOf(k.State) == conn.Listen {
			q.listeners[conn.Listener{Netns: k.Netns, Port: k.Lport}] = true
		}
		if !q.matches(k) {
			return
		}
		connection = c.outline(k)
		switch {
		case !q.matchesVerdict(&connection):
		case !q.owners && !q.needsOwners():
			visit(k, &connection)
		default:
			owned.add(k, &connection)
		}
	})
	if err != nil {
		return err
	}
	c.noteUnwalked(&res)
	return owned.end()
}

// ownedScan is the part of a scan that needs owners. It searches for them once, for the
// connections of one batch, or, if they are more than that, twice: for all sockets of the
// machine, and for those that were opened after that.
type ownedScan struct {
	c       *Collector
	q       *scan
	visit   func(*abi.Conn, *conn.Connection)
	records []abi.Conn // as the kernel wrote them, ...
	batch   []conn.Connection
	all     *holders // of all sockets; nil: not searched for
	err     error
	// processes are the control groups of processes.
	processes processCgroups
}

// add takes in a connection. What is without an owner waits for the end.
func (s *ownedScan) add(k *abi.Conn, connection *conn.Connection) {
	if s.all != nil && s.fill(k, connection) {
		return
	}
	s.records, s.batch = append(s.records, *k), append(s.batch, *connection)
	if len(s.batch) < ownersBatch || s.err != nil {
		return
	}
	if s.all != nil { // of so many that nobody holds, no other search finds the holders
		for i := range s.batch {
			s.c.fillOwner(&s.batch[i], s.all, s.processes)
		}
		s.visitBatch()
		return
	}
	if s.all, s.err = s.c.holders(nil, s.q.PIDs); s.err != nil {
		return
	}
	records, batch := s.records, s.batch
	s.records, s.batch = nil, nil
	for i := range batch {
		if !s.fill(&records[i], &batch[i]) {
			s.records, s.batch = append(s.records, records[i]), append(s.batch, batch[i])
		}
	}
}

// fill visits a connection, unless its owner is not among those of all sockets.
func (s *ownedScan) fill(k *abi.Conn, connection *conn.Connection) bool {
	if needsHolder(connection, s.q.PIDs) && s.all.of(connection.Cookie) == nil {
		return false
	}
	s.c.fillOwner(connection, s.all, s.processes)
	s.visitOne(k, connection)
	return true
}

func (s *ownedScan) visitOne(k *abi.Conn, connection *conn.Connection) {
	if s.q.matchesOwner(connection) {
		s.visit(k, connection)
	}
}

func (s *ownedScan) visitBatch() {
	for i := range s.batch {
		s.visitOne(&s.records[i], &s.batch[i])
	}
	s.records, s.batch = s.records[:0], s.batch[:0]
}

// end searches for the owners that are missing, and visits what waited for them.
func (s *ownedScan) end() error {
	if s.err == nil {
		s.err = s.c.fillOwners(s.batch, s.q.PIDs)
	}
	if s.err == nil {
		s.visitBatch()
	}
	return s.err
}

// noteUnwalked notes what a look that somebody waited for did not get through.
func (c *Collector) noteUnwalked(res *bpf.CensusResult) {
	c.unwalked.Store(int64(len(res.Unwalked)))
	if len(res.Unwalked) > 0 {
		now := time.Now()
		c.degraded.change(now, func(f *facts) { f.unlisted, f.unlistedAt = len(res.Unwalked), now })
	}
}

// Unwalked is how many hash tables of single network namespaces the last look at the
// connections did not get through, since they are large: what is in them is not listed.
func (c *Collector) Unwalked() int { return int(c.unwalked.Load()) }

// outline describes a connection as a pass over all sockets read it, without a forecast.
func (c *Collector) outline(k *abi.Conn) conn.Connection {
	at := wall(k.At)
	if k.Class == abi.ClassNone {
		return c.rules.Outline(k, at)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracker.Outline(k, at)
}
