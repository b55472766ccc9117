// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// GroupsMost is the most groups that CountConnections returns, and counts at a time. They
// take about 5 MB.
const GroupsMost = 20_000

// CountConnections counts the connections that the query selects, in groups. It returns at
// most q.Limit and at most [GroupsMost] groups, worst first, and the number of all groups.
// If there are more than GroupsMost, it reads the connections several times, and counts a
// part of the groups each time.
func (c *Collector) CountConnections(ctx context.Context, q Query, by conn.Grouping) (total int, counts []conn.Count, err error) {
	limit := GroupsMost
	if q.Limit > 0 {
		limit = min(q.Limit, GroupsMost)
	}
	err = errGroups
	for parts := uint64(1); errors.Is(err, errGroups); parts *= 2 {
		total, counts, err = c.countParts(ctx, &q, by, parts, limit)
	}
	if err == nil && by == conn.BySettings {
		err = c.fillSysctls(ctx, counts)
	}
	return total, counts, err
}

// fillSysctls sets the sysctls of groups of connections by network namespace.
func (c *Collector) fillSysctls(ctx context.Context, counts []conn.Count) error {
	sysctls, err := c.kernel.Sysctls(ctx)
	if err != nil {
		return err
	}
	for i := range counts {
		if s, ok := sysctls[counts[i].Netns]; ok {
			counts[i].Settings.Sysctls = c.rules.Sysctls(&s)
		}
	}
	return nil
}

// countParts counts the connections of all groups, a part at a time. It returns the worst
// groups, at most limit, or errGroups if a part has too many.
func (c *Collector) countParts(ctx context.Context, q *Query, by conn.Grouping, parts uint64, limit int) (total int, counts []conn.Count, err error) {
	seed := maphash.MakeSeed()
	for part := range parts {
		groups, err := c.countPart(ctx, q, by, func(k conn.GroupKey) bool { return maphash.Comparable(seed, k)%parts == part })
		if err != nil {
			return 0, nil, err
		}
		total += len(groups)
		for _, t := range groups {
			counts = append(counts, *t)
		}
		slices.SortFunc(counts, conn.CompareCounts)
		counts = slices.Clone(counts[:min(len(counts), limit)])
	}
	return total, counts, nil
}

// errGroups is the error of more than GroupsMost groups.
var errGroups = errors.New("too many groups")

// countPart counts the connections of the groups for which wanted returns true.
func (c *Collector) countPart(ctx context.Context, q *Query, by conn.Grouping, wanted func(conn.GroupKey) bool) (groups map[conn.GroupKey]*conn.Count, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	groups = make(map[conn.GroupKey]*conn.Count)
	l := scanQuery{Query: *q, owners: by == conn.ByOwner}
	if by == conn.ByRemote {
		l.listeners = make(map[conn.Listener]bool)
	}
	_, err = c.scan(ctx, &l, func(record *abi.Conn, connection *conn.Connection) {
		k := conn.GroupKeyOf(connection, by, l.listeners)
		if !wanted(k) {
			return
		}
		t := groups[k]
		if t == nil {
			if len(groups) == GroupsMost {
				cancel(errGroups)
				return
			}
			t = &conn.Count{GroupKey: k}
			groups[k] = t
		}
		t.Total++
		if connection.Judged() {
			t.Verdicts[connection.Verdict]++
			if by == conn.BySettings {
				t.Settings.Add(record)
			}
		}
	})
	if errors.Is(context.Cause(ctx), errGroups) {
		err = errGroups
	}
	return groups, err
}
