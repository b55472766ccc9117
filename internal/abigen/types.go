// SPDX-License-Identifier: Apache-2.0

package main

// A structure is a C struct that becomes a Go struct of the same layout. Its Go name
// follows from its C name.
type structure struct {
	name, doc string
}

var structs = []structure{
	{"conn", `
Conn is one connection as it was at one moment or, of ClassNone, another TCP socket.
Ages and intervals are in jiffies unless bpf/halfopen.h says otherwise; [AgeNone] is
the age of something that never happened.`},
	{"event", `
Event is a record of the ring buffer: a solicitation that stayed unanswered, or a
death. Conn is the connection at that moment or, for a death, just before it.`},
	{"fd_holder", `
FDHolder is a file descriptor of a process that holds a socket.`},
	{"holder", `
Holder is a thread or a file descriptor that keeps a network namespace, or a socket
in it, open.`},
	{"counters", `
Counters are counters that only grow. The kernel has them for each CPU.`},
	{"census_counts", `
CensusCounts are the results of one census: sockets by state and class, risks, and the
idle times of established connections. IdleSum is in jiffies.`},
	{"destination", `
Destination is a prefix of an address: the first Bits bits of Address.`},
	{"risk_counts", `
RiskCounts are the numbers of connections at each risk, of one control group.`},
	{"peer_host_key", `
PeerHostKey is a remote address in a network namespace. An IPv4 address is mapped into IPv6.`},
	{"peer_host", `
PeerHost is what a census finds of the connections to a remote address. Heard is in ns of
CLOCK_MONOTONIC.`},
	{"cursor", `
Cursor is a position in a hash table of sockets. The address in it is for the programs
only.`},
	{"own_table", `
OwnTable is the hash table of connections of a network namespace that does not use the
shared one. The addresses in it are for the programs only.`},
	{"walk_batch", `
WalkBatch is what one run of the census writes: Records entries of Record.`},
	{"netns_sysctls", `
NetnsSysctls are the TCP sysctls of a network namespace. Times are in jiffies.`},
	{"netns_list", `
NetnsList is what one run of the list of network namespaces writes: Tables entries of
Table, and Namespaces entries of Sysctls.`},
	{"batch", `
Batch is the input and output of one run over watched sockets, unread ones or pending
deaths: Keys entries of Key, and Records entries of Record.`},
	{"watch", `
Watch is what the programs remember of a socket that they watch.`},
	{"unread", `
Unread is what the census remembers of a socket with data in its receive queue.`},
	{"pending_death", `
PendingDeath is a death whose cause is not certain yet.`},
}

// An enum is a C enum that becomes constants. The Go name of each is kind, and the
// enumerator's name without prefix: CAUSE_USER_TIMEOUT is CauseUserTimeout.
type enum struct {
	name         string
	prefix, kind string
	typ          string // Go type of the constants: that of the field, or int for indices
	plural       string // constant for the number of enumerators; "" for none
	doc          string
}

var enums = []enum{
	{"event_type", "EVENT_", "Event", "uint8", "EventTypes", `
Values of [Event].Type, and indices of [Counters].Events, Lost and Suppressed.`},
	{"evidence", "EVIDENCE_", "Evidence", "uint8", "", `
Values of [Conn].Evidence and [Event].During.`},
	{"cause", "CAUSE_", "Cause", "uint8", "Causes", `
Values of [Event].Cause, and indices of [Counters].Deaths.`},
	{"class", "CLASS_", "Class", "uint8", "", `
Values of [Conn].Class, and second indices of [CensusCounts].Sockets.`},
	{"risk", "RISK_", "Risk", "int", "Risks", `
Indices of [CensusCounts].Risks; 1 << these are the bits of [Conn].Risks.`},
	{"conn_flag", "CONN_", "Conn", "uint32", "", `
Bits of [Conn].Flags.`},
	{"drop", "DROP_", "Drop", "uint8", "", `
Values of [Conn].Drop.`},
	{"age", "AGE_", "Age", "uint32", "", `
Special values of the ages of a [Conn].`},
	{"tcp_state", "TCP_", "State", "uint8", "", `
Values of [Conn].State, and first indices of [CensusCounts].Sockets
(include/net/tcp_states.h).`},
	{"pending", "PENDING_", "Pending", "uint8", "", `
Values of [Conn].Pending: what the write timer is armed for. 0 is nothing.`},
	{"address_family", "AF_", "Family", "uint16", "", `
Values of [Conn].Family (include/linux/socket.h).`},
	{"retransmit_type", "RETRANSMIT_", "Retransmit", "int", "RetransmitTypes", `
Indices of [Counters].Retransmits.`},
	{"fault", "FAULT_", "Fault", "int", "Faults", `
Indices of [Counters].Faults.`},
	{"hook", "HOOK_", "Hook", "int", "", `
Indices of [Counters].Fallbacks: the tracepoints that have a fallback program.`},
	{"holder_kind", "HOLDER_", "Holder", "uint32", "", `
Values of [Holder].Kind.`},
}
