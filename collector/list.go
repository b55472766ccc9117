// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"iter"
	"slices"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// Connections reads the connections now. total is how many the query selects. connections
// yields at most q.Limit of them, worst first, and can be ranged over once. Process and
// Cgroup are set; their search runs for one batch at a time, and its error is yielded last,
// without a connection.
func (c *Collector) Connections(ctx context.Context, q Query) (total int, connections iter.Seq2[*conn.Connection, error], err error) {
	worst := topN{limit: q.Limit}
	err = c.scan(ctx, &scanQuery{Query: q}, func(k *abi.Conn, connection *conn.Connection) {
		total++
		worst.add(k, connection)
	})
	if err != nil {
		return 0, nil, err
	}
	candidates := worst.sorted()
	var batch []conn.Connection
	next := func() error {
		n := min(len(candidates), ownersBatch)
		batch = slices.Grow(batch[:0], n)
		for i, k := range candidates[:n] {
			batch = append(batch, k.describe(&c.rules))
			candidates[i] = nil // to free it, however slow the reader is
		}
		candidates = candidates[n:]
		if err := ctx.Err(); err != nil || q.needsOwners() {
			return err // the owners are known already
		}
		return c.fillOwners(batch, nil)
	}
	if err := next(); err != nil {
		return 0, nil, err
	}
	return total, func(yield func(*conn.Connection, error) bool) {
		for len(batch) > 0 {
			for i := range batch {
				if !yield(&batch[i], nil) {
					return
				}
			}
			if err := next(); err != nil {
				yield(nil, err)
				return
			}
		}
	}, nil
}
