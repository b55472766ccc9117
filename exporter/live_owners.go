// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// Owners are looked for with a pause after each search, in which it takes no more than
// a share of a core: less for the page than for who asked for the owners themselves.
const (
	pageOwnersPause  = time.Second
	pageOwnersShare  = lookShare
	eventOwnersPause = 250 * time.Millisecond
	eventOwnersShare = 0.05
	// ownersPatience is how long an event waits for its owner, and unownedMost is how
	// many do. Then they are told without.
	ownersPatience = 2 * time.Second
	unownedMost    = 4 * noticeBuffer
)

// unowned is a notice that waits until its owner has been looked for.
type unowned struct {
	notice conn.Notice
	since  time.Time
	asked  bool // a search for it is under way
	done   bool // it has been looked for
}

// lacks tells whether somebody holds the connection, and is not known.
func (u *unowned) lacks() bool {
	c := &u.notice.Connection
	if d := u.notice.Death; d != nil {
		c = &d.Connection // of which the rows may know the owner
	}
	return !u.done && c.Accepted && !c.Orphaned && c.Process == nil
}

// owners are what was found of connections' owners.
type owners struct {
	conns []conn.Connection
	took  time.Duration
	err   error
}

// findOwners looks for those of connections that are new to the rows, once each (the
// next look at all finds them too, but not at once), and for those of notices. It sends
// the notices that need no search, or have waited for long enough.
func (l *Live) findOwners(ctx context.Context) {
	l.tellOwned()
	if len(l.strays)+len(l.unowned) == 0 {
		return
	}
	wait := l.ownersWait()
	if !l.asking && wait <= 0 {
		l.searchOwners(ctx)
	}
	if l.asking {
		wait = ownersPatience // or until takeOwners comes here again
	}
	if len(l.unowned) > 0 {
		wait = min(wait, time.Until(l.unowned[0].since.Add(ownersPatience)))
	}
	l.searches.in(max(0, wait))
}

// searchOwners begins to look for the owners of all that wait for theirs.
func (l *Live) searchOwners(ctx context.Context) {
	wanted := make(map[uint64]conn.Connection, len(l.strays)+len(l.unowned))
	for cookie, c := range l.strays {
		wanted[cookie] = c
	}
	clear(l.strays)
	for i := range l.unowned {
		if u := &l.unowned[i]; u.lacks() {
			u.asked = true
			wanted[u.notice.Connection.Cookie] = u.notice.Connection
		}
	}
	connections := make([]conn.Connection, 0, len(wanted))
	for _, c := range wanted {
		connections = append(connections, c)
	}
	l.asking = true
	l.working.Go(func() {
		began := time.Now()
		err := l.src.FillOwners(connections)
		select {
		case l.owners <- owners{connections, time.Since(began), err}:
		case <-ctx.Done():
		}
	})
}

// ownersWait is how long to wait until owners may be looked for again.
func (l *Live) ownersWait() time.Duration {
	pause, share := pageOwnersPause, pageOwnersShare
	if len(l.unowned) > 0 {
		pause, share = eventOwnersPause, eventOwnersShare
	}
	pause = max(pause, time.Duration(float64(l.search)/share))
	return time.Until(l.searched.Add(pause))
}

func (l *Live) takeOwners(found *owners) {
	l.asking = false
	l.searched, l.search = time.Now(), found.took
	if found.err != nil {
		l.logger.Warn("Owners were not found for the stream", "err", found.err)
	}
	byCookie := make(map[uint64]*conn.Connection, len(found.conns))
	changes := newChanges(l.rows)
	for i := range found.conns {
		c := &found.conns[i]
		byCookie[c.Cookie] = c
		old := l.rows[c.Cookie]
		if old == nil || c.Process == nil {
			continue
		}
		r := *old
		r.pid, r.comm, r.fd, r.group = c.Process.PID, c.Process.Comm, c.Process.FD, groupOf(&c.Cgroup)
		changes.before(c.Cookie)
		l.rows[c.Cookie] = &r
	}
	for i := range l.unowned {
		u := &l.unowned[i]
		if c := byCookie[u.notice.Connection.Cookie]; c != nil && u.lacks() {
			u.notice = u.notice.WithOwner(c)
		}
		u.done = u.done || u.asked
	}
	var f frame
	l.sendChanges(&f, changes)
	l.send(&f)
}

// tellOwned sends, in their order, the notices that wait for no owner any more.
func (l *Live) tellOwned() {
	n := 0
	for n < len(l.unowned) {
		u := &l.unowned[n]
		late := time.Since(u.since) >= ownersPatience || len(l.unowned)-n > unownedMost
		if u.lacks() && !late {
			break
		}
		n++
	}
	var f frame
	for i := range l.unowned[:n] {
		notice := &l.unowned[i].notice
		k := kindOwned + kindOf(notice.Kind)
		if l.wanted&(1<<k) == 0 {
			continue
		}
		data, err := json.Marshal(api.NewNotice(notice))
		if err != nil {
			l.logger.Error("Event was not encoded", "err", err)
			continue
		}
		f.add(k, data)
	}
	l.unowned = append(l.unowned[:0:0], l.unowned[n:]...)
	l.send(&f)
}
