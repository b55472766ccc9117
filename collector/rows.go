// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"github.com/halfopen/halfopen/collector/conn"
)

// FollowRows begins, or ends, to keep the rows of the worst connections, at most
// [conn.MaxRows] and as many again that get into trouble between two censuses. The
// first census that has them begins at once. Rows stay until the next census after
// their end, so that who comes back soon costs no census.
func (c *Collector) FollowRows(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rowsFollowed = on
	if on && !c.tracker.FollowsRows() {
		c.rowsTried = false
		wake(c.censusWanted)
	}
}

// Rows returns the rows, in no order, and false until the first census of them has
// ended. It takes back what RowChanges would return.
func (c *Collector) Rows() (rows []*conn.Row, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tracker.TakeRowChanges()
	rows, complete = c.tracker.Rows()
	return rows, complete || c.rowsTried
}

// RowChanges returns the rows that changed since the last call of Rows or RowChanges,
// in no order.
func (c *Collector) RowChanges() []conn.RowChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracker.TakeRowChanges()
}

// RowsChanged receives when RowChanges has something to return, and when the first
// census of rows has ended.
func (c *Collector) RowsChanged() <-chan struct{} { return c.rowsChanged }

// beginRows reports, at the beginning of a census, whether it has to bring rows.
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

// endRows notes, after a census, whether it failed or not, that rows were tried for:
// nobody waits for them any longer.
func (c *Collector) endRows() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tracker.FollowsRows() {
		c.rowsTried = true
		wake(c.rowsChanged)
		wake(c.ownersWanted)
	}
}

// wake sends to a channel of one place, unless it is full.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
