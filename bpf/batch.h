/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that user space runs over some entries of a map in each run: twice a second to
 * read the watched sockets and to resolve pending deaths, and after a census to find the
 * sockets whose data is unread no more.
 */
#ifndef HALFOPEN_BATCH_H
#define HALFOPEN_BATCH_H

#include "deaths.h"

#define BATCH_MAX 256 /* entries in one run */
_Static_assert((BATCH_MAX & (BATCH_MAX - 1)) == 0, "an index is masked with BATCH_MAX - 1");

/*
 * The input and output of one run: user space writes the keys of entries of watched,
 * unread_sockets or pending_deaths, runs the program, and reads the records. One run at a time.
 */
struct batch {
	__u32 keys;
	__u32 records;
	__u64 key[BATCH_MAX]; /* addresses of sockets */
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
 * Reads a watched socket into c. Returns whether c is for user space: it is if the socket
 * is in trouble, or if it was, user space knows of that, and the trouble has ended.
 */
static __always_inline bool watch_one(struct conn *c, __u64 key)
{
	const struct tcp_sock *tp = (const void *)key;
	struct watch *value, seen, next;
	__u32 counted;
	bool trouble;

	value = bpf_map_lookup_elem(&watched, &key);
	if (!value)
		return false;
	seen = *value;
	describe(c, tp, &seen, PROBE);
	/* Another socket may have got the memory while it was read. */
	if (COOKIE(PROBE, tp) != seen.cookie)
		c->cookie = 0;
	/* A timer on another CPU may have begun a new streak meanwhile. */
	value = bpf_map_lookup_elem(&watched, &key);
	if (!value || value->cookie != seen.cookie || value->solicited != seen.solicited ||
	    value->looked != seen.looked || value->dead != seen.dead)
		return false;
	if (seen.dead || c->cookie != seen.cookie || c->state == TCP_CLOSE) {
		__builtin_memset(c, 0, sizeof(*c));
		c->cookie = seen.cookie;
		c->flags = CONN_GONE;
		c->cause = seen.cause;
		c->evidence = seen.during;
		bpf_map_delete_elem(&watched, &key);
		return seen.reported;
	}
	trouble = c->flags & CONN_TROUBLE;
	if (!trouble && c->attempts && !seen.reported)
		return false; /* a single one: nothing was asked, so nothing is answered */
	if (!trouble) {
		c->flags |= CONN_ANSWERED;
		if (seen.evidence == EVIDENCE_KEEPALIVE)
			COUNT(probes_answered);
		if (!c->probes_out && !c->retransmits) {
			bpf_map_delete_elem(&watched, &key);
			return seen.reported;
		}
	} else if (c->segments_in == seen.segments_in &&
		   stamp_of(c, c->accepted) == seen.accepted) {
		mark_reported(key, &seen);
		return true;
	}
	/* The peer was heard: what was sent before is answered. */
	counted = c->probes_out + c->retransmits;
	next = seen;
	next.looked = (__u32)c->jiffies;
	next.heard = stamp_of(c, c->silent);
	next.accepted = stamp_of(c, c->accepted);
	next.segments_in = c->segments_in;
	next.baseline = counted;
	next.acknowledged = counted - c->unacknowledged;
	next.extra = 0;
	next.attempts = c->attempts;
	next.drop = c->drop;
	next.congested = !!(c->flags & CONN_CONGESTED);
	next.reported = trouble;
	if (!trouble) {
		next.sent = 0;
		next.evidence = EVIDENCE_NONE;
	}
	rewatch(key, &next);
	return trouble || seen.reported;
}

/* Handles key i. Not inlined, so that the verifier checks it only once. */
__attribute__((noinline)) int watch_one_at(__u32 i)
{
	__u32 zero = 0, n;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b || i >= BATCH_MAX)
		return 0;
	n = b->records;
	if (watch_one(&b->record[n & (BATCH_MAX - 1)], b->key[i]))
		b->records = n + 1;
	return 0;
}

/* Reads the watched sockets whose keys user space has written. */
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
		watch_one_at(i);
	}
	return 0;
}

/*
 * Reads a socket that a census reported as unread into c. Returns whether its application
 * has read since.
 */
static __always_inline bool unread_one(struct conn *c, __u64 key)
{
	const struct tcp_sock *tp = (const void *)key;
	struct unread *value = bpf_map_lookup_elem(&unread_sockets, &key), entry;
	struct watch seen;

	if (!value || !value->reported)
		return false;
	entry = *value;
	describe(c, tp, watched_as(tp, entry.cookie, &seen), PROBE);
	/* Another socket may have got the memory while it was read. */
	if (COOKIE(PROBE, tp) != entry.cookie || c->cookie != entry.cookie ||
	    c->state == TCP_CLOSE) {
		bpf_map_delete_elem(&unread_sockets, &key);
		return false;
	}
	if (c->flags & CONN_UNREAD)
		return false;
	entry.reported = 0;
	bpf_map_update_elem(&unread_sockets, &key, &entry, BPF_EXIST);
	return true;
}

/* Handles key i. Not inlined, so that the verifier checks it only once. */
__attribute__((noinline)) int unread_one_at(__u32 i)
{
	__u32 zero = 0, n;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b || i >= BATCH_MAX)
		return 0;
	n = b->records;
	if (unread_one(&b->record[n & (BATCH_MAX - 1)], b->key[i]))
		b->records = n + 1;
	return 0;
}

/* Reads the sockets whose keys user space has written, and writes out those read since. */
static __always_inline int unread_batch(void)
{
	__u32 zero = 0, i;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b)
		return 0;
	b->records = 0;
	for (i = 0; i < BATCH_MAX; i++) {
		if (i >= b->keys)
			break;
		unread_one_at(i);
	}
	return 0;
}

/*
 * Handles key i: counts a death as a reset by the peer if no reset of our own has
 * followed in time.
 */
__attribute__((noinline)) int resolve_pending_at(__u32 i)
{
	__u32 zero = 0;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);
	struct pending_death *u;
	__u64 key;

	if (!b || i >= BATCH_MAX)
		return 0;
	key = b->key[i];
	u = bpf_map_lookup_elem(&pending_deaths, &key);
	if (u && u->at && bpf_ktime_get_ns() - u->at >= PENDING_NS)
		resolve(u, &key, CAUSE_RESET_BY_PEER);
	return 0;
}

/* Counts the deaths, of those whose keys user space has written, that are due. */
static __always_inline int resolve_pending_batch(void)
{
	__u32 zero = 0, i;
	struct batch *b = bpf_map_lookup_elem(&batch, &zero);

	if (!b)
		return 0;
	for (i = 0; i < BATCH_MAX; i++) {
		if (i >= b->keys)
			break;
		resolve_pending_at(i);
	}
	return 0;
}

#endif /* HALFOPEN_BATCH_H */
