// SPDX-License-Identifier: Apache-2.0

package conn

import "github.com/halfopen/halfopen/bpf/abi"

// RetransmitType is what made the kernel send a segment again: the index of the kernel
// counters' Retransmits.
type RetransmitType uint8

// The types of retransmissions.
const (
	RetransmitTimeout       = RetransmitType(abi.RetransmitTimeout)
	RetransmitFast          = RetransmitType(abi.RetransmitFast)
	RetransmitTailLossProbe = RetransmitType(abi.RetransmitTailLossProbe)
	RetransmitSyn           = RetransmitType(abi.RetransmitSyn)
	RetransmitSynack        = RetransmitType(abi.RetransmitSynack)

	RetransmitTypes = abi.RetransmitTypes
)

var retransmitTypeNames = [RetransmitTypes]string{
	RetransmitTimeout:       "timeout",
	RetransmitFast:          "fast",
	RetransmitTailLossProbe: "tail_loss_probe",
	RetransmitSyn:           "syn",
	RetransmitSynack:        "synack",
}

// String returns the type's name, a value of a label.
func (t RetransmitType) String() string { return retransmitTypeNames[t] }

// EventType is the type of an event that the kernel programs write: the index of the
// kernel counters' Events, Lost and Suppressed.
type EventType uint8

// The types of events.
const (
	EventSolicitation = EventType(abi.EventSolicitation)
	EventDeath        = EventType(abi.EventDeath)

	EventTypes = abi.EventTypes
)

var eventTypeNames = [EventTypes]string{
	EventSolicitation: "solicitation",
	EventDeath:        "death",
}

// String returns the type's name, a value of a label.
func (t EventType) String() string { return eventTypeNames[t] }

// Fault is something that a kernel program could not do: the index of the kernel
// counters' Faults.
type Fault uint8

// The faults.
const (
	FaultWatchFull    = Fault(abi.FaultWatchFull)
	FaultNoCookie     = Fault(abi.FaultNoCookie)
	FaultRememberFull = Fault(abi.FaultRememberFull)
	FaultCensusFull   = Fault(abi.FaultCensusFull)

	Faults = abi.Faults
)

var faultNames = [Faults]string{
	FaultWatchFull:    "watch_full",
	FaultNoCookie:     "no_cookie",
	FaultRememberFull: "remember_full",
	FaultCensusFull:   "census_full",
}

// String returns the fault's name, a value of a label.
func (f Fault) String() string { return faultNames[f] }
