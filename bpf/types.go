// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"net/netip"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Names of what package abi has.
type (
	// Conn is [abi.Conn].
	Conn = abi.Conn
	// Event is [abi.Event].
	Event = abi.Event
	// Owner is [abi.Owner].
	Owner = abi.Owner
	// Holder is [abi.Holder].
	Holder = abi.Holder
	// CensusCounts is [abi.CensusCounts].
	CensusCounts = abi.CensusCounts
	// Counters is [abi.Counters].
	Counters = abi.Counters
)

// Types of [Event].
const (
	EventSolicitation = abi.EventSolicitation
	EventDeath        = abi.EventDeath
	EventTypes        = abi.EventTypes
)

// Values of [Conn].Evidence and [Event].During.
const (
	EvidenceNone        = abi.EvidenceNone
	EvidenceKeepalive   = abi.EvidenceKeepalive
	EvidenceRetransmit  = abi.EvidenceRetransmit
	EvidenceWindowProbe = abi.EvidenceWindowProbe
)

// Values of [Event].Cause, and indices of [Counters].Deaths.
const (
	CauseUnknown            = abi.CauseUnknown
	CauseKeepaliveTimeout   = abi.CauseKeepaliveTimeout
	CauseUserTimeout        = abi.CauseUserTimeout
	CauseRetransmitTimeout  = abi.CauseRetransmitTimeout
	CauseWindowProbeTimeout = abi.CauseWindowProbeTimeout
	CauseConnectTimeout     = abi.CauseConnectTimeout
	CauseOrphanTimeout      = abi.CauseOrphanTimeout
	CauseResetByPeer        = abi.CauseResetByPeer
	CauseRefused            = abi.CauseRefused
	CauseUnreachable        = abi.CauseUnreachable
	CauseAborted            = abi.CauseAborted
	CauseDestroyed          = abi.CauseDestroyed
	CauseOutOfMemory        = abi.CauseOutOfMemory
	CauseClosed             = abi.CauseClosed
	Causes                  = abi.Causes
)

// Values of [Conn].Class, and second indices of [CensusCounts].Sockets.
const (
	ClassNone      = abi.ClassNone
	ClassActive    = abi.ClassActive
	ClassIdle      = abi.ClassIdle
	ClassUnguarded = abi.ClassUnguarded
	ClassTrouble   = abi.ClassTrouble
)

// Bits of [Conn].Risks are 1 << these, which also index [CensusCounts].Risks.
const (
	RiskNoKeepalive                  = abi.RiskNoKeepalive
	RiskKeepaliveSlowerThanMiddlebox = abi.RiskKeepaliveSlowerThanMiddlebox
	RiskUserTimeoutOverridesKeepcnt  = abi.RiskUserTimeoutOverridesKeepcnt
	RiskKeepaliveMaskedByUnackedData = abi.RiskKeepaliveMaskedByUnackedData
	RiskCloseWaitLeak                = abi.RiskCloseWaitLeak
	Risks                            = abi.Risks
)

// Bits of [Conn].Flags.
const (
	ConnKeepalive          = abi.ConnKeepalive
	ConnKeepaliveTimeSet   = abi.ConnKeepaliveTimeSet
	ConnKeepaliveIntvlSet  = abi.ConnKeepaliveIntvlSet
	ConnKeepaliveProbesSet = abi.ConnKeepaliveProbesSet
	ConnOrphan             = abi.ConnOrphan
	ConnUnaccepted         = abi.ConnUnaccepted
	ConnWindowClosed       = abi.ConnWindowClosed
	ConnTrouble            = abi.ConnTrouble
	ConnSoftError          = abi.ConnSoftError
	ConnAnswered           = abi.ConnAnswered
	ConnGone               = abi.ConnGone
	ConnSynRetriesSet      = abi.ConnSynRetriesSet
	ConnFinTimeSet         = abi.ConnFinTimeSet
	ConnRtoMaxSet          = abi.ConnRtoMaxSet
	ConnThinSet            = abi.ConnThinSet
	ConnBlocked            = abi.ConnBlocked
)

// Values of [Conn].State, and first indices of [CensusCounts].Sockets
// (include/net/tcp_states.h).
const (
	StateEstablished = abi.StateEstablished
	StateSynSent     = abi.StateSynSent
	StateSynRecv     = abi.StateSynRecv
	StateFinWait1    = abi.StateFinWait1
	StateFinWait2    = abi.StateFinWait2
	StateTimeWait    = abi.StateTimeWait
	StateClose       = abi.StateClose
	StateCloseWait   = abi.StateCloseWait
	StateLastAck     = abi.StateLastAck
	StateListen      = abi.StateListen
	StateClosing     = abi.StateClosing
	StateNewSynRecv  = abi.StateNewSynRecv
)

// Values of [Conn].Pending.
const (
	PendingRetransmit    = abi.PendingRetransmit
	PendingWindowProbe   = abi.PendingWindowProbe
	PendingTailLossProbe = abi.PendingTailLossProbe
	PendingReorder       = abi.PendingReorder
)

// Indices of [Counters].Retransmits.
const (
	RetransmitTimeout       = abi.RetransmitTimeout
	RetransmitFast          = abi.RetransmitFast
	RetransmitTailLossProbe = abi.RetransmitTailLossProbe
	RetransmitSyn           = abi.RetransmitSyn
	RetransmitSynack        = abi.RetransmitSynack
	RetransmitTypes         = abi.RetransmitTypes
)

// Indices of [Counters].Faults.
const (
	FaultWatchFull    = abi.FaultWatchFull
	FaultNoCookie     = abi.FaultNoCookie
	FaultRememberFull = abi.FaultRememberFull
	FaultCensusFull   = abi.FaultCensusFull
	Faults            = abi.Faults
)

// IdleBuckets is [abi.IdleBuckets].
const IdleBuckets = abi.IdleBuckets

// AgeNone is [abi.AgeNone].
const AgeNone = abi.AgeNone

// Local returns [abi.Conn.Local].
func Local(c *Conn) netip.AddrPort { return c.Local() }

// Remote returns [abi.Conn.Remote].
func Remote(c *Conn) netip.AddrPort { return c.Remote() }
