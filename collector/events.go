// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// readEvents applies the events of the kernel until the context ends.
func (c *Collector) readEvents(ctx context.Context) error {
	defer func() {
		c.reader.Lock()
		c.reader.running = false
		c.reader.caughtUpC.Broadcast()
		c.reader.Unlock()
	}()
	var e abi.Event
	for {
		// Several flushes may merge into one. It serves only the calls of awaitEvents that
		// came before this read began.
		c.reader.Lock()
		wanted := c.reader.wanted
		c.reader.Unlock()
		err := c.kernel.ReadEvent(&e)
		switch {
		case errors.Is(err, bpf.ErrFlushed):
			c.reader.Lock()
			c.reader.caughtUp = wanted
			c.reader.caughtUpC.Broadcast()
			again := c.reader.wanted > wanted
			c.reader.Unlock()
			if again {
				_ = c.kernel.Flush()
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, bpf.ErrUndecodable):
			c.undecodable.Add(1)
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		default:
			at := wall(e.Conn.At)
			c.mu.Lock()
			recheckAfter := c.apply(&conn.Fact{Kind: conn.FactEvent, At: at, Event: &e})
			c.mu.Unlock()
			if recheckAfter > 0 {
				select {
				case c.recheck <- recheckAfter:
				default: // a recheck is requested already
				}
			}
		}
	}
}

// awaitEvents waits until every event that the kernel has sent so far is applied, at most
// flushTimeout.
func (c *Collector) awaitEvents() {
	c.reader.Lock()
	defer c.reader.Unlock()
	if !c.reader.running {
		return
	}
	c.reader.wanted++
	mine := c.reader.wanted
	if c.kernel.Flush() != nil {
		return
	}
	expired := false
	timer := time.AfterFunc(flushTimeout, func() {
		c.reader.Lock()
		expired = true
		c.reader.caughtUpC.Broadcast()
		c.reader.Unlock()
	})
	defer timer.Stop()
	for c.reader.running && c.reader.caughtUp < mine && !expired {
		c.reader.caughtUpC.Wait()
	}
}
