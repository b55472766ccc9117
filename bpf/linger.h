/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets whose close(2) waits until the peer has acknowledged everything (SO_LINGER).
 */
#ifndef HALFOPEN_LINGER_H
#define HALFOPEN_LINGER_H

#include "unanswered.h"

#define CLOSING_MAX 4096

/* The beginning of a close(2) that may wait. */
struct closing {
	__u64 cookie;
	__u32 at; /* jiffies */
	__u32 pad;
};

/*
 * When close(2) began, by the address of the socket; the cookie shows whether the address
 * has been reused. Inserted: when close(2) changes the state of a socket with SO_LINGER. Read:
 * by all that describe such a socket. LRU, since nothing deletes an entry. Without one, it is
 * not known for how long close(2) still waits.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CLOSING_MAX);
	__type(key, __u64);
	__type(value, struct closing);
} closings SEC(".maps");

/* Returns whether close(2) waits if a socket is closed in both directions and not acknowledged. */
static __always_inline bool may_linger(const struct sock *sk, const enum access how)
{
	return (READ(how, sk, __sk_common.skc_flags) & (1 << SOCK_LINGER)) &&
	       READ(how, sk, sk_shutdown) == SHUTDOWN_MASK;
}

/*
 * Returns whether a state change is the beginning of a close(2) that waits. tcp_close_state()
 * sets the state of every socket that it closes, also if that stays the same; the peer's FIN
 * changes FIN_WAIT1 to CLOSING.
 */
static __always_inline bool close_begins(const struct sock *sk, int oldstate, int newstate)
{
	return may_linger(sk, DIRECT) && (newstate != TCP_CLOSING || oldstate == newstate);
}

/* Remembers when close(2) began. */
static __always_inline void close_began(const struct sock *sk)
{
	struct closing c = {};
	__u64 key = (__u64)sk;

	if (!sk->__sk_common.skc_cookie.counter) /* older than the agent */
		give_cookie(sk);
	c.cookie = sk->__sk_common.skc_cookie.counter;
	c.at = bpf_jiffies64();
	if (bpf_map_update_elem(&closings, &key, &c, BPF_ANY))
		COUNT(faults[FAULT_REMEMBER_FULL]);
}

/* Fills in for how long close(2) waits, and has waited, if it does: no descriptor is open. */
static __always_inline void fill_linger(struct conn *c, const struct sock *sk,
					const enum access how)
{
	const struct file *file;
	struct closing *closing;
	__u64 key = (__u64)sk;

	if ((c->flags & CONN_ORPHAN) || !may_linger(sk, how))
		return;
	file = BPF_CORE_READ(sk, sk_socket, file);
	if (!file || !is_released(file))
		return;
	c->flags |= CONN_LINGERING;
	c->linger = READ(how, sk, sk_lingertime);
	closing = bpf_map_lookup_elem(&closings, &key);
	c->lingering = closing && closing->cookie == c->cookie ?
			       age((__u32)c->jiffies, closing->at) :
			       AGE_NONE;
}

#endif /* HALFOPEN_LINGER_H */
