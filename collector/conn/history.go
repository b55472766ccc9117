// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"slices"
	"time"
)

// Bounds of the histories that a Tracker keeps.
const (
	maxHistories = 16384
	maxEntries   = 16               // in one history; the oldest entry makes room
	historyFor   = 15 * time.Minute // after its last entry, unless the connection is in trouble
)

// history is what happened to a connection lately.
type history struct {
	entries []HistoryEntry // oldest first, at least one, at most maxEntries
}

// appendHistory adds an entry to the history of a connection.
func (t *Tracker) appendHistory(cookie uint64, e HistoryEntry) {
	h := t.histories[cookie]
	if h == nil {
		if len(t.histories) >= maxHistories {
			t.overflowed++
			return
		}
		h = &history{}
		t.histories[cookie] = h
	}
	if len(h.entries) == maxEntries {
		copy(h.entries, h.entries[1:])
		h.entries = h.entries[:maxEntries-1]
	}
	h.entries = append(h.entries, e)
}

// forgetHistories removes the histories that are older than historyFor.
func (t *Tracker) forgetHistories(now time.Time) {
	for cookie, h := range t.histories {
		if now.Sub(h.entries[len(h.entries)-1].At) > historyFor && t.tracked[cookie] == nil {
			delete(t.histories, cookie)
		}
	}
}

// History returns what happened to a connection lately, oldest first; nil if the tracker
// has no history of it.
func (t *Tracker) History(cookie uint64) []HistoryEntry {
	if h := t.histories[cookie]; h != nil {
		return slices.Clone(h.entries)
	}
	return nil
}
