// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"fmt"
	"time"
)

const (
	dropsInterval = 250 * time.Millisecond
	// dropsLease is how long the program that sees drops is attached before it is asked again
	// whether that is useful, and the pause after it was detached for another reason.
	dropsLease = time.Minute
	// dropsPerSecond is the rate of drops above which the program is detached: each takes
	// some time.
	dropsPerSecond = 100_000
)

// dropsWatch is the state of dropsLoop.
type dropsWatch struct {
	on      bool
	until   time.Time // the end of the lease, or of the pause
	counted uint64    // drops at the last look
	at      time.Time // the time of the last look; zero: none since it was attached
	failed  bool      // the reason of the pause is shown
}

// dropsLoop has the kernel programs see why this host drops what it sends, while that is in
// doubt for a connection in trouble.
func (c *Collector) dropsLoop(ctx context.Context) error {
	var w dropsWatch
	ticker := time.NewTicker(dropsInterval)
	defer ticker.Stop()
	defer func() { _ = c.kernel.WatchDrops(false) }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		c.watchDrops(&w, time.Now())
	}
}

// dropsInDoubt reports whether it is useful to see drops.
func (c *Collector) dropsInDoubt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracker.DropsInDoubt()
}

// watchDrops attaches or detaches the program.
func (c *Collector) watchDrops(w *dropsWatch, now time.Time) {
	if !w.on {
		if now.Before(w.until) {
			return
		}
		wanted := c.dropsInDoubt()
		if !wanted && !w.failed {
			return
		}
		var err error
		if wanted {
			err = c.kernel.WatchDrops(true)
		}
		*w = dropsWatch{on: wanted && err == nil, until: now.Add(dropsLease)}
		c.dropsUnwatched(w, err, now)
		return
	}
	err := c.tooManyDrops(w, now)
	if err == nil && now.Before(w.until) {
		return
	}
	if err == nil && c.dropsInDoubt() {
		w.until = now.Add(dropsLease)
		return
	}
	*w = dropsWatch{}
	if err != nil {
		w.until = now.Add(dropsLease)
	}
	c.dropsUnwatched(w, err, now)
	if err := c.kernel.WatchDrops(false); err != nil {
		c.log.Warn("Detaching the program that sees drops failed", "err", err)
	}
}

// dropsUnwatched shows why drops are not seen that should be; nil: they are.
func (c *Collector) dropsUnwatched(w *dropsWatch, err error, now time.Time) {
	w.failed = err != nil
	c.degraded.change(now, func(s *situation) { s.dropsErr = err })
}

// tooManyDrops returns an error if the host drops so many packets that the program costs too
// much, or if their number cannot be read.
func (c *Collector) tooManyDrops(w *dropsWatch, now time.Time) error {
	counted, err := c.kernel.Drops()
	if err != nil {
		return err
	}
	before, since := w.counted, w.at
	w.counted, w.at = counted, now
	if since.IsZero() {
		return nil
	}
	if rate := float64(counted-before) / now.Sub(since).Seconds(); rate > dropsPerSecond {
		return fmt.Errorf("this host drops %.0f packets a second", rate)
	}
	return nil
}
