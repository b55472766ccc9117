/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The walk of a census through the kernel's hash tables of TCP sockets.
 */
#ifndef HALFOPEN_WALK_H
#define HALFOPEN_WALK_H

#include "census.h"

/*
 * The limits of one run of the walk, besides WALK_SOCKETS. Most chains are empty. The next run
 * continues a chain that has more sockets.
 */
#define WALK_CHAINS 512
#define WALK_SKIPS 1024 /* sockets that the walk passed before a restart of the chain */
#define WALK_PART 16 /* steps of a loop within a loop, so that verifiers check fewer in all */

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
volatile struct cursor walk_at = {};

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
		read_socket(i);
	}
	return !chain_head(s, walk_at.chain);
}

#endif /* HALFOPEN_WALK_H */
