// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"slices"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// CountConnections counts the connections that the query selects, in groups. It returns at
// most q.Limit groups, worst first, and the number of all groups.
func (c *Collector) CountConnections(ctx context.Context, q Query, by conn.Grouping) (total int, counts []conn.Count, err error) {
	groups := make(map[conn.GroupKey]*conn.Count)
	l := scanQuery{Query: q, owners: by == conn.ByOwner}
	if by == conn.ByRemote {
		l.listeners = make(map[conn.Listener]bool)
	}
	err = c.scan(ctx, &l, func(_ *abi.Conn, connection *conn.Connection) {
		k := conn.GroupKeyOf(connection, by, l.listeners)
		t := groups[k]
		if t == nil {
			t = &conn.Count{GroupKey: k}
			groups[k] = t
		}
		t.Total++
		if connection.Judged() {
			t.Verdicts[connection.Verdict]++
		}
	})
	if err != nil {
		return 0, nil, err
	}
	for _, t := range groups {
		counts = append(counts, *t)
	}
	slices.SortFunc(counts, conn.CompareCounts)
	total = len(counts)
	if q.Limit > 0 {
		counts = counts[:min(total, q.Limit)]
	}
	return total, counts, nil
}
