// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"slices"

	"github.com/halfopen/halfopen/bpf"
)

// Tallies counts what the query selects, in groups. It returns at most q.Limit
// groups, worst first, and how many there are.
func (c *Collector) Tallies(ctx context.Context, q Query, by Grouping) (total int, tallies []Tally, err error) {
	groups := make(map[Common]*Tally)
	l := look{Query: q, owners: by == ByOwner}
	if by == ByRemote {
		l.listeners = make(map[listener]bool)
	}
	err = c.each(ctx, &l, func(_ *bpf.Conn, conn *Connection) {
		k := commonOf(conn, by, l.listeners)
		t := groups[k]
		if t == nil {
			t = &Tally{Common: k}
			groups[k] = t
		}
		t.Total++
		if conn.Judged() {
			t.Verdicts[conn.Verdict]++
		}
	})
	if err != nil {
		return 0, nil, err
	}
	for _, t := range groups {
		tallies = append(tallies, *t)
	}
	slices.SortFunc(tallies, compareTallies)
	total = len(tallies)
	if q.Limit > 0 {
		tallies = tallies[:min(total, q.Limit)]
	}
	return total, tallies, nil
}
