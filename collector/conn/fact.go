// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// FactKind is the kind of a [Fact].
type FactKind uint8

// The kinds of facts.
const (
	// FactEvent is an event that the kernel sent.
	FactEvent FactKind = iota
	// FactWatch is one record of a watch pass, which reads the sockets that have
	// something unanswered.
	FactWatch
	// FactSweep ends a watch pass: who was found gone a while ago, and whose death
	// no event reported, is dead.
	FactSweep
	// FactCensus is a census of all sockets.
	FactCensus
	// FactOwners is what a search for owners found.
	FactOwners
)

// Fact is one input of a [Tracker]. Facts may come late, twice, or not at all. Of the
// fields below At, those are set that the kind names.
type Fact struct {
	Kind FactKind
	// At is the time of the record (FactEvent, FactWatch), of the end of the pass
	// (FactSweep, FactCensus), or of the beginning of the search (FactOwners).
	At time.Time
	// Event is that of a FactEvent. It is only read during the call.
	Event *abi.Event
	// Conn is the record of a FactWatch. It is only read during the call.
	Conn   *abi.Conn
	Census *Census // of a FactCensus
	// Owners are those of a FactOwners, by cookie, one for each connection that was
	// searched for; its Process is nil where the search found none.
	Owners map[uint64]Ownership
}

// Census is what a census found.
type Census struct {
	Began  time.Time
	Counts *abi.CensusCounts
	// Troubled is every connection in trouble, but for those of the hash tables of
	// the network namespaces in Unwalked.
	Troubled []Observation
	Unwalked []uint32 // inode numbers
	// Rows are the connections that get a row: the worst, at most [MaxRows]. Nil for a
	// census that only counts. A recording leaves them out.
	Rows []Observation
}

// Apply takes in a fact. If an answer may be on its way that decides, recheckAfter is
// how long to wait before the watched sockets are worth reading again; else 0.
func (t *Tracker) Apply(f *Fact) (recheckAfter time.Duration) {
	switch f.Kind {
	case FactEvent:
		switch f.Event.Type {
		case abi.EventDeath:
			t.death(f.Event, f.At)
		case abi.EventSolicitation:
			return t.solicitation(f.Event, f.At)
		}
	case FactWatch:
		return t.watched(f.Conn, f.At)
	case FactSweep:
		t.sweep(f.At)
	case FactCensus:
		t.census(f.Census, f.At)
	case FactOwners:
		t.setOwners(f.Owners, f.At)
	}
	return 0
}
