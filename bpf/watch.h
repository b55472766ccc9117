/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets under suspicion.
 */
#ifndef HALFOPEN_WATCH_H
#define HALFOPEN_WATCH_H

#include "counters.h"

#define WATCH_MAX 32768

/*
 * Sockets under suspicion: something unanswered, or a closed window.
 * The key is the socket's address, because a timer knows nothing else that a
 * map takes; the cookie tells a reused address. Inserted: at a solicitation,
 * and by the census. Deleted: at death, and by the watch pass when it finds an
 * answer or the socket gone. An entry outlives the answer for as long as the
 * socket's counters still show the streak that was answered. Preallocated, since it is filled in
 * softirq. When it is full the socket is found by the census instead (FAULT_WATCH_FULL).
 */
struct watch {
	__u64 cookie;
	__u32 solicited; /* jiffies: the last solicitation, if sent */
	__u32 heard; /* jiffies: when the peer had last been heard then */
	__u8 sent; /* we saw the last solicitation go */
	__u8 reported; /* user space knows of it, so the answer is news, too */
	__u8 evidence; /* enum evidence of the last solicitation */
	__u8 baseline; /* what the socket's counters showed before this streak */
	__u8 extra; /* of this streak, what no counter of the socket shows */
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

/*
 * Notes that user space knows of a watched socket, which was so when it was looked at,
 * unless something has happened to it meanwhile.
 */
static __always_inline void mark_reported(__u64 sk, const struct watch *was)
{
	struct watch *value = bpf_map_lookup_elem(&watched, &sk), now;

	if (was->reported || !value)
		return;
	now = *value;
	if (now.cookie != was->cookie || now.solicited != was->solicited ||
	    now.extra != was->extra || now.dead)
		return;
	now.reported = 1;
	rewatch(sk, &now);
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

#endif /* HALFOPEN_WATCH_H */
