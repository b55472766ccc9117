/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Differences between kernels, and what the programs do about each. What shows a
 * difference is a field, a function or a tracepoint argument that the kernel has, never
 * its version, since distributions backport. differences.go has the same list, and says
 * what cannot be known on which kernel.
 */
#ifndef HALFOPEN_KERNEL_COMPAT_H
#define HALFOPEN_KERNEL_COMPAT_H

#include "kernel_types.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/*
 * Tracing programs can give a socket its cookie: c5dbb89fc2ac "bpf: Expose
 * bpf_get_socket_cookie to tracing programs", 5.12. Before, a cgroup program and sock_diag
 * do it (cookie.go). Set before the programs are loaded.
 */
const volatile bool cookie_helper = false;

static __always_inline void give_cookie(const void *sk)
{
	if (cookie_helper)
		bpf_get_socket_cookie((void *)sk);
}

/*
 * The tracepoint tcp_retransmit_skb includes retransmissions that failed, with the error as
 * a third argument: ad892e912b84 "tcp: trace retransmit failures in tcp_retransmit_skb",
 * 6.17. Set before the programs are loaded.
 */
const volatile bool retransmit_error = false;

static __always_inline int retransmit_error_of(const unsigned long long *ctx)
{
	return retransmit_error ? (int)ctx[2] : 0;
}

/*
 * The tracepoint kfree_skb has the reason of a drop as a third argument: c504e5c2f964 "net:
 * skb: introduce kfree_skb_reason()", 5.17. Those of what a host sends are of 5.18. Set before the
 * programs are loaded.
 */
const volatile bool drop_reasons = false;

static __always_inline __u32 drop_reason_of(const unsigned long long *ctx)
{
	return drop_reasons ? (__u32)ctx[2] : 0;
}

/* Later kernels have more reasons, and other numbers for them. */
#define DROPPED_FOR(reason, name)                                                    \
	(drop_reasons &&                                                             \
	 bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_##name) && \
	 (reason) == (__u32)bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_##name))

/*
 * The keepalive timer has its own field: 08dfe370239e "tcp: introduce
 * icsk->icsk_keepalive_timer", 6.19, and in 6.1.y, 6.12.y. Before, it was sk_timer, which
 * still exists as another timer: so look for the new field first.
 */
struct inet_connection_sock___keepalive_timer {
	struct timer_list icsk_keepalive_timer;
};

struct sock___keepalive_timer {
	struct timer_list sk_timer;
};

static __always_inline __u32 keepalive_timer_offset(void)
{
	if (bpf_core_field_exists(struct inet_connection_sock___keepalive_timer,
				  icsk_keepalive_timer))
		return bpf_core_field_offset(struct inet_connection_sock___keepalive_timer,
					     icsk_keepalive_timer);
	return bpf_core_field_offset(struct sock___keepalive_timer, sk_timer);
}

/* The write timer moved to struct sock: 9a5e5334adc0 "tcp: remove
 * icsk->icsk_retransmit_timer", 6.19. */
struct sock___retransmit_timer {
	struct timer_list tcp_retransmit_timer;
};

struct inet_connection_sock___retransmit_timer {
	struct timer_list icsk_retransmit_timer;
};

static __always_inline __u32 write_timer_offset(void)
{
	if (bpf_core_field_exists(struct sock___retransmit_timer, tcp_retransmit_timer))
		return bpf_core_field_offset(struct sock___retransmit_timer, tcp_retransmit_timer);
	return bpf_core_field_offset(struct inet_connection_sock___retransmit_timer,
				     icsk_retransmit_timer);
}

/*
 * retrans_stamp is in ms, or in us if the route says so: 614e8316aa4c "tcp: add support for
 * usec resolution in TCP TS values", 6.7.
 */
struct tcp_sock___usec_ts {
	__u8 tcp_usec_ts : 1;
};

static __always_inline __u32 stamps_a_second(const struct tcp_sock *tp)
{
	const struct tcp_sock___usec_ts *usec = (const void *)tp;

	if (bpf_core_field_exists(usec->tcp_usec_ts) &&
	    BPF_CORE_READ_BITFIELD_PROBED(usec, tcp_usec_ts))
		return 1000000;
	return 1000;
}

/*
 * The first SYN retransmissions have the same interval, and then it doubles: ccce324dabfe
 * "tcp: make the first N SYN RTO backoffs linear", 6.5. Before, it always doubles.
 */
struct netns_ipv4___syn_linear {
	__u8 sysctl_tcp_syn_linear_timeouts;
};

static __always_inline __u8 syn_linear(const struct net *net)
{
	const struct netns_ipv4___syn_linear *linear = (const void *)&net->ipv4;

	if (bpf_core_field_exists(linear->sysctl_tcp_syn_linear_timeouts))
		return BPF_CORE_READ(linear, sysctl_tcp_syn_linear_timeouts);
	return 0;
}

/*
 * The limit of icsk_rto can be set for a socket, and for new sockets: 54a378f43425 "tcp:
 * add the ability to control max RTO", 1280c26228bd "tcp: add tcp_rto_max_ms sysctl", 6.15.
 * Before, it is TCP_RTO_MAX, 120 s.
 */
struct inet_connection_sock___rto_max {
	__u32 icsk_rto_max; /* jiffies */
};

struct netns_ipv4___rto_max {
	int sysctl_tcp_rto_max_ms;
};

/* Returns the limit in jiffies. *own: it is not that of the sysctl. */
static __always_inline __u32 rto_max(const struct tcp_sock *tp, const struct net *net, __u32 hz,
				     bool *own)
{
	const struct inet_connection_sock___rto_max *max = (const void *)tp;
	const struct netns_ipv4___rto_max *usual = (const void *)&net->ipv4;
	__u32 jiffies, ms;

	*own = false;
	if (!bpf_core_field_exists(max->icsk_rto_max))
		return 120 * hz;
	jiffies = BPF_CORE_READ(max, icsk_rto_max);
	ms = BPF_CORE_READ(usual, sysctl_tcp_rto_max_ms);
	*own = jiffies != ((__u64)ms * hz + 999) / 1000; /* msecs_to_jiffies() */
	return jiffies;
}

/*
 * The cgroup that a socket was made in; for an accepted socket, that of its listener. It
 * is a pointer since 8520e224f547 "bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed
 * mode", 5.15, and in 5.10.y; before, a pointer with flags in its lower bits. Kernels
 * without CONFIG_SOCK_CGROUP_DATA have neither.
 */
struct sock_cgroup_data___flags {
	__u64 val;
};
#define CGROUP_NONE 1 /* flag: it is not a pointer, but belongs to cgroup v1 */
#define CGROUP_FLAGS 3

static __always_inline __u64 cgroup_of(const struct tcp_sock *tp)
{
	const struct sock_cgroup_data *data = &tp->inet_conn.icsk_inet.sk.sk_cgrp_data;
	const struct sock_cgroup_data___flags *flags = (const void *)data;
	const struct cgroup *cgroup = NULL;
	__u64 val;

	if (bpf_core_field_exists(data->cgroup)) {
		cgroup = BPF_CORE_READ(data, cgroup);
	} else if (bpf_core_field_exists(flags->val)) {
		val = BPF_CORE_READ(flags, val);
		cgroup = val & CGROUP_NONE ? NULL : (const void *)(val & ~CGROUP_FLAGS);
	}
	return cgroup ? BPF_CORE_READ(cgroup, kn, id) : 0;
}

/*
 * The number of references to a file: 90ee6ed776c0 "fs: port files to file_ref", 6.13. Before,
 * it is f_count.
 */
struct file_references {
	atomic64_t refcnt; /* negative: there is none any more */
};

struct file___ref {
	struct file_references f_ref;
};

struct file___count {
	atomic64_t f_count;
};

/* Returns whether the last descriptor of a file has been closed. */
static __always_inline bool is_released(const struct file *file)
{
	const struct file___ref *ref = (const void *)file;
	const struct file___count *count = (const void *)file;

	if (bpf_core_field_exists(ref->f_ref))
		return BPF_CORE_READ(ref, f_ref.refcnt.counter) < 0;
	return !BPF_CORE_READ(count, f_count.counter);
}

/*
 * The number of references to a network namespace has another place since 024596a4e280 "ns:
 * rename to __ns_ref", 6.18, and 8b8f3e666fc6 "net: Use generic ns_common::count", 5.11.
 */
struct ns_common___ref {
	refcount_t __ns_ref;
};

struct ns_common___count {
	refcount_t count;
};

struct net___count {
	refcount_t count;
};

/*
 * Returns whether the kernel is removing a network namespace, since there is no reference
 * to it any more (check_net). Its sockets then end without an error.
 */
static __always_inline bool is_going(const struct net *net)
{
	const struct ns_common___ref *ref = (const void *)&net->ns;
	const struct ns_common___count *generic = (const void *)&net->ns;
	const struct net___count *own = (const void *)net;

	if (bpf_core_field_exists(ref->__ns_ref))
		return !BPF_CORE_READ(ref, __ns_ref.refs.counter);
	if (bpf_core_field_exists(generic->count))
		return !BPF_CORE_READ(generic, count.refs.counter);
	return !BPF_CORE_READ(own, count.refs.counter);
}

/*
 * The hash tables of a network namespace. From 5.18 to 6.0, tcp_death_row is a pointer:
 * fbb8295248e1 "tcp: allocate tcp_death_row outside of struct netns_ipv4", which
 * e9bd0cca09d1 reverted in 6.1.
 */
struct netns_ipv4___death_row_pointer {
	struct inet_timewait_death_row *tcp_death_row;
};

struct netns_ipv4___death_row {
	struct inet_timewait_death_row tcp_death_row;
};

static __always_inline const struct inet_hashinfo *hashinfo_of(const struct net *net)
{
	const struct netns_ipv4___death_row_pointer *pointer = (const void *)&net->ipv4;
	const struct netns_ipv4___death_row *row = (const void *)&net->ipv4;

	if (bpf_core_field_exists(pointer->tcp_death_row))
		return BPF_CORE_READ(pointer, tcp_death_row, hashinfo);
	return BPF_CORE_READ(row, tcp_death_row.hashinfo);
}

/*
 * The hash table that has all listeners is hashed by port and address: cae3873c5b3a "net:
 * inet: Retire port only listening_hash", 5.19, and in 5.15.y. Before, it is hashed by port.
 */
struct inet_hashinfo___listening {
	struct inet_listen_hashbucket listening_hash[32]; /* INET_LHTABLE_SIZE */
};

/* Returns the address of the first chain of listeners, and sets the number of chains. */
static __always_inline __u64 listeners_of(const struct inet_hashinfo *info, __u32 *chains)
{
	const struct inet_hashinfo___listening *old = (const void *)info;

	if (bpf_core_field_exists(old->listening_hash)) {
		*chains = bpf_core_field_size(old->listening_hash) /
			  bpf_core_type_size(struct inet_listen_hashbucket);
		return (__u64)info + bpf_core_field_offset(old->listening_hash);
	}
	*chains = BPF_CORE_READ(info, lhash2_mask) + 1;
	return (__u64)BPF_CORE_READ(info, lhash2);
}

#pragma clang attribute pop

/*
 * bpf_rdonly_cast() gives an address a type, so that plain loads can read what is there,
 * and read 0 where nothing is: a35b9af4ec2c "bpf: Add a kfunc for generic type cast",
 * 6.2. Before, each read is a call of bpf_probe_read_kernel(), which takes far more time.
 * Set before the programs are loaded.
 */
const volatile bool casts = false;

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id)
	__attribute__((section(".ksyms"), weak));

#define AS(type, address) \
	((const type *)bpf_rdonly_cast((const void *)(address), bpf_core_type_id_kernel(type)))

/* How to read through a pointer: a constant wherever READ() is used. */
enum access {
	DIRECT, /* a load: the verifier knows what the pointer points to */
	PROBE, /* bpf_probe_read_kernel(): to the verifier, the pointer is a number */
	CAST, /* likewise, but by a load where the kernel has bpf_rdonly_cast() */
};

/*
 * Reads a field of the kernel. Code that always reads in one way may say so by p->f,
 * which is DIRECT, or by BPF_CORE_READ(), which is PROBE and follows pointers.
 */
#define READ(how, p, f)                                               \
	((how) == DIRECT	? (p)->f :                            \
	 (how) == CAST && casts ? AS(__typeof_unqual__(*(p)), p)->f : \
				  BPF_CORE_READ(p, f))

/* Returns the pointer that is stored at an address, 0 if it cannot be read. */
static __always_inline __u64 read_ptr(__u64 address)
{
	__u64 value;

	if (casts)
		return AS(struct rb_node, address)->__rb_parent_color;
	return bpf_probe_read_kernel(&value, sizeof(value), (void *)address) ? 0 : value;
}

#endif /* HALFOPEN_KERNEL_COMPAT_H */
