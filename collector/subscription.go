// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"sync/atomic"

	"github.com/halfopen/halfopen/collector/conn"
)

// Subscription delivers notices on C, which is never closed. A subscriber that
// does not keep up loses notices, and Dropped counts them.
type Subscription struct {
	C       <-chan conn.Notice
	c       chan conn.Notice
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

// Subscribe delivers what happens from now on, through a buffer of that size.
func (c *Collector) Subscribe(buffer int) *Subscription {
	s := &Subscription{c: make(chan conn.Notice, buffer), of: c}
	s.C = s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = struct{}{}
	return s
}

// publish runs under the lock: it must not wait.
func (c *Collector) publish(n conn.Notice) {
	if n.Kind != conn.NoticeSolicitation {
		select {
		case c.ownersWanted <- struct{}{}:
		default: // there is some already
		}
	}
	for s := range c.subs {
		select {
		case s.c <- n:
		default:
			s.dropped.Add(1)
		}
	}
}
