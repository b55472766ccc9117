/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
//go:build ignore

/*
 * halfopen's kernel programs. What they are for:
 *
 *   timer softirq                     any context
 *   call_timer_fn()                   tcp_retransmit_skb   counts by type
 *     timer_expire_entry  remember    tcp_retransmit_synack counts
 *     tcp_keepalive_timer()           tcp_receive_reset    remember
 *       or tcp_write_timer()          tcp_send_reset       remember
 *         ... set_state(CLOSE) ...    inet_sock_set_state  cookie, death
 *     timer_expire_exit   compare
 *
 *   run by user space: census, watch and settle (BPF_PROG_TEST_RUN)
 *   read by user space: owners, cookies and learn (iter/task_file)
 *
 * Two rules. A healthy connection costs counters only: no event, no map
 * insert. And nothing is guessed: a solicitation is a counter of the socket
 * that grew while its timer ran, a cause is what was running at that moment.
 */
#include "kernel.h"
#include "halfopen.h"
#include <bpf/bpf_tracing.h>

#define WATCH_MAX 32768
#define REMEMBER_MAX 4096
#define WANTED_MAX 16384
#define EVENTS_BYTES (4 << 20)
#define NETNS_MAX 4096
#define NETNS_STEP 512 /* namespaces of the list in one go */
/*
 * What a run of the walk looks at: at most so many chains, most of which are empty,
 * and so many sockets. A chain that has more is gone on with in the next run.
 */
#define CHAINS 512
#define SHARE_MAX 256
/* How many sockets of a chain are skipped at most, where it cannot be gone on with. */
#define SKIP_MAX 1024
/* Sockets that user space has looked after in one run. */
#define BATCH_MAX 256
#define TICK_NSEC ((1000000000 + hz / 2) / (hz ?: 1)) /* of a jiffy, as the kernel rounds it */

/*
 * Details are bounded, counters are exact: at most this many events of a kind
 * in each window, on each CPU.
 */
#define RATE_WINDOW_NS 100000000ULL
#define RATE_PER_WINDOW 1000

/* How long a reset that was received explains a death. */
#define RESET_FRESH_NS 1000000000ULL

/* How soon at the latest a reset is sent for data after close. */
#define DECIDED_NS 50000000ULL

/*
 * Set before anything is attached: the addresses of the kernel's two timer
 * functions and jiffies a second, as learn() found them.
 */
volatile __u64 keepalive_timer_fn = 0;
volatile __u64 socket_ops = 0; /* what the files are known by that are sockets */
volatile __u64 write_timer_fn = 0;

/*
 * The first network namespace, from which a list leads to all others, and the hash
 * tables that those share which have none of their own: addresses.
 */
volatile __u64 first_net = 0;
volatile __u64 shared_info = 0;

/* The socket that learn() looks for, and what it found there. */
volatile __u64 learn_cookie = 0;
volatile __u32 learn_keepalive_time = 0;

/*
 * When jiffy 0 would have begun, ns of CLOCK_MONOTONIC. A jiffy is never early
 * (tick_do_update_jiffies64), and timers run right after it: the earliest that
 * any saw is it. Two CPUs that find one at once may keep the later, until the
 * next.
 */
volatile __s64 jiffies_epoch = 0x7fffffffffffffffLL;

/* Knobs. May change at any time. */
volatile __u32 idle_after = 0; /* jiffies */
volatile __u32 middlebox_timeout = 0; /* jiffies */
volatile __u32 events_from = 2; /* unanswered: the first are not worth an event */
volatile __u32 census_write = 0; /* 1 << enum class: what a pass writes out */
volatile __u64 census_cookie = 0; /* if not 0, only this socket */
volatile __u32 hz = 0; /* jiffies a second */
volatile __u32 idle_bounds[IDLE_BUCKETS] = {}; /* jiffies, ascending */

/*
 * Events for user space. 4 MiB hold some 30,000; when it is full the event is
 * dropped and counted (counters.lost), and the census repairs the picture.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
} events SEC(".maps");

/* Inserted: never. Read: user space, at every scrape. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/*
 * Sockets under suspicion: something unanswered, or a closed window.
 * The key is the socket's address, because a timer knows nothing else that a
 * map takes; the cookie tells a reused address. Inserted: at a solicitation,
 * and by the census. Deleted: at death, and by the watch pass when it finds an
 * answer or the socket gone. An entry outlives the answer for as long as the
 * socket's counters still show the row that was answered. Preallocated, since it is filled in
 * softirq. When it is full the socket is found by the census instead (FAULT_WATCH_FULL).
 */
struct watch {
	__u64 cookie;
	__u32 solicited; /* jiffies: the last solicitation, if sent */
	__u32 heard; /* jiffies: when the peer had last been heard then */
	__u8 sent; /* we saw the last solicitation go */
	__u8 told; /* user space knows of it, so the answer is news, too */
	__u8 evidence; /* enum evidence of the last solicitation */
	__u8 before; /* what the socket's counters showed before this row */
	__u8 uncounted; /* of this row, what no counter of the socket shows */
	__u8 dead; /* it died, and its event could not be sent */
	__u8 cause; /* of that */
	__u8 during; /* of that */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WATCH_MAX);
	__type(key, __u64);
	__type(value, struct watch);
} watched SEC(".maps");

/*
 * The TCP timer that is running on this CPU, and its socket as it was before:
 * death clears the fields that say why (tcp_write_queue_purge).
 */
struct timer_slot {
	__u64 timer; /* 0: none is running */
	__u64 sk;
	__u64 cookie;
	__u64 fn;
	__u32 snd_wnd;
	__u32 total_retrans;
	__u8 pending;
	__u8 probes_out;
	__u8 retransmits;
	__u8 dead; /* set_state(CLOSE) came while it ran */
	__u8 reset; /* it sent a reset */
	__u8 sent; /* it sent something again */
	__u8 pad[2];
	struct conn before; /* only where there is something unanswered */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct timer_slot);
} timer_slots SEC(".maps");

/*
 * Write timers that found their socket owned by its process: the kernel runs
 * them later in tcp_release_cb(), outside any timer event. Keyed by address;
 * LRU, since nothing tells that the deferred run is over. Rare.
 */
struct deferred {
	__u64 cookie;
	__u32 snd_wnd;
	__u8 pending;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REMEMBER_MAX);
	__type(key, __u64);
	__type(value, struct deferred);
} deferred SEC(".maps");

/*
 * Sockets that a reset was just received for, by address: the reset is handled
 * in process context too, where the CPU may change before the state does. LRU,
 * since a reset for a socket already closed kills nothing.
 */
struct reset {
	__u64 cookie;
	__u64 at; /* ns, CLOCK_MONOTONIC */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REMEMBER_MAX);
	__type(key, __u64);
	__type(value, struct reset);
} resets SEC(".maps");

/*
 * Deaths that the next moment has to explain, by address: data that comes after
 * close is answered by tcp_reset(), as a reset from the peer is, and only then
 * by a reset of our own. Inserted: at such a death. Deleted: when the reset is
 * sent, or by the settle pass when none was. Rare.
 */
struct undecided {
	__u64 at; /* ns, CLOCK_MONOTONIC */
	struct event event;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REMEMBER_MAX);
	__type(key, __u64);
	__type(value, struct undecided);
} undecided SEC(".maps");

/* Cookies whose owners user space wants to know. It fills and empties it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WANTED_MAX);
	__type(key, __u64);
	__type(value, __u8);
} wanted SEC(".maps");

/*
 * Network namespaces that were found in this search: inode number to the number
 * of the search. LRU: one more than fit may be told twice.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WANTED_MAX);
	__type(key, __u32);
	__type(value, __u32);
} found SEC(".maps");

volatile __u32 search = 0;

/*
 * The kernel's hash tables of TCP sockets, found by learn(): addresses, and how
 * many chains each has. Of the connections, and of the listeners.
 */
volatile __u64 ehash = 0;
volatile __u64 lhash = 0;
volatile __u32 ehash_chains = 0;
volatile __u32 lhash_chains = 0;

/*
 * The walk that is under way; one at a time. User space says which table, and where
 * the walk begins or goes on; the walk says how far it got.
 */
volatile __u32 walk_netns = 0; /* whose own table; 0: the one that namespaces share */
volatile __u32 only_no_cookie = 0; /* all that is looked for are sockets without a cookie */
volatile struct cursor walk_at = {}; /* where the next run begins */

/*
 * A part of a table, and what is written out of it. Written by the walk, one run at
 * a time; read by user space after each run.
 */
struct share {
	__u32 records;
	__u32 sockets;
	__u32 skip; /* sockets of the chain that were passed before */
	__u32 pad;
	__u64 node; /* the next in the chain */
	__u64 ehash; /* the table: as the globals of these names */
	__u64 lhash;
	__u32 ehash_chains;
	__u32 lhash_chains;
	struct cursor at;
	__u64 socket[SHARE_MAX]; /* addresses */
	struct conn record[SHARE_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct share);
} share SEC(".maps");

/*
 * Entries of watched or undecided that user space has looked after: it writes their
 * keys, runs the program, and reads the records. One run at a time.
 */
struct batch {
	__u32 keys;
	__u32 records;
	__u64 key[BATCH_MAX];
	struct conn record[BATCH_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct batch);
} batch SEC(".maps");

/*
 * The network namespaces with sockets that have no cookie. Inserted by the walk,
 * read and deleted by user space, which gives them theirs. Full: the next census
 * gets to the others (FAULT_CENSUS_FULL).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NETNS_MAX);
	__type(key, __u32); /* inode number */
	__type(value, __u32); /* 1 << their states */
} no_cookie SEC(".maps");

/*
 * The network namespaces with a hash table of connections of their own. Inserted by
 * list_netns(), read by the walk and by user space, which deletes those of an older
 * search. Full: the table is not walked (FAULT_CENSUS_FULL).
 */
struct own_table {
	__u64 net; /* addresses */
	__u64 info;
	__u64 ehash;
	__u32 chains;
	__u32 search; /* the number of the search that found it */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NETNS_MAX);
	__type(key, __u32); /* inode number */
	__type(value, struct own_table);
} own_tables SEC(".maps");

/* The search for these: the next namespace of the list, and how many there were. */
volatile __u32 netns_search = 0;
volatile __u64 netns_at = 0; /* address of its place in the list, 0: the first */
volatile __u32 netns_count = 0;

/* What a census counted. User space clears it before and reads it after. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct census);
} census_counts SEC(".maps");

/* Event rate limit, for each kind: windows of RATE_WINDOW_NS. */
struct rate {
	__u64 since; /* ns, CLOCK_MONOTONIC */
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 32); /* deaths by cause, then solicitations */
	__type(key, __u32);
	__type(value, struct rate);
} rates SEC(".maps");
#define RATE_SOLICITATION 16

/* The types that bpf2go makes Go types of. */
const struct event *unused_event __attribute__((unused));
const struct owner *unused_owner __attribute__((unused));
const struct holder *unused_holder __attribute__((unused));
const enum holder_kind *unused_holder_kind __attribute__((unused));
const enum evidence *unused_evidence __attribute__((unused));
const enum cause *unused_cause __attribute__((unused));
const enum class *unused_class __attribute__((unused));
const enum risk *unused_risk __attribute__((unused));
const enum conn_flag *unused_conn_flag __attribute__((unused));
const enum event_type *unused_event_type __attribute__((unused));
const enum retransmit_type *unused_retransmit_type __attribute__((unused));
const enum fault *unused_fault __attribute__((unused));
const enum hook *unused_hook __attribute__((unused));
const enum tcp_state *unused_tcp_state __attribute__((unused));

static __always_inline struct counters *count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counts, &zero);
}

/* Atomic: process context may be interrupted by softirq on the same CPU. */
#define COUNT(field)                                             \
	do {                                                     \
		struct counters *count_ = count();               \
		if (count_)                                      \
			__sync_fetch_and_add(&count_->field, 1); \
	} while (0)

/*
 * The kernel skips a program that is running already on that CPU: one in process
 * context that a softirq interrupts (bpf_trace_run). So that nothing is lost,
 * there are two programs on each tracepoint which both contexts reach. The first
 * notes what it works on, and the second works where it finds no such note: the
 * first was skipped. It may itself be skipped only where the first was not.
 *
 * Softirqs do not nest, so there are two notes at most, the second of what
 * interrupted the first. A note that the second program did not take away, since
 * it was skipped, is overwritten by the next one at its level, or dropped when
 * another task runs.
 */
struct note {
	__u64 task; /* that the first is of, or was interrupted in */
	__u64 of[2];
	__u64 depth;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOK_MAX);
	__type(key, __u32);
	__type(value, struct note);
} notes SEC(".maps");

static __always_inline void note(__u32 hook, __u64 of)
{
	__u64 task = bpf_get_current_task();
	__u32 key = hook;
	volatile struct note *n = bpf_map_lookup_elem(&notes, &key);

	if (!n)
		return;
	if (!n->depth || n->task != task) {
		n->task = task;
		n->of[0] = of;
		n->depth = 1;
	} else {
		n->of[1] = of;
		n->depth = 2;
	}
}

/* Takes the note away, and tells whether there was none. */
static __always_inline bool stands_in(__u32 hook, __u64 of)
{
	__u32 key = hook;
	volatile struct note *n = bpf_map_lookup_elem(&notes, &key);

	if (!n)
		return false;
	if (n->depth == 2 && n->of[1] == of) {
		n->depth = 1;
		return false;
	}
	if (n->depth && n->of[0] == of) {
		n->depth = 0;
		return false;
	}
	COUNT(stood_in[hook]);
	return true;
}

/* The two programs of a tracepoint; of is what tells an event from those around it. */
#define STANDS_IN(tracepoint, hook, of, work, args...) \
	SEC("tp_btf/" #tracepoint)                     \
	int BPF_PROG(tracepoint, args)                 \
	{                                              \
		note(hook, (__u64)(of));               \
		work;                                  \
		return 0;                              \
	}                                              \
	SEC("tp_btf/" #tracepoint)                     \
	int BPF_PROG(tracepoint##_2, args)             \
	{                                              \
		if (stands_in(hook, (__u64)(of)))      \
			work;                          \
		return 0;                              \
	}

static __always_inline struct timer_slot *timer_slot(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&timer_slots, &zero);
}

/* The slot, if the timer that runs here is one of this socket's. */
static __always_inline struct timer_slot *running_timer(const void *sk)
{
	struct timer_slot *slot = timer_slot();

	if (!slot || !slot->timer || slot->sk != (__u64)sk)
		return NULL;
	return slot;
}

/*
 * Reads a field. Where the verifier knows what p points to, a plain load; in
 * timer context and for watched sockets, p is but a number and the read has to
 * be a probe.
 */
#define FIELD(p, f) (probe ? BPF_CORE_READ((p), f) : (p)->f)

#define COOKIE(tp) ((__u64)FIELD(tp, inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter))
#define STATE(tp) ((__u8)FIELD(tp, inet_conn.icsk_inet.sk.__sk_common.skc_state))

/* Jiffies since the first retransmission of a row, or AGE_NONE. */
static __always_inline __u32 retransmitting_for(const struct tcp_sock *tp)
{
	__u32 elapsed, second, stamp = BPF_CORE_READ(tp, retrans_stamp);
	__u64 now = bpf_ktime_get_ns();

	if (!stamp)
		return AGE_NONE;
	second = stamps_a_second(tp);
	elapsed = (__u32)(now / (1000000000 / second)) - stamp;
	/* The stamp may be a little ahead of us; in us it wraps every 71 minutes. */
	return elapsed > 0xfff00000 ? 0 : (__u64)elapsed * hz / second;
}

/* Jiffies from a stamp to now; the 32 bits wrap. */
static __always_inline __u32 age(__u32 now, __u32 stamp)
{
	__s32 d = now - stamp;

	/* Another CPU may have stamped it after we read the clock. */
	return d < 0 && d > -1000 ? 0 : (__u32)d;
}

/* When jiffy 0 would have begun if this one just did; ns. */
static __always_inline __s64 epoch_now(void)
{
	__u64 jiffies = bpf_jiffies64(); /* first: it may be the older of the two */

	return bpf_ktime_get_ns() - jiffies * TICK_NSEC;
}

/* The stamp of the peer's last sign of life, as solicited() takes it. */
static __always_inline __u32 heard_at(const struct conn *c)
{
	return c->silent == AGE_NONE ? 0 : (__u32)c->jiffies - c->silent;
}

/* When a timer expires, and in which level of the wheel it is; 0: not pending. */
static __always_inline __u64 expires_at(const struct tcp_sock *tp, __u32 offset, __u8 *level)
{
	const struct timer_list *timer = (const void *)tp + offset;

	if (!BPF_CORE_READ(timer, entry.pprev))
		return 0;
	*level = (BPF_CORE_READ(timer, flags) >> TIMER_ARRAYSHIFT) / LVL_SIZE;
	return BPF_CORE_READ(timer, expires);
}

/* Whether the peer's window is what keeps a socket from sending. */
static __always_inline bool window_limited(const struct conn *c, const struct tcp_sock *tp,
					   const bool probe)
{
	return c->send_window < c->send_queue && c->send_window < FIELD(tp, mss_cache);
}

/*
 * How many keepalive probes at most went out since the peer was last heard. The
 * first goes after keepalive_time of silence, and the timer now waits for the
 * one after the last.
 */
static __always_inline __u32 probes_since_heard(const struct conn *c, const struct tcp_sock *tp,
						const bool probe)
{
	const struct net *net = FIELD(tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);
	__u32 intvl = FIELD(tp, keepalive_intvl) ?: FIELD(net, ipv4.sysctl_tcp_keepalive_intvl);
	__u64 first = c->jiffies - c->silent + c->keepalive_time;
	__u64 next, most;
	__u8 level;

	next = expires_at(tp, keepalive_timer_offset(), &level);
	if (!next) /* it is running just now, and tells nothing */
		return c->probes_out;
	if (!(c->flags & CONN_KEEPALIVE) || c->silent == AGE_NONE || !intvl || next <= first)
		return 0;
	most = (next - first) / intvl;
	return most < c->probes_out ? most : c->probes_out;
}

/*
 * Whether a socket asks anything of its peer, or would: a probe or a
 * retransmission, or a SYN, data or a FIN that are not acknowledged, which are
 * all in its queues. Of one that does not, most of its fields say nothing.
 */
static __always_inline bool asks(const struct tcp_sock *tp, const bool probe)
{
	return FIELD(tp, inet_conn.icsk_inet.sk.sk_wmem_queued) ||
	       FIELD(tp, inet_conn.icsk_probes_out) || FIELD(tp, inet_conn.icsk_retransmits);
}

/*
 * What is asked and not answered, and for how long: after the first part of
 * assess(), and only where there may be something (asks) or somebody will look.
 */
static __always_inline void question(struct conn *c, const struct tcp_sock *tp,
				     const struct watch *seen, __u32 heard_data, const bool probe)
{
	__u32 heard = FIELD(tp, rcv_tstamp), now = (__u32)c->jiffies;
	bool retransmitting, probing, answered;
	__u32 probes, counted, window_closed, v;

	c->probes_out = FIELD(tp, inet_conn.icsk_probes_out);
	c->retransmits = FIELD(tp, inet_conn.icsk_retransmits);
	c->packets_out = FIELD(tp, packets_out);
	c->send_window = FIELD(tp, snd_wnd);
	c->send_queue = FIELD(tp, write_seq) - FIELD(tp, snd_una);
	window_closed = FIELD(tp, inet_conn.icsk_probes_tstamp);

	/* A stamp of 0 was never set: a connection that is still being made. */
	c->silent = heard ? age(now, heard) : AGE_NONE;
	v = heard_data ? age(now, heard_data) : AGE_NONE;
	if (v < c->silent)
		c->silent = v;
	c->solicited = seen && seen->sent ? age(now, seen->solicited) : AGE_NONE;
	/* Any sign of life since the watch began or the last solicitation. */
	answered = seen && c->silent != AGE_NONE && now - c->silent != seen->heard;

	/*
	 * Nothing to send is no reason to call a window closed, and before the
	 * handshake there is none. With data in flight icsk_probes_tstamp is not
	 * set; like tcp_rtx_probe0_timed_out() we take the first retransmission.
	 */
	c->retransmitting = AGE_NONE;
	if (c->retransmits || (c->packets_out && !c->send_window))
		c->retransmitting = retransmitting_for(tp);
	c->window_closed = AGE_NONE;
	if (!c->send_window && c->send_queue && c->state != TCP_SYN_SENT &&
	    c->state != TCP_SYN_RECV) {
		c->flags |= CONN_WINDOW_CLOSED;
		if (c->packets_out)
			c->window_closed = c->retransmitting;
		else if (window_closed)
			c->window_closed = age(now, window_closed);
	}

	/*
	 * The kernel counts probes (icsk_probes_out, shared by keepalive and
	 * zero-window probes) and retransmissions (icsk_retransmits), but not
	 * quite the row since the last sign of life: an answer that carries only
	 * data leaves the probes behind (the fast path of tcp_rcv_established()
	 * skips tcp_ack()), and a duplicate ACK the retransmissions. The watch
	 * knows what they were when the row began; without it, the timer bounds
	 * how many probes can have been sent.
	 */
	probing = c->send_queue && !c->packets_out;
	probes = c->probes_out;
	if (probes && probing && !window_limited(c, tp, probe)) {
		probes = 0; /* nothing was sent: tcp_write_xmit() fails locally */
		c->flags |= CONN_BLOCKED;
	}
	retransmitting = c->retransmits;
	if (probes && !seen && !probing)
		probes = probes_since_heard(c, tp, probe);
	counted = probes + (retransmitting ? c->retransmits : 0);
	if (seen && !answered) {
		if (counted >= seen->before)
			counted -= seen->before;
		/* Retransmissions all, of what is still in flight. */
		if (c->packets_out)
			counted += seen->uncounted;
	}
	c->unanswered = answered ? 0 : counted;
	if (c->flags & CONN_WINDOW_CLOSED)
		c->evidence = EVIDENCE_WINDOW_PROBE;
	else if (c->unanswered && retransmitting)
		c->evidence = EVIDENCE_RETRANSMIT;
	else if (c->unanswered)
		c->evidence = probing ? EVIDENCE_WINDOW_PROBE : EVIDENCE_KEEPALIVE;
	if (c->unanswered || (c->flags & CONN_WINDOW_CLOSED))
		c->flags |= CONN_TROUBLE;
}

/*
 * What a verdict needs to know of a socket as it is now: the census does this
 * for every socket. tp is any full TCP socket; probe says how it has to be read
 * and is a constant. seen is what the watch knows, or NULL. Unless whole, only
 * the state, the class, the risks and the idle time are made out, of a socket
 * that asks nothing: the census of many sockets takes as long as the cache
 * misses that it has for each.
 */
static __always_inline void assess(struct conn *c, const struct tcp_sock *tp,
				   const struct watch *seen, bool whole, const bool probe)
{
	const struct net *net = FIELD(tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);
	__u32 heard_data, sent, now, v;
	unsigned long flags;
	bool idle;

	__builtin_memset(c, 0, sizeof(*c));
	c->cookie = COOKIE(tp);
	c->state = STATE(tp);
	heard_data = FIELD(tp, inet_conn.icsk_ack.lrcvtime);
	sent = FIELD(tp, lsndtime);
	flags = FIELD(tp, inet_conn.icsk_inet.sk.__sk_common.skc_flags);
	if (flags & (1 << SOCK_KEEPOPEN))
		c->flags |= CONN_KEEPALIVE;
	if (flags & (1 << SOCK_DEAD))
		c->flags |= CONN_ORPHAN;
	if (whole || (c->flags & CONN_KEEPALIVE)) {
		c->user_timeout = FIELD(tp, inet_conn.icsk_user_timeout);
		v = FIELD(tp, keepalive_time);
		if (v)
			c->flags |= CONN_KEEPALIVE_TIME_SET;
		c->keepalive_time = v ?: FIELD(net, ipv4.sysctl_tcp_keepalive_time);
	}
	/* After the stamps, so that none of them lies in the future. */
	c->jiffies = bpf_jiffies64();
	now = (__u32)c->jiffies;
	c->idle = heard_data ? age(now, heard_data) : AGE_NONE;
	v = sent ? age(now, sent) : AGE_NONE;
	if (v < c->idle)
		c->idle = v;
	if (whole)
		question(c, tp, seen, heard_data, probe);

	idle = c->idle != AGE_NONE && c->idle >= idle_after;
	if (!idle)
		c->class = CLASS_ACTIVE;
	else if ((c->flags & (CONN_KEEPALIVE | CONN_ORPHAN)) || c->send_queue)
		c->class = CLASS_IDLE;
	else
		c->class = CLASS_UNGUARDED;

	if (c->state == TCP_ESTABLISHED && !(c->flags & CONN_KEEPALIVE))
		c->risks |= 1 << RISK_NO_KEEPALIVE;
	if (c->flags & CONN_KEEPALIVE) {
		if (c->keepalive_time > middlebox_timeout)
			c->risks |= 1 << RISK_KEEPALIVE_SLOWER_THAN_MIDDLEBOX;
		if (c->user_timeout)
			c->risks |= 1 << RISK_USER_TIMEOUT_OVERRIDES_KEEPCNT;
		if (c->send_queue)
			c->risks |= 1 << RISK_KEEPALIVE_MASKED_BY_UNACKED_DATA;
	}
	if (c->state == TCP_CLOSE_WAIT && idle && !(c->flags & CONN_ORPHAN))
		c->risks |= 1 << RISK_CLOSE_WAIT_LEAK;
}

/* How often the kernel will try: what applies to this socket in its state. */
static __always_inline void retries(struct conn *c, const struct tcp_sock *tp,
				    const struct net *net, const bool probe)
{
	if (c->state == TCP_SYN_SENT || c->state == TCP_SYN_RECV) {
		c->retries = FIELD(tp, inet_conn.icsk_syn_retries);
		if (c->retries)
			c->flags |= CONN_SYN_RETRIES_SET;
		else if (FIELD(tp, fastopen_rsk)) /* tcp_fastopen_synack_timer() */
			c->retries = FIELD(net, ipv4.sysctl_tcp_synack_retries) + 1;
		else
			c->retries = FIELD(net, ipv4.sysctl_tcp_syn_retries);
		c->syn_linear = syn_linear(net);
	} else if (c->flags & CONN_ORPHAN) {
		c->retries = FIELD(net, ipv4.sysctl_tcp_orphan_retries);
	} else {
		c->retries = c->retries2;
	}
}

/* Who it is, as far as every kind of socket has it; lport aside. */
static __always_inline void identify(struct conn *c, const struct sock_common *skc,
				     const bool probe)
{
	const struct net *net = FIELD(skc, skc_net.net);

	c->at = bpf_ktime_get_ns();
	c->netns = FIELD(net, ns.inum);
	c->family = FIELD(skc, skc_family);
	c->rport = __builtin_bswap16(FIELD(skc, skc_dport));
	if (c->family == AF_INET6) {
		BPF_CORE_READ_INTO(&c->laddr, skc, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&c->raddr, skc, skc_v6_daddr);
	} else {
		*(__u32 *)c->laddr = FIELD(skc, skc_rcv_saddr);
		*(__u32 *)c->raddr = FIELD(skc, skc_daddr);
	}
}

/*
 * The rest, for those who look at the connection: who it is, and what its
 * timers are going to do. After assess().
 */
static __always_inline void detail(struct conn *c, const struct tcp_sock *tp, const bool probe)
{
	const struct net *net = FIELD(tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);
	bool own;
	int linger;
	__u64 since;
	__s64 epoch;
	__u32 v;

	if (!(c->flags & CONN_ORPHAN) && !FIELD(tp, inet_conn.icsk_inet.sk.sk_socket))
		c->flags |= CONN_UNACCEPTED;
	c->cgroup = cgroup_of(tp);
	c->uid = FIELD(tp, inet_conn.icsk_inet.sk.sk_uid.val);
	identify(c, &tp->inet_conn.icsk_inet.sk.__sk_common, probe);
	/* The moment of assess(), whatever has come in between. */
	epoch = epoch_now();
	c->at = epoch + c->jiffies * TICK_NSEC;
	if (epoch > jiffies_epoch) {
		since = (__u64)(epoch - jiffies_epoch) / 1000;
		c->into_jiffy = since < 0xffff ? since : 0xffff;
	}
	c->lport = __builtin_bswap16(FIELD(tp, inet_conn.icsk_inet.inet_sport));
	c->srtt = FIELD(tp, srtt_us) >> 3;
	c->total_retrans = FIELD(tp, total_retrans);

	v = FIELD(tp, keepalive_intvl);
	if (v)
		c->flags |= CONN_KEEPALIVE_INTVL_SET;
	c->keepalive_intvl = v ?: FIELD(net, ipv4.sysctl_tcp_keepalive_intvl);
	v = FIELD(tp, keepalive_probes);
	if (v)
		c->flags |= CONN_KEEPALIVE_PROBES_SET;
	c->keepalive_probes = v ?: FIELD(net, ipv4.sysctl_tcp_keepalive_probes);

	if (FIELD(tp, inet_conn.icsk_inet.sk.sk_err_soft))
		c->flags |= CONN_SOFT_ERROR;
	c->pending = FIELD(tp, inet_conn.icsk_pending);
	c->backoff = FIELD(tp, inet_conn.icsk_backoff);
	c->rto = FIELD(tp, inet_conn.icsk_rto);
	c->rto_max = rto_max(tp, net, hz, &own);
	if (own)
		c->flags |= CONN_RTO_MAX_SET;
	c->keepalive_expires = expires_at(tp, keepalive_timer_offset(), &c->keepalive_level);
	c->write_expires = expires_at(tp, write_timer_offset(), &c->write_level);
	c->retries2 = FIELD(net, ipv4.sysctl_tcp_retries2);
	retries(c, tp, net, probe);

	if (BPF_CORE_READ_BITFIELD_PROBED(tp, thin_lto))
		c->flags |= CONN_THIN_SET;
	/* tcp_stream_is_thin(), __tcp_set_rto() */
	if (c->packets_out && c->packets_out < 4 && c->state == TCP_ESTABLISHED &&
	    (FIELD(net, ipv4.sysctl_tcp_thin_linear_timeouts) || (c->flags & CONN_THIN_SET))) {
		v = ((__u64)c->srtt + FIELD(tp, rttvar_us)) * hz / 1000000;
		c->thin_rto = v < hz / 5 ? hz / 5 : v;
	}
	/* tcp_fin_time() */
	linger = FIELD(tp, linger2);
	if (linger)
		c->flags |= CONN_FIN_TIME_SET;
	c->fin_time = linger < 0 ? AGE_NONE : linger ?: FIELD(net, ipv4.sysctl_tcp_fin_timeout);
	if (c->fin_time < (c->rto << 2) - (c->rto >> 1))
		c->fin_time = (c->rto << 2) - (c->rto >> 1);
}

static __always_inline void describe(struct conn *c, const struct tcp_sock *tp,
				     const struct watch *seen, const bool probe)
{
	assess(c, tp, seen, true, probe);
	detail(c, tp, probe);
}

/* False when this kind of event is over its rate and has been counted so. */
static __always_inline bool within_rate(__u32 kind, __u32 type)
{
	struct rate *r = bpf_map_lookup_elem(&rates, &kind);
	__u64 now = bpf_ktime_get_ns();

	if (!r)
		return false;
	if (now - r->since > RATE_WINDOW_NS) {
		r->since = now;
		r->count = 0;
	}
	if (r->count++ < RATE_PER_WINDOW)
		return true;
	COUNT(suppressed[type & 3]);
	return false;
}

static __always_inline struct event *reserve(__u32 type)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		COUNT(lost[type & 3]);
		return NULL;
	}
	COUNT(events[type & 3]);
	e->type = type;
	e->cause = 0;
	e->during = 0;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	e->err = 0;
	return e;
}

/* Puts a socket under watch: user space looks after it twice a second. */
static __always_inline void watch(__u64 sk, const struct watch *w)
{
	if (bpf_map_update_elem(&watched, &sk, w, BPF_ANY))
		COUNT(faults[FAULT_WATCH_FULL]);
}

/*
 * Replaces what the watch knows of a socket, unless another CPU has ended the watch
 * meanwhile. Never write to an entry in place: once deleted, its memory is at once
 * another socket's (the map is preallocated).
 */
static __always_inline void rewatch(__u64 sk, const struct watch *w)
{
	bpf_map_update_elem(&watched, &sk, w, BPF_EXIST);
}

/* Copies what the watch knows of a socket, and returns the copy, or NULL. */
static __always_inline struct watch *watched_as(const void *sk, __u64 cookie, struct watch *copy)
{
	__u64 key = (__u64)sk;
	struct watch *w = bpf_map_lookup_elem(&watched, &key);

	if (!w)
		return NULL;
	*copy = *w;
	/* The second look: the entry may have been replaced while it was copied. */
	if (copy->cookie != cookie || copy->dead || ((volatile struct watch *)w)->cookie != cookie)
		return NULL;
	return copy;
}

/*
 * A live peer must answer what this socket just sent. The first of a row is
 * only watched: nearly always it is answered within a round trip. uncounted:
 * neither icsk_probes_out nor icsk_retransmits shows it. unsent: they do, but
 * the host itself has kept it back.
 */
static __always_inline void solicited(const struct tcp_sock *tp, __u8 evidence, bool uncounted,
				      bool unsent, const bool probe)
{
	__u32 heard = FIELD(tp, rcv_tstamp), heard_data = FIELD(tp, inet_conn.icsk_ack.lrcvtime);
	__u32 jiffies = (__u32)bpf_jiffies64();
	__u32 counted = (__u32)FIELD(tp, inet_conn.icsk_probes_out) +
			FIELD(tp, inet_conn.icsk_retransmits);
	struct watch next = {
		.cookie = COOKIE(tp),
		.solicited = jiffies,
		.heard = age(jiffies, heard_data) < age(jiffies, heard) ? heard_data : heard,
		.sent = 1,
		.evidence = evidence,
		.uncounted = uncounted,
	};
	struct watch copy, *seen;
	struct event *e;
	__u32 row;

	if (!next.cookie) {
		COUNT(faults[FAULT_NO_COOKIE]);
		return;
	}
	seen = watched_as(tp, next.cookie, &copy);
	if (seen && seen->heard == next.heard) {
		/* Lower, if an ACK came in the jiffy of the data before it. */
		next.before = counted < seen->before ? 0 : seen->before;
		next.told = seen->told;
		if (seen->uncounted < 255 - uncounted)
			next.uncounted += seen->uncounted;
	} else if (seen) { /* this is the first of a new row */
		next.before = counted - !uncounted;
		next.told = seen->told;
	} else if (counted > 1) { /* a row that began before we did */
		struct conn c;

		assess(&c, tp, NULL, true, probe);
		if (c.unanswered < counted)
			next.before = counted - c.unanswered;
	}
	if (unsent) {
		next.before++;
		next.sent = seen && seen->sent;
		next.solicited = seen ? seen->solicited : 0;
	}
	row = counted - next.before + next.uncounted;
	next.told |= row >= events_from;
	watch((__u64)tp, &next);
	if (unsent || row < events_from || !within_rate(RATE_SOLICITATION, EVENT_SOLICITATION))
		return;
	e = reserve(EVENT_SOLICITATION);
	if (!e)
		return;
	describe(&e->conn, tp, &next, probe);
	bpf_ringbuf_submit(e, 0);
}

/* Timer softirq, every timer of the system: leave at once if it is not TCP's. */
static __always_inline int timer_entry(struct timer_list *timer)
{
	__u64 fn = (__u64)timer->function;
	const struct tcp_sock *tp;
	struct timer_slot *slot;
	struct watch seen;
	bool probe = true;
	__s64 epoch;
	__u32 offset;
	__u8 pending;
	__u64 key;

	if (fn == keepalive_timer_fn)
		offset = keepalive_timer_offset();
	else if (fn == write_timer_fn)
		offset = write_timer_offset();
	else
		return 0;
	slot = timer_slot();
	if (!slot)
		return 0;
	epoch = epoch_now();
	if (epoch < jiffies_epoch)
		jiffies_epoch = epoch;
	tp = (const void *)((__u64)timer - offset);
	pending = FIELD(tp, inet_conn.icsk_pending);
	if (fn == write_timer_fn) {
		/* Write timers are cancelled lazily: this one is for nothing. */
		if (!pending)
			return 0;
		/* What an earlier one left to do is done by now. */
		key = (__u64)tp;
		bpf_map_delete_elem(&deferred, &key);
	}
	slot->timer = (__u64)timer;
	slot->sk = (__u64)tp;
	slot->fn = fn;
	slot->dead = 0;
	slot->reset = 0;
	slot->sent = 0;
	slot->cookie = COOKIE(tp);
	slot->pending = pending;
	slot->probes_out = FIELD(tp, inet_conn.icsk_probes_out);
	slot->retransmits = FIELD(tp, inet_conn.icsk_retransmits);
	slot->snd_wnd = FIELD(tp, snd_wnd);
	slot->total_retrans = FIELD(tp, total_retrans);
	/* It may die of this: keep what it looks like now. */
	if (slot->probes_out || slot->retransmits)
		describe(&slot->before, tp, watched_as(tp, slot->cookie, &seen), true);
	else
		slot->before.cookie = 0;
	return 0;
}

/*
 * The timer may have been freed by now, the socket as well: nothing is read
 * through the timer, and what is read of the socket counts only if its cookie
 * is still the same.
 */
static __always_inline int timer_exit(struct timer_list *timer)
{
	struct timer_slot *slot = timer_slot();
	__u8 evidence = EVIDENCE_NONE;
	const struct tcp_sock *tp;
	bool uncounted = false, unsent = false;
	bool probe = true;

	if (!slot || slot->timer != (__u64)timer)
		return 0;
	slot->timer = 0;
	tp = (const void *)slot->sk;
	if (slot->dead || slot->cookie != COOKIE(tp) || STATE(tp) == TCP_CLOSE)
		return 0;

	if (FIELD(tp, inet_conn.icsk_probes_out) > slot->probes_out) {
		evidence = EVIDENCE_WINDOW_PROBE;
		if (slot->fn == keepalive_timer_fn) {
			evidence = EVIDENCE_KEEPALIVE;
			COUNT(probes_sent);
		}
	} else if (slot->fn != write_timer_fn) {
		return 0;
	} else if (slot->pending == ICSK_TIME_RETRANS &&
		   FIELD(tp, inet_conn.icsk_retransmits) > slot->retransmits) {
		evidence = EVIDENCE_RETRANSMIT;
		unsent = !slot->sent;
	} else if (slot->pending == ICSK_TIME_RETRANS && slot->sent &&
		   FIELD(tp, total_retrans) != slot->total_retrans) {
		/* The window is closed under data in flight: a retransmission
		 * probes it, and counts nowhere (tcp_retransmit_timer). */
		evidence = EVIDENCE_WINDOW_PROBE;
		uncounted = true;
	} else if (slot->pending != ICSK_TIME_REO_TIMEOUT &&
		   (FIELD(tp, inet_conn.icsk_inet.sk.sk_tsq_flags) &
		    (1UL << bpf_core_enum_value(enum tsq_enum, TCP_WRITE_TIMER_DEFERRED)))) {
		struct deferred d = {
			.cookie = slot->cookie,
			.snd_wnd = slot->snd_wnd,
			.pending = slot->pending,
		};

		if (bpf_map_update_elem(&deferred, &slot->sk, &d, BPF_ANY))
			COUNT(faults[FAULT_REMEMBER_FULL]);
	}
	if (evidence != EVIDENCE_NONE)
		solicited(tp, evidence, uncounted, unsent, true);
	return 0;
}

/* What the write timer had to do, whether it runs now or was deferred. */
static __always_inline bool write_timer_of(const struct sock *sk, struct deferred *out)
{
	struct timer_slot *slot = running_timer(sk);
	__u64 key = (__u64)sk;
	struct deferred *d;

	if (slot) {
		if (slot->fn != write_timer_fn)
			return false;
		out->pending = slot->pending;
		out->snd_wnd = slot->snd_wnd;
		return true;
	}
	d = bpf_map_lookup_elem(&deferred, &key);
	if (!d || d->cookie != (__u64)sk->__sk_common.skc_cookie.counter)
		return false;
	*out = *d;
	return true;
}

/*
 * Whether a tail loss probe that was deferred is being sent just now: its bit has
 * been taken, it is still what is pending, and no timer runs. If it sent new data
 * instead, nothing has told us, and the timer has been armed again since.
 */
static __always_inline bool probing_late(const struct tcp_sock *tp)
{
	__u8 level;

	return tp->inet_conn.icsk_pending == ICSK_TIME_LOSS_PROBE &&
	       !(tp->inet_conn.icsk_inet.sk.sk_tsq_flags &
		 (1UL << bpf_core_enum_value(enum tsq_enum, TCP_WRITE_TIMER_DEFERRED))) &&
	       !expires_at(tp, write_timer_offset(), &level);
}

/*
 * Softirq and process context. Within its timer, timer_exit() sees to the rest;
 * of a run that was deferred only this tells, and it comes once. A deferred
 * retransmission by timeout finds icsk_pending cleared (tcp_write_timer_handler),
 * which a fast one in between does not.
 */
static __always_inline int retransmitted(const struct sock *sk, int err)
{
	__u32 type = RETRANSMIT_FAST;
	const struct tcp_sock *tp;
	struct deferred d = {};
	__u64 key = (__u64)sk;
	struct timer_slot *running;
	bool uncounted;

	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || err)
		return 0;
	running = running_timer(sk);
	if (running)
		running->sent = 1;
	if (sk->__sk_common.skc_state == TCP_SYN_SENT) {
		type = RETRANSMIT_SYN;
	} else if (write_timer_of(sk, &d)) {
		if (d.pending == ICSK_TIME_RETRANS && (running || !tp->inet_conn.icsk_pending))
			type = RETRANSMIT_TIMEOUT;
		else if (d.pending == ICSK_TIME_LOSS_PROBE && (running || probing_late(tp)))
			type = RETRANSMIT_TAIL_LOSS_PROBE;
	}
	COUNT(retransmits[type & (RETRANSMIT_MAX - 1)]);
	if (running || !d.cookie || type == RETRANSMIT_FAST)
		return 0;
	bpf_map_delete_elem(&deferred, &key);
	if (type != RETRANSMIT_TIMEOUT)
		return 0;
	uncounted = !d.snd_wnd && !tp->inet_conn.icsk_retransmits; /* see timer_exit() */
	solicited(tp, uncounted ? EVIDENCE_WINDOW_PROBE : EVIDENCE_RETRANSMIT, uncounted, false,
		  false);
	return 0;
}

/*
 * A child that TCP Fast Open made has no cookie yet, and its timer cannot give
 * it one.
 */
static __always_inline int synack_retransmitted(const struct sock *sk)
{
	struct timer_slot *slot = running_timer(sk);

	COUNT(retransmits[RETRANSMIT_SYNACK]);
	if (slot)
		slot->sent = 1;
	if (sk->__sk_common.skc_state == TCP_SYN_RECV)
		give_cookie(sk);
	return 0;
}

/* tcp_write_err(): the write timer gave up, in its softirq or deferred. */
static __always_inline __u32 write_timeout_cause(const struct tcp_sock *tp,
						 const struct deferred *d, bool known, bool orphan,
						 __u8 *during)
{
	const struct net *net = tp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net;
	__u32 lasting, stamp = tp->inet_conn.icsk_probes_tstamp;
	__u64 timeout = tp->inet_conn.icsk_user_timeout;
	bool own;

	timeout = (timeout * hz + 999) / 1000; /* msecs_to_jiffies() */
	/* tcp_rtx_probe0_timed_out(): the window shrank under data in flight. */
	if (known && d->pending == ICSK_TIME_RETRANS && !d->snd_wnd && !orphan) {
		*during = EVIDENCE_WINDOW_PROBE;
		lasting = retransmitting_for(tp);
		if (timeout &&
		    (timeout < 2 * (__u64)rto_max(tp, net, hz, &own) || lasting >= timeout))
			return CAUSE_USER_TIMEOUT;
		return CAUSE_WINDOW_PROBE_TIMEOUT;
	}
	/* tcp_write_timeout(): the user's overrides the model. */
	if (tp->inet_conn.icsk_retransmits) {
		*during = EVIDENCE_RETRANSMIT;
		if (timeout)
			return CAUSE_USER_TIMEOUT;
		return orphan ? CAUSE_ORPHAN_TIMEOUT : CAUSE_RETRANSMIT_TIMEOUT;
	}
	/* tcp_probe_timer(): whichever comes first. */
	if (stamp) {
		/* With the window open nothing was sent: the host itself keeps
		 * the data back, and tcp_retries2 limits that as well. */
		bool closed = tp->snd_wnd < tp->mss_cache;

		*during = closed ? EVIDENCE_WINDOW_PROBE : EVIDENCE_RETRANSMIT;
		lasting = age((__u32)bpf_jiffies64(), stamp);
		if (timeout && lasting >= timeout)
			return CAUSE_USER_TIMEOUT;
		if (orphan)
			return CAUSE_ORPHAN_TIMEOUT;
		return closed ? CAUSE_WINDOW_PROBE_TIMEOUT : CAUSE_RETRANSMIT_TIMEOUT;
	}
	return CAUSE_UNKNOWN;
}

/*
 * tcp_write_timeout() of a connection that is still being made: the retries, or
 * the user's timeout if that came first.
 */
static __always_inline __u32 connect_timeout_cause(const struct tcp_sock *tp, __u8 *during)
{
	__u64 timeout = tp->inet_conn.icsk_user_timeout;
	__u32 lasting = retransmitting_for(tp);

	timeout = (timeout * hz + 999) / 1000;
	/* tcp_fastopen_synack_timer() does not look at the user's. */
	if (!timeout || tp->fastopen_rsk || lasting == AGE_NONE || lasting < timeout)
		return CAUSE_CONNECT_TIMEOUT;
	*during = EVIDENCE_RETRANSMIT;
	return CAUSE_USER_TIMEOUT;
}

/* Whether a reset was received for this socket just now. */
static __always_inline bool was_reset(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct reset *r = bpf_map_lookup_elem(&resets, &key);

	return r && r->cookie == (__u64)sk->__sk_common.skc_cookie.counter &&
	       bpf_ktime_get_ns() - r->at < RESET_FRESH_NS;
}

/* An orphan that the kernel gave up without an error. */
static __always_inline __u32 given_up_cause(const struct sock *sk)
{
	return is_going(sk->__sk_common.skc_net.net) ? CAUSE_ORPHAN_TIMEOUT : CAUSE_OUT_OF_MEMORY;
}

/*
 * Whether tcp_write_err() ended it: in a write timer, in one that was deferred,
 * or in tcp_ld_RTO_revert(), where an ICMP error shortens the wait. It takes the
 * error from sk_err_soft, if there is one.
 */
static __always_inline bool gave_up(const struct sock *sk, const struct tcp_sock *tp, int oldstate,
				    bool in_timer, struct deferred *d, bool *known)
{
	if (!sk->sk_err) /* as nearly always */
		return false;
	*known = write_timer_of(sk, d);
	if (sk->sk_err == ETIMEDOUT || in_timer)
		return true;
	if (sk->sk_err != sk->sk_err_soft || tp->packets_out)
		return false;
	return *known || (tp->inet_conn.icsk_retransmits && oldstate != TCP_SYN_SENT);
}

/*
 * Why a socket that goes to CLOSE does so: sk_err is set by now, and what is
 * running on this CPU says who set it (docs/architecture.md has the table).
 */
static __always_inline __u32 cause_of(const struct sock *sk, const struct tcp_sock *tp,
				      int oldstate, __u8 *during)
{
	bool orphan = sk->__sk_common.skc_flags & (1 << SOCK_DEAD);
	struct timer_slot *slot = running_timer(sk);
	struct deferred d = {};
	int err = sk->sk_err;
	bool known;

	if (slot && slot->fn == keepalive_timer_fn) {
		if (!err) /* FIN_WAIT2 expires: in a reset, or in a time_wait socket */
			return slot->reset ? CAUSE_ORPHAN_TIMEOUT : CAUSE_CLOSED;
		*during = EVIDENCE_KEEPALIVE;
		return tp->inet_conn.icsk_user_timeout ? CAUSE_USER_TIMEOUT :
							 CAUSE_KEEPALIVE_TIMEOUT;
	}
	if (!slot && (err == ECONNRESET || err == EPIPE || err == ECONNREFUSED) && was_reset(sk))
		return oldstate == TCP_SYN_SENT ? CAUSE_REFUSED : CAUSE_RESET_BY_PEER;
	if (gave_up(sk, tp, oldstate, slot, &d, &known)) {
		if (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV)
			return connect_timeout_cause(tp, during);
		return write_timeout_cause(tp, &d, known, orphan, during);
	}
	if (slot) /* tcp_out_of_resources() */
		return given_up_cause(sk);
	if (err == ECONNABORTED)
		return CAUSE_DESTROYED;
	if (err && (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV))
		return CAUSE_UNREACHABLE;
	if (err == ECONNRESET || err == EPIPE)
		return CAUSE_UNKNOWN;
	/* Any other error is an old one that nobody has asked for. */
	switch (oldstate) {
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		if (tp->snd_una == tp->write_seq)
			return CAUSE_CLOSED;
		return orphan ? given_up_cause(sk) : CAUSE_ABORTED;
	case TCP_FIN_WAIT1:
		return orphan ? given_up_cause(sk) : CAUSE_ABORTED;
	case TCP_FIN_WAIT2:
		/* Either the peer's FIN came, or a time_wait socket waits for it. */
		if (sk->__sk_common.skc_flags & (1 << SOCK_DONE))
			return CAUSE_CLOSED;
		return orphan && tp->linger2 >= 0 ? CAUSE_CLOSED : CAUSE_ABORTED;
	}
	return CAUSE_ABORTED;
}

/*
 * Has the verifier forget which constant a variable holds, or kernels before 6.2
 * check all that follows once for each; unknown is any number that it cannot know.
 */
#define forget(var, unknown)                                                     \
	do {                                                                     \
		__u64 var_ = (var), unknown_ = (unknown);                        \
		asm volatile("%0 ^= %1; %0 ^= %1" : "+r"(var_) : "r"(unknown_)); \
		(var) = var_;                                                    \
	} while (0)

/* A death that was found out later than it happened. */
static __always_inline void decided(struct undecided *u, __u64 *key, __u32 cause)
{
	struct event *e;

	COUNT(deaths[cause]);
	e = within_rate(cause, EVENT_DEATH) ? reserve(EVENT_DEATH) : NULL;
	if (e) {
		*e = u->event;
		e->type = EVENT_DEATH;
		e->cause = cause;
		bpf_ringbuf_submit(e, 0);
	}
	bpf_map_delete_elem(&undecided, key);
}

/* False if there was no room: then nobody will ever know. */
static __always_inline bool decide_later(const struct sock *sk, const struct tcp_sock *tp,
					 int oldstate, const struct watch *seen)
{
	static const struct undecided none;
	__u64 key = (__u64)sk;
	struct undecided *u;

	u = bpf_map_lookup_elem(&undecided, &key);
	if (u) /* of the socket that was there before */
		decided(u, &key, CAUSE_RESET_BY_PEER);
	if (bpf_map_update_elem(&undecided, &key, &none, BPF_ANY)) {
		COUNT(faults[FAULT_REMEMBER_FULL]);
		return false;
	}
	u = bpf_map_lookup_elem(&undecided, &key);
	if (!u)
		return false;
	u->event.err = sk->sk_err;
	describe(&u->event.conn, tp, seen, false);
	u->event.conn.state = oldstate;
	u->at = bpf_ktime_get_ns();
	return true;
}

static __always_inline void died(const struct sock *sk, const struct tcp_sock *tp, int oldstate)
{
	struct timer_slot *slot = running_timer(sk);
	__u64 key = (__u64)sk;
	struct watch copy, *seen;
	struct event *e;
	__u8 during = EVIDENCE_NONE;
	__u32 cause;

	if (!sk->__sk_common.skc_cookie.counter) /* made by TCP Fast Open, or older than us */
		give_cookie(sk);
	cause = cause_of(sk, tp, oldstate, &during);
	forget(cause, sk->sk_err);
	forget(during, sk->sk_err);
	cause &= 15;
	seen = watched_as(sk, sk->__sk_common.skc_cookie.counter, &copy);
	if (cause == CAUSE_RESET_BY_PEER && (sk->sk_shutdown & RCV_SHUTDOWN) &&
	    (oldstate == TCP_FIN_WAIT1 || oldstate == TCP_FIN_WAIT2)) {
		if (decide_later(sk, tp, oldstate, seen)) {
			if (seen)
				bpf_map_delete_elem(&watched, &key);
			return;
		}
		cause = CAUSE_UNKNOWN;
	}

	COUNT(deaths[cause]);
	if (slot)
		slot->dead = 1;
	if (cause == CAUSE_CLOSED) {
		/* A healthy end of a healthy connection is nothing to tell. */
		if (!seen)
			return;
		/* The watch pass tells it, unless reset_in_answer() is next. */
		if (!slot && oldstate == TCP_FIN_WAIT2) {
			seen->cause = cause;
			seen->dead = 1;
			rewatch(key, seen);
			return;
		}
	}
	e = within_rate(cause, EVENT_DEATH) ? reserve(EVENT_DEATH) : NULL;
	if (!e) {
		if (seen) { /* the watch pass tells it */
			seen->cause = cause;
			seen->during = during;
			seen->dead = 1;
			rewatch(key, seen);
		}
		return;
	}
	e->cause = cause;
	e->during = cause == CAUSE_USER_TIMEOUT ? during : EVIDENCE_NONE;
	e->err = sk->sk_err;
	if (slot && slot->before.cookie)
		e->conn = slot->before;
	else
		describe(&e->conn, tp, seen, false);
	e->conn.state = oldstate;
	bpf_ringbuf_submit(e, 0);
	if (seen)
		bpf_map_delete_elem(&watched, &key);
}

/*
 * Once for every transition of every connection: the hot path. A connection
 * gets its cookie here, because in timer context nobody can give it one.
 */
static __always_inline int state_changed(const struct sock *sk, int oldstate, int newstate)
{
	const struct tcp_sock *tp;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_ESTABLISHED || newstate == TCP_SYN_SENT || newstate == TCP_LISTEN) {
		give_cookie(sk);
		return 0;
	}
	if (newstate != TCP_CLOSE || oldstate == TCP_LISTEN || oldstate == TCP_CLOSE)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (tp)
		died(sk, tp, oldstate);
	return 0;
}

static __always_inline int reset_received(const struct sock *sk)
{
	struct reset r = {
		.cookie = (__u64)sk->__sk_common.skc_cookie.counter,
		.at = bpf_ktime_get_ns(),
	};
	__u64 key = (__u64)sk;

	if (bpf_map_update_elem(&resets, &key, &r, BPF_ANY))
		COUNT(faults[FAULT_REMEMBER_FULL]);
	return 0;
}

/*
 * A reset in answer to a segment that has just ended a socket: data came after
 * close, and nobody is there to read it. What such a death was counted as, if it
 * is counted already, is `closed`: tcp_rcv_state_process() in FIN_WAIT1 says the
 * same when it hands the rest over to a time_wait socket.
 */
static __always_inline void reset_in_answer(const struct sock *sk)
{
	const struct tcp_sock *tp;
	__u64 key = (__u64)sk;
	struct watch copy, *seen;
	struct undecided *u;
	struct event *e;

	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || sk->__sk_common.skc_state != TCP_CLOSE)
		return;
	u = bpf_map_lookup_elem(&undecided, &key);
	if (u && u->event.conn.cookie == (__u64)sk->__sk_common.skc_cookie.counter) {
		decided(u, &key, CAUSE_ABORTED);
		return;
	}
	if (u) /* of the socket that was there before */
		decided(u, &key, CAUSE_RESET_BY_PEER);
	if (sk->sk_err || tp->linger2 < 0 || !(sk->__sk_common.skc_flags & (1 << SOCK_DEAD)))
		return;
	COUNT(not_closed);
	COUNT(deaths[CAUSE_ABORTED]);
	seen = bpf_map_lookup_elem(&watched, &key);
	if (seen)
		copy = *seen;
	if (seen && copy.cookie != (__u64)sk->__sk_common.skc_cookie.counter)
		seen = NULL;
	e = within_rate(CAUSE_ABORTED, EVENT_DEATH) ? reserve(EVENT_DEATH) : NULL;
	if (!e) {
		if (seen) {
			copy.cause = CAUSE_ABORTED;
			rewatch(key, &copy);
		}
		return;
	}
	if (seen)
		bpf_map_delete_elem(&watched, &key);
	e->cause = CAUSE_ABORTED;
	describe(&e->conn, tp, NULL, false);
	e->conn.state = TCP_FIN_WAIT2;
	bpf_ringbuf_submit(e, 0);
}

static __always_inline int reset_sent(const struct sock *sk, const struct sk_buff *skb)
{
	struct timer_slot *slot;

	if (!sk)
		return 0;
	slot = running_timer(sk);
	if (slot)
		slot->reset = 1;
	else if (skb)
		reset_in_answer(sk);
	return 0;
}

static __always_inline void count_idle(struct census *n, __u32 idle)
{
	__u32 i;

	n->idle_sum += idle;
	for (i = 0; i < IDLE_BUCKETS - 1; i++)
		if (idle <= idle_bounds[i])
			break;
	if (i < IDLE_BUCKETS)
		n->idle[i]++;
}

static __always_inline void risks_counted(struct census *n, __u8 risks)
{
	__u32 i;

	for (i = 0; i < RISK_MAX; i++)
		if (risks & (1 << i))
			n->risks[i]++;
}

/*
 * What the kernel keeps before a connection is made and after its end: less than
 * a socket, of which only the part that all have in common may be read.
 */
static __always_inline void stub(struct conn *c, const struct sock_common *skc, const bool probe)
{
	__builtin_memset(c, 0, sizeof(*c));
	c->class = CLASS_NONE;
	c->cookie = FIELD(skc, skc_cookie.counter);
	identify(c, skc, probe);
	c->lport = FIELD(skc, skc_num);
	c->state = FIELD(skc, skc_state);
	if (c->state == TCP_TIME_WAIT) {
		/* Also what is left of FIN_WAIT2; ss tells them apart, too. */
		c->state = BPF_CORE_READ((const struct inet_timewait_sock *)skc, tw_substate);
		c->flags = CONN_ORPHAN;
	} else {
		c->flags = CONN_UNACCEPTED;
	}
}

/* What the connections to a listener are going to inherit is in it, too. */
static __always_inline void listener(struct conn *c, const struct tcp_sock *tp, const bool probe)
{
	describe(c, tp, NULL, probe);
	c->class = CLASS_NONE;
	c->flags &= ~CONN_TROUBLE;
	c->accept_queue = FIELD(tp, inet_conn.icsk_inet.sk.sk_ack_backlog);
	c->accept_limit = FIELD(tp, inet_conn.icsk_inet.sk.sk_max_ack_backlog);
}

/*
 * What the census makes of a socket, in c; tp is NULL if it is but a stub. Returns
 * whether the record is asked for; it is whole then.
 */
static __always_inline bool consider(struct conn *c, const struct sock_common *skc,
				     const struct tcp_sock *tp, __u64 cookie, __u8 state,
				     struct watch **seen, const bool probe)
{
	bool asked = !census_cookie || census_cookie == cookie, whole;
	struct watch *copy = *seen;

	*seen = NULL;
	if (!tp || state == TCP_LISTEN || state == TCP_CLOSE) {
		asked = asked && (census_write & (1 << CLASS_NONE)) && state != TCP_CLOSE;
		if (asked && tp)
			listener(c, tp, probe);
		else if (asked)
			stub(c, skc, probe);
		c->class = CLASS_NONE;
		return asked;
	}
	whole = asks(tp, probe) || (asked && (census_write & ~(1 << CLASS_TROUBLE)));
	if (whole)
		*seen = watched_as(tp, cookie, copy);
	assess(c, tp, *seen, whole, probe);
	if (!asked || !(census_write & (1 << (c->flags & CONN_TROUBLE ? CLASS_TROUBLE : c->class))))
		return false;
	detail(c, tp, probe);
	return true;
}

/*
 * Counts what consider() has made of a socket in that state; written tells whether
 * user space has it. Who has no cookie is counted, but nobody could tell it apart
 * later: it is not watched.
 */
static __always_inline void account(const struct conn *c, __u64 sk, __u64 cookie, __u8 state,
				    struct watch *seen, bool written)
{
	bool trouble = c->class != CLASS_NONE && (c->flags & CONN_TROUBLE);
	struct census *n;
	__u32 zero = 0, counted;

	n = bpf_map_lookup_elem(&census_counts, &zero);
	if (!n)
		return;
	n->sockets[state][trouble ? CLASS_TROUBLE : c->class & (CLASS_MAX - 1)]++;
	if (c->class == CLASS_NONE)
		return;
	if (state == TCP_ESTABLISHED && c->idle != AGE_NONE)
		count_idle(n, c->idle);
	risks_counted(n, c->risks);
	if (seen && written && !seen->told) {
		seen->told = 1;
		rewatch(sk, seen);
	} else if (trouble && !seen && cookie) {
		counted = (__u32)c->probes_out + c->retransmits;
		struct watch found = {
			.cookie = cookie,
			.heard = heard_at(c),
			.told = 1,
			.evidence = c->evidence,
			.before = c->unanswered < counted ? counted - c->unanswered : 0,
		};

		watch(sk, &found);
	}
}

/* The word at an address, 0 if it cannot be read. */
static __always_inline __u64 word(__u64 address)
{
	__u64 value;

	if (casts)
		return AS(struct rb_node, address)->__rb_parent_color;
	return bpf_probe_read_kernel(&value, sizeof(value), (void *)address) ? 0 : value;
}

/* Where the first socket of a chain of a table is to be found, 0: there is none such. */
static __always_inline __u64 chain(const struct share *s, __u32 number)
{
	if (number < s->ehash_chains)
		return s->ehash + (__u64)number * bpf_core_type_size(struct inet_ehash_bucket);
	number -= s->ehash_chains;
	if (number < s->lhash_chains)
		return s->lhash +
		       (__u64)number * bpf_core_type_size(struct inet_listen_hashbucket) +
		       bpf_core_field_offset(struct inet_listen_hashbucket, nulls_head);
	return 0;
}

/*
 * Where a chain goes on after the socket of the cursor, 0 if that is no longer in
 * it: RCU has not kept it since the last run.
 */
static __always_inline __u64 next_after(volatile struct cursor *at)
{
	const __u32 offset = bpf_core_field_offset(struct sock_common, skc_nulls_node);
	__u64 socket = at->socket;

	/* sk_nulls_del_node_init_rcu() leaves next, and clears pprev. */
	if (!at->cookie ||
	    at->cookie != word(socket + bpf_core_field_offset(struct sock_common, skc_cookie)) ||
	    !word(socket + offset + sizeof(__u64)))
		return 0;
	return word(socket + offset);
}

/*
 * One step of collect(): takes the next socket of the chain, or goes on to the next
 * chain. Returns 1 where the share is full or the table ends. A function of its own,
 * and all of its state in memory, so that the verifier goes through it once.
 */
__attribute__((noinline)) int collect_next(__u32 step)
{
	const __u32 offset = bpf_core_field_offset(struct sock_common, skc_nulls_node);
	__u32 zero = 0, n;
	struct share *s = bpf_map_lookup_elem(&share, &zero);
	__u64 node, head;

	if (!s)
		return 1;
	node = s->node;
	if (!node || (node & 1)) { /* the end of the chain */
		s->at.chain++;
		s->at.passed = 0;
		s->skip = 0;
		head = chain(s, s->at.chain);
		if (!head || step >= CHAINS)
			return 1;
		s->node = word(head);
		return 0;
	}
	if (s->skip) {
		s->skip--;
		s->node = word(node);
		return 0;
	}
	n = s->sockets;
	if (n >= SHARE_MAX)
		return 1;
	s->socket[n] = node - offset;
	s->sockets = n + 1;
	s->at.socket = node - offset;
	s->at.passed++;
	s->node = word(node);
	return 0;
}

/*
 * The sockets of the next share of a table. The kernel frees them after RCU, under
 * which we run, and a chain that changes meanwhile still ends.
 */
static __always_inline void collect(struct share *s)
{
	__u64 next;
	__u32 step;

	s->sockets = 0;
	s->skip = 0;
	s->at.chain = walk_at.chain;
	s->at.passed = walk_at.passed;
	s->at.socket = walk_at.socket;
	s->node = word(chain(s, walk_at.chain));
	if (walk_at.passed) {
		next = next_after(&walk_at);
		if (next)
			s->node = next;
		else
			s->skip = walk_at.passed;
	}
	for (step = 0; step < CHAINS + SHARE_MAX + SKIP_MAX; step++)
		if (collect_next(step))
			break;
	if (s->skip) { /* we do not get to where we were */
		COUNT(faults[FAULT_CENSUS_FULL]);
		s->at.chain++;
		s->at.passed = 0;
	}
	if (s->at.passed)
		walk_at.cookie =
			word(s->at.socket + bpf_core_field_offset(struct sock_common, skc_cookie));
	walk_at.socket = s->at.socket;
	walk_at.passed = s->at.passed;
	walk_at.chain = s->at.chain;
}

/* Returns whether to look again, since the socket has changed its state meanwhile. */
static __always_inline bool look(struct share *s, const struct sock_common *skc,
				 const struct tcp_sock *tp, const bool probe)
{
	__u64 cookie = FIELD(skc, skc_cookie.counter);
	__u8 state = FIELD(skc, skc_state) & (TCP_MAX_STATES - 1);
	struct watch copy, *seen = &copy;
	__u32 netns, states, *before, n = s->records;
	struct conn *c;
	const struct net *net;
	bool write;

	/* There is one for each socket; the mask is for verifiers that lose the bound. */
	c = &s->record[n & (SHARE_MAX - 1)];
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		tp = NULL;
	/* Nobody could tell apart what has no cookie. */
	if (!cookie && ((tp && state != TCP_LISTEN) || (census_write & (1 << CLASS_NONE)))) {
		net = FIELD(skc, skc_net.net);
		netns = FIELD(net, ns.inum);
		before = bpf_map_lookup_elem(&no_cookie, &netns);
		states = (before ? *before : 0) | 1 << state;
		if (!before || *before != states)
			if (bpf_map_update_elem(&no_cookie, &netns, &states, BPF_ANY))
				COUNT(faults[FAULT_CENSUS_FULL]);
	}
	if (only_no_cookie)
		return false;
	write = consider(c, skc, tp, cookie, state, &seen, probe) && cookie;
	/*
	 * RCU keeps the memory, but not for whom: it may have become another socket's
	 * (SLAB_TYPESAFE_BY_RCU), which is counted where that one is.
	 */
	if ((__u64)FIELD(skc, skc_cookie.counter) != cookie)
		return false;
	if ((FIELD(skc, skc_state) & (TCP_MAX_STATES - 1)) != state)
		return true;
	account(c, (__u64)skc, cookie, state, seen, write);
	if (write)
		s->records = n + 1;
	return false;
}

/* One socket of the share. */
__attribute__((noinline)) int look_at(__u32 i)
{
	__u32 zero = 0;
	struct share *s;
	__u64 sk;

	s = bpf_map_lookup_elem(&share, &zero);
	if (!s || i >= SHARE_MAX)
		return 0;
	sk = s->socket[i];
	if (casts)
		return look(s, AS(struct sock_common, sk), AS(struct tcp_sock, sk), false);
	return look(s, (const void *)sk, (const void *)sk, true);
}

/*
 * Sets up which table is walked. A namespace's own is freed a grace period of RCU
 * after nobody holds the namespace any more (cleanup_net): it is there for as long
 * as we run if somebody does now. Returns false if it has gone.
 */
static __always_inline bool set_table(struct share *s)
{
	const struct inet_hashinfo *info;
	__u32 netns = walk_netns;
	struct own_table *own;
	const struct net *net;

	if (!netns) {
		s->ehash = ehash;
		s->ehash_chains = ehash_chains;
		s->lhash = lhash;
		s->lhash_chains = lhash_chains;
		return true;
	}
	own = bpf_map_lookup_elem(&own_tables, &netns);
	if (!own)
		return false;
	net = (const void *)own->net;
	if (BPF_CORE_READ(net, ns.inum) != netns || is_going(net))
		return false;
	info = hashinfo_of(net);
	if ((__u64)info != own->info || (__u64)BPF_CORE_READ(info, ehash) != own->ehash)
		return false;
	s->ehash = own->ehash;
	s->ehash_chains = own->chains;
	s->lhash_chains = 0; /* all namespaces share it (inet_pernet_hashinfo_alloc) */
	return true;
}

/*
 * The walk over the TCP sockets of a hash table, one share in each run. iter/tcp sees
 * only the reader's network namespace, but passes all other sockets on its way
 * through the table, for each namespace anew, and takes the lock of each socket that
 * it sees, waiting for whoever has it. This reads the table once, for all
 * namespaces, and waits for nobody. Returns 1 at the end of the table, or where it
 * has gone.
 */
static __always_inline int walk(void)
{
	__u32 zero = 0, i;
	struct share *s;

	s = bpf_map_lookup_elem(&share, &zero);
	if (!s)
		return 1;
	s->records = 0;
	if (!set_table(s))
		return 1;
	collect(s);
	for (i = 0; i < SHARE_MAX; i++) {
		if (i >= s->sockets)
			break;
		if (look_at(i))
			look_at(i);
	}
	return !chain(s, walk_at.chain);
}

/* A network namespace that list_netns() has got to. */
__attribute__((noinline)) int found_netns(__u64 address)
{
	const struct net *net = (const void *)address;
	const struct inet_hashinfo *info;
	struct own_table own = {};
	__u32 netns;

	if (is_going(net))
		return 0;
	netns_count++;
	info = hashinfo_of(net);
	if ((__u64)info == shared_info)
		return 0;
	netns = BPF_CORE_READ(net, ns.inum);
	own.net = address;
	own.info = (__u64)info;
	own.ehash = (__u64)BPF_CORE_READ(info, ehash);
	own.chains = BPF_CORE_READ(info, ehash_mask) + 1;
	own.search = netns_search;
	if (bpf_map_update_elem(&own_tables, &netns, &own, BPF_ANY))
		COUNT(faults[FAULT_CENSUS_FULL]);
	return 0;
}

/*
 * The network namespaces, from the kernel's own list (net_namespace_list, under
 * RCU), some in each run. Returns 1 at the end.
 */
static __always_inline int list_netns(void)
{
	const __u32 offset = bpf_core_field_offset(struct net, list);
	__u64 head, node = netns_at;
	__u32 i;

	/* The first namespace was the first in the list, and stays in it. */
	head = word(first_net + offset + sizeof(__u64));
	if (!node || is_going((const void *)(node - offset))) {
		node = first_net + offset;
		netns_count = 0;
	}
	for (i = 0; i < NETNS_STEP; i++) {
		if (!node || node == head)
			return 1;
		found_netns(node - offset);
		node = word(node);
	}
	netns_at = node;
	return 0;
}

/*
 * How a watched socket is now, wherever it is. User space hears of an answer if it
 * knew of the question. Returns whether c is to be written out.
 */
static __always_inline bool look_after(struct conn *c, __u64 key)
{
	const struct tcp_sock *tp = (const void *)key;
	const bool probe = true;
	struct watch *value, seen;

	value = bpf_map_lookup_elem(&watched, &key);
	if (!value)
		return false;
	seen = *value;
	describe(c, tp, &seen, true);
	/* What was read may be of two sockets, of which the second has its memory now. */
	if (COOKIE(tp) != seen.cookie)
		c->cookie = 0;
	/* A timer on another CPU may have begun a new row meanwhile. */
	value = bpf_map_lookup_elem(&watched, &key);
	if (!value || value->cookie != seen.cookie || value->solicited != seen.solicited)
		return false;
	if (seen.dead || c->cookie != seen.cookie || c->state == TCP_CLOSE) {
		__builtin_memset(c, 0, sizeof(*c));
		c->cookie = seen.cookie;
		c->flags = CONN_GONE;
		c->cause = seen.cause;
		c->evidence = seen.during;
		bpf_map_delete_elem(&watched, &key);
		return seen.told;
	}
	if (c->flags & CONN_TROUBLE) {
		if (!seen.told) {
			seen.told = 1;
			rewatch(key, &seen);
		}
		return true;
	}
	c->flags |= CONN_ANSWERED;
	if (seen.evidence == EVIDENCE_KEEPALIVE)
		COUNT(probes_answered);
	if (!c->probes_out && !c->retransmits) {
		bpf_map_delete_elem(&watched, &key);
		return seen.told;
	}
	struct watch next = {
		.cookie = seen.cookie,
		.solicited = seen.solicited,
		.heard = heard_at(c),
		.before = c->probes_out + c->retransmits,
	};
	rewatch(key, &next);
	return seen.told;
}

__attribute__((noinline)) int watch_at(__u32 i)
{
	__u32 zero = 0, n;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b || i >= BATCH_MAX)
		return 0;
	n = b->records;
	if (look_after(&b->record[n & (BATCH_MAX - 1)], b->key[i]))
		b->records = n + 1;
	return 0;
}

/* The watched sockets whose keys user space gives. */
static __always_inline int watch_batch(void)
{
	__u32 zero = 0, i;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b)
		return 0;
	b->records = 0;
	for (i = 0; i < BATCH_MAX; i++) {
		if (i >= b->keys)
			break;
		watch_at(i);
	}
	return 0;
}

__attribute__((noinline)) int settle_at(__u32 i)
{
	__u32 zero = 0;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);
	struct undecided *u;
	__u64 key;

	if (!b || i >= BATCH_MAX)
		return 0;
	key = b->key[i];
	u = bpf_map_lookup_elem(&undecided, &key);
	if (u && u->at && bpf_ktime_get_ns() - u->at >= DECIDED_NS)
		decided(u, &key, CAUSE_RESET_BY_PEER);
	return 0;
}

/* The deaths that nothing more will explain, of those whose keys user space gives. */
static __always_inline int settle_batch(void)
{
	__u32 zero = 0, i;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b)
		return 0;
	for (i = 0; i < BATCH_MAX; i++) {
		if (i >= b->keys)
			break;
		settle_at(i);
	}
	return 0;
}

/*
 * The socket behind a file, or NULL. By reading: bpf_sock_from_file() is younger
 * than what we run on. The inode, which says it too, is one cache miss more.
 */
static __always_inline const struct sock *file_sock(struct file *file)
{
	if ((__u64)file->f_op != socket_ops)
		return NULL;
	return READ_AT(struct socket, file->private_data, sk);
}

/* Process context: every file descriptor of every process. */
static __always_inline int owner_of(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner o = {};
	const struct sock *sk;

	if (!task || !file)
		return 0;
	sk = file_sock(file);
	if (!sk)
		return 0;
	o.cookie = READ_AT(struct sock, sk, __sk_common.skc_cookie.counter);
	if (!o.cookie || !bpf_map_lookup_elem(&wanted, &o.cookie))
		return 0;
	o.pid = task->tgid;
	o.fd = ctx->fd;
	o.started = BPF_CORE_READ(task, group_leader, start_time);
	BPF_CORE_READ_INTO(&o.comm, task, group_leader, comm);
	/* Full: the kernel will call us for this file once more. */
	bpf_seq_write(ctx->meta->seq, &o, sizeof(o));
	return 0;
}

/*
 * Process context: every file descriptor of every process. A TCP socket gets its
 * cookie that is older than we are.
 */
static __always_inline int assign_cookie(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	const struct sock *sk;
	struct socket *socket;

	if (!cookie_helper || !file)
		return 0;
	sk = file_sock(file);
	if (!sk || READ_AT(struct sock, sk, __sk_common.skc_cookie.counter) ||
	    READ_AT(struct sock, sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	socket = bpf_sock_from_file(file); /* 5.11 */
	if (socket && socket->sk)
		bpf_get_socket_cookie(socket->sk);
	return 0;
}

/* Tells of a network namespace that has not been found yet. */
static __always_inline int tell_netns(struct seq_file *seq, const struct net *net, __u32 pid,
				      __u32 fd, __u32 kind)
{
	struct holder h = {
		.netns = READ_AT(struct net, net, ns.inum),
		.pid = pid,
		.fd = fd,
		.kind = kind,
	};
	__u32 now = search, *before;

	before = bpf_map_lookup_elem(&found, &h.netns);
	if (!h.netns || (before && *before == now))
		return 0;
	/* Full: the kernel will call us once more. */
	if (!bpf_seq_write(seq, &h, sizeof(h)))
		bpf_map_update_elem(&found, &h.netns, &now, BPF_ANY);
	return 0;
}

/* Process context: every thread. */
static __always_inline int netns_of_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct net *net;

	if (!task)
		return 0;
	net = BPF_CORE_READ(task, nsproxy, net_ns);
	return net ? tell_netns(ctx->meta->seq, net, task->pid, 0, HOLDER_TASK) : 0;
}

/* Process context: every file descriptor of every process. */
static __always_inline int netns_of_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	const struct ns_common *ns;
	const struct sock *sk;

	if (!task || !file)
		return 0;
	sk = file_sock(file);
	if (sk)
		return tell_netns(ctx->meta->seq, READ_AT(struct sock, sk, __sk_common.skc_net.net),
				  task->tgid, ctx->fd, HOLDER_SOCKET);
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) != NSFS_MAGIC)
		return 0;
	ns = BPF_CORE_READ(file, f_inode, i_private);
	if (!ns || BPF_CORE_READ(ns, ops) != BPF_CORE_READ(task, nsproxy, net_ns, ns.ops))
		return 0;
	return tell_netns(ctx->meta->seq, (const void *)ns - bpf_core_field_offset(struct net, ns),
			  task->tgid, ctx->fd, HOLDER_FILE);
}

/*
 * Learns from a socket of our own what cannot be had otherwise without
 * kallsyms and the kernel's configuration: the two timer functions, which
 * tcp_init_sock() has set, and jiffies a second, from a TCP_KEEPIDLE of known
 * length.
 */
/* Where the sockets are of all namespaces that have no table of their own. */
static __always_inline void learn_tables(struct task_struct *task)
{
	const struct inet_hashinfo *info;
	const struct net *net;
	__u32 i, chains;

	/* From parent to parent to the very first task, which is in the first namespace. */
	for (i = 0; i < 64 && BPF_CORE_READ(task, pid); i++)
		task = BPF_CORE_READ(task, real_parent);
	net = BPF_CORE_READ(task, nsproxy, net_ns);
	first_net = (__u64)net;
	info = hashinfo_of(net);
	shared_info = (__u64)info;
	ehash = (__u64)BPF_CORE_READ(info, ehash);
	ehash_chains = BPF_CORE_READ(info, ehash_mask) + 1;
	lhash = listeners(info, &chains);
	lhash_chains = chains;
}

static __always_inline int learn_from(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct timer_list *timer;
	struct tcp_sock *tp;
	void *fn = NULL;

	if (!task || !file)
		return 0;
	if ((file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	tp = (void *)BPF_CORE_READ((struct socket *)file->private_data, sk);
	if (!tp || !learn_cookie ||
	    (__u64)BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter) !=
		    learn_cookie)
		return 0;
	socket_ops = (__u64)file->f_op;
	timer = (void *)tp + keepalive_timer_offset();
	BPF_CORE_READ_INTO(&fn, timer, function);
	keepalive_timer_fn = (__u64)fn;
	timer = (void *)tp + write_timer_offset();
	BPF_CORE_READ_INTO(&fn, timer, function);
	write_timer_fn = (__u64)fn;
	learn_keepalive_time = BPF_CORE_READ(tp, keepalive_time);
	learn_tables(task);
	return 0;
}

/* Since 4.16. The one place where a socket's state and error are both known. */
STANDS_IN(inet_sock_set_state, HOOK_SET_STATE, sk, state_changed(sk, oldstate, newstate),
	  const struct sock *sk, int oldstate, int newstate)

/* Since 4.15. */
STANDS_IN(tcp_retransmit_skb, HOOK_RETRANSMIT_SKB, sk, retransmitted(sk, retransmit_error_of(ctx)),
	  const struct sock *sk, const struct sk_buff *skb)

/* Since 4.15. sk is the listener, or a child that TCP Fast Open made. */
STANDS_IN(tcp_retransmit_synack, HOOK_RETRANSMIT_SYNACK, req, synack_retransmitted(sk),
	  const struct sock *sk, const struct request_sock *req)

/* Since 4.15. Also where the socket is closed already: not a death by itself. */
STANDS_IN(tcp_receive_reset, HOOK_RECEIVE_RESET, sk, reset_received(sk), const struct sock *sk)

/* Since 4.15. Either is NULL where there is none. */
STANDS_IN(tcp_send_reset, HOOK_SEND_RESET, sk ? (__u64)sk : (__u64)skb, reset_sent(sk, skb),
	  const struct sock *sk, const struct sk_buff *skb)

/* Since 2.6; the timer wheel's softirq. */
SEC("tp_btf/timer_expire_entry")
int BPF_PROG(timer_expire_entry, struct timer_list *timer)
{
	return timer_entry(timer);
}

SEC("tp_btf/timer_expire_exit")
int BPF_PROG(timer_expire_exit, struct timer_list *timer)
{
	return timer_exit(timer);
}

/*
 * Run by user space, in its context: rcu_read_lock() is held, and preemption off
 * (bpf_prog_test_run_raw_tp, since 5.10). Nothing attaches them.
 */
SEC("raw_tp")
int walk_run(void *ctx)
{
	return walk();
}

SEC("raw_tp")
int netns_list_run(void *ctx)
{
	return list_netns();
}

SEC("raw_tp")
int watch_run(void *ctx)
{
	return watch_batch();
}

SEC("raw_tp")
int settle_run(void *ctx)
{
	return settle_batch();
}

SEC("iter/task_file")
int owners_pass(struct bpf_iter__task_file *ctx)
{
	return owner_of(ctx);
}

SEC("iter/task_file")
int cookies_pass(struct bpf_iter__task_file *ctx)
{
	return assign_cookie(ctx);
}

SEC("iter/task")
int netns_task_pass(struct bpf_iter__task *ctx)
{
	return netns_of_task(ctx);
}

SEC("iter/task_file")
int netns_file_pass(struct bpf_iter__task_file *ctx)
{
	return netns_of_file(ctx);
}

SEC("iter/task_file")
int learn_pass(struct bpf_iter__task_file *ctx)
{
	return learn_from(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
