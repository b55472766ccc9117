// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"sync/atomic"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// awaitingFor is how long a notice waits for its owner at most, and maxAwaiting is
	// how many notices wait. Others are delivered without one.
	awaitingFor = 2 * time.Second
	maxAwaiting = 16384
)

// Subscription delivers notices on C, which is never closed. A subscriber that
// does not keep up loses notices, and Dropped counts them.
type Subscription struct {
	C       <-chan conn.Notice
	c       chan conn.Notice
	owned   bool
	of      *Collector
	dropped atomic.Uint64
}

// Close ends the delivery.
func (s *Subscription) Close() {
	if s.of == nil {
		return // made by hand, of a channel
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	delete(s.of.subs, s)
}

// Dropped is how many notices did not fit the buffer.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Subscribe delivers what happens from now on, at once, through a buffer of that size.
// A connection has an owner in it only if that is known already.
func (c *Collector) Subscribe(buffer int) *Subscription { return c.subscribe(buffer, false) }

// SubscribeOwned is Subscribe, but delivers a notice, in its turn, once the owner of the
// connection has been searched for; after two seconds without.
func (c *Collector) SubscribeOwned(buffer int) *Subscription { return c.subscribe(buffer, true) }

func (c *Collector) subscribe(buffer int, owned bool) *Subscription {
	s := &Subscription{c: make(chan conn.Notice, buffer), owned: owned, of: c}
	s.C = s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = struct{}{}
	return s
}

// publish delivers a notice. It runs under the lock: it must not wait.
func (c *Collector) publish(n conn.Notice) {
	if n.Kind != conn.NoticeSolicitation {
		wake(c.ownersWanted)
	}
	owned := false
	for s := range c.subs {
		if s.owned {
			owned = true
		} else {
			s.deliver(n)
		}
	}
	if !owned {
		return
	}
	c.awaiting = append(c.awaiting, awaiting{notice: n, since: time.Now()})
	if len(c.awaiting) == 1 || len(c.awaiting) > maxAwaiting {
		c.deliverAwaited() // the others come after the first
	}
}

func (s *Subscription) deliver(n conn.Notice) {
	select {
	case s.c <- n:
	default:
		s.dropped.Add(1)
	}
}

// awaiting is a notice that waits until its owner has been searched for.
type awaiting struct {
	notice   conn.Notice
	since    time.Time
	searched bool // a search for it has begun
	done     bool // and ended
}

// lacksOwner reports whether a process holds the connection, and is not known.
func (a *awaiting) lacksOwner() bool {
	c := &a.notice.Connection
	return !a.done && c.Held() && c.Process == nil
}

// awaitsOwners reports whether a subscriber waits for owners.
func (c *Collector) awaitsOwners() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		if s.owned {
			return true
		}
	}
	return false
}

// searchAwaited adds to the connections whose owners are searched for those of notices
// that wait, with the ids of their control groups.
func (c *Collector) searchAwaited(wanted map[uint64]uint64) {
	for i := range c.awaiting {
		if a := &c.awaiting[i]; a.lacksOwner() {
			a.searched = true
			wanted[a.notice.Connection.Cookie] = a.notice.Connection.CgroupID
		}
	}
}

// foundAwaited takes in what was found of them.
func (c *Collector) foundAwaited(owners map[uint64]conn.Ownership) {
	for i := range c.awaiting {
		a := &c.awaiting[i]
		if !a.searched || a.done {
			continue
		}
		a.done = true
		if o, ok := owners[a.notice.Connection.Cookie]; ok {
			a.notice = a.notice.WithOwner(o)
		}
	}
	c.deliverAwaited()
}

// endAwaiting delivers all that wait.
func (c *Collector) endAwaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitingEnded = true
	c.deliverAwaited()
}

// deliverAwaited delivers, in their order, the notices that wait for no owner any more.
func (c *Collector) deliverAwaited() {
	n := 0
	for n < len(c.awaiting) {
		a := &c.awaiting[n]
		if a.lacksOwner() && !c.awaitingEnded && time.Since(a.since) < awaitingFor && len(c.awaiting)-n <= maxAwaiting {
			break
		}
		for s := range c.subs {
			if s.owned {
				s.deliver(a.notice)
			}
		}
		n++
	}
	clear(c.awaiting[:n]) // what they point to
	if c.awaiting = c.awaiting[n:]; len(c.awaiting) == 0 {
		c.awaiting = nil
		return
	}
	wake(c.ownersWanted)
	if c.awaitingTimed {
		return
	}
	c.awaitingTimed = true
	time.AfterFunc(time.Until(c.awaiting[0].since.Add(awaitingFor)), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.awaitingTimed = false
		c.deliverAwaited()
	})
}
