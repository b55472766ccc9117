/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The census: a walk through the kernel's hash tables of TCP sockets.
 */
#ifndef HALFOPEN_CENSUS_H
#define HALFOPEN_CENSUS_H

#include "cgroups.h"
#include "listeners.h"
#include "netns.h"
#include "peerhosts.h"

/*
 * The limits of one run of the walk. Most chains are empty. The next run continues a
 * chain that has more sockets.
 */
#define WALK_CHAINS 512
#define WALK_SOCKETS 256
#define WALK_SKIPS 1024 /* sockets that the walk passed before a restart of the chain */
#define WALK_PART 16 /* steps of a loop within a loop, so that verifiers check fewer in all */
_Static_assert((WALK_SOCKETS & (WALK_SOCKETS - 1)) == 0, "an index is masked with it, less 1");

/*
 * If the socket where a run stopped has left its chain, the next run begins the chain
 * again; after so many restarts, the walk leaves out the rest of the chain.
 */
#define RESTARTS_MAX 64

/*
 * The hash tables that network namespaces share, of connections and of listeners, as
 * learn_from() found them: addresses and numbers of chains.
 */
volatile __u64 ehash = 0;
volatile __u64 lhash = 0;
volatile __u32 ehash_chains = 0;
volatile __u32 lhash_chains = 0;

/*
 * The current walk; there is one at a time. User space sets the table and the position
 * where the walk begins; each run updates the position.
 */
volatile struct own_table walk_table = {}; /* net 0: the shared tables */
volatile __u32 only_no_cookie = 0; /* only look for sockets without a cookie */
volatile struct cursor walk_at = {};

/* The state of one run of the walk, and the records that it writes for user space. */
struct walk_batch {
	__u32 records;
	__u32 sockets;
	__u64 node; /* the next of the chain */
	__u64 ehash; /* the tables, as in the variables of these names */
	__u64 lhash;
	__u32 ehash_chains;
	__u32 lhash_chains;
	struct cursor at;
	__u64 socket[WALK_SOCKETS]; /* addresses */
	struct conn record[WALK_SOCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk_batch);
} walk_batch SEC(".maps");

/*
 * Network namespaces with sockets that have no cookie. Inserted: by the walk. Read and
 * deleted: by user space, which gives cookies to these sockets. If it is full, the next
 * census finds the others (FAULT_CENSUS_FULL).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NETNS_MAX);
	__type(key, __u32); /* inode number */
	__type(value, __u32); /* 1 << the states of these sockets */
} no_cookie SEC(".maps");

/* The counts of a census. User space clears them before a walk and reads them after it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct census_counts);
} census_counts SEC(".maps");

/*
 * Returns the bucket of an idle time. Not inlined, so that the verifier does not check all
 * that follows once for each bucket.
 */
__attribute__((noinline)) int idle_bucket(__u32 idle)
{
	__u32 i;

	for (i = 0; i < IDLE_BUCKETS - 1; i++)
		if (idle <= idle_bounds[i])
			break;
	return i;
}

static __always_inline void count_idle(struct census_counts *n, __u32 idle)
{
	__u32 i = idle_bucket(idle);

	n->idle_sum += idle;
	if (i < IDLE_BUCKETS)
		n->idle[i]++;
}

static __always_inline void count_risks(struct census_counts *n, __u16 risks)
{
	__u32 i;

	for (i = 0; i < RISK_MAX; i++)
		if (risks & (1 << i))
			n->risks[i]++;
}

/*
 * Reads a socket into c, and sets its class. tp is NULL for a stub. Returns whether user
 * space wants the record; it is complete then. Sets *again if it can only tell after it has
 * read all, for which it has to be called again with complete. *seen is room for a watch
 * entry, and becomes the entry of the socket, or NULL.
 */
static __always_inline bool classify(struct conn *c, const struct sock_common *skc,
				     const struct tcp_sock *tp, __u64 cookie, __u8 state,
				     struct watch **seen, bool complete, bool *again,
				     const enum access how)
{
	bool selected = !census_cookie || census_cookie == cookie, written;
	struct watch *copy = *seen;
	__u32 copied;
	__u8 class;

	*seen = NULL;
	*again = false;
	if (tp && state == TCP_LISTEN)
		return classify_listener(c, tp, selected, how);
	if (!tp || state == TCP_CLOSE) {
		selected = selected && (census_write & (1 << CLASS_NONE)) && state != TCP_CLOSE;
		if (selected)
			fill_stub(c, skc, how);
		c->class = CLASS_NONE;
		return selected;
	}
	complete = complete || has_outstanding(tp, how) || has_unread(tp, how);
	if (complete)
		*seen = watched_as(tp, cookie, copy);
	fill_basic(c, tp, *seen, complete, how);
	copied = complete ? fill_unread(c, tp, how) : 0;
	class = counted_in(c);
	written = selected && (census_write & (1 << class)) &&
		  c->idle >= census_idle[class & (CLASS_SLOTS - 1)];
	*again = !complete && (written || probe_is_overdue(c, tp, how));
	if (*again)
		return false;
	if (c->unread != AGE_NONE && c->cookie)
		remember_unread(c, (__u64)tp, copied);
	if (written)
		fill_detail(c, tp, how);
	return written;
}

/*
 * Counts a socket that classify() has read, and starts to watch it if it is in trouble.
 * written: the record is for user space. A socket without a cookie is not watched, since
 * it could not be recognised later.
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
	n->sockets[state][counted_in(c) & (CLASS_SLOTS - 1)]++;
	if (c->class != CLASS_NONE || state == TCP_LISTEN)
		count_risks(n, c->risks);
	if (c->class == CLASS_NONE)
		return;
	if (state == TCP_ESTABLISHED && c->idle != AGE_NONE)
		count_idle(n, c->idle);
	if (c->risks && census_cgroups)
		count_cgroup(cgroup_of((const void *)sk), c->risks);
	if (seen && written) {
		mark_reported(sk, seen);
	} else if (trouble && !seen && cookie) {
		counted = (__u32)c->probes_out + c->retransmits;
		struct watch found = {
			.cookie = cookie,
			.looked = (__u32)c->jiffies,
			.heard = stamp_of(c, c->silent),
			.accepted = stamp_of(c, c->accepted),
			.segments_in = c->segments_in,
			.reported = 1,
			.evidence = c->evidence,
			.baseline = c->unanswered < counted ? counted - c->unanswered : 0,
			.acknowledged = c->unacknowledged < counted ? counted - c->unacknowledged :
								      0,
		};

		watch(sk, &found);
	}
}

/* Returns the address of the pointer to a chain's first socket; 0 after the last chain. */
static __always_inline __u64 chain_head(const struct walk_batch *s, __u32 number)
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
 * Returns the next of the chain after the socket of the cursor; 0 if that socket has left
 * the chain, since RCU has not protected it since the last run. A socket is in a chain if
 * its predecessor points to it (sk_nulls_del_node_init_rcu() clears pprev).
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
 * One step of collect(): takes the next socket of the chain, or continues with the next
 * chain. Returns 1 if the run has reached a limit or the end of the table. It is not
 * inlined, and its state is in memory, so that the verifier checks it only once.
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
	if (!node || (node & 1)) { /* end of the chain */
		s->at.chain++;
		s->at.passed = 0;
		s->at.skip = 0;
		s->at.restarts = 0;
		head = chain_head(s, s->at.chain);
		if (!head || step >= WALK_CHAINS)
			return 1;
		s->node = read_ptr(head);
		return 0;
	}
	if (s->at.skip) {
		s->at.skip--;
	} else {
		n = s->sockets;
		if (n >= WALK_SOCKETS)
			return 1;
		s->socket[n] = node - offset;
		s->sockets = n + 1;
	}
	s->at.socket = node - offset;
	s->at.passed++;
	s->node = read_ptr(node);
	return 0;
}

/* Takes some steps, until one has reached a limit or the end: collect_next() says when. */
__attribute__((noinline)) int collect_some(__u32 step)
{
	__u32 i;

	for (i = 0; i < WALK_PART; i++)
		if (collect_next(step + i))
			return 1;
	return 0;
}

/*
 * Collects the addresses of the next sockets of the table. This runs under RCU: the kernel
 * does not free the sockets before it ends, and a chain that changes meanwhile has an end.
 */
static __always_inline void collect(struct walk_batch *s)
{
	/* Most chains are empty where the last run has found few sockets. */
	bool dense = s->sockets >= WALK_SOCKETS / 4;
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
		if (!next) { /* begin the chain again, and skip what the walk has passed */
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
	if (casts && dense && s->at.chain < s->ehash_chains)
		fetch_chains(chain_head(s, s->at.chain), s->ehash_chains - s->at.chain);
	s->node = next ?: read_ptr(chain_head(s, s->at.chain));
	for (step = 0; step < WALK_CHAINS + WALK_SOCKETS + WALK_SKIPS; step += WALK_PART)
		if (collect_some(step))
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

/* Fetches some of the sockets of the run. Not inlined, so that the verifier checks it once. */
__attribute__((noinline)) int fetch_sockets(__u32 first)
{
	__u32 zero = 0, i;
	struct walk_batch *s = bpf_map_lookup_elem(&walk_batch, &zero);

	if (!s || !casts)
		return 0;
	for (i = 0; i < FETCH_PART; i++)
		if (first + i < s->sockets)
			fetch_socket(s->socket[(first + i) & (WALK_SOCKETS - 1)]);
	return 0;
}

/* The walk reads the socket a second time, in full. */
volatile __u32 read_in_full = 0;

/*
 * Returns whether to read the socket again: since it has to be read in full, or its state has
 * changed meanwhile.
 */
static __always_inline bool read_socket(struct walk_batch *s, const struct sock_common *skc,
					const struct tcp_sock *tp, const enum access how)
{
	__u64 cookie = READ(how, skc, skc_cookie.counter);
	__u8 state = READ(how, skc, skc_state) & (TCP_MAX_STATES - 1);
	struct watch copy, *seen = &copy;
	__u32 netns, states, *before, n = s->records;
	struct conn *c;
	const struct net *net;
	bool write, again;

	/* There is a record for each socket; the mask is for verifiers that lose the bound. */
	c = &s->record[n & (WALK_SOCKETS - 1)];
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		tp = NULL;
	/* Without a cookie, user space could not recognise the socket. */
	if (!cookie && ((tp && state != TCP_LISTEN) || (census_write & (1 << CLASS_NONE)) ||
			(tp && (census_write & (1 << CLASS_OVERFLOWED)) &&
			 READ(how, tp, inet_conn.icsk_inet.sk.sk_drops.counter)))) {
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
	write = classify(c, skc, tp, cookie, state, &seen, read_in_full, &again, how) && cookie;
	/*
	 * RCU keeps the memory, but it may be another socket's by now
	 * (SLAB_TYPESAFE_BY_RCU). The walk counts that socket in its own chain.
	 */
	if ((__u64)READ(how, skc, skc_cookie.counter) != cookie)
		return false;
	if (again)
		read_in_full = 1;
	if (again || (READ(how, skc, skc_state) & (TCP_MAX_STATES - 1)) != state)
		return true;
	count_socket(c, (__u64)skc, cookie, state, seen, write);
	if (census_hosts && tp && c->class != CLASS_NONE)
		count_host(c, skc, tp, seen, how);
	if (write)
		s->records = n + 1;
	return false;
}

/* Reads socket i of the run. Not inlined, so that the verifier checks it only once. */
__attribute__((noinline)) int read_socket_at(__u32 i)
{
	__u32 zero = 0;
	struct walk_batch *s;
	__u64 sk;

	s = bpf_map_lookup_elem(&walk_batch, &zero);
	if (!s || i >= WALK_SOCKETS)
		return 0;
	sk = s->socket[i];
	if (casts)
		return read_socket(s, AS(struct sock_common, sk), AS(struct tcp_sock, sk), DIRECT);
	return read_socket(s, (const void *)sk, (const void *)sk, PROBE);
}

/*
 * Sets the tables of a run. The kernel frees the table of a single namespace a grace period
 * of RCU after the last reference to the namespace (cleanup_net): if there is a reference
 * now, the table stays for the whole run. Returns false if there is none.
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
 * Walks a part of a hash table of TCP sockets. Returns 1 at the end of the table, or if
 * the table is gone. Why not iter/tcp: that shows only the sockets of the reader's network
 * namespace, so that each namespace takes another pass over the whole table, and it locks
 * each socket that it shows, which may mean to wait for a process. This reads the table
 * once for all namespaces, and takes no lock.
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
	for (i = 0; casts && i < WALK_SOCKETS; i += FETCH_PART) {
		if (i >= s->sockets)
			break;
		fetch_sockets(i);
	}
	for (i = 0; i < WALK_SOCKETS; i++) {
		if (i >= s->sockets)
			break;
		read_in_full = 0;
		if (read_socket_at(i) && read_socket_at(i))
			read_socket_at(i);
	}
	return !chain_head(s, walk_at.chain);
}

#endif /* HALFOPEN_CENSUS_H */
