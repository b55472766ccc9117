// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// scan says what to read from the sockets.
type scan struct {
	Query
	owners    bool                   // visit needs the owners
	listeners map[conn.Listener]bool // if not nil, the scan adds the listeners that it reads
}

// classes returns the classes of connections that the census has to write out.
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

// ownersBatch is the most connections in one search for owners.
const ownersBatch = 16384

// scan reads the sockets now, and calls visit with the record and the description of each
// one that the query selects. The description has the owner if q.owners is set or the query
// depends on owners, and has no forecast. The listeners of a network namespace come before
// its connections. visit must not keep its arguments.
func (c *Collector) scan(ctx context.Context, q *scan, visit func(*abi.Conn, *conn.Connection)) error {
	c.awaitEvents()
	owned := ownedScan{c: c, q: q, visit: visit, processes: make(processCgroups)}
	var connection conn.Connection // one for all calls: it escapes to the heap
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

// ownedScan is the part of a scan that needs owners. If all connections fit in one batch, it
// searches once. Else it searches for the owners of all sockets of the machine, and at the
// end once more for the sockets that were opened after that.
type ownedScan struct {
	c       *Collector
	q       *scan
	visit   func(*abi.Conn, *conn.Connection)
	records []abi.Conn        // of the batch
	batch   []conn.Connection // that waits for the next search
	all     *holders          // of all sockets; nil: not searched yet
	err     error
	// processes are the control groups of processes.
	processes processCgroups
}

// add visits a connection, or adds it to the batch if its owner is not known yet.
func (s *ownedScan) add(k *abi.Conn, connection *conn.Connection) {
	if s.all != nil && s.fill(k, connection) {
		return
	}
	s.records, s.batch = append(s.records, *k), append(s.batch, *connection)
	if len(s.batch) < ownersBatch || s.err != nil {
		return
	}
	if s.all != nil { // no process holds so many: another search would not help
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

// fill visits a connection and returns true, unless the search of all sockets has not found
// the process that holds it.
func (s *ownedScan) fill(k *abi.Conn, connection *conn.Connection) bool {
	if needsHolder(connection, s.q.PIDs) && s.all.process(connection.Cookie) == nil {
		return false
	}
	s.c.fillOwner(connection, s.all, s.processes)
	s.visitOne(k, connection)
	return true
}

// visitOne visits a connection whose owner is set, if the owner matches.
func (s *ownedScan) visitOne(k *abi.Conn, connection *conn.Connection) {
	if s.q.matchesOwner(connection) {
		s.visit(k, connection)
	}
}

// visitBatch visits the connections of the batch, whose owners are set, and empties it.
func (s *ownedScan) visitBatch() {
	for i := range s.batch {
		s.visitOne(&s.records[i], &s.batch[i])
	}
	s.records, s.batch = s.records[:0], s.batch[:0]
}

// end searches for the owners of the last batch and visits it.
func (s *ownedScan) end() error {
	if s.err == nil {
		s.err = s.c.fillOwners(s.batch, s.q.PIDs)
	}
	if s.err == nil {
		s.visitBatch()
	}
	return s.err
}

// noteUnwalked notes the hash tables that a census for a query did not walk.
func (c *Collector) noteUnwalked(res *bpf.CensusResult) {
	c.unwalked.Store(int64(len(res.Unwalked)))
	if len(res.Unwalked) > 0 {
		now := time.Now()
		c.degraded.change(now, func(s *situation) { s.unlisted, s.unlistedAt = len(res.Unwalked), now })
	}
}

// Unwalked returns how many own hash tables of network namespaces the last query did not
// walk because they are too large. Their connections are not listed.
func (c *Collector) Unwalked() int { return int(c.unwalked.Load()) }

// outline describes the socket with the record k, without a forecast.
func (c *Collector) outline(k *abi.Conn) conn.Connection {
	at := wall(k.At)
	if k.Class == abi.ClassNone {
		return c.rules.Outline(k, at)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracker.Outline(k, at)
}
