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
	// FactWatch is one record of a watch pass, which reads the sockets that the kernel
	// watches; or of a socket that was unread, whose application has read since.
	FactWatch
	// FactSweep ends a watch pass. The tracker then records the deaths of sockets that a
	// watch pass did not find a while ago, and whose deaths no event reported.
	FactSweep
	// FactCensus is a census of all sockets.
	FactCensus
	// FactOwners is the result of a search for owners.
	FactOwners
	// FactObstacles is what looks at the paths of connections in trouble found.
	FactObstacles
)

// Fact is one input of a [Tracker]. Facts may come late, twice, or not at all. Besides
// At, a fact has the fields whose comments name its kind.
type Fact struct {
	Kind FactKind
	// At is the time of the record (FactEvent, FactWatch), the end of the pass
	// (FactSweep, FactCensus), or the beginning of the search (FactOwners, FactObstacles).
	At time.Time
	// Event is set for FactEvent. The tracker reads it only during the call.
	Event *abi.Event
	// Conn is the record of FactWatch. The tracker reads it only during the call.
	Conn   *abi.Conn
	Census *Census // of FactCensus
	// Owners is the result of FactOwners: one entry, by cookie, for each connection that
	// was searched for. Its Process is nil if the search found none.
	Owners map[uint64]Ownership
	// Obstacles is the result of FactObstacles: one entry, by cookie, for each connection whose
	// path was looked at. It is the zero value if the path showed no obstacle, and nil if the
	// look failed.
	Obstacles map[uint64]*Reason
}

// Observation is the record of a connection and the time at which the kernel wrote it.
type Observation struct {
	Conn abi.Conn
	At   time.Time
}

// Census is the result of a census.
type Census struct {
	Began  time.Time
	Counts *abi.CensusCounts
	// Troubled has every connection that a tracker follows (see [Followed]), except those in
	// the hash tables of the network namespaces in Unwalked.
	Troubled []Observation
	Unwalked []uint32 // inode numbers of network namespaces
	// Hosts has, for addresses of [Tracker.ZombieHosts], all connections to them, except those
	// in the hash tables of Unwalked.
	Hosts map[HostKey]HostCount
	// Rows are the connections that get a row: the worst ones, at most [MaxRows]. It is
	// nil if the census only counts. A recording leaves them out.
	Rows []Observation
}

// Apply applies a fact. recheckAfter is the time after which another watch pass is
// useful, because the answer to a solicitation that changes the verdict should have come
// by then; 0 if none is.
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
	case FactObstacles:
		t.setObstacles(f.Obstacles, f.At)
	}
	return 0
}
