// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/explain"
)

// Detail is everything that the collector knows about one connection.
type Detail struct {
	conn.Connection
	History     []conn.HistoryEntry // oldest first
	Path        *conn.Path          // nil: Explanation.Path says why
	Explanation explain.Explanation
}

// Connection reads one connection now. It returns nil if none has that cookie.
func (c *Collector) Connection(ctx context.Context, cookie uint64) (*Detail, error) {
	if cookie == 0 {
		return nil, nil
	}
	c.awaitEvents()
	var d *Detail
	var found abi.Conn
	var otherEnd *conn.Connection // of a stalled one, if it is here and does not read
	res, err := c.kernel.Find(ctx, cookie, func(k *abi.Conn) {
		found = *k
		d = new(Detail)
		c.mu.Lock()
		defer c.mu.Unlock()
		d.Connection = c.withoutSince(c.tracker.Describe(k, wall(k.At)))
		d.History = c.tracker.History(cookie)
		if d.Verdict == conn.Stalled {
			otherEnd = c.tracker.OtherEnd(&d.Connection)
		}
	})
	if err == nil && d == nil && len(res.Unwalked) > 0 {
		c.recordUnwalked(&res)
		return nil, fmt.Errorf("no connection with the cookie %s was found, and the hash tables of %d network namespaces take too long to look at: ss -e in the namespace shows it if it is there", conn.FormatCookie(cookie), len(res.Unwalked))
	}
	if err != nil || d == nil {
		return nil, err
	}
	one := []conn.Connection{d.Connection}
	err = c.fillOwners(one, nil)
	d.Connection = one[0]
	ref, host := c.kernel.FindNetns(found.Netns)
	d.Explanation = explain.Explain(&c.rules, &found, &d.Connection, explain.Netns{Path: ref.ShellPath(), Host: host})
	if otherEnd != nil {
		d.Explanation.Doing = append(d.Explanation.Doing, explain.OtherEnd(otherEnd))
	}
	flow := conn.Flow{Cookie: cookie, Local: d.Local, Remote: d.Remote}
	var unknown error
	if c.detailPaths.Allow() {
		d.Path, unknown = c.cgroups.from.FlowPath(ctx, ref, flow)
	} else {
		unknown = fmt.Errorf("more than %d such questions a second: %w", flowPathsPerSecond/2, unix.EBUSY)
	}
	d.Explanation.Path = explain.Path(&flow, d.Path, unknown)
	return d, err
}

// Deaths returns the remembered deaths with one of the causes (no causes: any), newest
// first, at most limit (0: no limit). total is the number without the limit.
func (c *Collector) Deaths(causes []conn.Cause, limit int) (total int, deaths []conn.Death) {
	c.awaitEvents()
	c.mu.Lock()
	defer c.mu.Unlock()
	for d := range c.tracker.Deaths() {
		if len(causes) > 0 && !slices.Contains(causes, d.Cause) {
			continue
		}
		total++
		if limit <= 0 || len(deaths) < limit {
			deaths = append(deaths, *d)
		}
	}
	return total, deaths
}
