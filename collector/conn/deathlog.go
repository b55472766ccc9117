// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"container/list"
	"iter"
	"net/netip"
	"time"
)

// maxDeaths is the largest number of deaths that a tracker remembers.
const maxDeaths = 4096

// deathLog remembers at most maxDeaths deaths. When it is full, it forgets the oldest death
// of the cause with most deaths, so that many deaths of one cause, such as the resets of
// health checks, do not push out the few deaths of another cause.
type deathLog struct {
	byCause [Causes]list.List // of *loggedDeath, the newest in front
	len     int
	added   uint64 // deaths ever added
	// routine has the newest routine death of each kind. That death counts the older ones
	// that the log has forgotten.
	routine map[routineKey]*list.Element
}

// loggedDeath is an element of a deathLog. number orders the deaths of all causes.
type loggedDeath struct {
	Death
	number  uint64
	routine bool
}

// routineKey identifies the routine deaths that are counted together: they have the same
// owner and the same address of the peer.
type routineKey struct {
	netns  uint32
	cgroup uint64
	remote netip.Addr
}

func (d *Death) routineKey() routineKey {
	return routineKey{netns: d.Netns, cgroup: d.CgroupID, remote: d.Remote.Addr()}
}

// add adds a death. inTrouble reports whether its connection was in trouble. A death is
// routine if the peer reset a connection that was in use and not in trouble.
func (l *deathLog) add(d Death, inTrouble bool) {
	if l.len >= maxDeaths {
		l.makeRoom()
	}
	l.len++
	l.added++
	routine := !inTrouble && d.Cause == CauseResetByPeer && d.Verdict == Active
	e := l.byCause[d.Cause].PushFront(&loggedDeath{d, l.added, routine})
	if !routine {
		return
	}
	if l.routine == nil {
		l.routine = make(map[routineKey]*list.Element)
	}
	key := d.routineKey()
	if before := l.routine[key]; before != nil {
		newest, older := e.Value.(*loggedDeath), before.Value.(*loggedDeath)
		newest.Similar, newest.SimilarSince = older.Similar, older.SimilarSince
		older.Similar, older.SimilarSince = 0, time.Time{}
	}
	l.routine[key] = e
}

// makeRoom forgets the oldest death of the cause that has most deaths.
func (l *deathLog) makeRoom() {
	most := &l.byCause[0]
	for i := range l.byCause {
		if l.byCause[i].Len() > most.Len() {
			most = &l.byCause[i]
		}
	}
	e := most.Back()
	oldest := most.Remove(e).(*loggedDeath)
	l.len--
	if !oldest.routine {
		return
	}
	key := oldest.routineKey()
	if l.routine[key] == e {
		delete(l.routine, key)
		return
	}
	newest := l.routine[key].Value.(*loggedDeath)
	if newest.Similar == 0 {
		newest.SimilarSince = oldest.DiedAt
	}
	newest.Similar++
}

// all returns the deaths, newest first.
func (l *deathLog) all() iter.Seq[*Death] {
	return func(yield func(*Death) bool) {
		var next [Causes]*list.Element
		for i := range l.byCause {
			next[i] = l.byCause[i].Front()
		}
		for {
			newest := -1
			for i, e := range next {
				if e != nil && (newest < 0 || e.Value.(*loggedDeath).number > next[newest].Value.(*loggedDeath).number) {
					newest = i
				}
			}
			if newest < 0 || !yield(&next[newest].Value.(*loggedDeath).Death) {
				return
			}
			next[newest] = next[newest].Next()
		}
	}
}

// recentCookies remembers the cookies of the latest deaths, at most maxRecentCookies.
type recentCookies struct {
	known map[uint64]struct{}
	ring  []uint64
	next  int // the index of the oldest cookie, once the ring is full
}

// maxRecentCookies is larger than maxDeaths: facts that were read before a death may
// arrive after many more deaths than the tracker shows.
const maxRecentCookies = 4 * maxDeaths

func (r *recentCookies) has(cookie uint64) bool {
	_, ok := r.known[cookie]
	return ok
}

// add adds a cookie that is not remembered yet.
func (r *recentCookies) add(cookie uint64) {
	if r.known == nil {
		r.known = make(map[uint64]struct{})
	}
	r.known[cookie] = struct{}{}
	if len(r.ring) < maxRecentCookies {
		r.ring = append(r.ring, cookie)
		return
	}
	delete(r.known, r.ring[r.next])
	r.ring[r.next] = cookie
	r.next = (r.next + 1) % maxRecentCookies
}
