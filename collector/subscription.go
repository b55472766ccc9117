// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"sync/atomic"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// A notice waits for its owner for at most awaitingTimeout, and at most maxAwaiting
	// notices wait. Beyond these bounds, notices are delivered without an owner.
	awaitingTimeout = 2 * time.Second
	maxAwaiting     = 16384
)

// Subscription delivers notices on C, which is never closed. A subscriber that does not
// keep up loses notices; Dropped counts them.
type Subscription struct {
	C         <-chan conn.Notice
	c         chan conn.Notice
	owned     bool // made by SubscribeOwned
	began     time.Time
	collector *Collector // nil if a test made the subscription
	dropped   atomic.Uint64
}

// Close ends the delivery.
func (s *Subscription) Close() {
	if s.collector == nil {
		return
	}
	s.collector.mu.Lock()
	defer s.collector.mu.Unlock()
	delete(s.collector.subs, s)
}

// Dropped returns how many notices the subscriber has lost.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Subscribe returns a subscription to all notices from now on. It delivers each notice at
// once, through a buffer of that many notices. The connection of a notice has its owner only
// if the collector has found the owner before.
func (c *Collector) Subscribe(buffer int) *Subscription { return c.subscribe(buffer, false) }

// SubscribeOwned is Subscribe, but its subscription delivers a notice only after a search for
// the owner of the connection. If the search takes longer than two seconds, it delivers the
// notice without an owner. Notices stay in their order.
func (c *Collector) SubscribeOwned(buffer int) *Subscription { return c.subscribe(buffer, true) }

func (c *Collector) subscribe(buffer int, owned bool) *Subscription {
	s := &Subscription{c: make(chan conn.Notice, buffer), owned: owned, began: time.Now(), collector: c}
	s.C = s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = struct{}{}
	return s
}

// publish delivers a notice to the subscribers. The caller holds the lock, so publish must
// not block.
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
		c.deliverAwaited() // else an earlier notice waits, and this one after it
	}
}

// deliver sends a notice, or counts it as dropped if the buffer is full.
func (s *Subscription) deliver(n conn.Notice) {
	select {
	case s.c <- n:
	default:
		s.dropped.Add(1)
	}
}

// awaiting is a notice that waits for the search for its owner.
type awaiting struct {
	notice   conn.Notice
	since    time.Time
	searched bool // the search has begun
	done     bool // the search has ended
}

// lacksOwner reports whether the notice still needs a search for its owner.
func (a *awaiting) lacksOwner() bool {
	c := &a.notice.Connection
	return !a.done && c.Held() && c.Process == nil
}

// awaitsOwners reports whether SubscribeOwned has made one of the subscriptions.
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

// addAwaited adds the connections of waiting notices to wanted, which has the ids of control
// groups by cookie. It marks the notices as searched. The caller holds the lock.
func (c *Collector) addAwaited(wanted map[uint64]uint64) {
	for i := range c.awaiting {
		if a := &c.awaiting[i]; a.lacksOwner() {
			a.searched = true
			wanted[a.notice.Connection.Cookie] = a.notice.Connection.CgroupID
		}
	}
}

// setAwaitedOwners sets the owners that the search has found, and delivers the notices that
// waited for the search. The caller holds the lock.
func (c *Collector) setAwaitedOwners(owners map[uint64]conn.Ownership) {
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

// endAwaiting delivers all waiting notices. No notice waits after that.
func (c *Collector) endAwaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitingEnded = true
	c.deliverAwaited()
}

// deliverAwaited delivers waiting notices in their order, up to the first one that must still
// wait. The caller holds the lock.
func (c *Collector) deliverAwaited() {
	n := 0
	for n < len(c.awaiting) {
		a := &c.awaiting[n]
		if a.lacksOwner() && !c.awaitingEnded && time.Since(a.since) < awaitingTimeout && len(c.awaiting)-n <= maxAwaiting {
			break
		}
		for s := range c.subs {
			if s.owned && !a.since.Before(s.began) {
				s.deliver(a.notice)
			}
		}
		n++
	}
	clear(c.awaiting[:n]) // frees the owners that they point to
	if c.awaiting = c.awaiting[n:]; len(c.awaiting) == 0 {
		c.awaiting = nil
		return
	}
	wake(c.ownersWanted)
	if c.awaitingTimed {
		return
	}
	c.awaitingTimed = true
	time.AfterFunc(time.Until(c.awaiting[0].since.Add(awaitingTimeout)), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.awaitingTimed = false
		c.deliverAwaited()
	})
}
