/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Finds the cause of each death, counts it, and sends its event.
 */
#ifndef HALFOPEN_DEATHS_H
#define HALFOPEN_DEATHS_H

#include "timers.h"

/* A received reset can be the cause of a death for this long. */
#define RESET_FRESH_NS 1000000000ULL

/* The kernel answers data after close with a reset within this time. */
#define PENDING_NS 50000000ULL

/* A reset that a socket has received. */
struct reset {
	__u64 cookie;
	__u64 at; /* ns of CLOCK_MONOTONIC */
};

/*
 * Received resets by the address of the socket. The kernel may handle a reset in process
 * context, and change the CPU before it changes the state; so this is not per CPU.
 * Inserted: when a reset is received. LRU, since a reset for a closed socket is not
 * followed by a death.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REMEMBER_MAX);
	__type(key, __u64);
	__type(value, struct reset);
} resets SEC(".maps");

/* A pending death: one whose cause depends on what happens next. */
struct pending_death {
	__u64 at; /* ns of CLOCK_MONOTONIC; 0: not filled in yet */
	struct event event;
};

/*
 * Pending deaths by the address of the socket. For data that arrives after close, the
 * kernel calls tcp_reset(), just as for a reset from the peer, and only then sends a
 * reset. Inserted: at such a death. Deleted: when the host sends that reset, or by
 * resolve_pending_run if it did not. There are few. If it is full, the cause is unknown
 * (FAULT_REMEMBER_FULL).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REMEMBER_MAX);
	__type(key, __u64);
	__type(value, struct pending_death);
} pending_deaths SEC(".maps");

/* The cause if the write timer gave up, in softirq or deferred: tcp_write_err(). */
static __always_inline __u32 write_timeout_cause(const struct tcp_sock *tp,
						 const struct deferred *d, bool known, bool orphan,
						 __u8 *during)
{
	const struct net *net = tp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net;
	__u32 lasting, stamp = tp->inet_conn.icsk_probes_tstamp;
	__u64 timeout = tp->inet_conn.icsk_user_timeout;
	bool own;

	timeout = (timeout * hz + 999) / 1000; /* msecs_to_jiffies() */
	/* tcp_rtx_probe0_timed_out(): the window closed while data was in flight. */
	if (known && d->pending == PENDING_RETRANSMIT && !d->snd_wnd && !orphan) {
		*during = EVIDENCE_WINDOW_PROBE;
		lasting = retransmitting_for(tp);
		if (timeout &&
		    (timeout < 2 * (__u64)rto_max(tp, net, hz, &own) || lasting >= timeout))
			return CAUSE_USER_TIMEOUT;
		return CAUSE_WINDOW_PROBE_TIMEOUT;
	}
	/* tcp_write_timeout(): the user timeout replaces the limit of retries. */
	if (tp->inet_conn.icsk_retransmits) {
		*during = EVIDENCE_RETRANSMIT;
		if (timeout)
			return CAUSE_USER_TIMEOUT;
		return orphan ? CAUSE_ORPHAN_TIMEOUT : CAUSE_RETRANSMIT_TIMEOUT;
	}
	/* tcp_probe_timer(): the user timeout or the limit of retries, whichever is first. */
	if (stamp) {
		/* If the window is open, no probe was sent: this host does not send the
		 * data. tcp_retries2 limits that as well. */
		bool closed = tp->snd_wnd < tp->mss_cache;

		*during = closed ? EVIDENCE_WINDOW_PROBE : EVIDENCE_RETRANSMIT;
		lasting = age((__u32)bpf_jiffies64(), stamp);
		if (timeout && lasting >= timeout)
			return CAUSE_USER_TIMEOUT;
		if (orphan)
			return CAUSE_ORPHAN_TIMEOUT;
		return closed ? CAUSE_WINDOW_PROBE_TIMEOUT : CAUSE_RETRANSMIT_TIMEOUT;
	}
	return CAUSE_UNKNOWN;
}

/*
 * The cause if the write timer gave up a connection that was not established: the limit
 * of retries, or the user timeout if that came first (tcp_write_timeout).
 */
static __always_inline __u32 connect_timeout_cause(const struct tcp_sock *tp, __u8 *during)
{
	__u64 timeout = tp->inet_conn.icsk_user_timeout;
	__u32 lasting = retransmitting_for(tp);

	timeout = (timeout * hz + 999) / 1000;
	/* tcp_fastopen_synack_timer() ignores the user timeout. */
	if (!timeout || tp->fastopen_rsk || lasting == AGE_NONE || lasting < timeout)
		return CAUSE_CONNECT_TIMEOUT;
	*during = EVIDENCE_RETRANSMIT;
	return CAUSE_USER_TIMEOUT;
}

/* Returns whether this socket has just received a reset. */
static __always_inline bool was_reset(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct reset *r = bpf_map_lookup_elem(&resets, &key);

	return r && r->cookie == (__u64)sk->__sk_common.skc_cookie.counter &&
	       bpf_ktime_get_ns() - r->at < RESET_FRESH_NS;
}

/* The cause if the kernel gave up an orphan without an error. */
static __always_inline __u32 given_up_cause(const struct sock *sk)
{
	return is_going(sk->__sk_common.skc_net.net) ? CAUSE_ORPHAN_TIMEOUT : CAUSE_OUT_OF_MEMORY;
}

/*
 * Returns whether tcp_write_err() ended the connection: in a write timer, in a deferred
 * one, or in tcp_ld_RTO_revert(), where an ICMP error shortens the wait. It takes the
 * error from sk_err_soft, if that is set.
 */
static __always_inline bool gave_up(const struct sock *sk, const struct tcp_sock *tp, int oldstate,
				    bool in_timer, struct deferred *d, bool *known)
{
	if (!sk->sk_err) /* as nearly always */
		return false;
	*known = write_timer_of(sk, d);
	if (sk->sk_err == ETIMEDOUT || in_timer)
		return true;
	if (sk->sk_err != sk->sk_err_soft || tp->packets_out)
		return false;
	return *known || (tp->inet_conn.icsk_retransmits && oldstate != TCP_SYN_SENT);
}

/* The cause if neither a timer nor an error has ended the connection. */
static __always_inline __u32 own_cause(const struct sock *sk, const struct tcp_sock *tp,
				       int oldstate)
{
	bool orphan = sk->__sk_common.skc_flags & (1 << SOCK_DEAD);

	switch (oldstate) {
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		if (tp->snd_una == tp->write_seq)
			return CAUSE_CLOSED;
		return orphan ? given_up_cause(sk) : CAUSE_ABORTED;
	case TCP_FIN_WAIT1:
		return orphan ? given_up_cause(sk) : CAUSE_ABORTED;
	case TCP_FIN_WAIT2:
		/* Either the peer's FIN has come, or a time_wait socket waits for it. */
		if (sk->__sk_common.skc_flags & (1 << SOCK_DONE))
			return CAUSE_CLOSED;
		return orphan && tp->linger2 >= 0 ? CAUSE_CLOSED : CAUSE_ABORTED;
	}
	return CAUSE_ABORTED;
}

/*
 * Returns why a socket goes to CLOSE. The kernel has set sk_err by now, and the timer that
 * runs on this CPU, or the reset that was received, shows what set it.
 */
static __always_inline __u32 cause_of(const struct sock *sk, const struct tcp_sock *tp,
				      int oldstate, __u8 *during)
{
	bool orphan = sk->__sk_common.skc_flags & (1 << SOCK_DEAD);
	struct timer_slot *slot = running_timer(sk);
	struct deferred d = {};
	int err = sk->sk_err;
	bool known;

	if (slot && slot->fn == keepalive_timer_fn) {
		if (!err) /* FIN_WAIT2 expires: by a reset, or into a time_wait socket */
			return slot->reset ? CAUSE_ORPHAN_TIMEOUT : CAUSE_CLOSED;
		*during = EVIDENCE_KEEPALIVE;
		return tp->inet_conn.icsk_user_timeout ? CAUSE_USER_TIMEOUT :
							 CAUSE_KEEPALIVE_TIMEOUT;
	}
	if (!slot && (err == ECONNRESET || err == EPIPE || err == ECONNREFUSED) && was_reset(sk))
		return oldstate == TCP_SYN_SENT ? CAUSE_REFUSED : CAUSE_RESET_BY_PEER;
	if (gave_up(sk, tp, oldstate, slot, &d, &known)) {
		if (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV)
			return connect_timeout_cause(tp, during);
		return write_timeout_cause(tp, &d, known, orphan, during);
	}
	if (slot) /* tcp_out_of_resources() */
		return given_up_cause(sk);
	if (err == ECONNABORTED)
		return CAUSE_DESTROYED;
	if (err && (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV))
		return CAUSE_UNREACHABLE;
	if (err == ECONNRESET || err == EPIPE)
		return CAUSE_UNKNOWN;
	/* Any other error is an old one that the application has not read. */
	return own_cause(sk, tp, oldstate);
}

/*
 * Makes the verifier forget which constant a variable has. Otherwise kernels before 6.2
 * check all code that follows once for each constant. unknown is any number that the
 * verifier does not know.
 */
#define forget(var, unknown)                                                     \
	do {                                                                     \
		__u64 var_ = (var), unknown_ = (unknown);                        \
		asm volatile("%0 ^= %1; %0 ^= %1" : "+r"(var_) : "r"(unknown_)); \
		(var) = var_;                                                    \
	} while (0)

/* Counts a pending death, and sends its event. */
static __always_inline void resolve(struct pending_death *u, __u64 *key, __u32 cause)
{
	struct event *e;

	COUNT(deaths[cause]);
	e = within_rate(cause, EVENT_DEATH) ? reserve(EVENT_DEATH) : NULL;
	if (e) {
		*e = u->event;
		e->type = EVENT_DEATH;
		e->cause = cause;
		bpf_ringbuf_submit(e, 0);
	}
	bpf_map_delete_elem(&pending_deaths, key);
}

/* Makes a death pending. Returns false if there is no room: its cause stays unknown. */
static __always_inline bool make_pending(const struct sock *sk, const struct tcp_sock *tp,
					 int oldstate, const struct watch *seen)
{
	static const struct pending_death none;
	__u64 key = (__u64)sk;
	struct pending_death *u;

	u = bpf_map_lookup_elem(&pending_deaths, &key);
	if (u) /* of an earlier socket at this address */
		resolve(u, &key, CAUSE_RESET_BY_PEER);
	if (bpf_map_update_elem(&pending_deaths, &key, &none, BPF_ANY)) {
		COUNT(faults[FAULT_REMEMBER_FULL]);
		return false;
	}
	u = bpf_map_lookup_elem(&pending_deaths, &key);
	if (!u)
		return false;
	u->event.err = sk->sk_err;
	describe(&u->event.conn, tp, seen, DIRECT);
	u->event.conn.state = oldstate;
	u->at = bpf_ktime_get_ns();
	return true;
}

/* Handles the end of a connection. */
static __always_inline int died(const struct sock *sk, int oldstate)
{
	const struct tcp_sock *tp = bpf_skc_to_tcp_sock((void *)sk);
	struct timer_slot *slot = running_timer(sk);
	__u64 key = (__u64)sk;
	struct watch copy, *seen;
	struct event *e;
	__u8 during = EVIDENCE_NONE;
	__u32 cause;

	if (!tp)
		return 0;
	if (!sk->__sk_common.skc_cookie.counter) /* by TCP Fast Open, or older than the agent */
		give_cookie(sk);
	cause = cause_of(sk, tp, oldstate, &during);
	forget(cause, sk->sk_err);
	forget(during, sk->sk_err);
	cause &= CAUSE_SLOTS - 1;
	seen = watched_as(sk, sk->__sk_common.skc_cookie.counter, &copy);
	if (cause == CAUSE_RESET_BY_PEER && (sk->sk_shutdown & RCV_SHUTDOWN) &&
	    (oldstate == TCP_FIN_WAIT1 || oldstate == TCP_FIN_WAIT2)) {
		if (make_pending(sk, tp, oldstate, seen)) {
			if (seen)
				bpf_map_delete_elem(&watched, &key);
			return 0;
		}
		cause = CAUSE_UNKNOWN;
	}

	COUNT(deaths[cause]);
	if (slot)
		slot->dead = 1;
	if (cause == CAUSE_CLOSED) {
		/* The orderly end of a healthy connection is not an event. */
		if (!seen)
			return 0;
		/* watch_run reports it, unless reset_in_answer() comes next. */
		if (!slot && oldstate == TCP_FIN_WAIT2) {
			seen->cause = cause;
			seen->dead = 1;
			rewatch(key, seen);
			return 0;
		}
	}
	e = within_rate(cause, EVENT_DEATH) ? reserve(EVENT_DEATH) : NULL;
	if (!e) {
		if (seen) { /* watch_run reports it */
			seen->cause = cause;
			seen->during = during;
			seen->dead = 1;
			rewatch(key, seen);
		}
		return 0;
	}
	e->cause = cause;
	e->during = cause == CAUSE_USER_TIMEOUT ? during : EVIDENCE_NONE;
	e->err = sk->sk_err;
	if (slot && slot->before.cookie)
		e->conn = slot->before;
	else
		describe(&e->conn, tp, seen, DIRECT);
	e->conn.state = oldstate;
	bpf_ringbuf_submit(e, 0);
	if (seen)
		bpf_map_delete_elem(&watched, &key);
	return 0;
}

/*
 * Returns whether a state change needs anything of us. This is the hot path: every change of every
 * connection. Of about ten changes of a short one, at both ends, six need nothing. The answer
 * is the same before and after the primary program has run.
 */
static __always_inline bool change_matters(const struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return false;
	switch (newstate) {
	case TCP_ESTABLISHED: /* a connection that began here has its cookie since SYN_SENT */
		return cookie_helper && oldstate != TCP_SYN_SENT;
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		return cookie_helper;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		return close_begins(sk, oldstate, newstate);
	case TCP_CLOSE:
		return oldstate != TCP_LISTEN && oldstate != TCP_CLOSE;
	}
	return false;
}

/*
 * Counts the orderly end of a connection that is not watched, as most are, which is no event.
 * Returns false if this is another end.
 */
static __always_inline bool closed_in_order(const struct sock *sk, int oldstate)
{
	__u64 key = (__u64)sk;
	const struct tcp_sock *tp;

	if (sk->sk_err || running_timer(sk) || bpf_map_lookup_elem(&watched, &key))
		return false;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || own_cause(sk, tp, oldstate) != CAUSE_CLOSED)
		return false;
	COUNT(deaths[CAUSE_CLOSED]);
	return true;
}

/*
 * Handles a state change that matters. Returns whether the connection has died. A connection gets
 * its cookie here, because a program in timer context cannot give it one.
 */
static __always_inline bool state_changed(const struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_CLOSE)
		return !closed_in_order(sk, oldstate);
	if (newstate == TCP_ESTABLISHED || newstate == TCP_SYN_SENT || newstate == TCP_LISTEN)
		give_cookie(sk);
	else
		close_began(sk);
	return false;
}

/* Remembers a received reset, which is also an event if the socket is closed already. */
static __always_inline int reset_received(const struct sock *sk)
{
	struct reset r = {
		.cookie = (__u64)sk->__sk_common.skc_cookie.counter,
		.at = bpf_ktime_get_ns(),
	};
	__u64 key = (__u64)sk;

	if (bpf_map_update_elem(&resets, &key, &r, BPF_ANY))
		COUNT(faults[FAULT_REMEMBER_FULL]);
	return 0;
}

/*
 * Handles a reset that the host sends in answer to a segment which has just ended a
 * connection: data came after close, and no process is there to read it. The cause is
 * `aborted`. If the death is not pending, it has been counted as `closed`, since it looked
 * like the change to a time_wait socket (tcp_rcv_state_process in FIN_WAIT1).
 */
static __always_inline int reset_in_answer(const struct sock *sk)
{
	const struct tcp_sock *tp;
	__u64 key = (__u64)sk;
	struct watch copy, *seen;
	struct pending_death *u;
	struct event *e;

	if (!sk) /* never: for the verifier */
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || sk->__sk_common.skc_state != TCP_CLOSE)
		return 0;
	u = bpf_map_lookup_elem(&pending_deaths, &key);
	if (u && u->event.conn.cookie == (__u64)sk->__sk_common.skc_cookie.counter) {
		resolve(u, &key, CAUSE_ABORTED);
		return 0;
	}
	if (u) /* of an earlier socket at this address */
		resolve(u, &key, CAUSE_RESET_BY_PEER);
	if (sk->sk_err || tp->linger2 < 0 || !(sk->__sk_common.skc_flags & (1 << SOCK_DEAD)))
		return 0;
	COUNT(not_closed);
	COUNT(deaths[CAUSE_ABORTED]);
	seen = bpf_map_lookup_elem(&watched, &key);
	if (seen)
		copy = *seen;
	if (seen && copy.cookie != (__u64)sk->__sk_common.skc_cookie.counter)
		seen = NULL;
	e = within_rate(CAUSE_ABORTED, EVENT_DEATH) ? reserve(EVENT_DEATH) : NULL;
	if (!e) {
		if (seen) {
			copy.cause = CAUSE_ABORTED;
			rewatch(key, &copy);
		}
		return 0;
	}
	if (seen)
		bpf_map_delete_elem(&watched, &key);
	e->cause = CAUSE_ABORTED;
	describe(&e->conn, tp, NULL, DIRECT);
	e->conn.state = TCP_FIN_WAIT2;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * Handles a reset that the host sends; skb is the segment that it answers, or NULL. Returns
 * whether there is more to do: reset_in_answer().
 */
static __always_inline bool reset_sent(const struct sock *sk, const struct sk_buff *skb)
{
	struct timer_slot *slot;

	if (!sk)
		return false;
	slot = running_timer(sk);
	if (slot)
		slot->reset = 1;
	return !slot && skb;
}

#endif /* HALFOPEN_DEATHS_H */
