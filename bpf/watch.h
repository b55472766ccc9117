/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The sockets that the programs watch, since their peers may be gone.
 */
#ifndef HALFOPEN_WATCH_H
#define HALFOPEN_WATCH_H

#include "counters.h"

#define WATCH_MAX 32768

/* What the programs remember of a watched socket. */
struct watch {
	__u64 cookie;
	__u32 solicited; /* jiffies: when the last solicitation was sent, if sent is set */
	__u32 looked; /* jiffies: when the next three fields were set */
	__u32 heard; /* jiffies: when the peer was last heard, accepted or not; 0: never */
	__u32 accepted; /* jiffies: when TCP last accepted a segment of the peer; 0: never */
	__u32 segments_in; /* segments of the peer, accepted or not */
	__u32 failing; /* jiffies: when the first of the attempts failed */
	__u16 retransmitted; /* bytes of data in the last retransmission; 0: unknown */
	__u8 sent; /* we saw the kernel send the last solicitation */
	__u8 reported; /* user space knows of the streak, so it must learn of the answer */
	__u8 evidence; /* enum evidence of the last solicitation */
	__u8 baseline; /* value of the socket's own counters before this streak */
	__u8 acknowledged; /* the part of their value that the peer has acknowledged, or that
			      never left this host */
	__u8 attempts; /* the newest solicitations, all of which this host failed to send */
	__u8 extra; /* solicitations of this streak that these counters do not include */
	__u8 dead; /* the socket died, and its event could not be sent */
	__u8 cause; /* of that death */
	__u8 during; /* of that death */
	__u8 drop; /* enum drop, of the last solicitation or attempt */
	__u8 congested; /* the device did not take the last attempt, see CONN_CONGESTED */
	__u8 backoff; /* the kernel's icsk_backoff after the last solicitation */
	__u8 pad;
};

/*
 * Sockets with an unanswered solicitation or a closed window. The key is the address of
 * the socket, since that is all that a timer knows; the cookie shows whether the address
 * has been reused. Inserted: at a solicitation, and by the census. Deleted: at death, and
 * by watch_run if the peer has answered or the socket is gone. After an answer, the entry
 * stays for as long as the socket's own counters still include the answered streak.
 * Preallocated, since it is filled in softirq. If it is full, only the census finds the
 * socket (FAULT_WATCH_FULL).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WATCH_MAX);
	__type(key, __u64);
	__type(value, struct watch);
} watched SEC(".maps");

/* Starts to watch a socket, or replaces its entry. */
static __always_inline void watch(__u64 sk, const struct watch *w)
{
	if (bpf_map_update_elem(&watched, &sk, w, BPF_ANY))
		COUNT(faults[FAULT_WATCH_FULL]);
}

/*
 * Replaces the entry of a watched socket, unless another CPU has deleted it meanwhile.
 * Never write to an entry in place: the map is preallocated, so that the memory of a
 * deleted entry may already be another socket's.
 */
static __always_inline void rewatch(__u64 sk, const struct watch *w)
{
	bpf_map_update_elem(&watched, &sk, w, BPF_EXIST);
}

/*
 * Records that user space has got the state `was` of a watched socket, unless its entry
 * has changed meanwhile.
 */
static __always_inline void mark_reported(__u64 sk, const struct watch *was)
{
	struct watch *value = bpf_map_lookup_elem(&watched, &sk), now;

	if (was->reported || !value)
		return;
	now = *value;
	if (now.cookie != was->cookie || now.solicited != was->solicited ||
	    now.looked != was->looked || now.extra != was->extra || now.dead)
		return;
	now.reported = 1;
	rewatch(sk, &now);
}

/* Copies the entry of a watched socket. Returns the copy, or NULL if there is no entry. */
static __always_inline struct watch *watched_as(const void *sk, __u64 cookie, struct watch *copy)
{
	__u64 key = (__u64)sk;
	struct watch *w = bpf_map_lookup_elem(&watched, &key);

	if (!w)
		return NULL;
	*copy = *w;
	/* Compare twice: the entry may have been replaced while it was copied. */
	if (copy->cookie != cookie || copy->dead || ((volatile struct watch *)w)->cookie != cookie)
		return NULL;
	return copy;
}

#endif /* HALFOPEN_WATCH_H */
