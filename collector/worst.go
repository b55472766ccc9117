// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// A row is what is kept of a connection until it is its turn to be shown. A node
// may have hundreds of thousands, so it is what the kernel wrote, from which all
// else is made again, and what only the table or a process's descriptors tell.
type row struct {
	written  bpf.Conn
	since    time.Time
	silence  time.Duration // what it is ordered by
	owner    *owner        // nil: not known so far
	verdict  Verdict
	evidence Evidence
	kind     uint8 // a connection is 0; more is shown later
}

// describe makes the connection again that the row was made of.
func (r *row) describe(rules *Rules) Connection {
	conn := rules.Describe(&r.written, wall(r.written.At))
	conn.Verdict, conn.Evidence, conn.Since = r.verdict, r.evidence, r.since
	if r.owner != nil {
		conn.Process, conn.Group = r.owner.process, r.owner.group
	}
	return conn
}

// worst keeps the worst connections, at most so many if limit is not 0. When it
// is full it is a heap, whose root is the least bad.
type worst struct {
	limit int
	rows  []*row
}

func (w *worst) add(k *bpf.Conn, conn *Connection) {
	r := row{since: conn.Since, silence: silence(conn), verdict: conn.Verdict, evidence: conn.Evidence, kind: kind(conn)}
	r.written.Cookie = k.Cookie
	full := w.limit > 0 && len(w.rows) == w.limit
	if full && compare(&r, w.rows[0]) >= 0 {
		return
	}
	r.written = *k
	if conn.Process != nil || conn.Group.Path != "" {
		r.owner = &owner{conn.Process, conn.Group}
	}
	if full {
		*w.rows[0] = r
		heap.Fix(w, 0)
		return
	}
	heap.Push(w, new(r))
}

// first returns the rows, worst first.
func (w *worst) first() []*row {
	slices.SortFunc(w.rows, compare)
	return w.rows
}

// compare orders rows worst first: by verdict, then by silence (of healthy ones:
// by idleness), then by cookie so that the order is stable. What is no connection
// comes last: listeners first, which are few.
func compare(a, b *row) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(b.verdict, a.verdict), cmp.Compare(b.silence, a.silence),
		cmp.Compare(a.written.Cookie, b.written.Cookie))
}

func silence(c *Connection) time.Duration {
	age := c.Idle
	if c.Verdict >= Suspect {
		age = c.Silent
	}
	if age < 0 {
		return math.MaxInt64 // never heard
	}
	return age.Truncate(time.Second) // they are not all looked at in the same moment
}

func kind(c *Connection) uint8 {
	switch {
	case c.Judged():
		return 0
	case c.State == Listen:
		return 1
	}
	return 1 + uint8(c.State)
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (w *worst) Len() int           { return len(w.rows) }
func (w *worst) Less(i, j int) bool { return compare(w.rows[i], w.rows[j]) > 0 }
func (w *worst) Swap(i, j int)      { w.rows[i], w.rows[j] = w.rows[j], w.rows[i] }
func (w *worst) Push(x any)         { w.rows = append(w.rows, x.(*row)) }
func (w *worst) Pop() any {
	last := w.rows[len(w.rows)-1]
	w.rows = w.rows[:len(w.rows)-1]
	return last
}
