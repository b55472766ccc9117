// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// MaxRows is the most rows that a census adds. Connections that get into trouble before
// the next census may add as many again.
const MaxRows = 10000

// rows are the rows of a Tracker. All maps are by cookie.
type rows struct {
	current map[uint64]*Row // nil: the tracker keeps no rows
	// complete is true once a census has added rows.
	complete bool
	// old has, for each row that changed since the last [Tracker.TakeRowChanges], what it
	// was then; nil for a row that did not exist.
	old map[uint64]*Row
	// dead has the connections with a row that died since the last census. The next
	// census may have read them before their deaths.
	dead map[uint64]struct{}
	// searched has the beginning of the last search for the owner of each row.
	searched map[uint64]time.Time
}

// RowChange is a change of a row. Old is nil for a new row, New for a removed one.
type RowChange struct {
	Cookie   uint64
	Old, New *Row
}

// FollowRows makes the tracker keep rows. The next [FactCensus] with rows completes them.
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

// ForgetRows ends what FollowRows began, and drops all rows.
func (t *Tracker) ForgetRows() { t.rows = rows{} }

// FollowsRows reports whether the tracker keeps rows.
func (t *Tracker) FollowsRows() bool { return t.rows.current != nil }

// Rows returns all rows, in no order. complete is false until a census has added rows.
func (t *Tracker) Rows() (all []*Row, complete bool) {
	all = make([]*Row, 0, len(t.rows.current))
	for _, r := range t.rows.current {
		all = append(all, r)
	}
	return all, t.rows.complete
}

// TakeRowChanges returns the changes of rows since the last call, in no order.
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

// RowsChanged reports whether rows have changed since the last [Tracker.TakeRowChanges].
func (t *Tracker) RowsChanged() bool { return len(t.rows.old) > 0 }

// put adds or replaces a row. A nil row removes it.
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

// notice updates the row of the connection of a notice.
func (r *rows) notice(c *Connection) {
	if r.current == nil || !c.Judged() {
		return
	}
	if _, died := r.dead[c.Cookie]; died {
		return // the notice is of a record from before the death
	}
	old := r.current[c.Cookie]
	switch {
	case old == nil && len(r.current) >= 2*MaxRows:
		return // the next census decides whether it gets a row
	case old != nil && c.At.Before(old.At):
		return // a newer record was applied before
	}
	row := NewRow(c)
	if old != nil {
		row.follow(old)
	}
	r.put(c.Cookie, row)
}

// death removes the row of a connection that died.
func (r *rows) death(cookie uint64) {
	if r.current == nil {
		return
	}
	if len(r.dead) < maxTracked { // the tracker itself remembers the latest deaths
		r.dead[cookie] = struct{}{}
	}
	if r.current[cookie] != nil {
		r.put(cookie, nil)
	}
}

// census applies the rows of a census. describe describes a connection as the tracker
// knows it; it returns false if the connection has died.
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
			continue // a newer record was applied before
		default:
			if row.follow(old); row.sameAs(old) {
				r.current[cookie] = row // only At has changed
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

// needOwners adds to wanted the rows whose owners should be searched for now.
func (r *rows) needOwners(now time.Time, wanted map[uint64]uint64) {
	for cookie, row := range r.current {
		if row.Held == HeldByProcess && now.Sub(r.searched[cookie]) > OwnersRetry {
			wanted[cookie] = row.cgroupID
		}
	}
}

// setOwner applies the result of a search for the owner of a connection. The search began
// at that time.
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
