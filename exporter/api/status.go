// SPDX-License-Identifier: Apache-2.0

package api

import "time"

// Summary is how a node and its agent are.
type Summary struct {
	Node     string         `json:"node"`    // its host name
	Version  string         `json:"version"` // the agent's
	Ready    bool           `json:"ready"`   // the first census is done
	Total    uint64         `json:"total"`   // connections
	Verdicts map[string]int `json:"verdicts"`
	AtRisk   map[string]int `json:"at_risk"` // a connection may be at several risks
	// Deaths by cause since DeathsSince.
	Deaths      map[string]uint64 `json:"deaths"`
	DeathsSince time.Time         `json:"deaths_since"`
	Idle        IdleTimes         `json:"idle"`
	Census      CensusSummary     `json:"census"`
	Settings    Settings          `json:"settings"`
}

// Status is the answer of /api/v1/status. Its Deaths are those since the agent started.
type Status struct {
	At time.Time `json:"at"`
	Summary
	StartedAt  time.Time         `json:"started_at"`  // the agent
	NotReady   *string           `json:"not_ready"`   // why /-/ready fails, on one line; null: it does not
	Degraded   []Degraded        `json:"degraded"`    // why the agent does not see everything
	EventsLost map[string]uint64 `json:"events_lost"` // by type, as halfopen_events_lost_total
	Detached   []string          `json:"detached"`    // kernel programs that are not attached
}

// Lost returns how many events were lost, of all types.
func (s *Status) Lost() (sum uint64) {
	for _, n := range s.EventsLost {
		sum += n
	}
	return sum
}

// Reasons returns the reasons why the agent does not see everything.
func (s *Status) Reasons() (reasons []string) {
	for _, d := range s.Degraded {
		reasons = append(reasons, d.Reason)
	}
	return reasons
}

// Degraded is a reason why the agent does not see everything.
type Degraded struct {
	Reason string `json:"reason"` // as halfopen_degraded has it
	Detail string `json:"detail"` // how it shows, on one line
	// Most says that the agent does not see most of the node. It is not ready then.
	Most bool `json:"most"`
}

// StreamSummary is the data of the stream's event summary. Its Deaths are those of the
// last hour, or since the agent started.
type StreamSummary struct {
	Summary
	Missed uint64 `json:"missed"` // events of this stream that were lost: they came too fast
}

// IdleTimes counts the established connections at the last census by how long they were
// idle: Counts[i] up to Bounds[i] seconds, and the last longer than any bound.
type IdleTimes struct {
	Bounds []float64 `json:"bounds"`
	Counts []uint64  `json:"counts"`
}

// CensusSummary describes the last census.
type CensusSummary struct {
	At              *time.Time `json:"at"` // null: there was none yet
	Sockets         uint64     `json:"sockets"`
	Namespaces      int        `json:"namespaces"`
	IntervalSeconds float64    `json:"interval_seconds"`
}

// Settings are the thresholds of the agent's flags.
type Settings struct {
	IdleAfterSeconds        float64 `json:"idle_after_seconds"`
	StalledAfterSeconds     float64 `json:"stalled_after_seconds"`
	UnreadAfterSeconds      float64 `json:"unread_after_seconds"`
	ZombieUnanswered        int     `json:"zombie_unanswered"`
	ZombieSilenceSeconds    float64 `json:"zombie_silence_seconds"`
	MiddleboxTimeoutSeconds float64 `json:"middlebox_timeout_seconds"`
	// MiddleboxTimeoutsSeconds are exceptions by prefix of the remote address.
	MiddleboxTimeoutsSeconds map[string]float64 `json:"middlebox_timeouts_seconds,omitempty"`
}

// History is the data of the stream's event history: the counts of the last hour. All
// arrays have the same length. Deaths are those since the entry before, without orderly
// ends.
type History struct {
	At        []int64  `json:"at"` // seconds since 1970, ascending
	Zombie    []uint64 `json:"zombie"`
	Stuck     []uint64 `json:"stuck"`
	Blocked   []uint64 `json:"blocked"`
	Suspect   []uint64 `json:"suspect"`
	Stalled   []uint64 `json:"stalled"`
	Unread    []uint64 `json:"unread"`
	Unguarded []uint64 `json:"unguarded"`
	AtRisk    []uint64 `json:"at_risk"` // the sum of all risks
	Deaths    []uint64 `json:"deaths"`
}
