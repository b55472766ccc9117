// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// lookAfter takes watch passes: regularly, and when the newest of a row of
// solicitations has had the time to be answered.
func (c *Collector) lookAfter(ctx context.Context) error {
	for {
		began := time.Now()
		var settles time.Duration
		c.attempt(ctx, passWatch, func() (err error) {
			settles, err = c.takeWatch()
			return err
		})
		least := time.Since(began) * watchSpacing
		next := began.Add(watchInterval)
		if settles > 0 {
			next = earlier(next, began.Add(max(settles, least)))
		}
		timer := time.NewTimer(time.Until(next))
	wait:
		for {
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case settles := <-c.settles:
				next = earlier(next, time.Now().Add(max(settles, least)))
				timer.Reset(time.Until(next))
			case <-timer.C:
				break wait
			}
		}
	}
}

// takeWatch takes one watch pass and tells when another is worth while.
func (c *Collector) takeWatch() (settles time.Duration, err error) {
	var conns []bpf.Conn
	if err := c.kernel.Watch(func(conn *bpf.Conn) { conns = append(conns, *conn) }); err != nil {
		return 0, err
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range conns {
		at := now
		if conns[i].At != 0 {
			at = wall(conns[i].At)
		}
		if s := c.table.Apply(&Fact{Kind: FactWatch, At: at, Conn: &conns[i]}); s > 0 && (settles == 0 || s < settles) {
			settles = s
		}
	}
	c.table.Apply(&Fact{Kind: FactSweep, At: now})
	return settles, nil
}
