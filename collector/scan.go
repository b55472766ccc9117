// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// scanQuery is what a scan reads: the query, and what the caller needs besides.
type scanQuery struct {
	Query
	owners    bool                   // visit needs the owners
	holders   *holders               // if not nil, the processes that hold sockets, of all sockets
	listeners map[conn.Listener]bool // if not nil, the scan adds all listeners that it reads
	selected  *bpf.Selection         // what the census writes out: scan sets it, and visit may narrow it
}

// classes returns the classes of sockets that the census has to write out.
func (q *scanQuery) classes() bpf.Classes {
	classes := q.Query.classes()
	if q.listeners != nil {
		classes |= bpf.ClassesOf(abi.ClassNone)
	}
	return classes
}

// ownersBatch is the greatest number of connections in one search for owners.
const ownersBatch = 2048

// scan reads the sockets now. It calls visit for each socket that the query selects, with the
// record and the description of the socket. The description has the owner if q.owners is set
// or the query depends on owners; it has no forecast. The listeners of a network namespace
// come before its connections. visit must not keep its arguments.
func (c *Collector) scan(ctx context.Context, q *scanQuery, visit func(*abi.Conn, *conn.Connection)) (bpf.CensusResult, error) {
	c.awaitEvents()
	q.selected = &bpf.Selection{Classes: q.classes(), Netns: q.Netns}
	m := q.matcher()
	owned := ownedScan{c: c, ctx: ctx, m: m, visit: visit, all: q.holders, processes: make(processCgroups)}
	if q.holders == nil {
		defer func() { owned.all.free() }()
	}
	var connection conn.Connection // one for all sockets: it escapes to the heap
	res, err := c.kernel.Census(ctx, q.selected, func(k *abi.Conn) {
		if q.listeners != nil && conn.StateOf(k.State) == conn.Listen {
			q.listeners[conn.Listener{Netns: k.Netns, Port: k.Lport}] = true
		}
		if !m.matches(k) {
			return
		}
		connection = c.outline(k)
		switch {
		case !m.matchesVerdict(&connection):
		case !q.owners && !q.needsOwners():
			visit(k, &connection)
		default:
			owned.add(k, &connection)
		}
	})
	if err != nil {
		return res, err
	}
	c.recordUnwalked(&res)
	return res, owned.end()
}

// ownedScan is the part of a scan that needs owners. If all connections fit in one batch, it
// searches for their owners at the end. Else it searches for the owners of all sockets of the
// machine, and at the end once more for the sockets that were opened after the first search.
type ownedScan struct {
	c       *Collector
	ctx     context.Context
	m       *matcher
	visit   func(*abi.Conn, *conn.Connection)
	records []abi.Conn        // the records of batch
	batch   []conn.Connection // connections that wait for the next search
	all     *holders          // of all sockets; nil before that search
	err     error
	// processes caches the control groups of processes.
	processes processCgroups
}

// add visits a connection, or adds it to the batch if its owner is not known yet.
func (s *ownedScan) add(k *abi.Conn, connection *conn.Connection) {
	if s.err != nil {
		return // a search failed: end returns the error
	}
	if s.all != nil && s.fill(k, connection) {
		return
	}
	s.records, s.batch = append(s.records, *k), append(s.batch, *connection)
	if len(s.batch) < ownersBatch {
		return
	}
	if s.all != nil { // so many new sockets are unlikely: another search would find no holders
		for i := range s.batch {
			s.c.fillOwner(&s.batch[i], s.all, s.processes)
		}
		s.visitBatch()
		return
	}
	if s.all, s.err = s.c.findAllHolders(s.ctx, s.m.pids); s.err != nil {
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

// fill visits a connection and returns true. If the connection needs a holder and the search
// of all sockets has found none, fill only returns false.
func (s *ownedScan) fill(k *abi.Conn, connection *conn.Connection) bool {
	if needsHolder(connection, s.m.pids) && !s.all.has(connection.Cookie) {
		return false
	}
	s.c.fillOwner(connection, s.all, s.processes)
	s.visitOne(k, connection)
	return true
}

// visitOne visits a connection whose owner is set, if the owner matches.
func (s *ownedScan) visitOne(k *abi.Conn, connection *conn.Connection) {
	if s.m.matchesOwner(connection) {
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
		s.err = s.c.fillOwners(s.batch, s.m.pids)
	}
	if s.err == nil {
		s.visitBatch()
	}
	return s.err
}

// recordUnwalked records the number of hash tables that a census for a query did not walk.
func (c *Collector) recordUnwalked(res *bpf.CensusResult) {
	c.unwalked.Store(int64(len(res.Unwalked)))
	if len(res.Unwalked) > 0 {
		now := time.Now()
		c.degraded.change(now, func(s *situation) { s.unlisted, s.unlistedAt = len(res.Unwalked), now })
	}
}

// Unwalked returns how many hash tables the last query did not walk because they are too
// large. Each is the table of a single network namespace. The query did not list the
// connections in these tables.
func (c *Collector) Unwalked() int { return int(c.unwalked.Load()) }

// outline describes the socket with the record k, without a forecast.
func (c *Collector) outline(k *abi.Conn) conn.Connection {
	at := wall(k.At)
	if k.Class == abi.ClassNone {
		return c.rules.Outline(k, at)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.withoutSince(c.tracker.Outline(k, at))
}

// withoutSince takes back the time since when a connection is blocked if that is not known.
func (c *Collector) withoutSince(connection conn.Connection) conn.Connection {
	if c.lookedOnce && connection.Verdict == conn.Blocked {
		connection.Since = time.Time{}
	}
	return connection
}
