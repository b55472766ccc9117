/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * When a peer was last heard, and what it has not answered or not acknowledged since.
 */
#ifndef HALFOPEN_UNANSWERED_H
#define HALFOPEN_UNANSWERED_H

#include "watch.h"

/* Returns the jiffies since the first retransmission of the streak, or AGE_NONE. */
static __always_inline __u32 retransmitting_for(const struct tcp_sock *tp)
{
	__u32 elapsed, second, stamp = BPF_CORE_READ(tp, retrans_stamp);
	__u64 now = bpf_ktime_get_ns();

	if (!stamp)
		return AGE_NONE;
	second = stamps_a_second(tp);
	elapsed = (__u32)(now / (1000000000 / second)) - stamp;
	/* The stamp may be a little ahead of now; in us it wraps every 71 minutes. */
	return elapsed > 0xfff00000 ? 0 : (__u64)elapsed * hz / second;
}

/* Returns the jiffies from a stamp to now. The stamp has 32 bits, and wraps. */
static __always_inline __u32 age(__u32 now, __u32 stamp)
{
	__s32 d = now - stamp;

	/* Another CPU may have set the stamp after this one read the clock. */
	return d < 0 && d > -1000 ? 0 : (__u32)d;
}

/* Returns the stamp of which the age was read with c; 0 if there is none. */
static __always_inline __u32 stamp_of(const struct conn *c, __u32 age)
{
	return age == AGE_NONE ? 0 : (__u32)c->jiffies - age;
}

/* Returns when TCP last accepted a segment of the peer: data or an ACK; 0: never. */
static __always_inline __u32 accepted_at(const struct tcp_sock *tp, __u32 now,
					 const enum access how)
{
	__u32 ack = READ(how, tp, rcv_tstamp), data = READ(how, tp, inet_conn.icsk_ack.lrcvtime);

	return data && (!ack || age(now, data) < age(now, ack)) ? data : ack;
}

/*
 * Returns the jiffies since the peer was last heard: since any segment of it came in. The
 * kernel stamps those that it accepts, and those that it answers though they are out of
 * the window. It only counts the others (tcp_segs_in(), before tcp_validate_incoming()).
 * Of these we know that they came since we last looked, so they count as heard now.
 */
static __always_inline __u32 silent_for(const struct tcp_sock *tp, const struct watch *seen,
					__u32 accepted, __u32 segments_in, __u32 now,
					const enum access how)
{
	__u32 out_of_window = READ(how, tp, last_oow_ack_time), silent = AGE_NONE, v;

	if (accepted)
		silent = age(now, accepted);
	if (out_of_window) {
		v = age(now, out_of_window);
		if (v < silent)
			silent = v;
	}
	if (!seen)
		return silent;
	if (seen->heard) {
		v = age(now, seen->heard);
		if (v < silent)
			silent = v;
	}
	if (segments_in != seen->segments_in && silent > age(now, seen->looked))
		silent = 0;
	return silent;
}

/*
 * Returns when a timer of a socket expires, in jiffies, and sets the level of the timer
 * wheel that it is in. Returns 0 if it is not pending.
 */
static __always_inline __u64 expires_at(const struct tcp_sock *tp, __u32 offset, __u8 *level)
{
	const struct timer_list *timer = (const void *)tp + offset;

	if (!BPF_CORE_READ(timer, entry.pprev))
		return 0;
	*level = (BPF_CORE_READ(timer, flags) >> TIMER_ARRAYSHIFT) / LVL_SIZE;
	return BPF_CORE_READ(timer, expires);
}

/* Returns whether the peer's window keeps a socket from sending. */
static __always_inline bool window_limited(const struct conn *c, const struct tcp_sock *tp,
					   const enum access how)
{
	return c->send_window < c->send_queue && c->send_window < READ(how, tp, mss_cache);
}

/*
 * Returns the largest possible number of keepalive probes in the last `since` jiffies. The
 * kernel sends the first after keepalive_time of silence, and the timer is now armed for
 * the one after the last.
 */
static __always_inline __u32 probes_within(const struct conn *c, const struct tcp_sock *tp,
					   __u32 since, const enum access how)
{
	const struct net *net = READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);
	__u32 intvl = READ(how, tp, keepalive_intvl) ?:
			      READ(how, net, ipv4.sysctl_tcp_keepalive_intvl);
	__u64 next, first, from, most;
	__u8 level;

	next = expires_at(tp, keepalive_timer_offset(), &level);
	if (!next) /* it is running now, and sets no bound */
		return c->probes_out;
	if (!(c->flags & CONN_KEEPALIVE) || c->accepted == AGE_NONE || !intvl)
		return 0;
	first = c->jiffies - c->accepted + c->keepalive_time;
	from = c->jiffies - since;
	if (from < first)
		from = first;
	if (next <= from)
		return 0;
	most = (next - from) / intvl;
	return most < c->probes_out ? most : c->probes_out;
}

/*
 * Returns how many of the last retransmissions were sent in the last `since` jiffies. The
 * timer is armed for the next one. Each wait was half the one after it, but for those at
 * rto_max, which are as long as each other.
 */
__attribute__((noinline)) int retransmissions_within(__u32 since, __u32 last, __u32 rto,
						     __u32 count, __u32 at_most)
{
	__u32 n = 0, i;

	for (i = 0; i < 16; i++) {
		if (n >= count || last > since)
			break;
		n++;
		if (i >= at_most)
			rto >>= 1;
		last += rto;
	}
	return n;
}

/*
 * Returns whether a socket waits for its peer, or may: it has sent a probe or a
 * retransmission, or has a SYN, data or a FIN in its queues that is not acknowledged. If
 * it does not, there is nothing for fill_unanswered().
 */
static __always_inline bool has_outstanding(const struct tcp_sock *tp, const enum access how)
{
	return READ(how, tp, inet_conn.icsk_inet.sk.sk_wmem_queued) ||
	       READ(how, tp, inet_conn.icsk_probes_out) ||
	       READ(how, tp, inet_conn.icsk_retransmits);
}

/*
 * Returns whether the kernel should have sent a keepalive probe (keepalive_time_elapsed()). A
 * host that fails to send it tries again for ever, and counts nothing.
 */
static __always_inline bool probe_is_overdue(const struct conn *c, const struct tcp_sock *tp,
					     const enum access how)
{
	__u32 now = (__u32)c->jiffies;

	return (c->flags & CONN_KEEPALIVE) && c->idle != AGE_NONE && c->idle >= c->keepalive_time &&
	       age(now, READ(how, tp, rcv_tstamp)) >= c->keepalive_time;
}

/*
 * Returns how many solicitations the peer has not answered, of those that the socket's
 * counters include, where no watch entry tells: it has been silent for c->silent.
 */
static __always_inline __u32 unanswered_at_first(const struct conn *c, const struct tcp_sock *tp,
						 __u32 probes, const enum access how)
{
	__u32 rto, left, equal;
	__u64 next;
	__u8 level;

	if (!c->retransmits)
		return probes;
	if (c->silent >= c->retransmitting)
		return probes + c->retransmits;
	rto = READ(how, tp, inet_conn.icsk_rto);
	next = expires_at(tp, write_timer_offset(), &level);
	left = next > c->jiffies ? next - c->jiffies : 0;
	/* 200 ms, doubled so often, is the longest wait of 120 s. */
	equal = c->retransmits > 9 ? c->retransmits - 9 : 0;
	return retransmissions_within(c->silent, left < rto ? rto - left : 0, rto, c->retransmits,
				      equal);
}

/*
 * Returns whether we connected a socket, and TCP has accepted nothing of the peer after its
 * SYN-ACK: that acknowledged the SYN, and set both stamps in one jiffy (tcp_ack(),
 * tcp_finish_connect()).
 */
static __always_inline bool never_acked(const struct tcp_sock *tp, const enum access how)
{
	__u32 made = READ(how, tp, inet_conn.icsk_ack.lrcvtime), ack = READ(how, tp, rcv_tstamp);

	return READ(how, tp, bytes_acked) == 1 && !READ(how, tp, bytes_received) && made - ack <= 1;
}

/*
 * Fills in what is unanswered and unacknowledged, and for how long. fill_basic() calls it
 * after its first part, if something may be unanswered (has_outstanding) or the record is
 * written out.
 */
static __always_inline void fill_unanswered(struct conn *c, const struct tcp_sock *tp,
					    const struct watch *seen, const enum access how)
{
	__u32 now = (__u32)c->jiffies, accepted = accepted_at(tp, now, how);
	__u32 probes, counted, window_closed;
	bool probing, acknowledged;

	c->probes_out = READ(how, tp, inet_conn.icsk_probes_out);
	c->retransmits = READ(how, tp, inet_conn.icsk_retransmits);
	c->packets_out = READ(how, tp, packets_out);
	c->send_window = READ(how, tp, snd_wnd);
	c->send_queue = READ(how, tp, write_seq) - READ(how, tp, snd_una);
	c->segments_in = READ(how, tp, segs_in);
	window_closed = READ(how, tp, inet_conn.icsk_probes_tstamp);

	/* A stamp of 0 has not been set: the connection is not established yet. */
	c->accepted = accepted ? age(now, accepted) : AGE_NONE;
	c->silent = silent_for(tp, seen, accepted, c->segments_in, now, how);
	c->solicited = seen && seen->sent ? age(now, seen->solicited) : AGE_NONE;
	c->failing = AGE_NONE;
	/* An answer ends the attempts; while data is retransmitted, only an ACK of it does. */
	if (seen && (accepted == seen->accepted ||
		     (seen->evidence == EVIDENCE_RETRANSMIT && c->retransmits))) {
		c->attempts = seen->attempts;
		c->drop = seen->drop;
		if (seen->attempts)
			c->failing = age(now, seen->failing);
		if (seen->congested)
			c->flags |= CONN_CONGESTED;
	}
	if (seen && seen->evidence == EVIDENCE_RETRANSMIT && c->retransmits &&
	    READ(how, tp, inet_conn.icsk_backoff) < seen->backoff)
		c->flags |= CONN_RTO_REVERTED;
	c->retransmitted = seen ? seen->retransmitted : 0;

	/*
	 * A window only counts as closed if there is data to send; before the handshake
	 * there is no window. With data in flight the kernel does not set
	 * icsk_probes_tstamp, and the first retransmission takes its place, as in
	 * tcp_rtx_probe0_timed_out().
	 */
	c->retransmitting = AGE_NONE;
	if (c->retransmits || (c->packets_out && !c->send_window))
		c->retransmitting = retransmitting_for(tp);
	c->window_closed = AGE_NONE;
	if (!c->send_window && c->send_queue && c->state != TCP_SYN_SENT &&
	    c->state != TCP_SYN_RECV) {
		c->flags |= CONN_WINDOW_CLOSED;
		if (c->packets_out)
			c->window_closed = c->retransmitting;
		else if (window_closed)
			c->window_closed = age(now, window_closed);
	}

	/*
	 * The kernel counts probes (icsk_probes_out, for keepalive and zero-window probes)
	 * and retransmissions (icsk_retransmits). Both count what is not acknowledged, but
	 * a segment of the peer that acknowledges nothing new does not reset the
	 * retransmissions, one that is out of the window resets nothing, and data on the fast
	 * path of tcp_rcv_established(), which skips tcp_ack(), does not reset the probes. The
	 * watch has the counts from when the peer was last heard, and last acknowledged
	 * something. Without a watch, the timers limit how many can have been sent since.
	 */
	probing = c->send_queue && !c->packets_out;
	probes = c->probes_out;
	if (probes && probing && !window_limited(c, tp, how)) {
		/* tcp_write_xmit() failed on this host, and sent nothing */
		c->flags |= CONN_BLOCKED;
		c->attempts = probes;
		c->failing = window_closed ? age(now, window_closed) : AGE_NONE;
		if (!READ(how, tp, inet_conn.icsk_backoff)) /* tcp_send_probe0() */
			c->flags |= CONN_CONGESTED;
		probes = 0;
	}
	if (probes && !seen && !probing)
		probes = probes_within(c, tp, c->accepted, how);
	counted = probes + c->retransmits;
	/* Has the peer acknowledged the probes since the entry was written? */
	acknowledged = seen && !c->retransmits && accepted != seen->accepted;
	c->unacknowledged = counted;
	if (acknowledged)
		c->unacknowledged = 0;
	else if (seen && counted >= seen->acknowledged)
		c->unacknowledged = counted - seen->acknowledged;
	if (!seen) {
		if (probes && !probing)
			probes = probes_within(c, tp, c->silent, how);
		c->unanswered = unanswered_at_first(c, tp, probes, how);
	} else if (accepted == seen->accepted && c->segments_in == seen->segments_in) {
		c->unanswered = counted >= seen->baseline ? counted - seen->baseline : counted;
		/* They were retransmissions of segments that are still in flight. */
		if (c->packets_out)
			c->unanswered += seen->extra;
	}
	if (c->unanswered || (c->flags & CONN_WINDOW_CLOSED) || c->unacknowledged >= events_from ||
	    c->attempts >= events_from)
		c->flags |= CONN_TROUBLE;
	if ((c->flags & CONN_TROUBLE) && c->state != TCP_SYN_SENT && never_acked(tp, how))
		c->flags |= CONN_NEVER_ACKED;
	if (c->flags & CONN_WINDOW_CLOSED)
		c->evidence = EVIDENCE_WINDOW_PROBE;
	else if (!(c->flags & CONN_TROUBLE))
		c->evidence = EVIDENCE_NONE;
	else if (c->retransmits)
		c->evidence = EVIDENCE_RETRANSMIT;
	else
		c->evidence = probing ? EVIDENCE_WINDOW_PROBE : EVIDENCE_KEEPALIVE;
}

#endif /* HALFOPEN_UNANSWERED_H */
