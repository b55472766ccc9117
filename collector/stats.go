// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// IdleBounds are the upper bounds of Stats.Idle, for bpf.Options. Among them are the usual
// limits of middleboxes (240 s, 350 s, 10 min, 15 min, 20 min) and Linux's keepalive time
// (2 h).
var IdleBounds = []time.Duration{
	time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute,
	4 * time.Minute, 5 * time.Minute, 350 * time.Second, 10 * time.Minute, 15 * time.Minute,
	20 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 12 * time.Hour,
	24 * time.Hour, 5 * 24 * time.Hour,
}

// Stats has all values that the metrics need, from one moment.
type Stats struct {
	conn.TrackerStats
	Unjudged [conn.States]uint64 // sockets in the states for which [conn.State.Judged] is false
	AtRisk   [conn.Risks]uint64
	// AtRiskByOwner has only the names of owners and risks. It is up to a few censuses old,
	// and must not be changed.
	AtRiskByOwner map[conn.OwnerLabel]int
	Idle          conn.Histogram // of the established connections at the last census
	Census        CensusStats
	Kernel        abi.Counters
	Missed        map[string]uint64 // by program: calls that the kernel skipped because the program was running
	Attached      map[string]bool   // by program
	EventsLost    map[string]uint64 // by type, in addition to Kernel.Lost
	Degraded      []Finding         // reasons why the agent does not see everything
}

// CensusStats describes the last census.
type CensusStats struct {
	At         time.Time // zero: there was no census yet
	Duration   time.Duration
	Interval   time.Duration // from this census to the next
	Sockets    uint64
	Namespaces int
	Unvisited  int // namespaces with connections that got no cookie
	OwnTables  int // namespaces with an own hash table of connections
	// Overflows is how many SYNs, and ACKs that end a handshake, listeners have dropped since
	// the first census.
	Overflows uint64
}

// Stats returns the current values for the metrics. Its error is that of reading the kernel's
// counters. It reads these first and then applies all events, so that no connection whose
// death is counted still counts as a connection.
func (c *Collector) Stats() (Stats, error) {
	counted, err := c.kernel.Stats()
	if err != nil {
		return Stats{}, err
	}
	c.awaitEvents()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{
		TrackerStats: c.tracker.Stats(time.Now()),
		Idle:         idleHistogram(&c.counts, c.rules.HZ),
		Census:       c.census,
		Kernel:       counted.Counters,
		Missed:       counted.Missed,
		Attached:     counted.Attached,
		Degraded:     c.Degraded(),
	}
	s.EventsLost = map[string]uint64{
		"undecodable": c.undecodable.Load(),
		"pass_failed": c.failed.Load(),
		"table_full":  s.Overflowed,
	}
	s.Kernel.Deaths[conn.CauseUnknown] += s.Unseen
	for state, classes := range c.counts.Sockets {
		if st := conn.StateOf(uint8(state)); int(st) < conn.States && !st.Judged() {
			for _, n := range classes {
				s.Unjudged[st] += n
			}
		}
	}
	copy(s.AtRisk[:], c.counts.Risks[:])
	s.AtRiskByOwner = c.atRiskByOwner
	s.AtRisk[conn.RiskPeerHostSilent] = uint64(s.PeerHostSilent)
	return s, nil
}

// idleHistogram returns the histogram of idle times from the counts of a census.
func idleHistogram(counts *abi.CensusCounts, hz int) conn.Histogram {
	h := conn.Histogram{Sum: float64(counts.IdleSum) / float64(hz)}
	for i, bound := range IdleBounds {
		h.Bounds = append(h.Bounds, bound.Seconds())
		h.Counts = append(h.Counts, counts.Idle[i])
	}
	var above uint64
	for _, n := range counts.Idle[len(IdleBounds):] {
		above += n
	}
	h.Counts = append(h.Counts, above)
	return h
}
