/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads the state of one socket from the kernel's fields into a struct conn.
 */
#ifndef HALFOPEN_CONNECTION_H
#define HALFOPEN_CONNECTION_H

#include "unread.h"

#define COOKIE(how, tp) \
	((__u64)READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter))
#define STATE(how, tp) ((__u8)READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_state))

/* Returns when jiffy 0 would have begun if the current one began now; ns. */
static __always_inline __s64 epoch_now(void)
{
	__u64 jiffies = bpf_jiffies64(); /* before the time, so that the result is not too early */

	return bpf_ktime_get_ns() - jiffies * TICK_NSEC;
}

/*
 * The next functions are not inlined, so that the verifier checks each once for all that
 * call it, and not once for each state in which it is called.
 */

/*
 * Returns by how many jiffies a timer may be late that is armed to expire after so many:
 * the granularity of its level in the timer wheel (kernel/time/timer.c calc_wheel_index).
 */
__attribute__((noinline)) __u32 wheel_lateness(__u32 wait)
{
	__u32 level;

	for (level = 0; level < LVL_MAX; level++)
		if (wait < (LVL_SIZE - 1U) << (LVL_CLK_SHIFT * level))
			break;
	return 1U << (LVL_CLK_SHIFT * level);
}

/*
 * Returns after how many jiffies of silence, at the latest, the keepalive timer fires for
 * the second time, with which tcp_keepalive_timer() gives up if TCP_USER_TIMEOUT has
 * passed. The timer fires at multiples of the granularity. Where that of the interval is
 * not coarser, it says by how much the second time is late.
 */
__attribute__((noinline)) __u64 second_probe(__u32 time, __u32 interval)
{
	__u32 first = wheel_lateness(time), second = wheel_lateness(interval);

	if (second <= first)
		second -= interval & (second - 1);
	return (__u64)time + first + interval + second;
}

/*
 * Returns whether a middlebox on the way to an address, of two parts in network byte order,
 * may forget a silent flow before its first keepalive probe, which is sent after at most so
 * many jiffies.
 */
__attribute__((noinline)) int is_slow(__u32 first_probe, __u64 high, __u64 low)
{
	struct destination to = { 128, { high, high >> 32, low, low >> 32 } };
	__u32 *timeout;

	if (first_probe >= middlebox_most)
		return 1;
	timeout = bpf_map_lookup_elem(&middleboxes, &to);
	return !timeout || first_probe >= *timeout;
}

/* Returns the class of a connection that is not in trouble, from fields of struct conn. */
__attribute__((noinline)) int class_of(__u32 flags, __u32 idle, __u32 send_queue)
{
	if (idle == AGE_NONE || idle < idle_after)
		return CLASS_ACTIVE;
	if ((flags & (CONN_KEEPALIVE | CONN_ORPHAN | CONN_LOCAL_PEER)) || send_queue)
		return CLASS_IDLE;
	return CLASS_UNGUARDED;
}

/* Returns the class that a socket is counted in. */
static __always_inline __u8 counted_in(const struct conn *c)
{
	if (c->class == CLASS_NONE)
		return CLASS_NONE;
	if (c->flags & CONN_TROUBLE)
		return CLASS_TROUBLE;
	return c->flags & CONN_UNREAD ? CLASS_UNREAD : c->class;
}

/* Returns those risks that follow from these fields of struct conn alone. */
__attribute__((noinline)) int plain_risks(__u32 flags, __u32 state, __u32 send_queue,
					  __u32 user_timeout)
{
	int risks = 0;

	if (flags & CONN_KEEPALIVE) {
		if (user_timeout)
			risks |= 1 << RISK_USER_TIMEOUT_OVERRIDES_KEEPCNT;
		if (send_queue)
			risks |= 1 << RISK_KEEPALIVE_MASKED_BY_UNACKED_DATA;
	} else if (!(flags & (CONN_ORPHAN | CONN_LOCAL_PEER))) {
		if (state == TCP_ESTABLISHED)
			risks |= 1 << RISK_NO_KEEPALIVE;
		if (state == TCP_FIN_WAIT2)
			risks |= 1 << RISK_HALF_CLOSED_UNGUARDED;
	}
	return risks;
}

static __always_inline bool is_loopback(__be32 address)
{
	return (address & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000);
}

/*
 * Returns whether the peer of a connection is in the same network namespace, so that
 * nothing is on the way and neither end can vanish alone: the remote address is a
 * loopback address or the local address, or the route to it leads to the loopback device.
 */
static __always_inline bool has_local_peer(const struct tcp_sock *tp, const struct net *net,
					   const enum access how)
{
	const struct sock *sk = (const struct sock *)tp;
	__u64 local[2], remote[2];
	struct dst_entry *dst;
	__be32 address;

	/* Of an IPv6 socket only these count: an accepted one has 127.0.0.6 as skc_daddr. */
	if (READ(how, sk, __sk_common.skc_family) == AF_INET6) {
		BPF_CORE_READ_INTO(&local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&remote, sk, __sk_common.skc_v6_daddr);
		if (!((local[0] ^ remote[0]) | (local[1] ^ remote[1])))
			return true;
		if (!remote[0] && (__u32)remote[1] == __builtin_bswap32(0xffff) &&
		    is_loopback(remote[1] >> 32))
			return true;
	} else {
		address = READ(how, sk, __sk_common.skc_daddr);
		if (is_loopback(address) || address == READ(how, sk, __sk_common.skc_rcv_saddr))
			return true;
	}
	dst = READ(how, sk, sk_dst_cache);
	return dst && BPF_CORE_READ(dst, dev) == READ(how, net, loopback_dev);
}

/*
 * Returns whether a middlebox on the way to the peer may forget the connection before its
 * first keepalive probe, which is sent after at most so many jiffies of silence.
 */
static __always_inline bool may_be_forgotten(const struct tcp_sock *tp, __u32 first_probe,
					     const enum access how)
{
	const struct sock *sk = (const struct sock *)tp;
	__u64 remote[2] = {};

	if (READ(how, sk, __sk_common.skc_family) == AF_INET6)
		BPF_CORE_READ_INTO(&remote, sk, __sk_common.skc_v6_daddr);
	else
		remote[1] = 0xffff0000ULL | (__u64)READ(how, sk, __sk_common.skc_daddr) << 32;
	return is_slow(first_probe, remote[0], remote[1]);
}

/* Fills in the class of a connection, and its risks. */
static __always_inline void fill_risks(struct conn *c, const struct tcp_sock *tp,
				       const struct net *net, const enum access how)
{
	bool slow = false, unsafe;
	__u32 first_probe = 0, v;

	if (c->flags & CONN_KEEPALIVE) {
		first_probe = c->keepalive_time + wheel_lateness(c->keepalive_time);
		slow = first_probe >= middlebox_least;
	}
	unsafe = slow || !(c->flags & (CONN_KEEPALIVE | CONN_ORPHAN));
	if (unsafe && has_local_peer(tp, net, how))
		c->flags |= CONN_LOCAL_PEER;
	c->class = class_of(c->flags, c->idle, c->send_queue);
	c->risks = plain_risks(c->flags, c->state, c->send_queue, c->user_timeout);
	if (slow && !(c->flags & CONN_LOCAL_PEER) && may_be_forgotten(tp, first_probe, how))
		c->risks |= 1 << RISK_KEEPALIVE_SLOWER_THAN_MIDDLEBOX;
	if (c->risks & (1 << RISK_USER_TIMEOUT_OVERRIDES_KEEPCNT)) {
		v = READ(how, tp, keepalive_intvl) ?:
						     READ(how, net, ipv4.sysctl_tcp_keepalive_intvl);
		if ((__u64)c->user_timeout * hz <= second_probe(c->keepalive_time, v) * 1000)
			c->risks |= 1 << RISK_ONE_PROBE_ENDS_IT;
	}
	/* The peer's FIN moves rcv_tstamp, and no stamp of data. */
	if (c->state == TCP_CLOSE_WAIT && c->class != CLASS_ACTIVE && !(c->flags & CONN_ORPHAN)) {
		v = READ(how, tp, rcv_tstamp);
		if (v && age((__u32)c->jiffies, v) >= idle_after)
			c->risks |= 1 << RISK_CLOSE_WAIT_LEAK;
	}
}

/* The first part of fill_basic(): what fill_unanswered() needs. */
static __always_inline void fill_state(struct conn *c, const struct tcp_sock *tp,
				       const struct net *net, bool complete, const enum access how)
{
	__u32 heard_data, sent, now, v;
	unsigned long flags;

	__builtin_memset(c, 0, sizeof(*c));
	c->cookie = COOKIE(how, tp);
	c->state = STATE(how, tp);
	c->unread = AGE_NONE;
	heard_data = READ(how, tp, inet_conn.icsk_ack.lrcvtime);
	sent = READ(how, tp, lsndtime);
	flags = READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_flags);
	if (flags & (1 << SOCK_KEEPOPEN))
		c->flags |= CONN_KEEPALIVE;
	if (flags & (1 << SOCK_DEAD))
		c->flags |= CONN_ORPHAN;
	if (complete || (c->flags & CONN_KEEPALIVE)) {
		c->user_timeout = READ(how, tp, inet_conn.icsk_user_timeout);
		v = READ(how, tp, keepalive_time);
		if (v)
			c->flags |= CONN_KEEPALIVE_TIME_SET;
		c->keepalive_time = v ?: READ(how, net, ipv4.sysctl_tcp_keepalive_time);
	}
	/* Read the clock after the stamps, so that no stamp is in the future. */
	c->jiffies = bpf_jiffies64();
	now = (__u32)c->jiffies;
	c->idle = heard_data ? age(now, heard_data) : AGE_NONE;
	v = sent ? age(now, sent) : AGE_NONE;
	if (v < c->idle)
		c->idle = v;
}

/*
 * Fills in what a verdict depends on. The census does this for every socket. tp is any
 * full TCP socket; seen is its watch entry, or NULL. If complete is false, the socket waits
 * for nothing, and only its state, class, risks and idle time are filled in: each field
 * that is read may be a cache miss, and these make up most of the time of a census.
 */
static __always_inline void fill_basic(struct conn *c, const struct tcp_sock *tp,
				       const struct watch *seen, bool complete,
				       const enum access how)
{
	const struct net *net = READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);

	fill_state(c, tp, net, complete, how);
	if (complete)
		fill_unanswered(c, tp, seen, how);
	fill_risks(c, tp, net, how);
}

/* Fills in how often the kernel retransmits, which depends on the state. */
static __always_inline void fill_retries(struct conn *c, const struct tcp_sock *tp,
					 const struct net *net, const enum access how)
{
	if (c->state == TCP_SYN_SENT || c->state == TCP_SYN_RECV) {
		c->retries = READ(how, tp, inet_conn.icsk_syn_retries);
		if (c->retries)
			c->flags |= CONN_SYN_RETRIES_SET;
		else if (READ(how, tp, fastopen_rsk)) /* tcp_fastopen_synack_timer() */
			c->retries = READ(how, net, ipv4.sysctl_tcp_synack_retries) + 1;
		else
			c->retries = READ(how, net, ipv4.sysctl_tcp_syn_retries);
		c->syn_linear = syn_linear(net);
	} else if (c->flags & (CONN_ORPHAN | CONN_LINGERING)) {
		c->retries = READ(how, net, ipv4.sysctl_tcp_orphan_retries);
	} else {
		c->retries = c->retries2;
	}
}

/* Fills in the fields that identify a socket of any kind, except lport. */
static __always_inline void fill_identity(struct conn *c, const struct sock_common *skc,
					  const enum access how)
{
	const struct net *net = READ(how, skc, skc_net.net);

	c->at = bpf_ktime_get_ns();
	c->netns = READ(how, net, ns.inum);
	c->family = READ(how, skc, skc_family);
	c->rport = __builtin_bswap16(READ(how, skc, skc_dport));
	if (c->family == AF_INET6) {
		BPF_CORE_READ_INTO(&c->laddr, skc, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&c->raddr, skc, skc_v6_daddr);
	} else {
		*(__u32 *)c->laddr = READ(how, skc, skc_rcv_saddr);
		*(__u32 *)c->raddr = READ(how, skc, skc_daddr);
	}
}

/*
 * Fills in the fields for which the record is written out: the identity of the
 * connection, and the state of its timers. Call it after fill_basic().
 */
static __always_inline void fill_detail(struct conn *c, const struct tcp_sock *tp,
					const enum access how)
{
	const struct net *net = READ(how, tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net);
	bool own;
	int linger;
	__u64 since;
	__s64 epoch;
	__u32 v;

	if (!(c->flags & CONN_ORPHAN) && !READ(how, tp, inet_conn.icsk_inet.sk.sk_socket))
		c->flags |= CONN_UNACCEPTED;
	c->cgroup = cgroup_of(tp);
	c->uid = READ(how, tp, inet_conn.icsk_inet.sk.sk_uid.val);
	fill_identity(c, &tp->inet_conn.icsk_inet.sk.__sk_common, how);
	/* The time of fill_basic(), which may be a while ago after an interrupt. */
	epoch = epoch_now();
	c->at = epoch + c->jiffies * TICK_NSEC;
	if (epoch > jiffies_epoch) {
		since = (__u64)(epoch - jiffies_epoch) / 1000;
		c->into_jiffy = since < 0xffff ? since : 0xffff;
	}
	c->lport = __builtin_bswap16(READ(how, tp, inet_conn.icsk_inet.inet_sport));
	c->srtt = READ(how, tp, srtt_us) >> 3;
	c->total_retrans = READ(how, tp, total_retrans);
	c->segments_in = READ(how, tp, segs_in);
	c->mss = READ(how, tp, mss_cache);
	if (c->unread == AGE_NONE)
		c->receive_queue = receive_queue_of(tp, READ(how, tp, copied_seq), how);

	v = READ(how, tp, keepalive_intvl);
	if (v)
		c->flags |= CONN_KEEPALIVE_INTVL_SET;
	c->keepalive_intvl = v ?: READ(how, net, ipv4.sysctl_tcp_keepalive_intvl);
	v = READ(how, tp, keepalive_probes);
	if (v)
		c->flags |= CONN_KEEPALIVE_PROBES_SET;
	c->keepalive_probes = v ?: READ(how, net, ipv4.sysctl_tcp_keepalive_probes);

	if (READ(how, tp, inet_conn.icsk_inet.sk.sk_err_soft))
		c->flags |= CONN_SOFT_ERROR;
	c->pending = READ(how, tp, inet_conn.icsk_pending);
	c->backoff = READ(how, tp, inet_conn.icsk_backoff);
	c->rto = READ(how, tp, inet_conn.icsk_rto);
	c->rto_max = rto_max(tp, net, hz, &own);
	if (own)
		c->flags |= CONN_RTO_MAX_SET;
	c->keepalive_expires = expires_at(tp, keepalive_timer_offset(), &c->keepalive_level);
	c->write_expires = expires_at(tp, write_timer_offset(), &c->write_level);
	c->retries2 = READ(how, net, ipv4.sysctl_tcp_retries2);
	fill_linger(c, (const struct sock *)tp, how);
	fill_retries(c, tp, net, how);

	if (BPF_CORE_READ_BITFIELD_PROBED(tp, thin_lto))
		c->flags |= CONN_THIN_SET;
	/* tcp_stream_is_thin(), __tcp_set_rto() */
	if (c->packets_out && c->packets_out < 4 && c->state == TCP_ESTABLISHED &&
	    (READ(how, net, ipv4.sysctl_tcp_thin_linear_timeouts) || (c->flags & CONN_THIN_SET))) {
		v = ((__u64)c->srtt + READ(how, tp, rttvar_us)) * hz / 1000000;
		c->thin_rto = v < hz / 5 ? hz / 5 : v;
	}
	/* tcp_fin_time() */
	linger = READ(how, tp, linger2);
	if (linger)
		c->flags |= CONN_FIN_TIME_SET;
	c->fin_time = linger < 0 ? AGE_NONE : linger ?: READ(how, net, ipv4.sysctl_tcp_fin_timeout);
	if (c->fin_time < (c->rto << 2) - (c->rto >> 1))
		c->fin_time = (c->rto << 2) - (c->rto >> 1);
}

/* Fills in the whole record. */
static __always_inline void describe(struct conn *c, const struct tcp_sock *tp,
				     const struct watch *seen, const enum access how)
{
	fill_basic(c, tp, seen, true, how);
	fill_unread(c, tp, how);
	fill_detail(c, tp, how);
}

/*
 * Fills in the record of a stub: what the kernel keeps before a connection is established,
 * and after its end. Of a stub, only struct sock_common may be read.
 */
static __always_inline void fill_stub(struct conn *c, const struct sock_common *skc,
				      const enum access how)
{
	__builtin_memset(c, 0, sizeof(*c));
	c->class = CLASS_NONE;
	c->cookie = READ(how, skc, skc_cookie.counter);
	fill_identity(c, skc, how);
	c->lport = READ(how, skc, skc_num);
	c->state = READ(how, skc, skc_state);
	if (c->state == TCP_TIME_WAIT) {
		/* A stub may be in FIN_WAIT2, too; ss also shows that. */
		c->state = BPF_CORE_READ((const struct inet_timewait_sock *)skc, tw_substate);
		c->flags = CONN_ORPHAN;
	} else {
		c->flags = CONN_UNACCEPTED;
	}
}

#endif /* HALFOPEN_CONNECTION_H */
