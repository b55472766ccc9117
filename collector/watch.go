// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// watchLoop takes watch passes: regularly, and when the newest of a row of
// solicitations has had the time to be answered.
func (c *Collector) watchLoop(ctx context.Context) error {
	for {
		began := time.Now()
		var settles time.Duration
		c.attempt(ctx, passWatch, func() (err error) {
			settles, err = c.watch()
			return err
		})
		least := time.Since(began) * watchSpacing
		next := began.Add(conn.WatchInterval)
		if settles > 0 {
			next = conn.Earlier(next, began.Add(max(settles, least)))
		}
		timer := time.NewTimer(time.Until(next))
	wait:
		for {
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case settles := <-c.recheck:
				next = conn.Earlier(next, time.Now().Add(max(settles, least)))
				timer.Reset(time.Until(next))
			case <-timer.C:
				break wait
			}
		}
	}
}

// watch takes one watch pass and tells when another is worth while.
func (c *Collector) watch() (settles time.Duration, err error) {
	var connections []abi.Conn
	if err := c.kernel.Watch(func(connection *abi.Conn) { connections = append(connections, *connection) }); err != nil {
		return 0, err
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range connections {
		at := now
		if connections[i].At != 0 {
			at = wall(connections[i].At)
		}
		if s := c.apply(&conn.Fact{Kind: conn.FactWatch, At: at, Conn: &connections[i]}); s > 0 && (settles == 0 || s < settles) {
			settles = s
		}
	}
	c.apply(&conn.Fact{Kind: conn.FactSweep, At: now})
	return settles, nil
}
