// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"iter"
	"slices"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// Connections looks at the connections now. It returns how many the query selects,
// and at most q.Limit of them, worst first, to be ranged over once. Process and Group
// are filled in, for a batch at a time: an error of that comes last, in place of a
// connection.
func (c *Collector) Connections(ctx context.Context, q Query) (total int, connections iter.Seq2[*conn.Connection, error], err error) {
	worst := topN{limit: q.Limit}
	err = c.scan(ctx, &scan{Query: q}, func(k *abi.Conn, connection *conn.Connection) {
		total++
		worst.add(k, connection)
	})
	if err != nil {
		return 0, nil, err
	}
	rows := worst.sorted()
	var batch []conn.Connection
	next := func() error {
		n := min(len(rows), ownersBatch)
		batch = slices.Grow(batch[:0], n)
		for i, r := range rows[:n] {
			batch = append(batch, r.describe(&c.rules))
			rows[i] = nil // to be collected, however slow the reader is
		}
		rows = rows[n:]
		if err := ctx.Err(); err != nil || q.needsOwners() {
			return err // the owners that decided are known
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

func anyOf[T comparable](wanted []T, v T) bool { return len(wanted) == 0 || slices.Contains(wanted, v) }
