/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Listeners, and their queues of connections that wait to be accepted.
 */
#ifndef HALFOPEN_LISTENERS_H
#define HALFOPEN_LISTENERS_H

#include "connection.h"

/* Returns whether the accept queue of a listener is full, as sk_acceptq_is_full() does. */
static __always_inline bool accept_queue_full(const struct tcp_sock *tp, const enum access how)
{
	return READ(how, tp, inet_conn.icsk_inet.sk.sk_ack_backlog) >
	       READ(how, tp, inet_conn.icsk_inet.sk.sk_max_ack_backlog);
}

/* Returns whether a listener has dropped connections, since its accept queue was full. */
static __always_inline bool has_overflowed(const struct tcp_sock *tp, const enum access how)
{
	return READ(how, tp, inet_conn.icsk_inet.sk.sk_drops.counter);
}

/*
 * Fills in what only listeners have. Its connections inherit some of the other fields, in which
 * a listener has nothing to say.
 */
static __always_inline void set_listener(struct conn *c, const struct tcp_sock *tp,
					 const enum access how)
{
	c->class = CLASS_NONE;
	c->flags &= ~CONN_TROUBLE;
	c->risks = accept_queue_full(tp, how) ? 1 << RISK_ACCEPT_QUEUE_FULL : 0;
	c->accept_queue = READ(how, tp, inet_conn.icsk_inet.sk.sk_ack_backlog);
	c->accept_limit = READ(how, tp, inet_conn.icsk_inet.sk.sk_max_ack_backlog);
	c->total_retrans = READ(how, tp, inet_conn.icsk_inet.sk.sk_drops.counter);
}

#endif /* HALFOPEN_LISTENERS_H */
