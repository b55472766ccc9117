/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The census: a walk through the kernel's hash tables of TCP sockets.
 */
#ifndef HALFOPEN_CENSUS_H
#define HALFOPEN_CENSUS_H

#include "connection.h"
#include "netns.h"

/*
 * What a run of the walk looks at: at most so many chains, most of which are empty,
 * and so many sockets. A chain that has more is gone on with in the next run.
 */
#define CHAINS 512
#define SHARE_MAX 256
/* How many sockets that were passed before are skipped at most in a run. */
#define SKIP_MAX 1024
/*
 * How often a chain is begun again, since the socket where it was left has gone, until
 * the rest of it is left out.
 */
#define RESTARTS_MAX 64

/*
 * The kernel's hash tables of TCP sockets, found by learn_from(): addresses, and how
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
volatile struct own_table walk_table = {}; /* net 0: the one that namespaces share */
volatile __u32 only_no_cookie = 0; /* all that is looked for are sockets without a cookie */
volatile struct cursor walk_at = {}; /* where the next run begins */

/*
 * A part of a table, and what is written out of it. Written by the walk, one run at
 * a time; read by user space after each run.
 */
struct walk_batch {
	__u32 records;
	__u32 sockets;
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
	__type(value, struct walk_batch);
} walk_batch SEC(".maps");

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

/* What a census counted. User space clears it before and reads it after. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct census_counts);
} census_counts SEC(".maps");

static __always_inline void count_idle(struct census_counts *n, __u32 idle)
{
	__u32 i;

	n->idle_sum += idle;
	for (i = 0; i < IDLE_BUCKETS - 1; i++)
		if (idle <= idle_bounds[i])
			break;
	if (i < IDLE_BUCKETS)
		n->idle[i]++;
}

static __always_inline void risks_counted(struct census_counts *n, __u8 risks)
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
static __always_inline void stub(struct conn *c, const struct sock_common *skc,
				 const enum access how)
{
	__builtin_memset(c, 0, sizeof(*c));
	c->class = CLASS_NONE;
	c->cookie = READ(how, skc, skc_cookie.counter);
	identify(c, skc, how);
	c->lport = READ(how, skc, skc_num);
	c->state = READ(how, skc, skc_state);
	if (c->state == TCP_TIME_WAIT) {
		/* Also what is left of FIN_WAIT2; ss tells them apart, too. */
		c->state = BPF_CORE_READ((const struct inet_timewait_sock *)skc, tw_substate);
		c->flags = CONN_ORPHAN;
	} else {
		c->flags = CONN_UNACCEPTED;
	}
}

/* What the connections to a listener are going to inherit is in it, too. */
static __always_inline void listener(struct conn *c, const struct tcp_sock *tp,
				     const enum access how)
{
	describe(c, tp, NULL, how);
	c->class = CLASS_NONE;
	c->flags &= ~CONN_TROUBLE;
	c->accept_queue = READ(how, tp, inet_conn.icsk_inet.sk.sk_ack_backlog);
	c->accept_limit = READ(how, tp, inet_conn.icsk_inet.sk.sk_max_ack_backlog);
}

/*
 * What the census makes of a socket, in c; tp is NULL if it is but a stub. Returns
 * whether the record is asked for; it is whole then.
 */
static __always_inline bool classify(struct conn *c, const struct sock_common *skc,
				     const struct tcp_sock *tp, __u64 cookie, __u8 state,
				     struct watch **seen, const enum access how)
{
	bool asked = !census_cookie || census_cookie == cookie, whole;
	struct watch *copy = *seen;

	*seen = NULL;
	if (!tp || state == TCP_LISTEN || state == TCP_CLOSE) {
		asked = asked && (census_write & (1 << CLASS_NONE)) && state != TCP_CLOSE;
		if (asked && tp)
			listener(c, tp, how);
		else if (asked)
			stub(c, skc, how);
		c->class = CLASS_NONE;
		return asked;
	}
	whole = has_outstanding(tp, how) || (asked && (census_write & ~(1 << CLASS_TROUBLE)));
	if (whole)
		*seen = watched_as(tp, cookie, copy);
	fill_basic(c, tp, *seen, whole, how);
	if (!asked || !(census_write & (1 << (c->flags & CONN_TROUBLE ? CLASS_TROUBLE : c->class))))
		return false;
	fill_detail(c, tp, how);
	return true;
}

/*
 * Counts what classify() has made of a socket in that state; written tells whether
 * user space has it. Who has no cookie is counted, but nobody could tell it apart
 * later: it is not watched.
 */
static __always_inline void count_socket(const struct conn *c, __u64 sk, __u64 cookie, __u8 state,
					 struct watch *seen, bool written)
{
	bool trouble = c->class != CLASS_NONE && (c->flags & CONN_TROUBLE);
	struct census_counts *n;
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
	if (seen && written) {
		mark_reported(sk, seen);
	} else if (trouble && !seen && cookie) {
		counted = (__u32)c->probes_out + c->retransmits;
		struct watch found = {
			.cookie = cookie,
			.heard = heard_at(c),
			.reported = 1,
			.evidence = c->evidence,
			.baseline = c->unanswered < counted ? counted - c->unanswered : 0,
		};

		watch(sk, &found);
	}
}

/* Where the first socket of a chain of a table is to be found, 0: there is none such. */
static __always_inline __u64 chain(const struct walk_batch *s, __u32 number)
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
 * it: RCU has not kept it since the last run. A socket that is in a chain is what its
 * predecessor points to (sk_nulls_del_node_init_rcu() clears pprev).
 */
static __always_inline __u64 next_after(volatile struct cursor *at)
{
	const __u32 offset = bpf_core_field_offset(struct sock_common, skc_nulls_node);
	__u64 socket = at->socket, pprev = read_ptr(socket + offset + sizeof(__u64));

	if (at->cookie !=
		    read_ptr(socket + bpf_core_field_offset(struct sock_common, skc_cookie)) ||
	    !pprev || read_ptr(pprev) != socket + offset)
		return 0;
	return read_ptr(socket + offset);
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
	struct walk_batch *s = bpf_map_lookup_elem(&walk_batch, &zero);
	__u64 node, head;

	if (!s)
		return 1;
	node = s->node;
	if (!node || (node & 1)) { /* the end of the chain */
		s->at.chain++;
		s->at.passed = 0;
		s->at.skip = 0;
		s->at.restarts = 0;
		head = chain(s, s->at.chain);
		if (!head || step >= CHAINS)
			return 1;
		s->node = read_ptr(head);
		return 0;
	}
	if (s->at.skip) {
		s->at.skip--;
	} else {
		n = s->sockets;
		if (n >= SHARE_MAX)
			return 1;
		s->socket[n] = node - offset;
		s->sockets = n + 1;
	}
	s->at.socket = node - offset;
	s->at.passed++;
	s->node = read_ptr(node);
	return 0;
}

/*
 * The sockets of the next share of a table. The kernel frees them after RCU, under
 * which we run, and a chain that changes meanwhile still ends.
 */
static __always_inline void collect(struct walk_batch *s)
{
	__u64 next = 0;
	__u32 step;

	s->sockets = 0;
	s->at.chain = walk_at.chain;
	s->at.passed = walk_at.passed;
	s->at.socket = walk_at.socket;
	s->at.skip = walk_at.skip;
	s->at.restarts = walk_at.restarts;
	if (s->at.passed) {
		next = next_after(&walk_at);
		if (!next) { /* begin it again, up to where we were */
			s->at.skip += s->at.passed;
			s->at.passed = 0;
			s->at.restarts++;
		}
	}
	if (s->at.restarts > RESTARTS_MAX) {
		COUNT(faults[FAULT_CENSUS_FULL]);
		s->at.chain++;
		s->at.skip = 0;
		s->at.restarts = 0;
	}
	s->node = next ?: read_ptr(chain(s, s->at.chain));
	for (step = 0; step < CHAINS + SHARE_MAX + SKIP_MAX; step++)
		if (collect_next(step))
			break;
	if (s->at.passed)
		walk_at.cookie = read_ptr(s->at.socket +
					  bpf_core_field_offset(struct sock_common, skc_cookie));
	walk_at.socket = s->at.socket;
	walk_at.passed = s->at.passed;
	walk_at.chain = s->at.chain;
	walk_at.skip = s->at.skip;
	walk_at.restarts = s->at.restarts;
}

/* Returns whether to look again, since the socket has changed its state meanwhile. */
static __always_inline bool read_socket(struct walk_batch *s, const struct sock_common *skc,
					const struct tcp_sock *tp, const enum access how)
{
	__u64 cookie = READ(how, skc, skc_cookie.counter);
	__u8 state = READ(how, skc, skc_state) & (TCP_MAX_STATES - 1);
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
		net = READ(how, skc, skc_net.net);
		netns = READ(how, net, ns.inum);
		before = bpf_map_lookup_elem(&no_cookie, &netns);
		states = (before ? *before : 0) | 1 << state;
		if (!before || *before != states)
			if (bpf_map_update_elem(&no_cookie, &netns, &states, BPF_ANY))
				COUNT(faults[FAULT_CENSUS_FULL]);
	}
	if (only_no_cookie)
		return false;
	write = classify(c, skc, tp, cookie, state, &seen, how) && cookie;
	/*
	 * RCU keeps the memory, but not for whom: it may have become another socket's
	 * (SLAB_TYPESAFE_BY_RCU), which is counted where that one is.
	 */
	if ((__u64)READ(how, skc, skc_cookie.counter) != cookie)
		return false;
	if ((READ(how, skc, skc_state) & (TCP_MAX_STATES - 1)) != state)
		return true;
	count_socket(c, (__u64)skc, cookie, state, seen, write);
	if (write)
		s->records = n + 1;
	return false;
}

/* One socket of the share. */
__attribute__((noinline)) int read_socket_at(__u32 i)
{
	__u32 zero = 0;
	struct walk_batch *s;
	__u64 sk;

	s = bpf_map_lookup_elem(&walk_batch, &zero);
	if (!s || i >= SHARE_MAX)
		return 0;
	sk = s->socket[i];
	if (casts)
		return read_socket(s, AS(struct sock_common, sk), AS(struct tcp_sock, sk), DIRECT);
	return read_socket(s, (const void *)sk, (const void *)sk, PROBE);
}

/*
 * Sets up which table is walked. A namespace's own is freed a grace period of RCU
 * after nobody holds the namespace any more (cleanup_net): it is there for as long
 * as we run if somebody does now. Returns false if it has gone.
 */
static __always_inline bool set_table(struct walk_batch *s)
{
	const struct net *net = (const void *)walk_table.net;
	const struct inet_hashinfo *info;

	if (!net) {
		s->ehash = ehash;
		s->ehash_chains = ehash_chains;
		s->lhash = lhash;
		s->lhash_chains = lhash_chains;
		return true;
	}
	if (BPF_CORE_READ(net, ns.inum) != walk_table.netns || is_going(net))
		return false;
	info = hashinfo_of(net);
	if ((__u64)info != walk_table.info ||
	    (__u64)BPF_CORE_READ(info, ehash) != walk_table.ehash ||
	    BPF_CORE_READ(info, ehash_mask) + 1 != walk_table.chains)
		return false;
	s->ehash = walk_table.ehash;
	s->ehash_chains = walk_table.chains;
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
	struct walk_batch *s;

	s = bpf_map_lookup_elem(&walk_batch, &zero);
	if (!s)
		return 1;
	s->records = 0;
	if (!set_table(s))
		return 1;
	collect(s);
	for (i = 0; i < SHARE_MAX; i++) {
		if (i >= s->sockets)
			break;
		if (read_socket_at(i))
			read_socket_at(i);
	}
	return !chain(s, walk_at.chain);
}

#endif /* HALFOPEN_CENSUS_H */
