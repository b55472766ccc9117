// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"github.com/halfopen/halfopen/collector/conn"
)

// FollowRows makes the collector keep rows of the worst connections, or makes it stop: at
// most [conn.MaxRows] rows, and as many again of connections that get into trouble between
// two censuses. FollowRows(true) begins a census at once if the collector keeps no rows.
// After FollowRows(false) the collector keeps the rows until the next census, so that
// FollowRows(true) needs no census before that.
func (c *Collector) FollowRows(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rowsFollowed = on
	if on && !c.tracker.FollowsRows() {
		c.rowsTried = false
		wake(c.censusWanted)
	}
}

// Rows returns the rows, in no order. complete is false until the first census with rows has
// ended, even if that census failed. RowChanges leaves out the changes before the last call
// of Rows.
func (c *Collector) Rows() (rows []*conn.Row, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tracker.TakeRowChanges()
	rows, complete = c.tracker.Rows()
	return rows, complete || c.rowsTried
}

// RowChanges returns the changes of rows since the last call of Rows or RowChanges, in no
// order.
func (c *Collector) RowChanges() []conn.RowChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracker.TakeRowChanges()
}

// RowsChanged returns a channel that receives a value when RowChanges has something to
// return, and when the first census with rows has ended.
func (c *Collector) RowsChanged() <-chan struct{} { return c.rowsChanged }

// beginRows starts or stops keeping rows at the beginning of a census. It reports whether
// the census needs rows.
func (c *Collector) beginRows() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rowsFollowed {
		c.tracker.FollowRows()
	} else {
		c.tracker.ForgetRows()
	}
	return c.rowsFollowed
}

// endRows ends the wait for rows after a census, even if the census failed.
func (c *Collector) endRows() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tracker.FollowsRows() {
		c.rowsTried = true
		wake(c.rowsChanged)
		wake(c.ownersWanted)
	}
}

// wake sends to a channel with a buffer of one, unless the buffer is full.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
