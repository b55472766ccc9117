// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// A candidate is what is kept of a connection until it is its turn to be shown. A node
// may have hundreds of thousands, so it is what the kernel wrote, from which all
// else is made again, and what only the tracker or a process's descriptors tell.
type candidate struct {
	written  abi.Conn
	since    time.Time
	silence  time.Duration   // what it is ordered by
	owner    *conn.Ownership // nil: not known so far
	verdict  conn.Verdict
	evidence conn.Evidence
	kind     uint8 // a connection is 0; more is shown later
}

// describe makes the connection again that the row was made of.
func (r *candidate) describe(rules *conn.Rules) conn.Connection {
	connection := rules.Describe(&r.written, wall(r.written.At))
	connection.Verdict, connection.Evidence, connection.Since = r.verdict, r.evidence, r.since
	if r.owner != nil {
		connection.Process, connection.Cgroup = r.owner.Process, r.owner.Cgroup
	}
	return connection
}

// topN keeps the worst connections, at most so many if limit is not 0. When it
// is full it is a heap, whose root is the least bad.
type topN struct {
	limit      int
	candidates []*candidate
}

func (w *topN) add(k *abi.Conn, connection *conn.Connection) {
	r := candidate{since: connection.Since, silence: silence(connection), verdict: connection.Verdict, evidence: connection.Evidence, kind: kind(connection)}
	r.written.Cookie = k.Cookie
	full := w.limit > 0 && len(w.candidates) == w.limit
	if full && compare(&r, w.candidates[0]) >= 0 {
		return
	}
	r.written = *k
	if connection.Process != nil || connection.Cgroup.Path != "" {
		r.owner = &conn.Ownership{Process: connection.Process, Cgroup: connection.Cgroup}
	}
	if full {
		*w.candidates[0] = r
		heap.Fix(w, 0)
		return
	}
	heap.Push(w, new(r))
}

// sorted returns the rows, worst first.
func (w *topN) sorted() []*candidate {
	slices.SortFunc(w.candidates, compare)
	return w.candidates
}

// observations returns what was kept, in no order; nil for none of w.
func (w *topN) observations() []conn.Observation {
	if w == nil {
		return nil
	}
	all := make([]conn.Observation, len(w.candidates))
	for i, r := range w.candidates {
		all[i] = conn.Observation{Conn: r.written, At: wall(r.written.At)}
	}
	return all
}

// compare orders rows worst first: by verdict, then by silence (of healthy ones:
// by idleness), then by cookie so that the order is stable. What is no connection
// comes last: listeners first, which are few.
func compare(a, b *candidate) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(b.verdict, a.verdict), cmp.Compare(b.silence, a.silence),
		cmp.Compare(a.written.Cookie, b.written.Cookie))
}

func silence(c *conn.Connection) time.Duration {
	age := c.Idle
	if c.Verdict >= conn.Suspect {
		age = c.Silent
	}
	if age < 0 {
		return math.MaxInt64 // never heard
	}
	return age.Truncate(time.Second) // they are not all looked at in the same moment
}

func kind(c *conn.Connection) uint8 {
	switch {
	case c.Judged():
		return 0
	case c.State == conn.Listen:
		return 1
	}
	return 1 + uint8(c.State)
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (w *topN) Len() int           { return len(w.candidates) }
func (w *topN) Less(i, j int) bool { return compare(w.candidates[i], w.candidates[j]) > 0 }
func (w *topN) Swap(i, j int)      { w.candidates[i], w.candidates[j] = w.candidates[j], w.candidates[i] }
func (w *topN) Push(x any)         { w.candidates = append(w.candidates, x.(*candidate)) }
func (w *topN) Pop() any {
	last := w.candidates[len(w.candidates)-1]
	w.candidates = w.candidates[:len(w.candidates)-1]
	return last
}
