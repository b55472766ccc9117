// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// MaxRows is how many rows a census brings, the worst; as many again may get into
// trouble until the next one.
const MaxRows = 10000

// rows are the rows of a Tracker while somebody follows them.
type rows struct {
	current map[uint64]*Row // nil: nobody follows them
	// complete says that a census has brought all rows.
	complete bool
	// old is what the rows that changed since [Tracker.TakeRowChanges] were then;
	// nil for a row that did not exist.
	old map[uint64]*Row
	// dead are the cookies of rows whose connection died since the last census: the
	// next one may have read them before.
	dead map[uint64]struct{}
	// searched is when the owner of a row was last searched for.
	searched map[uint64]time.Time
}

// RowChange is a row that changed: Old is nil for a new row, New for one that is gone.
type RowChange struct {
	Cookie   uint64
	Old, New *Row
}

// FollowRows makes the tracker keep rows, from the next [FactCensus] that has them on.
func (t *Tracker) FollowRows() {
	if t.rows.current == nil {
		t.rows = rows{
			current:  make(map[uint64]*Row),
			old:      make(map[uint64]*Row),
			dead:     make(map[uint64]struct{}),
			searched: make(map[uint64]time.Time),
		}
	}
}

// ForgetRows ends FollowRows.
func (t *Tracker) ForgetRows() { t.rows = rows{} }

// FollowsRows reports whether the tracker keeps rows.
func (t *Tracker) FollowsRows() bool { return t.rows.current != nil }

// Rows returns all rows, in no order; complete is false until a census has brought
// them.
func (t *Tracker) Rows() (all []*Row, complete bool) {
	all = make([]*Row, 0, len(t.rows.current))
	for _, r := range t.rows.current {
		all = append(all, r)
	}
	return all, t.rows.complete
}

// TakeRowChanges returns the rows that changed since it was last called, in no order.
func (t *Tracker) TakeRowChanges() []RowChange {
	if len(t.rows.old) == 0 {
		return nil
	}
	changes := make([]RowChange, 0, len(t.rows.old))
	for cookie, old := range t.rows.old {
		if r := t.rows.current[cookie]; r != nil || old != nil {
			changes = append(changes, RowChange{cookie, old, r})
		}
	}
	clear(t.rows.old)
	return changes
}

// RowsChanged reports whether [Tracker.TakeRowChanges] has something to return.
func (t *Tracker) RowsChanged() bool { return len(t.rows.old) > 0 }

// put replaces a row; r is nil to remove it.
func (r *rows) put(cookie uint64, row *Row) {
	old := r.current[cookie]
	if _, ok := r.old[cookie]; !ok {
		r.old[cookie] = old
	}
	if row != nil {
		r.current[cookie] = row
		return
	}
	delete(r.current, cookie)
	delete(r.searched, cookie)
}

// notice takes in how a connection is that a notice is about.
func (r *rows) notice(c *Connection) {
	if r.current == nil || !c.Judged() {
		return
	}
	old := r.current[c.Cookie]
	switch {
	case old == nil && len(r.current) >= 2*MaxRows:
		return // the next census decides whether it is among the worst
	case old != nil && c.At.Before(old.At):
		return // facts overtake each other
	}
	row := NewRow(c)
	if old != nil {
		row.follow(old)
	}
	r.put(c.Cookie, row)
}

// death removes the row of a connection that died.
func (r *rows) death(cookie uint64) {
	if r.current[cookie] == nil {
		return
	}
	r.put(cookie, nil)
	r.dead[cookie] = struct{}{}
}

// census takes in the rows of a census. describe returns a connection as the tracker
// knows it, and false if it has died.
func (r *rows) census(census *Census, describe func(*Observation) (Connection, bool)) {
	if r.current == nil || census.Rows == nil {
		return
	}
	seen := make(map[uint64]struct{}, len(census.Rows))
	for i := range census.Rows {
		o := &census.Rows[i]
		cookie := o.Conn.Cookie
		seen[cookie] = struct{}{}
		if _, died := r.dead[cookie]; died {
			continue
		}
		connection, ok := describe(o)
		if !ok {
			continue
		}
		row, old := NewRow(&connection), r.current[cookie]
		switch {
		case old == nil:
		case row.At.Before(old.At):
			continue // what the tracker heard since is newer
		default:
			if row.follow(old); row.sameAs(old) {
				r.current[cookie] = row // only its time is another
				continue
			}
		}
		r.put(cookie, row)
	}
	for cookie, old := range r.current {
		if _, ok := seen[cookie]; !ok && old.At.Before(census.Began) {
			r.put(cookie, nil)
		}
	}
	clear(r.dead)
	r.complete = true
}

// needOwners adds to wanted the rows whose owner should be searched for now.
func (r *rows) needOwners(now time.Time, wanted map[uint64]uint64) {
	for cookie, row := range r.current {
		if row.Held == HeldByProcess && now.Sub(r.searched[cookie]) > OwnersRetry {
			wanted[cookie] = row.cgroupID
		}
	}
}

// setOwner takes in what a search for the owner of a connection found.
func (r *rows) setOwner(cookie uint64, o *Ownership, at time.Time) {
	old := r.current[cookie]
	if old == nil {
		return
	}
	r.searched[cookie] = at
	if old.Held != HeldByProcess {
		return
	}
	row := *old
	if row.setOwner(o); row != *old {
		r.put(cookie, &row)
	}
}
