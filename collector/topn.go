// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// candidate is a connection that may be among the worst. A node may have hundreds of
// thousands, so a candidate has only the record, from which the rest can be derived again,
// and what does not follow from the record.
type candidate struct {
	record   abi.Conn
	since    time.Time
	silence  time.Duration // see silence
	process  *conn.Process // nil: unknown
	cgroup   *conn.Cgroup  // nil: unknown
	verdict  conn.Verdict
	evidence conn.Evidence
	kind     uint8 // see kind
	reason   conn.Reason
	risks    []conn.Risk
	peerHost *conn.PeerHost
}

// rank returns a candidate that can be compared. It has no record and no owner.
func rank(cookie uint64, connection *conn.Connection) candidate {
	r := candidate{since: connection.Since, silence: silence(connection), verdict: connection.Verdict, evidence: connection.Evidence, kind: kind(connection)}
	r.record.Cookie = cookie
	return r
}

// complete adds the record, and the owner if it is known.
func (r *candidate) complete(k *abi.Conn, connection *conn.Connection) {
	r.record = *k
	r.process = connection.Process
	r.reason, r.risks, r.peerHost = connection.Reason, connection.Risks, connection.PeerHost
	if connection.Cgroup.Path != "" {
		r.cgroup = new(connection.Cgroup)
	}
}

// describe returns the description that the candidate was made from, with a forecast.
func (r *candidate) describe(rules *conn.Rules) conn.Connection {
	connection := rules.Describe(&r.record, wall(r.record.At))
	connection.Verdict, connection.Evidence, connection.Since = r.verdict, r.evidence, r.since
	connection.Process = r.process
	connection.Reason, connection.Risks, connection.PeerHost = r.reason, r.risks, r.peerHost
	if r.cgroup != nil {
		connection.Cgroup = *r.cgroup
	}
	return connection
}

// topN keeps the worst connections, at most limit unless that is 0. candidates is a heap
// whose root is the least bad one.
type topN struct {
	limit      int
	candidates []*candidate
}

// add adds a connection with its record, or drops it if limit worse ones are kept.
func (w *topN) add(k *abi.Conn, connection *conn.Connection) {
	r := rank(k.Cookie, connection)
	full := w.limit > 0 && len(w.candidates) == w.limit
	if full && compare(&r, w.candidates[0]) >= 0 {
		return
	}
	r.complete(k, connection)
	if full {
		*w.candidates[0] = r
		heap.Fix(w, 0)
		return
	}
	heap.Push(w, new(r))
}

// narrow leaves out of a selection the connections that add would drop, since limit worse
// ones are kept. It leaves out none of those that a tracker follows: in trouble, or unread.
func (w *topN) narrow(selection *bpf.Selection) {
	if w.limit == 0 || len(w.candidates) < w.limit || w.candidates[0].kind > 0 {
		return
	}
	for _, class := range []uint8{abi.ClassActive, abi.ClassIdle, abi.ClassUnguarded} {
		switch verdict := conn.VerdictOfClass(class); {
		case verdict < w.candidates[0].verdict:
			selection.Classes &^= bpf.ClassesOf(class)
		case verdict == w.candidates[0].verdict:
			selection.Idle[class] = w.candidates[0].silence
		}
	}
}

// sorted returns the candidates, worst first. The topN is not usable after that.
func (w *topN) sorted() []*candidate {
	slices.SortFunc(w.candidates, compare)
	return w.candidates
}

// observations returns the records of the candidates, in no order; nil if w is nil.
func (w *topN) observations() []conn.Observation {
	if w == nil {
		return nil
	}
	all := make([]conn.Observation, len(w.candidates))
	for i, r := range w.candidates {
		all[i] = conn.Observation{Conn: r.record, At: wall(r.record.At)}
	}
	return all
}

// compare orders candidates worst first: by kind, by verdict, by silence, and by cookie so
// that the order is stable.
func compare(a, b *candidate) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(b.verdict, a.verdict), cmp.Compare(b.silence, a.silence),
		cmp.Compare(a.record.Cookie, b.record.Cookie))
}

// silence returns how long the connection has been silent, or idle if it is healthy, in
// whole seconds, since the records are not all of the same moment.
func silence(c *conn.Connection) time.Duration {
	age := c.Idle
	if c.Verdict >= conn.Suspect {
		age = c.Silent
	}
	if age < 0 {
		return math.MaxInt64 // the peer was never heard
	}
	return age.Truncate(time.Second)
}

// kind returns 0 for a connection, 1 for a listener, and more for a stub: the order in which
// they are shown.
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
