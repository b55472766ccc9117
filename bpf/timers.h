/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Observes TCP's timers: which timer runs, for which socket, and what it sends.
 */
#ifndef HALFOPEN_TIMERS_H
#define HALFOPEN_TIMERS_H

#include "timer_slot.h"

/* Room in each map of sockets about which an event is remembered for the next one. */
#define REMEMBER_MAX 4096

/*
 * A write timer that found its socket locked by a process. The kernel defers its work to
 * tcp_release_cb(), which is not within a timer event.
 */
struct deferred {
	__u64 cookie;
	__u32 snd_wnd;
	__u8 pending;
	__u8 pad[3];
};

/*
 * Deferred write timers by the address of the socket. Inserted: by timer_exit(). Deleted:
 * when the deferred timer retransmits, and by the next timer of the socket. LRU, since no
 * event says that deferred work is done. There are few.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REMEMBER_MAX);
	__type(key, __u64);
	__type(value, struct deferred);
} deferred SEC(".maps");

/*
 * Room for the record that streaks_of() fills in, which the stack does not have. Softirqs are
 * off, or this is one, so that nothing else uses it meanwhile on this CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct conn);
} streaks_record SEC(".maps");

/*
 * Returns how many solicitations a socket has in a row that are unanswered and, 1 << 16 for
 * each, that are unacknowledged, as far as it shows that itself. Not inlined, as solicited()
 * is not.
 */
__attribute__((noinline)) int streaks_of(__u64 sk)
{
	__u32 zero = 0;
	struct conn *c = bpf_map_lookup_elem(&streaks_record, &zero);
	const struct tcp_sock *tp = (const void *)sk;

	if (!c)
		return 0;
	fill_state(c, tp, READ(PROBE, tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net), true,
		   PROBE);
	fill_unanswered(c, tp, NULL, PROBE);
	return c->unanswered | (__u32)c->unacknowledged << 16;
}

/*
 * Handles a solicitation: a socket has just sent something that a live peer must answer.
 * The first of a streak only starts a watch, since nearly always the peer answers it
 * within a round trip. size: bytes of data in a retransmission. extra: neither
 * icsk_probes_out nor icsk_retransmits includes this solicitation. outcome: enum outcome, and
 * enum drop in the upper half. Not inlined, so that the verifier does not check it for each
 * kind of solicitation.
 */
__attribute__((noinline)) int solicited(__u64 sk, __u32 evidence, __u32 size, __u32 extra,
					__u32 outcome)
{
	bool unsent = outcome & UNSENT;
	const struct tcp_sock *tp = (const void *)sk;
	__u32 jiffies = (__u32)bpf_jiffies64(), silent, streak, streaks;
	__u32 counted = (__u32)READ(PROBE, tp, inet_conn.icsk_probes_out) +
			READ(PROBE, tp, inet_conn.icsk_retransmits);
	struct watch next = {
		.cookie = COOKIE(PROBE, tp),
		.solicited = jiffies,
		.looked = jiffies,
		.accepted = accepted_at(tp, jiffies, PROBE),
		.segments_in = READ(PROBE, tp, segs_in),
		.retransmitted = size,
		.sent = 1,
		.evidence = evidence,
		.extra = extra && !unsent,
		.drop = outcome >> 16,
		.congested = !!(outcome & CONGESTED),
		.backoff = READ(PROBE, tp, inet_conn.icsk_backoff),
	};
	struct watch copy, *seen;
	struct event *e;

	if (!next.cookie) {
		COUNT(faults[FAULT_NO_COOKIE]);
		return 0;
	}
	seen = watched_as(tp, next.cookie, &copy);
	silent = silent_for(tp, seen, next.accepted, next.segments_in, jiffies, PROBE);
	next.heard = silent == AGE_NONE ? 0 : jiffies - silent;
	if (seen) {
		next.reported = seen->reported;
		if (!size)
			next.retransmitted = seen->retransmitted;
		if (evidence == EVIDENCE_RETRANSMIT ? counted > 1 : seen->accepted == next.accepted)
			/* counted is lower if an ACK came in the same jiffy as data before it. */
			next.acknowledged = counted < seen->acknowledged ? 0 : seen->acknowledged;
		else if (evidence != EVIDENCE_RETRANSMIT)
			next.acknowledged = counted - !extra;
		if (seen->accepted == next.accepted && seen->segments_in == next.segments_in) {
			next.baseline = counted < seen->baseline ? 0 : seen->baseline;
			if (seen->extra < 255 - next.extra)
				next.extra += seen->extra;
		} else { /* the first of a new streak */
			next.baseline = counted - !extra;
		}
	} else if (counted > 1) { /* a streak that began before we did */
		streaks = streaks_of(sk);
		if ((streaks & 0xffff) < counted)
			next.baseline = counted - (streaks & 0xffff);
		if (streaks >> 16 < counted)
			next.acknowledged = counted - (streaks >> 16);
	}
	if (unsent) {
		next.baseline += !extra;
		next.acknowledged += !extra;
		next.sent = seen && seen->sent;
		next.solicited = seen ? seen->solicited : 0;
		next.attempts = 1;
		next.failing = jiffies;
		if (seen && seen->attempts) {
			next.attempts = seen->attempts < 255 ? seen->attempts + 1 : 255;
			next.failing = seen->failing;
		}
	}
	streak = counted - next.baseline + next.extra;
	next.reported |= streak >= events_from;
	watch(sk, &next);
	if (unsent || streak < events_from || !within_rate(RATE_SOLICITATION, EVENT_SOLICITATION))
		return 0;
	e = reserve(EVENT_SOLICITATION);
	if (!e)
		return 0;
	describe(&e->conn, tp, &next, PROBE);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Timer softirq, for every timer of the system: returns at once if it is not TCP's. */
static __always_inline int timer_entry(struct timer_list *timer)
{
	__u64 fn = (__u64)timer->function;
	const struct tcp_sock *tp;
	struct timer_slot *slot;
	struct watch seen;
	__s64 epoch;
	__u32 offset;
	__u8 pending;
	__u64 key;

	if (fn == keepalive_timer_fn)
		offset = keepalive_timer_offset();
	else if (fn == write_timer_fn)
		offset = write_timer_offset();
	else
		return 0;
	slot = timer_slot();
	if (!slot)
		return 0;
	epoch = epoch_now();
	if (epoch < jiffies_epoch)
		jiffies_epoch = epoch;
	tp = (const void *)((__u64)timer - offset);
	pending = READ(PROBE, tp, inet_conn.icsk_pending);
	if (fn == write_timer_fn) {
		/* The kernel cancels write timers lazily: this one does nothing. */
		if (!pending)
			return 0;
		/* The deferred work of an earlier one is done by now. */
		key = (__u64)tp;
		bpf_map_delete_elem(&deferred, &key);
		slot->backoff = READ(PROBE, tp, inet_conn.icsk_backoff);
	}
	slot->timer = (__u64)timer;
	slot->sk = (__u64)tp;
	slot->fn = fn;
	slot->dead = 0;
	slot->reset = 0;
	slot->sent = 0;
	slot->size = 0;
	slot->drop = 0;
	slot->cookie = COOKIE(PROBE, tp);
	slot->pending = pending;
	slot->probes_out = READ(PROBE, tp, inet_conn.icsk_probes_out);
	slot->retransmits = READ(PROBE, tp, inet_conn.icsk_retransmits);
	slot->snd_wnd = READ(PROBE, tp, snd_wnd);
	slot->total_retrans = READ(PROBE, tp, total_retrans);
	/* This timer may end the connection: keep its state from before. */
	if (slot->probes_out || slot->retransmits)
		describe(&slot->before, tp, watched_as(tp, slot->cookie, &seen), PROBE);
	else
		slot->before.cookie = 0;
	return 0;
}

/*
 * Timer softirq, after each timer. The kernel may have freed the timer and the socket by
 * now: this does not read through the timer, and discards what it reads of the socket
 * unless the cookie is still the same.
 */
static __always_inline int timer_exit(struct timer_list *timer)
{
	struct timer_slot *slot = timer_slot();
	__u8 evidence = EVIDENCE_NONE;
	const struct tcp_sock *tp;
	bool extra = false;
	__u32 outcome;

	if (!slot || slot->timer != (__u64)timer)
		return 0;
	slot->timer = 0;
	tp = (const void *)slot->sk;
	if (slot->dead || slot->cookie != COOKIE(PROBE, tp) || STATE(PROBE, tp) == TCP_CLOSE)
		return 0;

	if (READ(PROBE, tp, inet_conn.icsk_probes_out) > slot->probes_out) {
		evidence = slot->fn == keepalive_timer_fn ? EVIDENCE_KEEPALIVE :
							    EVIDENCE_WINDOW_PROBE;
	} else if (slot->fn != write_timer_fn) {
		if (probe_congested(slot, tp))
			solicited(slot->sk, EVIDENCE_KEEPALIVE, 0, true,
				  UNSENT | CONGESTED | (__u32)slot->drop << 16);
		return 0;
	} else if (slot->pending == PENDING_RETRANSMIT &&
		   READ(PROBE, tp, inet_conn.icsk_retransmits) > slot->retransmits) {
		evidence = EVIDENCE_RETRANSMIT;
	} else if (slot->pending == PENDING_RETRANSMIT && slot->sent &&
		   READ(PROBE, tp, total_retrans) != slot->total_retrans) {
		/* The window closed while data was in flight: a retransmission probes it,
		 * and no counter includes that one (tcp_retransmit_timer). */
		evidence = EVIDENCE_WINDOW_PROBE;
		extra = true;
	} else if (slot->pending != PENDING_REORDER &&
		   (READ(PROBE, tp, inet_conn.icsk_inet.sk.sk_tsq_flags) &
		    (1UL << bpf_core_enum_value(enum tsq_enum, TCP_WRITE_TIMER_DEFERRED)))) {
		struct deferred d = {
			.cookie = slot->cookie,
			.snd_wnd = slot->snd_wnd,
			.pending = slot->pending,
		};

		if (bpf_map_update_elem(&deferred, &slot->sk, &d, BPF_ANY))
			COUNT(faults[FAULT_REMEMBER_FULL]);
	}
	if (evidence != EVIDENCE_NONE) {
		outcome = outcome_of(slot, tp, evidence);
		if (evidence == EVIDENCE_KEEPALIVE && !(outcome & UNSENT))
			COUNT(probes_sent);
		solicited(slot->sk, evidence, slot->size, extra, outcome);
	}
	return 0;
}

/*
 * Returns whether a write timer of this socket is running now or was deferred, and copies
 * what it was armed for.
 */
static __always_inline bool write_timer_of(const struct sock *sk, struct deferred *out)
{
	struct timer_slot *slot = running_timer(sk);
	__u64 key = (__u64)sk;
	struct deferred *d;

	if (slot) {
		if (slot->fn != write_timer_fn)
			return false;
		out->pending = slot->pending;
		out->snd_wnd = slot->snd_wnd;
		return true;
	}
	d = bpf_map_lookup_elem(&deferred, &key);
	if (!d || d->cookie != (__u64)sk->__sk_common.skc_cookie.counter)
		return false;
	*out = *d;
	return true;
}

/*
 * Returns whether the kernel sends a deferred tail loss probe at this moment: it has cleared
 * TCP_WRITE_TIMER_DEFERRED, icsk_pending still names the probe, and the timer is not armed.
 * If it is armed, the probe was sent before: of new data, for which there is no event.
 */
static __always_inline bool sending_deferred_probe(const struct tcp_sock *tp)
{
	__u8 level;

	return tp->inet_conn.icsk_pending == PENDING_TAIL_LOSS_PROBE &&
	       !(tp->inet_conn.icsk_inet.sk.sk_tsq_flags &
		 (1UL << bpf_core_enum_value(enum tsq_enum, TCP_WRITE_TIMER_DEFERRED))) &&
	       !expires_at(tp, write_timer_offset(), &level);
}

/*
 * Returns an address as a number. To the verifier a converted pointer is still a pointer,
 * which functions that are not inlined do not take.
 */
static __always_inline __u64 number_of(const void *pointer)
{
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &pointer);
	return number;
}

/*
 * Softirq and process context. For a retransmission within its timer, timer_exit() does
 * the rest. For a deferred one, this event is the only one, and it happens once. A
 * deferred retransmission by timeout finds icsk_pending cleared
 * (tcp_write_timer_handler); a fast one that comes in between does not.
 */
static __always_inline int retransmitted(const struct sock *sk, const struct sk_buff *skb, int err)
{
	__u32 type = RETRANSMIT_FAST, size = skb->len;
	const struct tcp_sock *tp;
	struct deferred d = {};
	__u64 key = (__u64)sk;
	struct timer_slot *running;
	bool extra;

	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || err)
		return 0;
	running = running_timer(sk);
	if (running) {
		running->sent = 1;
		running->size = size;
	}
	if (sk->__sk_common.skc_state == TCP_SYN_SENT) {
		type = RETRANSMIT_SYN;
	} else if (write_timer_of(sk, &d)) {
		if (d.pending == PENDING_RETRANSMIT && (running || !tp->inet_conn.icsk_pending))
			type = RETRANSMIT_TIMEOUT;
		else if (d.pending == PENDING_TAIL_LOSS_PROBE &&
			 (running || sending_deferred_probe(tp)))
			type = RETRANSMIT_TAIL_LOSS_PROBE;
	}
	COUNT(retransmits[type & (RETRANSMIT_SLOTS - 1)]);
	if (running || !d.cookie || type == RETRANSMIT_FAST)
		return 0;
	bpf_map_delete_elem(&deferred, &key);
	if (type != RETRANSMIT_TIMEOUT)
		return 0;
	extra = !d.snd_wnd && !tp->inet_conn.icsk_retransmits; /* see timer_exit() */
	solicited(number_of(sk), extra ? EVIDENCE_WINDOW_PROBE : EVIDENCE_RETRANSMIT, size, extra,
		  0);
	return 0;
}

/*
 * Counts a retransmitted SYN-ACK. A socket that TCP Fast Open made gets its cookie here,
 * since its timer cannot give it one.
 */
static __always_inline int synack_retransmitted(const struct sock *sk)
{
	struct timer_slot *slot = running_timer(sk);

	COUNT(retransmits[RETRANSMIT_SYNACK]);
	if (slot)
		slot->sent = 1;
	if (sk->__sk_common.skc_state == TCP_SYN_RECV)
		give_cookie(sk);
	return 0;
}

#endif /* HALFOPEN_TIMERS_H */
