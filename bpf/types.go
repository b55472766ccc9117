// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import "net/netip"

// The types shared with the kernel programs; see halfopen.h for each field's
// meaning and unit.
type (
	// Conn is one connection, or of ClassNone another socket, as it was at one
	// moment.
	Conn = halfopenConn
	// Event is what the kernel found worth saying.
	Event = halfopenEvent
	// Owner is one descriptor of one process that holds a socket.
	Owner = halfopenOwner
	// Holder leads to a network namespace.
	Holder = halfopenHolder
	// CensusCounts is what one census counted.
	CensusCounts = halfopenCensus
	// Counters are the kernel's exact counters, summed over the CPUs.
	Counters = halfopenCounters
)

// Types of [Event].
const (
	EventSolicitation = uint8(halfopenEventTypeEVENT_SOLICITATION)
	EventDeath        = uint8(halfopenEventTypeEVENT_DEATH)
	EventTypes        = int(halfopenEventTypeEVENT_MAX)
)

// Values of [Holder].Kind.
const (
	holderFile   = uint8(halfopenHolderKindHOLDER_FILE)
	holderSocket = uint8(halfopenHolderKindHOLDER_SOCKET)
)

// Values of [Conn].Evidence and [Event].During.
const (
	EvidenceNone        = uint8(halfopenEvidenceEVIDENCE_NONE)
	EvidenceKeepalive   = uint8(halfopenEvidenceEVIDENCE_KEEPALIVE)
	EvidenceRetransmit  = uint8(halfopenEvidenceEVIDENCE_RETRANSMIT)
	EvidenceWindowProbe = uint8(halfopenEvidenceEVIDENCE_WINDOW_PROBE)
)

// Values of [Event].Cause, and indices of [Counters].Deaths.
const (
	CauseUnknown            = uint8(halfopenCauseCAUSE_UNKNOWN)
	CauseKeepaliveTimeout   = uint8(halfopenCauseCAUSE_KEEPALIVE_TIMEOUT)
	CauseUserTimeout        = uint8(halfopenCauseCAUSE_USER_TIMEOUT)
	CauseRetransmitTimeout  = uint8(halfopenCauseCAUSE_RETRANSMIT_TIMEOUT)
	CauseWindowProbeTimeout = uint8(halfopenCauseCAUSE_WINDOW_PROBE_TIMEOUT)
	CauseConnectTimeout     = uint8(halfopenCauseCAUSE_CONNECT_TIMEOUT)
	CauseOrphanTimeout      = uint8(halfopenCauseCAUSE_ORPHAN_TIMEOUT)
	CauseResetByPeer        = uint8(halfopenCauseCAUSE_RESET_BY_PEER)
	CauseRefused            = uint8(halfopenCauseCAUSE_REFUSED)
	CauseUnreachable        = uint8(halfopenCauseCAUSE_UNREACHABLE)
	CauseAborted            = uint8(halfopenCauseCAUSE_ABORTED)
	CauseDestroyed          = uint8(halfopenCauseCAUSE_DESTROYED)
	CauseOutOfMemory        = uint8(halfopenCauseCAUSE_OUT_OF_MEMORY)
	CauseClosed             = uint8(halfopenCauseCAUSE_CLOSED)
	Causes                  = int(halfopenCauseCAUSE_MAX)
)

// Values of [Conn].Class, and second indices of [CensusCounts].Sockets.
const (
	ClassNone      = uint8(halfopenClassCLASS_NONE)
	ClassActive    = uint8(halfopenClassCLASS_ACTIVE)
	ClassIdle      = uint8(halfopenClassCLASS_IDLE)
	ClassUnguarded = uint8(halfopenClassCLASS_UNGUARDED)
	ClassTrouble   = uint8(halfopenClassCLASS_TROUBLE)
)

// Bits of [Conn].Risks are 1 << these, which also index [CensusCounts].Risks.
const (
	RiskNoKeepalive                  = int(halfopenRiskRISK_NO_KEEPALIVE)
	RiskKeepaliveSlowerThanMiddlebox = int(halfopenRiskRISK_KEEPALIVE_SLOWER_THAN_MIDDLEBOX)
	RiskUserTimeoutOverridesKeepcnt  = int(halfopenRiskRISK_USER_TIMEOUT_OVERRIDES_KEEPCNT)
	RiskKeepaliveMaskedByUnackedData = int(halfopenRiskRISK_KEEPALIVE_MASKED_BY_UNACKED_DATA)
	RiskCloseWaitLeak                = int(halfopenRiskRISK_CLOSE_WAIT_LEAK)
	Risks                            = RiskCloseWaitLeak + 1
)

// Bits of [Conn].Flags.
const (
	ConnKeepalive          = uint16(halfopenConnFlagCONN_KEEPALIVE)
	ConnKeepaliveTimeSet   = uint16(halfopenConnFlagCONN_KEEPALIVE_TIME_SET)
	ConnKeepaliveIntvlSet  = uint16(halfopenConnFlagCONN_KEEPALIVE_INTVL_SET)
	ConnKeepaliveProbesSet = uint16(halfopenConnFlagCONN_KEEPALIVE_PROBES_SET)
	ConnOrphan             = uint16(halfopenConnFlagCONN_ORPHAN)
	ConnUnaccepted         = uint16(halfopenConnFlagCONN_UNACCEPTED)
	ConnWindowClosed       = uint16(halfopenConnFlagCONN_WINDOW_CLOSED)
	ConnTrouble            = uint16(halfopenConnFlagCONN_TROUBLE)
	ConnSoftError          = uint16(halfopenConnFlagCONN_SOFT_ERROR)
	ConnAnswered           = uint16(halfopenConnFlagCONN_ANSWERED)
	ConnGone               = uint16(halfopenConnFlagCONN_GONE)
	ConnSynRetriesSet      = uint16(halfopenConnFlagCONN_SYN_RETRIES_SET)
	ConnFinTimeSet         = uint16(halfopenConnFlagCONN_FIN_TIME_SET)
	ConnRtoMaxSet          = uint16(halfopenConnFlagCONN_RTO_MAX_SET)
	ConnThinSet            = uint16(halfopenConnFlagCONN_THIN_SET)
	ConnBlocked            = uint16(halfopenConnFlagCONN_BLOCKED)
)

// Values of [Conn].State, and first indices of [CensusCounts].Sockets
// (include/net/tcp_states.h).
const (
	StateEstablished = uint8(halfopenTcpStateTCP_ESTABLISHED)
	StateSynSent     = uint8(halfopenTcpStateTCP_SYN_SENT)
	StateSynRecv     = uint8(halfopenTcpStateTCP_SYN_RECV)
	StateFinWait1    = uint8(halfopenTcpStateTCP_FIN_WAIT1)
	StateFinWait2    = uint8(halfopenTcpStateTCP_FIN_WAIT2)
	StateTimeWait    = uint8(halfopenTcpStateTCP_TIME_WAIT)
	StateClose       = uint8(halfopenTcpStateTCP_CLOSE)
	StateCloseWait   = uint8(halfopenTcpStateTCP_CLOSE_WAIT)
	StateLastAck     = uint8(halfopenTcpStateTCP_LAST_ACK)
	StateListen      = uint8(halfopenTcpStateTCP_LISTEN)
	StateClosing     = uint8(halfopenTcpStateTCP_CLOSING)
	StateNewSynRecv  = uint8(halfopenTcpStateTCP_NEW_SYN_RECV)
)

// Indices of [Counters].Retransmits.
const (
	RetransmitTimeout       = int(halfopenRetransmitTypeRETRANSMIT_TIMEOUT)
	RetransmitFast          = int(halfopenRetransmitTypeRETRANSMIT_FAST)
	RetransmitTailLossProbe = int(halfopenRetransmitTypeRETRANSMIT_TAIL_LOSS_PROBE)
	RetransmitSyn           = int(halfopenRetransmitTypeRETRANSMIT_SYN)
	RetransmitSynack        = int(halfopenRetransmitTypeRETRANSMIT_SYNACK)
	RetransmitTypes         = RetransmitSynack + 1
)

// Indices of [Counters].Faults.
const (
	FaultWatchFull    = int(halfopenFaultFAULT_WATCH_FULL)
	FaultNoCookie     = int(halfopenFaultFAULT_NO_COOKIE)
	FaultRememberFull = int(halfopenFaultFAULT_REMEMBER_FULL)
	FaultCensusFull   = int(halfopenFaultFAULT_CENSUS_FULL)
	Faults            = FaultCensusFull + 1
)

// IdleBuckets is how many bounds of idle time [CensusCounts].Idle can have;
// one more counts what is above the last.
const IdleBuckets = len(CensusCounts{}.Idle) - 1

// AgeNone is the age of what never happened.
const AgeNone = ^uint32(0)

// Address families of [Conn].Family (include/linux/socket.h).
const (
	afInet  = 2
	afInet6 = 10
)

// Local returns the connection's own address and port. An IPv4 connection of
// an IPv6 socket has IPv4 addresses, as on the wire.
func Local(c *Conn) netip.AddrPort { return addrPort(c.Family, &c.Laddr, c.Lport) }

// Remote returns the peer's address and port; see [Local].
func Remote(c *Conn) netip.AddrPort { return addrPort(c.Family, &c.Raddr, c.Rport) }

func addrPort(family uint16, a *[16]uint8, port uint16) netip.AddrPort {
	switch family {
	case afInet:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[:4])), port)
	case afInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(*a).Unmap(), port)
	}
	return netip.AddrPort{}
}
