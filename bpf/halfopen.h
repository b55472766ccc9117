/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The types that the kernel programs and user space share. internal/abigen generates
 * package abi from them. Layout rules: natural alignment, explicit padding, everything
 * zeroed before it is filled, host byte order except for addresses. Kernel addresses are
 * only in types that user space passes back to the programs (struct cursor, struct
 * own_table), never in those that it shows to users.
 */
#ifndef HALFOPEN_H
#define HALFOPEN_H

#include "kernel_types.h"

/* The position of a walk through a hash table of sockets. */
struct cursor {
	__u64 socket; /* address of the last socket that the walk passed */
	__u64 cookie; /* of that socket */
	__u32 chain; /* number of the current chain */
	__u32 passed; /* sockets of the chain that the walk has passed */
	__u32 skip; /* sockets to skip next, since the walk passed them before a restart */
	__u32 restarts; /* how often the walk has begun this chain again */
};

/*
 * Enums that are indices end with the number of their values, X_MAX. An array by such an
 * index has X_SLOTS elements: where that is a power of two, the programs mask the index
 * with X_SLOTS - 1, so that every verifier knows its bound.
 */

/* The kind of solicitation that stayed unanswered; contract: evidence. */
enum evidence {
	EVIDENCE_NONE,
	EVIDENCE_KEEPALIVE,
	EVIDENCE_RETRANSMIT,
	EVIDENCE_WINDOW_PROBE,
	EVIDENCE_RECEIVE_QUEUE, /* not a solicitation: of the verdict unread, in user space */
};

/* Why a connection ended; contract: cause. */
enum cause {
	CAUSE_UNKNOWN,
	CAUSE_KEEPALIVE_TIMEOUT,
	CAUSE_USER_TIMEOUT,
	CAUSE_RETRANSMIT_TIMEOUT,
	CAUSE_WINDOW_PROBE_TIMEOUT,
	CAUSE_CONNECT_TIMEOUT,
	CAUSE_ORPHAN_TIMEOUT,
	CAUSE_RESET_BY_PEER,
	CAUSE_REFUSED,
	CAUSE_UNREACHABLE,
	CAUSE_ABORTED,
	CAUSE_DESTROYED,
	CAUSE_OUT_OF_MEMORY,
	CAUSE_CLOSED,
	CAUSE_MAX,
};
#define CAUSE_SLOTS 16 /* a power of two */
_Static_assert(CAUSE_MAX <= CAUSE_SLOTS, "struct counters has no room for every cause");

/*
 * The class that the census counts a socket in. Trouble and unread data depend on history,
 * so user space follows those sockets one by one. The other classes follow from the fields
 * of the socket alone, so that the kernel can count them.
 */
enum class {
	CLASS_NONE, /* not a connection: listen, close, and stubs (time_wait, syn_recv) */
	CLASS_ACTIVE,
	CLASS_IDLE,
	CLASS_UNGUARDED,
	CLASS_TROUBLE, /* CONN_TROUBLE is set; only an index of struct census_counts */
	CLASS_OVERFLOWED, /* a listener that has dropped a SYN or an ACK; only for census_write */
	CLASS_UNREAD, /* CONN_UNREAD is set, and not CONN_TROUBLE; only such an index, too */
	CLASS_MAX,
};
#define CLASS_SLOTS 8 /* a power of two */
_Static_assert(CLASS_MAX <= CLASS_SLOTS, "struct census_counts has no room for every class");

/* Contract: risk. Bits of struct conn's risks, and indices of struct census_counts. */
enum risk {
	RISK_NO_KEEPALIVE,
	RISK_KEEPALIVE_SLOWER_THAN_MIDDLEBOX,
	RISK_USER_TIMEOUT_OVERRIDES_KEEPCNT,
	RISK_KEEPALIVE_MASKED_BY_UNACKED_DATA,
	RISK_CLOSE_WAIT_LEAK,
	RISK_HALF_CLOSED_UNGUARDED,
	RISK_ONE_PROBE_ENDS_IT,
	RISK_ACCEPT_QUEUE_FULL, /* a listener */
	RISK_PEER_HOST_SILENT, /* only user space knows */
	RISK_MAX,
};
#define RISK_SLOTS 16 /* struct conn's risks has so many bits */
_Static_assert(RISK_MAX <= RISK_SLOTS, "struct conn has no bit for every risk");

/* Bits of struct conn's flags. */
enum conn_flag {
	CONN_KEEPALIVE = 1 << 0, /* SO_KEEPALIVE is on */
	CONN_KEEPALIVE_TIME_SET = 1 << 1, /* TCP_KEEPIDLE is set: the sysctl does not apply */
	CONN_KEEPALIVE_INTVL_SET = 1 << 2, /* TCP_KEEPINTVL is set */
	CONN_KEEPALIVE_PROBES_SET = 1 << 3, /* TCP_KEEPCNT is set */
	CONN_ORPHAN = 1 << 4, /* the application has closed it */
	CONN_UNACCEPTED = 1 << 5, /* it waits in the listener's queue */
	CONN_WINDOW_CLOSED = 1 << 6, /* it has data to send, and the peer's window is 0 */
	CONN_TROUBLE = 1 << 7, /* a solicitation is unanswered, several are unacknowledged, or
				   the window is closed */
	CONN_SOFT_ERROR = 1 << 8, /* it received an ICMP error */
	CONN_ANSWERED = 1 << 9, /* only from watch_run: it was in trouble, and is not now */
	CONN_GONE = 1 << 10, /* only from watch_run: the socket does not exist any more */
	CONN_SYN_RETRIES_SET = 1 << 11, /* TCP_SYNCNT is set */
	CONN_FIN_TIME_SET = 1 << 12, /* TCP_LINGER2 is set */
	CONN_RTO_MAX_SET = 1 << 13, /* TCP_RTO_MAX_MS is set to another value than the sysctl */
	CONN_THIN_SET = 1 << 14, /* TCP_THIN_LINEAR_TIMEOUTS is set */
	CONN_BLOCKED = 1 << 15, /* the window is open, but the host does not send its packets */
	CONN_LOCAL_PEER = 1 << 16, /* its peer is in the same network namespace */
	CONN_NEVER_ACKED = 1 << 17, /* we connected it, and TCP accepted nothing of the peer after
				       the SYN-ACK; set only with CONN_TROUBLE */
	CONN_UNREAD = 1 << 18, /* its application has left data for unread_after */
	CONN_CONGESTED = 1 << 19, /* the device did not take the newest attempt (NET_XMIT_DROP), so
				     the kernel tries again after half a second */
	CONN_LINGERING = 1 << 20, /* close(2) waits (SO_LINGER), and makes an orphan then */
	CONN_RTO_REVERTED = 1 << 21, /* an ICMP error answered the last retransmission, and took
					back a doubling of the timeout (tcp_ld_RTO_revert) */
};

/*
 * What became of the segment that a timer sent last, if a program was attached to kfree_skb
 * then. From DROP_FILTER on, this host dropped it.
 */
enum drop {
	DROP_UNKNOWN, /* no program was attached */
	DROP_NONE, /* this host did not drop it */
	DROP_FILTER, /* netfilter did */
	DROP_CGROUP, /* a BPF program of a control group */
	DROP_NO_ROUTE,
	DROP_QUEUE, /* the queueing discipline of a device */
	DROP_TC, /* a filter or BPF program at the egress of a device */
	DROP_OTHER, /* the reason is none of these, or this kernel has no reasons */
};

/* What the write timer is armed for. */
enum pending {
	PENDING_RETRANSMIT = ICSK_TIME_RETRANS,
	PENDING_WINDOW_PROBE = ICSK_TIME_PROBE0,
	PENDING_TAIL_LOSS_PROBE = ICSK_TIME_LOSS_PROBE,
	PENDING_REORDER = ICSK_TIME_REO_TIMEOUT,
};

/* Ages are in jiffies. */
enum age {
	AGE_NONE = 0xffffffff, /* it never happened */
};

/*
 * One connection as it was at one moment or, if its class is CLASS_NONE, another socket.
 * For a stub, only the fields that identify it are set.
 */
struct conn {
	__u64 cookie;
	__u64 at; /* the moment, ns of CLOCK_MONOTONIC */
	__u64 jiffies; /* the same moment */
	__u64 keepalive_expires; /* jiffies; 0: the keepalive timer is not pending */
	__u64 write_expires; /* jiffies; 0: the write timer is not pending */
	__u64 cgroup; /* id in the cgroup v2 hierarchy; 0: none */
	__u32 netns; /* inode number */
	__u32 uid;
	__u8 laddr[16]; /* IPv4 in the first four */
	__u8 raddr[16];
	__u32 flags; /* enum conn_flag */
	__u16 family; /* AF_INET, AF_INET6 */
	__u16 lport;
	__u16 rport;
	__u16 unanswered; /* solicitations since the peer was last heard */
	__u16 unacknowledged; /* solicitations since the peer last acknowledged one */
	__u16 risks; /* 1 << enum risk */
	__u16 into_jiffy; /* us from the beginning of that jiffy to at */
	__u8 state; /* enum tcp_state */
	__u8 class; /* enum class, never CLASS_TROUBLE or CLASS_UNREAD */
	__u8 evidence; /* enum evidence */
	__u8 probes_out; /* the kernel's icsk_probes_out */
	__u8 retransmits; /* the kernel's icsk_retransmits */
	__u8 pending; /* enum pending; 0: nothing */
	__u8 backoff; /* the kernel's icsk_backoff */
	__u8 keepalive_probes; /* in force: TCP_KEEPCNT or the sysctl */
	__u8 keepalive_level; /* level of the timer wheel that the keepalive timer is in */
	__u8 write_level; /* likewise, of the write timer */
	__u8 retries; /* in force: the limit for data, for SYNs, or for orphans, which also counts
			 once close(2) waits */
	__u8 syn_linear; /* SYN retransmissions before their interval doubles */
	__u8 cause; /* CONN_GONE: enum cause, if known; evidence is that of the death then */
	__u8 retries2; /* the sysctl tcp_retries2, in any state */
	__u8 attempts; /* the newest solicitations, all of which this host failed to send */
	__u8 drop; /* enum drop, of the last solicitation or attempt */
	__u8 pad2[2];
	__u32 idle; /* jiffies since data was sent or received */
	__u32 silent; /* jiffies since any segment of the peer came in */
	__u32 accepted; /* jiffies since TCP accepted a segment of the peer; at least silent */
	__u32 segments_in; /* segments of the peer, also those that TCP did not accept */
	__u32 solicited; /* jiffies since the last solicitation; AGE_NONE: unknown */
	__u32 window_closed; /* jiffies since the first probe of a closed window */
	__u32 retransmitting; /* jiffies since the first retransmission of a streak */
	__u32 keepalive_time; /* jiffies, in force */
	__u32 keepalive_intvl; /* jiffies, in force */
	__u32 user_timeout; /* ms; 0: off */
	__u32 rto; /* jiffies */
	__u32 rto_max; /* jiffies */
	__u32 thin_rto; /* jiffies; 0: not a thin stream with linear timeouts */
	__u32 fin_time; /* jiffies in FIN_WAIT2 after close; AGE_NONE: it is reset at once */
	__u32 packets_out; /* segments in flight */
	__u32 send_queue; /* bytes that are not acknowledged or not sent */
	__u32 send_window; /* bytes */
	__u32 receive_queue; /* bytes that the application has not read */
	__u32 unread; /* jiffies that it has left these, or longer; AGE_NONE: there are none */
	__u32 failing; /* jiffies since the first of the attempts; AGE_NONE: there are none */
	__u32 srtt; /* us */
	__u32 total_retrans; /* listen: SYNs and ACKs that it dropped (sk_drops) */
	__u32 accept_queue; /* listen: connections that wait to be accepted */
	__u32 accept_limit; /* listen: the most that may wait */
	__u16 retransmitted; /* bytes of data in the last retransmission; 0: unknown */
	__u16 mss; /* the most bytes of data in a segment */
	__u32 linger; /* jiffies that close(2) waits at most, if CONN_LINGERING is set */
	__u32 lingering; /* jiffies that it has waited; AGE_NONE: unknown */
};
_Static_assert(sizeof(struct conn) == 232, "struct conn has holes");

enum event_type {
	EVENT_SOLICITATION,
	EVENT_DEATH,
	EVENT_MAX,
};
#define EVENT_SLOTS 4 /* a power of two */
_Static_assert(EVENT_MAX <= EVENT_SLOTS, "struct counters has no room for every event type");

/* A record of the ring buffer. */
struct event {
	__u8 type; /* enum event_type */
	__u8 cause; /* death: enum cause */
	__u8 during; /* death by a user timeout: enum evidence, what was unanswered */
	__u8 pad[3];
	__u16 err; /* death: the errno that the application gets; 0: none */
	struct conn conn; /* at that moment; for a death, just before it */
};
_Static_assert(sizeof(struct event) == 240, "struct event has holes");

enum retransmit_type {
	RETRANSMIT_TIMEOUT,
	RETRANSMIT_FAST,
	RETRANSMIT_TAIL_LOSS_PROBE,
	RETRANSMIT_SYN,
	RETRANSMIT_SYNACK,
	RETRANSMIT_MAX,
};
#define RETRANSMIT_SLOTS 8 /* a power of two */
_Static_assert(RETRANSMIT_MAX <= RETRANSMIT_SLOTS, "struct counters has no room for every type");

/* The tracepoints that have a fallback program, see TP_WITH_FALLBACK. */
enum hook {
	HOOK_SET_STATE,
	HOOK_RETRANSMIT_SKB,
	HOOK_RETRANSMIT_SYNACK,
	HOOK_RECEIVE_RESET,
	HOOK_SEND_RESET,
	HOOK_MAX,
};
#define HOOK_SLOTS 8
_Static_assert(HOOK_MAX <= HOOK_SLOTS, "struct counters has no room for every hook");

/* Failures inside the programs; each is a metric. */
enum fault {
	FAULT_WATCH_FULL, /* no room to watch a socket; the census still finds it */
	FAULT_NO_COOKIE, /* a timer fired for a socket that has no cookie yet */
	FAULT_REMEMBER_FULL, /* no room for a deferred write timer, a reset, or a death */
	FAULT_CENSUS_FULL, /* the census left out the rest of a chain, or a namespace whose
			      sockets have no cookies */
	FAULT_MAX,
};
#define FAULT_SLOTS 8
_Static_assert(FAULT_MAX <= FAULT_SLOTS, "struct counters has no room for every fault");

/* The counters of one CPU. They only grow; user space sums them up. */
struct counters {
	__u64 deaths[CAUSE_SLOTS];
	__u64 not_closed; /* deaths in deaths[CAUSE_CLOSED] that turned out to be others */
	__u64 retransmits[RETRANSMIT_SLOTS];
	__u64 probes_sent; /* keepalive probes */
	__u64 probes_answered;
	__u64 events[EVENT_SLOTS]; /* written to the ring buffer */
	__u64 lost[EVENT_SLOTS]; /* the ring buffer was full */
	__u64 suppressed[EVENT_SLOTS]; /* over the rate limit */
	__u64 faults[FAULT_SLOTS];
	__u64 fallbacks[HOOK_SLOTS]; /* the fallback ran, since the kernel skipped the primary */
	__u64 drops; /* packets dropped while the program of kfree_skb was attached, estimated */
};

#define IDLE_BUCKETS 24

/* The counts of one census. One walk at a time writes them. */
struct census_counts {
	__u64 sockets[TCP_MAX_STATES][CLASS_SLOTS];
	__u64 risks[RISK_SLOTS];
	/* Established connections by idle time, not cumulative; the bounds are idle_bounds,
	 * and the bucket after the last bound counts those above it. */
	__u64 idle[IDLE_BUCKETS];
	__u64 idle_sum; /* jiffies */
};

/* A remote address in a network namespace. */
struct peer_host_key {
	__u8 addr[16]; /* IPv4: mapped into IPv6 */
	__u32 netns; /* inode number */
};
_Static_assert(sizeof(struct peer_host_key) == 20, "struct peer_host_key has holes");

/* What a census finds of the connections to a remote address. */
struct peer_host {
	__u64 heard; /* when the last segment came on any of them, ns of CLOCK_MONOTONIC; 0: never
		      */
	__u32 connections;
	__u32 exposed; /* those that are idle or unguarded, and not in trouble */
};
_Static_assert(sizeof(struct peer_host) == 16, "struct peer_host has holes");

/* A file descriptor of a process that holds a wanted socket. */
struct fd_holder {
	__u64 cookie;
	__u64 started; /* when the process started, ns of CLOCK_MONOTONIC */
	__u32 pid;
	__u32 fd;
	__u8 comm[16]; /* of the thread group's leader; may have any bytes */
};
_Static_assert(sizeof(struct fd_holder) == 40, "struct fd_holder has holes");

/* How a network namespace was found. */
enum holder_kind {
	HOLDER_TASK, /* a thread is in it */
	HOLDER_FILE, /* a file descriptor refers to it */
	HOLDER_SOCKET, /* a file descriptor refers to a socket in it */
};

/* A thread or a file descriptor through which user space can enter a network namespace. */
struct holder {
	__u32 netns; /* inode number */
	__u32 pid; /* of the thread, or of the process */
	__u32 fd;
	__u32 kind; /* enum holder_kind */
};
_Static_assert(sizeof(struct holder) == 16, "struct holder has holes");

/*
 * The types that no map has. A variable must refer to a type, or the object's BTF does
 * not describe it, and internal/abigen cannot write it to bpf/abi.
 */
union abi {
	struct event event;
	struct fd_holder fd_holder;
	struct holder holder;
	enum event_type event_type;
	enum evidence evidence;
	enum drop drop;
	enum cause cause;
	enum class class;
	enum risk risk;
	enum conn_flag conn_flag;
	enum age age;
	enum retransmit_type retransmit_type;
	enum fault fault;
	enum hook hook;
	enum holder_kind holder_kind;
	enum tcp_state tcp_state;
	enum address_family address_family;
	enum pending pending;
};
const union abi *abi __attribute__((unused));

#endif /* HALFOPEN_H */
