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

// ownersBatch is of how many connections owners are looked for at once, where
// they decide what is kept.
const ownersBatch = 16384

// scan looks at what the query selects now, and calls visit for each: as the kernel
// wrote it and as it is to be described, with its owner if that is asked for or
// decides. The kernel has the listeners of a network namespace come before its
// connections. What visit is given is not kept, so that a look takes no more memory
// than what the visitor keeps.
func (c *Collector) scan(ctx context.Context, q *scan, visit func(*abi.Conn, *conn.Connection)) error {
	c.catchUp()
	var batch []conn.Connection
	var written []abi.Conn         // of the batch
	var connection conn.Connection // one for all: visit makes it escape
	var failed error
	flush := func() {
		if failed == nil {
			failed = c.fillOwners(batch, q.PIDs)
		}
		for i := range batch {
			if failed == nil && q.matchesOwner(&batch[i]) {
				visit(&written[i], &batch[i])
			}
		}
		batch, written = batch[:0], written[:0]
	}
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
			batch, written = append(batch, connection), append(written, *k)
			if len(batch) == ownersBatch {
				flush()
			}
		}
	})
	if err != nil {
		return err
	}
	c.noteUnwalked(&res)
	flush()
	return failed
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
