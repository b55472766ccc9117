// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// watchLoop takes a watch pass every conn.WatchInterval, and additional ones when the answer
// to a solicitation should have come.
func (c *Collector) watchLoop(ctx context.Context) error {
	for {
		began := time.Now()
		var recheckAfter time.Duration
		c.runPass(ctx, passWatch, func() (err error) {
			recheckAfter, err = c.watch()
			return err
		})
		least := time.Since(began) * watchSpacing
		next := began.Add(conn.WatchInterval)
		if recheckAfter > 0 {
			next = conn.Earlier(next, began.Add(max(recheckAfter, least)))
		}
		timer := time.NewTimer(time.Until(next))
	wait:
		for {
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case recheckAfter := <-c.recheck:
				next = conn.Earlier(next, time.Now().Add(max(recheckAfter, least)))
				timer.Reset(time.Until(next))
			case <-timer.C:
				break wait
			}
		}
	}
}

// watch takes one watch pass. recheckAfter is the time after which an additional one is
// useful; 0 if none is.
func (c *Collector) watch() (recheckAfter time.Duration, err error) {
	var connections []abi.Conn
	if err := c.kernel.Watch(func(connection *abi.Conn) { connections = append(connections, *connection) }); err != nil {
		return 0, err
	}
	now := time.Now()
	c.mu.Lock()
	for i := range connections {
		at := now
		if connections[i].At != 0 {
			at = wall(connections[i].At)
		}
		if after := c.apply(&conn.Fact{Kind: conn.FactWatch, At: at, Conn: &connections[i]}); after > 0 && (recheckAfter == 0 || after < recheckAfter) {
			recheckAfter = after
		}
	}
	gone := c.tracker.AwaitsDeaths()
	c.mu.Unlock()
	if gone {
		c.awaitEvents() // on a busy host the reader may come seconds late
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apply(&conn.Fact{Kind: conn.FactSweep, At: now})
	return recheckAfter, nil
}
