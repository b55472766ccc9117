/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Listeners, and their queues of connections that wait to be accepted.
 */
#ifndef HALFOPEN_LISTENERS_H
#define HALFOPEN_LISTENERS_H

#include "connection.h"

/* Fills in the record of a listener. Its connections inherit some of the fields. */
static __always_inline void fill_listener(struct conn *c, const struct tcp_sock *tp,
					  const enum access how)
{
	describe(c, tp, NULL, how);
	c->flags &= ~CONN_TROUBLE;
	c->accept_queue = READ(how, tp, inet_conn.icsk_inet.sk.sk_ack_backlog);
	c->accept_limit = READ(how, tp, inet_conn.icsk_inet.sk.sk_max_ack_backlog);
	c->total_retrans = READ(how, tp, inet_conn.icsk_inet.sk.sk_drops.counter);
}

/* Returns whether the accept queue of a listener is full, as sk_acceptq_is_full() does. */
static __always_inline bool accept_queue_full(const struct tcp_sock *tp, const enum access how)
{
	return READ(how, tp, inet_conn.icsk_inet.sk.sk_ack_backlog) >
	       READ(how, tp, inet_conn.icsk_inet.sk.sk_max_ack_backlog);
}

/*
 * classify() of a listener. selected: user space wants this socket, if it wants those of its
 * class.
 */
static __always_inline bool classify_listener(struct conn *c, const struct tcp_sock *tp,
					      bool selected, const enum access how)
{
	__u32 wanted = 1 << CLASS_NONE;

	if (READ(how, tp, inet_conn.icsk_inet.sk.sk_drops.counter))
		wanted |= 1 << CLASS_OVERFLOWED;
	selected = selected && (census_write & wanted);
	if (selected)
		fill_listener(c, tp, how);
	c->class = CLASS_NONE;
	c->risks = accept_queue_full(tp, how) ? 1 << RISK_ACCEPT_QUEUE_FULL : 0;
	return selected;
}

#endif /* HALFOPEN_LISTENERS_H */
