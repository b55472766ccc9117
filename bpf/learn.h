/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Learns about the kernel at the start, from a socket of the agent's own.
 */
#ifndef HALFOPEN_LEARN_H
#define HALFOPEN_LEARN_H

#include "walk.h"

volatile __u64 learn_cookie = 0; /* of the socket, set by user space */
volatile __u32 learn_keepalive_time = 0; /* its TCP_KEEPIDLE in jiffies */

/* Finds the hash tables that network namespaces share. */
static __always_inline void learn_tables(struct task_struct *task)
{
	const struct inet_hashinfo *info;
	const struct net *net;
	__u32 i, chains;

	/* Go from parent to parent, to the first task: it is in the first namespace. */
	for (i = 0; i < 64 && BPF_CORE_READ(task, pid); i++)
		task = BPF_CORE_READ(task, real_parent);
	if (BPF_CORE_READ(task, pid))
		return; /* user space reports that there are no tables */
	net = BPF_CORE_READ(task, nsproxy, net_ns);
	first_net = (__u64)net;
	info = hashinfo_of(net);
	shared_info = (__u64)info;
	ehash = (__u64)BPF_CORE_READ(info, ehash);
	ehash_chains = BPF_CORE_READ(info, ehash_mask) + 1;
	lhash = listeners_of(info, &chains);
	lhash_chains = chains;
}

/*
 * Process context, for every file descriptor of every process: finds the agent's own
 * socket, and learns from it what otherwise only kallsyms and the kernel's configuration
 * show: the addresses of the two timer functions, which tcp_init_sock() has set, and
 * jiffies a second, from a TCP_KEEPIDLE of known length.
 */
static __always_inline int learn_from(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct timer_list *timer;
	struct tcp_sock *tp;
	void *fn = NULL;

	/* The process that reads this is the agent. */
	if (!task || !file || (__u32)task->tgid != bpf_get_current_pid_tgid() >> 32)
		return 0;
	if ((file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	tp = (void *)BPF_CORE_READ((struct socket *)file->private_data, sk);
	if (!tp || !learn_cookie ||
	    (__u64)BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter) !=
		    learn_cookie)
		return 0;
	socket_ops = (__u64)file->f_op;
	timer = (void *)tp + keepalive_timer_offset();
	BPF_CORE_READ_INTO(&fn, timer, function);
	keepalive_timer_fn = (__u64)fn;
	timer = (void *)tp + write_timer_offset();
	BPF_CORE_READ_INTO(&fn, timer, function);
	write_timer_fn = (__u64)fn;
	learn_keepalive_time = BPF_CORE_READ(tp, keepalive_time);
	learn_tables(task);
	return 0;
}

#endif /* HALFOPEN_LEARN_H */
