/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel programs and the Go side share. The Go types are generated
 * from here (gen.go). Layout rules: natural alignment, padding spelt out,
 * everything zeroed before it is filled, host byte order but for addresses.
 * Kernel addresses are in what user space hands back to the programs, and in nothing
 * that leaves it: the place where a walk goes on, and a hash table to walk.
 */
#ifndef HALFOPEN_H
#define HALFOPEN_H

#include "kernel_types.h"

/*
 * Where a walk through a hash table is: so many sockets of this chain have been
 * passed, the last of which was this one.
 */
struct cursor {
	__u64 socket; /* address, for the programs only */
	__u64 cookie; /* of it */
	__u32 chain;
	__u32 passed;
	__u32 skip; /* these come next, and were passed before */
	__u32 restarts; /* how often the chain was begun again */
};

/* What the silence was asked with; contract: evidence. */
enum evidence {
	EVIDENCE_NONE,
	EVIDENCE_KEEPALIVE,
	EVIDENCE_RETRANSMIT,
	EVIDENCE_WINDOW_PROBE,
	EVIDENCE_MAX,
};

/* How a connection ended; contract: cause. */
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

/*
 * What the census counts a socket as. Only trouble needs history and therefore
 * user space; the others follow from the socket's fields alone, so the kernel
 * counts them and nobody has to remember them.
 */
enum class {
	CLASS_NONE, /* no connection: listen, close, and stubs (time_wait, syn_recv) */
	CLASS_ACTIVE,
	CLASS_IDLE,
	CLASS_UNGUARDED,
	CLASS_TROUBLE, /* CONN_TROUBLE, whatever else; only as an index */
	CLASS_MAX = 8,
};

/* Contract: risk. Bits of struct conn's risks, and indices of struct census_counts. */
enum risk {
	RISK_NO_KEEPALIVE,
	RISK_KEEPALIVE_SLOWER_THAN_MIDDLEBOX,
	RISK_USER_TIMEOUT_OVERRIDES_KEEPCNT,
	RISK_KEEPALIVE_MASKED_BY_UNACKED_DATA,
	RISK_CLOSE_WAIT_LEAK,
	RISK_MAX = 8,
};

/* Bits of struct conn's flags. */
enum conn_flag {
	CONN_KEEPALIVE = 1 << 0, /* SO_KEEPALIVE is on */
	CONN_KEEPALIVE_TIME_SET = 1 << 1, /* by TCP_KEEPIDLE, not the sysctl */
	CONN_KEEPALIVE_INTVL_SET = 1 << 2, /* by TCP_KEEPINTVL */
	CONN_KEEPALIVE_PROBES_SET = 1 << 3, /* by TCP_KEEPCNT */
	CONN_ORPHAN = 1 << 4, /* closed by the application */
	CONN_UNACCEPTED = 1 << 5, /* still in the listener's queue */
	CONN_WINDOW_CLOSED = 1 << 6, /* data to send, the peer's window is 0 */
	CONN_TROUBLE = 1 << 7, /* something unanswered, or the window closed */
	CONN_SOFT_ERROR = 1 << 8, /* an ICMP error was received */
	CONN_ANSWERED = 1 << 9, /* watch pass only: it was in trouble, and is not now */
	CONN_GONE = 1 << 10, /* watch pass only: the socket is no more */
	CONN_SYN_RETRIES_SET = 1 << 11, /* by TCP_SYNCNT */
	CONN_FIN_TIME_SET = 1 << 12, /* by TCP_LINGER2 */
	CONN_RTO_MAX_SET = 1 << 13, /* by TCP_RTO_MAX_MS: not what the sysctl says */
	CONN_THIN_SET = 1 << 14, /* by TCP_THIN_LINEAR_TIMEOUTS */
	CONN_BLOCKED = 1 << 15, /* its window is open, but the host itself does not let it send */
};

/* Ages are in jiffies. */
enum age {
	AGE_NONE = 0xffffffff, /* it never happened */
};

/*
 * One connection as it was at one moment; or, of CLASS_NONE, another socket: of a
 * stub, only who it is.
 */
struct conn {
	__u64 cookie;
	__u64 at; /* ns, CLOCK_MONOTONIC */
	__u64 jiffies; /* the same moment */
	__u64 keepalive_expires; /* jiffies; 0: the keepalive timer is not pending */
	__u64 write_expires; /* jiffies; 0: the write timer is not pending */
	__u64 cgroup; /* id in the cgroup v2 hierarchy; 0: none */
	__u32 netns; /* inode number */
	__u32 uid;
	__u8 laddr[16]; /* IPv4 in the first four */
	__u8 raddr[16];
	__u16 family; /* AF_INET, AF_INET6 */
	__u16 lport;
	__u16 rport;
	__u16 flags; /* enum conn_flag */
	__u16 unanswered; /* solicitations in a streak */
	__u8 state; /* enum tcp_state */
	__u8 class; /* active, idle, unguarded or none, trouble aside */
	__u8 evidence; /* enum evidence */
	__u8 risks; /* 1 << enum risk */
	__u8 probes_out; /* the kernel's icsk_probes_out */
	__u8 retransmits; /* the kernel's icsk_retransmits */
	__u8 pending; /* the kernel's icsk_pending: what the write timer is for */
	__u8 backoff; /* the kernel's icsk_backoff */
	__u8 keepalive_probes; /* in force: socket's or sysctl's */
	__u8 keepalive_level; /* of the timer wheel */
	__u8 write_level;
	__u8 retries; /* in force: tcp_retries2, or of SYNs, or of orphans */
	__u8 syn_linear; /* SYN retransmissions before their interval doubles */
	__u8 cause; /* CONN_GONE: enum cause, if known; evidence is during then */
	__u32 idle; /* jiffies since data moved either way */
	__u32 silent; /* jiffies since the peer was heard */
	__u32 solicited; /* jiffies since the last solicitation, AGE_NONE unknown */
	__u32 window_closed; /* jiffies since the first probe of a closed window */
	__u32 retransmitting; /* jiffies since the first retransmission of a streak */
	__u32 keepalive_time; /* jiffies, in force */
	__u32 keepalive_intvl; /* jiffies, in force */
	__u32 user_timeout; /* ms, 0 off */
	__u32 rto; /* jiffies */
	__u32 rto_max; /* jiffies */
	__u32 thin_rto; /* jiffies; 0: not a thin stream with linear timeouts */
	__u32 fin_time; /* jiffies in FIN_WAIT2 after close, AGE_NONE reset at once */
	__u32 packets_out; /* segments in flight */
	__u32 send_queue; /* bytes not acknowledged or not sent */
	__u32 send_window; /* bytes */
	__u32 srtt; /* us */
	__u32 total_retrans;
	__u32 accept_queue; /* listen: connections that wait to be accepted */
	__u32 accept_limit; /* listen: how many may */
	__u8 retries2; /* tcp_retries2, whatever the state */
	__u8 pad2[1];
	__u16 into_jiffy; /* us since that jiffy began */
};
_Static_assert(sizeof(struct conn) == 192, "struct conn has holes");

enum event_type {
	EVENT_SOLICITATION,
	EVENT_DEATH,
	EVENT_MAX,
};

/* What goes through the ring buffer. */
struct event {
	__u8 type; /* enum event_type */
	__u8 cause; /* death: enum cause */
	__u8 during; /* death: enum evidence, where the cause is a user timeout */
	__u8 pad[3];
	__u16 err; /* death: errno the application gets, 0 none */
	struct conn conn; /* at that moment; of a death, just before it */
};
_Static_assert(sizeof(struct event) == 200, "struct event has holes");

enum retransmit_type {
	RETRANSMIT_TIMEOUT,
	RETRANSMIT_FAST,
	RETRANSMIT_TAIL_LOSS_PROBE,
	RETRANSMIT_SYN,
	RETRANSMIT_SYNACK,
	RETRANSMIT_MAX = 8,
};

/* The tracepoints that have a fallback program, see TP_WITH_FALLBACK. */
enum hook {
	HOOK_SET_STATE,
	HOOK_RETRANSMIT_SKB,
	HOOK_RETRANSMIT_SYNACK,
	HOOK_RECEIVE_RESET,
	HOOK_SEND_RESET,
	HOOK_MAX = 8,
};

/* What can go wrong inside the programs; each is a metric. */
enum fault {
	FAULT_WATCH_FULL, /* no room to watch a socket; the census still sees it */
	FAULT_NO_COOKIE, /* a timer fired for a socket that has no cookie yet */
	FAULT_REMEMBER_FULL, /* no room to note a deferred write timer, a reset, or a death */
	FAULT_CENSUS_FULL, /* more sockets in a share of the hash table, or namespaces to visit,
			      than there is room for */
	FAULT_MAX = 8,
};

/* Per-CPU; summed up when somebody asks. Only ever grow. */
struct counters {
	__u64 deaths[16]; /* by cause */
	__u64 not_closed; /* of deaths[CAUSE_CLOSED], those that were not after all */
	__u64 retransmits[RETRANSMIT_MAX];
	__u64 probes_sent; /* keepalive probes */
	__u64 probes_answered;
	__u64 events[4]; /* by event type: written to the ring buffer */
	__u64 lost[4]; /* by event type: the ring buffer was full */
	__u64 suppressed[4]; /* by event type: over the rate limit */
	__u64 faults[FAULT_MAX];
	__u64 fallbacks[HOOK_MAX]; /* the fallback ran, since the kernel skipped the primary */
};

#define IDLE_BUCKETS 24

/* What one census counts. Only its reader touches it. */
struct census_counts {
	__u64 sockets[TCP_MAX_STATES][CLASS_MAX];
	__u64 risks[RISK_MAX];
	__u64 idle[IDLE_BUCKETS]; /* established: idle time <= bound, not cumulative */
	__u64 idle_sum; /* jiffies */
};

/* One file descriptor of one process that holds a wanted socket. */
struct owner {
	__u64 cookie;
	__u64 started; /* the process, ns of CLOCK_MONOTONIC */
	__u32 pid;
	__u32 fd;
	__u8 comm[16]; /* of the thread group's leader; any bytes */
};
_Static_assert(sizeof(struct owner) == 40, "struct owner has holes");

/* How a network namespace was found. */
enum holder_kind {
	HOLDER_TASK, /* a thread is in it */
	HOLDER_FILE, /* a file descriptor is it */
	HOLDER_SOCKET, /* a file descriptor is a socket of it */
};

/* Who leads to a network namespace. */
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
	struct owner owner;
	struct holder holder;
	enum event_type event_type;
	enum evidence evidence;
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
	enum icsk_pending icsk_pending;
};
const union abi *abi __attribute__((unused));

#endif /* HALFOPEN_H */
