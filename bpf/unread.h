/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Data that waits for an application of this host, and for how long.
 */
#ifndef HALFOPEN_UNREAD_H
#define HALFOPEN_UNREAD_H

#include "linger.h"

#define UNREAD_MAX 32768

/* What the census remembers of a socket with data in its receive queue. */
struct unread {
	__u64 cookie;
	__u32 copied; /* what the application had read up to */
	__u32 since; /* jiffies: the application has left that data since then, or longer */
	__u8 reported; /* a census reported the socket as unread (CONN_UNREAD) */
	__u8 pad[7];
};

/*
 * Sockets with data in their receive queues. The key is the address of the socket; the
 * cookie shows whether the address has been reused. Inserted: by the census. Read: by all
 * that describe a socket. Deleted: by unread_run, if the socket is gone. An entry is of no
 * use after the application has read, and stays. If the map is full, the kernel evicts
 * what the censuses used least recently; the next look at such a socket is a first one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, UNREAD_MAX);
	__type(key, __u64);
	__type(value, struct unread);
} unread_sockets SEC(".maps");

/* Returns whether data, or the peer's FIN, waits for the application. */
static __always_inline bool has_unread(const struct tcp_sock *tp, const enum access how)
{
	return READ(how, tp, inet_conn.icsk_inet.sk.sk_receive_queue.qlen);
}

/* Returns the bytes that the application can read, as tcp_inq(); copied is copied_seq. */
static __always_inline __u32 receive_queue_of(const struct tcp_sock *tp, __u32 copied,
					      const enum access how)
{
	__u32 bytes = READ(how, tp, rcv_nxt) - copied;

	/* The peer's FIN counts as one byte. */
	if (bytes &&
	    (READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_flags) & (1 << SOCK_DONE)))
		bytes--;
	return bytes;
}

/*
 * Returns how many jiffies the data in the receive queue has waited, at least, where no
 * entry tells: since the newest of it came, and since the application last read. The kernel
 * stamps the latter in tcp_rcv_space_adjust(), unless it has not measured the round trip.
 */
static __always_inline __u32 unread_at_first(const struct tcp_sock *tp, __u32 now,
					     const enum access how)
{
	__u32 received = READ(how, tp, inet_conn.icsk_ack.lrcvtime), waited;
	__u64 read = READ(how, tp, rcvq_space.time), us = bpf_ktime_get_ns() / 1000;

	waited = received ? age(now, received) : 0;
	us = us > read ? (us - read) * hz / 1000000 : 0;
	return us < waited ? us : waited;
}

/*
 * Returns how many jiffies the application has left the data that it has read up to
 * `copied`; at_first if the census has not seen the socket with data before.
 */
static __always_inline __u32 unread_for(const struct tcp_sock *tp, __u64 cookie, __u32 copied,
					__u32 now, __u32 at_first)
{
	volatile struct unread *entry;
	__u64 key = (__u64)tp;
	__u32 before, since;

	entry = bpf_map_lookup_elem(&unread_sockets, &key);
	if (!entry || entry->cookie != cookie)
		return at_first;
	before = entry->copied;
	since = entry->since;
	if (entry->cookie != cookie) /* it has been replaced meanwhile */
		return at_first;
	return before == copied ? age(now, since) : 0;
}

/*
 * Fills in the receive queue, and how long the application has left it. It leaves both
 * alone if the queue is empty, and where no application can read. Returns what the
 * application has read up to, or 0.
 */
static __always_inline __u32 fill_unread(struct conn *c, const struct tcp_sock *tp,
					 const enum access how)
{
	__u32 copied, now = (__u32)c->jiffies;

	if (!has_unread(tp, how) || (c->flags & CONN_ORPHAN) || c->state == TCP_SYN_RECV)
		return 0;
	copied = READ(how, tp, copied_seq);
	c->receive_queue = receive_queue_of(tp, copied, how);
	if (!c->receive_queue)
		return 0;
	c->unread = unread_for(tp, c->cookie, copied, now, unread_at_first(tp, now, how));
	if (c->unread >= unread_after)
		c->flags |= CONN_UNREAD;
	return copied;
}

/*
 * Remembers that a census found data in the receive queue of the socket of c, of which the
 * application has read up to `copied`: see struct unread. An entry stays reported until
 * unread_run has reported the end, too.
 */
static __always_inline void remember_unread(const struct conn *c, __u64 sk, __u32 copied)
{
	struct unread *old = bpf_map_lookup_elem(&unread_sockets, &sk);
	struct unread entry = {
		.cookie = c->cookie,
		.copied = copied,
		.since = (__u32)c->jiffies - c->unread,
	};

	if ((c->flags & CONN_UNREAD) || (old && old->cookie == c->cookie && old->reported))
		entry.reported = 1;
	bpf_map_update_elem(&unread_sockets, &sk, &entry, BPF_ANY);
}

#endif /* HALFOPEN_UNREAD_H */
