/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The census: what is read and counted of each socket that the walk (walk.h) finds.
 */
#ifndef HALFOPEN_CENSUS_H
#define HALFOPEN_CENSUS_H

#include "cgroups.h"
#include "listeners.h"
#include "netns.h"
#include "peerhosts.h"

#define WALK_SOCKETS 256 /* sockets in one run of the walk */
_Static_assert((WALK_SOCKETS & (WALK_SOCKETS - 1)) == 0, "an index is masked with it, less 1");

volatile __u32 only_no_cookie = 0; /* only look for sockets without a cookie */

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

/* Counts the risks of a socket. Not inlined, so that the verifier checks it only once. */
__attribute__((noinline)) int count_risks(__u32 risks)
{
	__u32 zero = 0, i;
	struct census_counts *n = bpf_map_lookup_elem(&census_counts, &zero);

	if (!n)
		return 0;
	for (i = 0; i < RISK_MAX; i++)
		if (risks & (1 << i))
			n->risks[i]++;
	return 0;
}

/* Returns whether user space wants the record of a connection that is complete so far. */
static __always_inline bool is_wanted(const struct conn *c, __u64 cookie)
{
	__u8 class = counted_in(c);

	return (!census_cookie || census_cookie == cookie) && (census_write & (1 << class)) &&
	       c->idle >= census_idle[class & (CLASS_SLOTS - 1)];
}

/*
 * Counts a socket that has been read, and starts to watch it if it is in trouble. written: the
 * record is for user space. A socket without a cookie is not watched, since
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
	if (c->risks && (c->class != CLASS_NONE || state == TCP_LISTEN))
		count_risks(c->risks);
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

/* What is left to do with a socket of the run. */
enum todo {
	DONE,
	READ_BRIEFLY, /* by read_briefly() */
	READ_IN_FULL, /* by read_in_full() */
};

/* Tells user space that a socket of a namespace has no cookie. */
static __always_inline void note_no_cookie(const struct sock_common *skc, __u8 state,
					   const enum access how)
{
	const struct net *net = READ(how, skc, skc_net.net);
	__u32 netns = READ(how, net, ns.inum), states, *before;

	before = bpf_map_lookup_elem(&no_cookie, &netns);
	states = (before ? *before : 0) | 1 << state;
	if (!before || *before != states)
		if (bpf_map_update_elem(&no_cookie, &netns, &states, BPF_ANY))
			COUNT(faults[FAULT_CENSUS_FULL]);
}

/*
 * Returns DONE if the memory of a socket, which was read, is another socket's by now: RCU keeps
 * the memory, but not for the same socket (SLAB_TYPESAFE_BY_RCU). The walk counts that socket in
 * its own chain. Returns READ_BRIEFLY if the state has changed meanwhile. Otherwise it counts
 * the socket, and returns DONE.
 */
static __always_inline enum todo finish(struct walk_batch *s, const struct conn *c,
					const struct sock_common *skc, const struct tcp_sock *tp,
					__u64 cookie, __u8 state, struct watch *seen, bool write,
					const enum access how)
{
	if ((__u64)READ(how, skc, skc_cookie.counter) != cookie)
		return DONE;
	if ((READ(how, skc, skc_state) & (TCP_MAX_STATES - 1)) != state)
		return READ_BRIEFLY;
	write = write && cookie; /* without a cookie, user space could not recognise it */
	count_socket(c, (__u64)skc, cookie, state, seen, write);
	if (census_hosts && tp && c->class != CLASS_NONE)
		count_host(c, skc, tp, seen, how);
	if (write)
		s->records++;
	return DONE;
}

/* Returns the record that the walk writes next. There is one for each socket of a run. */
static __always_inline struct conn *next_record(struct walk_batch *s)
{
	/* The mask is for verifiers that lose the bound. */
	return &s->record[s->records & (WALK_SOCKETS - 1)];
}

/*
 * Reads a stub, or what a census needs of a socket that waits for nothing and that user space
 * does not want.
 */
static __always_inline enum todo read_briefly(struct walk_batch *s, const struct sock_common *skc,
					      const struct tcp_sock *tp, const enum access how)
{
	__u64 cookie = READ(how, skc, skc_cookie.counter);
	__u8 state = READ(how, skc, skc_state) & (TCP_MAX_STATES - 1);
	bool selected = !census_cookie || census_cookie == cookie, overflowed;
	struct conn *c = next_record(s);
	bool write = false;

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		tp = NULL;
	overflowed = tp && state == TCP_LISTEN && has_overflowed(tp, how);
	if (!cookie && ((tp && state != TCP_LISTEN) || (census_write & (1 << CLASS_NONE)) ||
			(overflowed && (census_write & (1 << CLASS_OVERFLOWED)))))
		note_no_cookie(skc, state, how);
	if (only_no_cookie)
		return DONE;
	if (!tp || state == TCP_CLOSE) {
		write = selected && (census_write & (1 << CLASS_NONE)) && state != TCP_CLOSE;
		if (write)
			fill_stub(c, skc, how);
		c->class = CLASS_NONE;
	} else if (state == TCP_LISTEN) {
		if (selected &&
		    (census_write & (1 << CLASS_NONE | (overflowed ? 1 << CLASS_OVERFLOWED : 0))))
			return READ_IN_FULL;
		set_listener(c, tp, how);
	} else {
		if (has_outstanding(tp, how) || has_unread(tp, how))
			return READ_IN_FULL;
		fill_basic(c, tp, NULL, false, how);
		if (is_wanted(c, cookie) || probe_is_overdue(c, tp, how))
			return READ_IN_FULL;
	}
	return finish(s, c, skc, tp, cookie, state, NULL, write, how);
}

/* Reads a listener that user space wants, or a connection. */
static __always_inline enum todo read_in_full(struct walk_batch *s, const struct sock_common *skc,
					      const struct tcp_sock *tp, const enum access how)
{
	__u64 cookie = READ(how, skc, skc_cookie.counter);
	__u8 state = READ(how, skc, skc_state) & (TCP_MAX_STATES - 1);
	struct conn *c = next_record(s);
	struct watch copy, *seen;
	bool write = true;
	__u32 copied;

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || state == TCP_CLOSE)
		return READ_BRIEFLY;
	seen = watched_as(tp, cookie, &copy);
	fill_basic(c, tp, seen, true, how);
	copied = fill_unread(c, tp, how);
	if (c->unread != AGE_NONE && cookie)
		remember_unread(c, (__u64)tp, copied);
	if (state != TCP_LISTEN)
		write = is_wanted(c, cookie);
	if (write)
		fill_detail(c, tp, how);
	if (state == TCP_LISTEN)
		set_listener(c, tp, how);
	return finish(s, c, skc, tp, cookie, state, seen, write, how);
}

/*
 * The next functions are not inlined, so that the verifier checks each only once. They return
 * what is left to do (enum todo).
 */
__attribute__((noinline)) int read_briefly_at(__u32 i)
{
	__u32 zero = 0;
	struct walk_batch *s = bpf_map_lookup_elem(&walk_batch, &zero);
	__u64 sk;

	if (!s || i >= WALK_SOCKETS)
		return DONE;
	sk = s->socket[i];
	if (casts)
		return read_briefly(s, AS(struct sock_common, sk), AS(struct tcp_sock, sk), DIRECT);
	return read_briefly(s, (const void *)sk, (const void *)sk, PROBE);
}

__attribute__((noinline)) int read_in_full_at(__u32 i)
{
	__u32 zero = 0;
	struct walk_batch *s = bpf_map_lookup_elem(&walk_batch, &zero);
	__u64 sk;

	if (!s || i >= WALK_SOCKETS)
		return DONE;
	sk = s->socket[i];
	if (casts)
		return read_in_full(s, AS(struct sock_common, sk), AS(struct tcp_sock, sk), DIRECT);
	return read_in_full(s, (const void *)sk, (const void *)sk, PROBE);
}

/* Reads socket i of the run; if it keeps changing, not more than three times. */
__attribute__((noinline)) int read_socket(__u32 i)
{
	int todo = read_briefly_at(i);

	if (todo)
		todo = todo == READ_IN_FULL ? read_in_full_at(i) : read_briefly_at(i);
	if (todo)
		todo = todo == READ_IN_FULL ? read_in_full_at(i) : read_briefly_at(i);
	return todo;
}

#endif /* HALFOPEN_CENSUS_H */
