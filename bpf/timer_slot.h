/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The timer of TCP that is running, and whether this host has sent what that timer was to send.
 */
#ifndef HALFOPEN_TIMER_SLOT_H
#define HALFOPEN_TIMER_SLOT_H

#include "connection.h"

/*
 * The TCP timer that is running on this CPU, and its socket as it was before the timer:
 * when the socket dies, the kernel clears fields that show the cause
 * (tcp_write_queue_purge).
 */
struct timer_slot {
	__u64 timer; /* address; 0: no TCP timer is running */
	__u64 sk; /* address of the socket */
	__u64 cookie;
	__u64 fn; /* the timer's function */
	__u32 snd_wnd;
	__u32 total_retrans;
	__u8 pending;
	__u8 probes_out;
	__u8 retransmits;
	__u8 dead; /* the socket went to CLOSE while the timer ran */
	__u8 reset; /* the timer sent a reset */
	__u8 sent; /* the timer sent a retransmission */
	__u16 size; /* bytes of data in it */
	__u8 backoff; /* of a write timer */
	__u8 drop; /* enum drop: why this host dropped what the timer sent; 0: we saw no drop */
	__u8 pad[6];
	struct conn before; /* cookie 0: nothing was unanswered, and it is not set */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct timer_slot);
} timer_slots SEC(".maps");

static __always_inline struct timer_slot *timer_slot(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&timer_slots, &zero);
}

/* Returns the slot if a timer of this socket is running on this CPU, or NULL. */
static __always_inline struct timer_slot *running_timer(const void *sk)
{
	struct timer_slot *slot = timer_slot();

	if (!slot || !slot->timer || slot->sk != (__u64)sk)
		return NULL;
	return slot;
}

/* What became of a solicitation. */
enum outcome {
	UNSENT = 1 << 0, /* this host did not send it */
	CONGESTED = 1 << 1, /* since the device did not take it */
};

/*
 * Returns in how many jiffies the timer that is running fires again if the kernel has armed
 * it for half a second at most (TCP_RESOURCE_PROBE_INTERVAL); else 0.
 */
static __always_inline __u32 tries_again(const struct timer_slot *slot, const struct tcp_sock *tp)
{
	__u8 level;
	__u64 expires = expires_at(tp,
				   slot->fn == keepalive_timer_fn ? keepalive_timer_offset() :
								    write_timer_offset(),
				   &level),
	      now = bpf_jiffies64();

	return expires > now && expires - now <= hz / 2 ? expires - now : 0;
}

/*
 * Returns whether the kernel could not hand the keepalive probe that was due to a device. It
 * does not count that, and tries again after half a second. If it has found the socket in use,
 * it does so after HZ / 20.
 */
static __always_inline bool probe_congested(const struct timer_slot *slot,
					    const struct tcp_sock *tp)
{
	__u32 now = (__u32)bpf_jiffies64(), accepted;
	const struct net *net;

	if (tries_again(slot, tp) <= hz / 20)
		return false;
	if (!(READ(PROBE, tp, inet_conn.icsk_inet.sk.__sk_common.skc_flags) &
	      (1 << SOCK_KEEPOPEN)) ||
	    READ(PROBE, tp, packets_out) || READ(PROBE, tp, write_seq) != READ(PROBE, tp, snd_una))
		return false;
	accepted = accepted_at(tp, now, PROBE);
	net = READ(PROBE, tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);
	return accepted &&
	       age(now, accepted) >= (READ(PROBE, tp, keepalive_time) ?:
					      READ(PROBE, net, ipv4.sysctl_tcp_keepalive_time));
}

/*
 * Returns what became of the solicitation of the timer that has just run: enum outcome, and
 * enum drop in the upper half.
 */
static __always_inline __u32 outcome_of(const struct timer_slot *slot, const struct tcp_sock *tp,
					__u8 evidence)
{
	__u32 outcome = slot->drop && !slot->sent ? UNSENT : 0, left;

	if (slot->fn == write_timer_fn && slot->pending == PENDING_RETRANSMIT &&
	    evidence == EVIDENCE_RETRANSMIT && !slot->sent)
		outcome = UNSENT;
	/* The kernel backs off, unless the device did not take the segment. */
	if (slot->fn == write_timer_fn && !slot->sent &&
	    READ(PROBE, tp, inet_conn.icsk_backoff) == slot->backoff) {
		left = tries_again(slot, tp);
		/*
		 * A window probe may be earlier, by TCP_USER_TIMEOUT; a thin stream does not back
		 * off.
		 */
		if (left && (evidence == EVIDENCE_WINDOW_PROBE || left + hz / 50 >= hz / 2))
			outcome = UNSENT | CONGESTED;
	}
	if (outcome && slot->drop)
		return outcome | (__u32)slot->drop << 16;
	return !outcome && drops_watched ? (__u32)DROP_NONE << 16 : outcome;
}

/* The program of kfree_skb counts one drop of so many: it costs less than to reach the counter. */
#define DROPS_SAMPLE 64

/*
 * Any context, for each packet that the host drops, of which there may be a million a second:
 * mostly not one of ours, so this first looks only at what the kernel has just used. What a
 * timer sends is dropped while the timer runs, or later by a device.
 */
static __always_inline int dropped(const unsigned long long *ctx, const struct sk_buff *skb)
{
	const struct sock *sk = skb->sk;
	struct timer_slot *slot;
	struct counters *n;
	__u32 reason;

	if (bpf_get_prandom_u32() % DROPS_SAMPLE == 0) {
		n = cpu_counters();
		if (n) /* one more or less does not matter here */
			n->drops += DROPS_SAMPLE;
	}
	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	slot = running_timer(sk);
	if (!slot)
		return 0;
	reason = drop_reason_of(ctx);
	if (DROPPED_FOR(reason, NETFILTER_DROP))
		slot->drop = DROP_FILTER;
	else if (DROPPED_FOR(reason, BPF_CGROUP_EGRESS))
		slot->drop = DROP_CGROUP;
	else if (DROPPED_FOR(reason, IP_OUTNOROUTES))
		slot->drop = DROP_NO_ROUTE;
	else if (DROPPED_FOR(reason, TC_EGRESS))
		slot->drop = DROP_TC;
	else if (DROPPED_FOR(reason, QDISC_DROP) || DROPPED_FOR(reason, QDISC_OVERLIMIT) ||
		 DROPPED_FOR(reason, QDISC_CONGESTED))
		slot->drop = DROP_QUEUE;
	else
		slot->drop = DROP_OTHER;
	return 0;
}

#endif /* HALFOPEN_TIMER_SLOT_H */
