// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Verdict is how halfopen judges a living connection.
type Verdict uint8

// The verdicts, best first.
const (
	// Active: the connection was made or data moved within Rules.IdleAfter, and no answer
	// is overdue.
	Active Verdict = iota
	// Idle: no data has moved for Rules.IdleAfter, and keepalive is on.
	Idle
	// Unguarded: no data has moved for Rules.IdleAfter, and keepalive is off, so the
	// kernel would never notice a dead peer.
	Unguarded
	// Unread: bytes wait for this host's application, which has read nothing for
	// Rules.UnreadAfter.
	Unread
	// Stalled: the peer answers, but its receive window has been closed for
	// Rules.StalledAfter.
	Stalled
	// Suspect: at least one solicitation is unanswered, or was not sent, which is not enough for a
	// zombie or a blocked connection.
	Suspect
	// Blocked: this host failed to send Rules.ZombieUnanswered solicitations in a row, for
	// Rules.ZombieSilence, and none left meanwhile. It says nothing about the peer.
	Blocked
	// Stuck: Rules.ZombieUnanswered solicitations in a row are not acknowledged, for
	// Rules.ZombieSilence, although the peer was heard since the first of them.
	Stuck
	// Zombie: the state is synchronized, Rules.ZombieUnanswered solicitations in a row
	// are unanswered, and nothing at all came from the peer for Rules.ZombieSilence.
	Zombie

	Verdicts = int(Zombie) + 1
)

var verdictNames = [Verdicts]string{
	Active:    "active",
	Idle:      "idle",
	Unguarded: "unguarded",
	Unread:    "unread",
	Stalled:   "stalled",
	Suspect:   "suspect",
	Blocked:   "blocked",
	Stuck:     "stuck",
	Zombie:    "zombie",
}

// String returns the verdict's name in the contract.
func (v Verdict) String() string { return verdictNames[v] }

// ParseVerdict is the reverse of String.
func ParseVerdict(s string) (Verdict, error) {
	v, err := parseName(s, verdictNames[:], VerdictNames(), "verdict")
	return Verdict(v), err
}

// VerdictNames returns the names of all verdicts, worst first: the order in which
// connections are listed.
func VerdictNames() []string {
	names := slices.Clone(verdictNames[:])
	slices.Reverse(names)
	return names
}

// Evidence is the kind of solicitation that was not answered or, of Unread, the queue that is
// not read.
type Evidence uint8

// The kinds of evidence.
const (
	NoEvidence          = Evidence(abi.EvidenceNone)
	EvidenceKeepalive   = Evidence(abi.EvidenceKeepalive)
	EvidenceRetransmit  = Evidence(abi.EvidenceRetransmit)
	EvidenceWindowProbe = Evidence(abi.EvidenceWindowProbe)
	// EvidenceReceiveQueue is not a solicitation.
	EvidenceReceiveQueue = Evidence(abi.EvidenceReceiveQueue)
)

var evidenceNames = [...]string{
	EvidenceKeepalive:    "keepalive",
	EvidenceRetransmit:   "retransmit",
	EvidenceWindowProbe:  "window_probe",
	EvidenceReceiveQueue: "receive_queue",
}

// String returns the name in the contract, "" for NoEvidence.
func (e Evidence) String() string { return nameOf(evidenceNames[:], uint8(e)) }

// Cause is what ended a connection.
//
// "Add a cause of death" in CONTRIBUTING.md lists the places that a new cause needs, and the
// tests that fail for each one that is forgotten.
type Cause uint8

// The causes. CauseUnknown means that none of the others could be shown.
const (
	CauseUnknown            = Cause(abi.CauseUnknown)
	CauseKeepaliveTimeout   = Cause(abi.CauseKeepaliveTimeout)
	CauseUserTimeout        = Cause(abi.CauseUserTimeout)
	CauseRetransmitTimeout  = Cause(abi.CauseRetransmitTimeout)
	CauseWindowProbeTimeout = Cause(abi.CauseWindowProbeTimeout)
	CauseConnectTimeout     = Cause(abi.CauseConnectTimeout)
	CauseOrphanTimeout      = Cause(abi.CauseOrphanTimeout)
	CauseResetByPeer        = Cause(abi.CauseResetByPeer)
	CauseRefused            = Cause(abi.CauseRefused)
	CauseUnreachable        = Cause(abi.CauseUnreachable)
	CauseAborted            = Cause(abi.CauseAborted)
	CauseDestroyed          = Cause(abi.CauseDestroyed)
	CauseOutOfMemory        = Cause(abi.CauseOutOfMemory)
	CauseClosed             = Cause(abi.CauseClosed)

	Causes = abi.Causes
)

var causeNames = [Causes]string{
	CauseUnknown:            "unknown",
	CauseKeepaliveTimeout:   "keepalive_timeout",
	CauseUserTimeout:        "user_timeout",
	CauseRetransmitTimeout:  "retransmit_timeout",
	CauseWindowProbeTimeout: "window_probe_timeout",
	CauseConnectTimeout:     "connect_timeout",
	CauseOrphanTimeout:      "orphan_timeout",
	CauseResetByPeer:        "reset_by_peer",
	CauseRefused:            "refused",
	CauseUnreachable:        "unreachable",
	CauseAborted:            "aborted",
	CauseDestroyed:          "destroyed",
	CauseOutOfMemory:        "out_of_memory",
	CauseClosed:             "closed",
}

// String returns the cause's name in the contract.
func (c Cause) String() string { return nameOf(causeNames[:], uint8(c)) }

// causeKind is what kind of end a cause is.
type causeKind uint8

const (
	_       causeKind = iota
	timeout           // a timer of the kernel ended the connection
	orderly           // no failure: both applications wanted it
	failure           // anything else
)

var causeKinds = [Causes]causeKind{
	CauseUnknown:            failure,
	CauseKeepaliveTimeout:   timeout,
	CauseUserTimeout:        timeout,
	CauseRetransmitTimeout:  timeout,
	CauseWindowProbeTimeout: timeout,
	CauseConnectTimeout:     timeout,
	CauseOrphanTimeout:      timeout,
	CauseResetByPeer:        failure,
	CauseRefused:            failure,
	CauseUnreachable:        failure,
	CauseAborted:            failure,
	CauseDestroyed:          failure,
	CauseOutOfMemory:        failure,
	CauseClosed:             orderly,
}

// IsTimeout reports whether a timer of the kernel ended the connection.
func (c Cause) IsTimeout() bool { return int(c) < Causes && causeKinds[c] == timeout }

// IsOrderly reports whether the end was no failure: it is counted, and told only of a
// connection that was in trouble.
func (c Cause) IsOrderly() bool { return int(c) < Causes && causeKinds[c] == orderly }

// ParseCause is the reverse of String.
func ParseCause(s string) (Cause, error) {
	c, err := parseName(s, causeNames[:], CauseNames(), "cause")
	return Cause(c), err
}

// CauseNames returns the names of all causes.
func CauseNames() []string { return slices.Clone(causeNames[:]) }

// Risk is a reason why a healthy connection may become a zombie, or why a zombie may go
// unnoticed; or why a listener loses connections.
type Risk uint8

// The risks.
const (
	RiskNoKeepalive                  = Risk(abi.RiskNoKeepalive)
	RiskKeepaliveSlowerThanMiddlebox = Risk(abi.RiskKeepaliveSlowerThanMiddlebox)
	RiskUserTimeoutOverridesKeepcnt  = Risk(abi.RiskUserTimeoutOverridesKeepcnt)
	RiskKeepaliveMaskedByUnackedData = Risk(abi.RiskKeepaliveMaskedByUnackedData)
	RiskCloseWaitLeak                = Risk(abi.RiskCloseWaitLeak)
	RiskHalfClosedUnguarded          = Risk(abi.RiskHalfClosedUnguarded)
	RiskOneProbeEndsIt               = Risk(abi.RiskOneProbeEndsIt)
	RiskAcceptQueueFull              = Risk(abi.RiskAcceptQueueFull)
	RiskPeerHostSilent               = Risk(abi.RiskPeerHostSilent)

	Risks = abi.Risks
)

var riskNames = [Risks]string{
	RiskNoKeepalive:                  "no_keepalive",
	RiskKeepaliveSlowerThanMiddlebox: "keepalive_slower_than_middlebox",
	RiskUserTimeoutOverridesKeepcnt:  "user_timeout_overrides_keepcnt",
	RiskKeepaliveMaskedByUnackedData: "keepalive_masked_by_unacked_data",
	RiskCloseWaitLeak:                "close_wait_leak",
	RiskHalfClosedUnguarded:          "half_closed_unguarded",
	RiskOneProbeEndsIt:               "one_probe_ends_it",
	RiskAcceptQueueFull:              "accept_queue_full",
	RiskPeerHostSilent:               "peer_host_silent",
}

// String returns the risk's name in the contract.
func (r Risk) String() string { return riskNames[r] }

// ParseRisk is the reverse of String.
func ParseRisk(s string) (Risk, error) {
	v, err := parseName(s, riskNames[:], RiskNames(), "risk")
	return Risk(v), err
}

// RiskNames returns the names of all risks.
func RiskNames() []string { return slices.Clone(riskNames[:]) }

// State is the kernel's TCP state (include/net/tcp_states.h).
type State uint8

// The states; request sockets (TCP_NEW_SYN_RECV) are SynRecv.
const (
	Established = State(abi.StateEstablished)
	SynSent     = State(abi.StateSynSent)
	SynRecv     = State(abi.StateSynRecv)
	FinWait1    = State(abi.StateFinWait1)
	FinWait2    = State(abi.StateFinWait2)
	TimeWait    = State(abi.StateTimeWait)
	Close       = State(abi.StateClose)
	CloseWait   = State(abi.StateCloseWait)
	LastAck     = State(abi.StateLastAck)
	Listen      = State(abi.StateListen)
	Closing     = State(abi.StateClosing)

	States = int(Closing) + 1
)

var stateNames = [States]string{
	Established: "established",
	SynSent:     "syn_sent",
	SynRecv:     "syn_recv",
	FinWait1:    "fin_wait1",
	FinWait2:    "fin_wait2",
	TimeWait:    "time_wait",
	Close:       "close",
	CloseWait:   "close_wait",
	LastAck:     "last_ack",
	Listen:      "listen",
	Closing:     "closing",
}

// String returns the state's name in the contract.
func (s State) String() string { return nameOf(stateNames[:], uint8(s)) }

// Judged reports whether a connection in this state has a verdict.
func (s State) Judged() bool {
	switch s {
	case SynRecv, TimeWait, Close, Listen:
		return false
	}
	return true
}

// ParseState is the reverse of String.
func ParseState(s string) (State, error) {
	v, err := parseName(s, stateNames[:], StateNames(), "state")
	return State(v), err
}

// StateNames returns the names of all states.
func StateNames() []string { return slices.Clone(stateNames[Established:]) }

// StateOf returns the state with the kernel's number; 0, which has no name, if there is
// no such state.
func StateOf(kernel uint8) State {
	switch {
	case kernel == abi.StateNewSynRecv:
		return SynRecv
	case int(kernel) >= States:
		return 0
	}
	return State(kernel)
}

// nameOf returns the name of a value that the kernel wrote; the name of 0 if it has none.
func nameOf(names []string, v uint8) string {
	if int(v) >= len(names) {
		v = 0
	}
	return names[v]
}

// parseName returns the index of s in names. Its error lists the names there are.
func parseName(s string, names, there []string, what string) (int, error) {
	if i := slices.Index(names, s); i >= 0 && s != "" {
		return i, nil
	}
	return 0, fmt.Errorf("unknown %s %q (there are %s)", what, s, strings.Join(there, ", "))
}

// FormatCookie formats a socket's cookie as `ss -e` does after "sk:".
func FormatCookie(cookie uint64) string { return strconv.FormatUint(cookie, 16) }

// ParseCookie is the reverse of FormatCookie.
func ParseCookie(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a socket cookie (hexadecimal, as ss -e prints it after sk:)", s)
	}
	return v, nil
}

// Keepalive has the keepalive settings that apply to a connection, from its socket or
// from the sysctls of its network namespace.
type Keepalive struct {
	Enabled   bool // SO_KEEPALIVE
	Time      time.Duration
	Interval  time.Duration
	Probes    int  // unanswered ones after which the kernel gives up
	ProbesOut int  // unanswered now
	PerSocket bool // at least one TCP_KEEP* option is set on the socket
}

// Process is a process that holds a socket.
type Process struct {
	PID  uint32
	Comm string // any bytes that the process chose
	FD   uint32
}

// Connection is one TCP connection at one moment. If a query asks for all sockets, it can
// also be a listener, or a stub: what the kernel keeps before a connection is made
// (syn_recv) and after its end (time_wait, fin_wait2). Idle and Silent are -1 if no data
// ever moved, or if the peer was never heard.
type Connection struct {
	Cookie        uint64
	At            time.Time // the moment
	Local, Remote netip.AddrPort
	Netns         uint32 // inode number
	State         State
	Verdict       Verdict
	Since         time.Time // when this verdict began; zero: unknown
	Evidence      Evidence  // of Unread, Stalled, Suspect, Blocked, Stuck and Zombie
	Reason        Reason    // of the verdict; zero: unknown
	Also          []Verdict // others whose conditions hold: Stalled, Unread
	// Unanswered is how many solicitations in a row the peer has not answered or, if the
	// connection is stuck, not acknowledged.
	Unanswered int
	// Attempts is how many of the newest solicitations this host failed to send, in a row.
	Attempts              int
	Idle                  time.Duration
	Silent                time.Duration // since any segment of the peer came in
	SegmentsIn            uint32        // segments of the peer, also those that TCP did not accept
	Keepalive             Keepalive
	UserTimeout           time.Duration // 0: off
	RetransmitsUnanswered int
	RetransmitsTotal      int
	RTO                   time.Duration // the retransmission timeout, with its backoff
	UnackedSegments       uint32
	SendQueue             uint32 // bytes
	ReceiveQueue          uint32 // bytes that the application has not read
	SendWindow            uint32 // bytes
	SRTT                  time.Duration
	GivesUp               Forecast // when the kernel gives the connection up by itself
	Risks                 []Risk
	Stub                  bool      // a stub: only its identity and state are known
	AcceptQueue           uint32    // of a listener: connections that wait to be accepted
	AcceptLimit           uint32    // of a listener: it is full when more than these wait
	ListenDrops           uint32    // of a listener: SYNs, and ACKs that end a handshake, that it has dropped
	PeerHost              *PeerHost // of a zombie; nil: no census has counted it yet
	Orphaned              bool      // its application has closed the socket
	Accepted              bool      // an application has accepted it, or made it
	UID                   uint32
	CgroupID              uint64   // id in the cgroup v2 hierarchy, 0: none
	Process               *Process // nil: no process holds it, or not searched for
	Cgroup                Cgroup   // zero: unknown, or not searched for
}

// Judged reports whether the connection has a verdict.
func (c *Connection) Judged() bool { return c.State.Judged() && !c.Stub }

// IPv6 reports whether the packets of the connection are IPv6.
func (c *Connection) IPv6() bool { return c.Local.Addr().Is6() }

// Held reports whether a process can hold the socket.
func (c *Connection) Held() bool { return c.Accepted && !c.Orphaned }

// setOwner sets the process and the control group, each only if the connection has none.
func (c *Connection) setOwner(o Ownership) {
	if c.Process == nil {
		c.Process = o.Process
	}
	if c.Cgroup == (Cgroup{}) {
		c.Cgroup = o.Cgroup
	}
}

// Owner returns the best name of the connection's owner, without its kind. See
// [Connection.OwnerName].
func (c *Connection) Owner() string {
	_, name := c.OwnerName()
	return name
}

// OwnerName returns the best name of the connection's owner: that of its control group
// ([Cgroup.Owner]), else the name of the process, which may be any bytes; NoOwner and ""
// if none is known.
func (c *Connection) OwnerName() (OwnerKind, string) {
	if kind, name := c.Cgroup.Owner(); kind != NoOwner {
		return kind, name
	}
	if c.Process != nil {
		return OwnerProcess, c.Process.Comm
	}
	return NoOwner, ""
}

// HistoryKind is the kind of a [HistoryEntry].
type HistoryKind uint8

// The kinds of history entries.
const (
	HistorySolicitation HistoryKind = iota // one was sent, and is unanswered so far
	HistoryAnswer                          // the peer was heard after unanswered solicitations
	HistoryVerdict                         // the verdict changed
)

var historyKindNames = [...]string{
	HistorySolicitation: "solicitation",
	HistoryAnswer:       "answer",
	HistoryVerdict:      "verdict",
}

// String returns the name of the kind.
func (k HistoryKind) String() string { return historyKindNames[k] }

// HistoryEntry is one thing that happened to a connection.
type HistoryEntry struct {
	At         time.Time
	Kind       HistoryKind
	Evidence   Evidence
	Unanswered int
	From, To   Verdict       // of HistoryVerdict
	Took       time.Duration // of HistoryAnswer: since the last solicitation; -1: unknown
}

// Death is the end of a connection.
type Death struct {
	// Connection is the connection just before its end. Its Verdict is the last one.
	Connection
	DiedAt    time.Time
	Cause     Cause
	During    Evidence      // of CauseUserTimeout
	Errno     uint16        // the error that the application gets; 0: none
	ZombieFor time.Duration // 0: it was not a zombie
	// Forecast is the forecast made since the peer was last heard. ForecastError is by
	// how much the death came before it (negative) or after it. Both are zero if there
	// was no forecast, or if no timeout ended the connection: a forecast assumes that
	// nothing else happens.
	Forecast      Forecast
	ForecastError time.Duration
	// Similar is how many older deaths, no longer remembered, this one stands for, the
	// first of them at SimilarSince: the peer at the same address reset connections of the
	// same owner that were in use and not in trouble. 0, and the zero time: none.
	Similar      int
	SimilarSince time.Time
}
