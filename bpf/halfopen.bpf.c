/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
//go:build ignore

/*
 * halfopen's kernel programs. What they are for:
 *
 *   timer softirq                     any context
 *   call_timer_fn()                   tcp_retransmit_skb   counts by type
 *     timer_expire_entry  remember    tcp_retransmit_synack counts
 *     tcp_keepalive_timer()           tcp_receive_reset    remember
 *       or tcp_write_timer()          tcp_send_reset       remember
 *         ... set_state(CLOSE) ...    inet_sock_set_state  cookie, death
 *     timer_expire_exit   compare
 *
 *   run by user space: census, watch and settle (BPF_PROG_TEST_RUN)
 *   read by user space: owners, cookies and learn (iter/task_file)
 *
 * Two rules. A healthy connection costs counters only: no event, no map
 * insert. And nothing is guessed: a solicitation is a counter of the socket
 * that grew while its timer ran, a cause is what was running at that moment.
 */
#include "kernel_types.h"
#include "kernel_compat.h"
#include "halfopen.h"
#include <bpf/bpf_tracing.h>
#include "config.h"
#include "counters.h"
#include "fallback.h"
#include "watch.h"
#include "connection.h"
#include "timers.h"
#include "deaths.h"
#include "batch.h"
#include "owners.h"
#include "netns.h"
#include "census.h"
#include "learn.h"

/* Since 4.16. The one place where a socket's state and error are both known. */
TP_WITH_FALLBACK(inet_sock_set_state, HOOK_SET_STATE, sk, state_changed(sk, oldstate, newstate),
		 const struct sock *sk, int oldstate, int newstate)

/* Since 4.15. */
TP_WITH_FALLBACK(tcp_retransmit_skb, HOOK_RETRANSMIT_SKB, sk,
		 retransmitted(sk, retransmit_error_of(ctx)), const struct sock *sk,
		 const struct sk_buff *skb)

/* Since 4.15. sk is the listener, or a child that TCP Fast Open made. */
TP_WITH_FALLBACK(tcp_retransmit_synack, HOOK_RETRANSMIT_SYNACK, req, synack_retransmitted(sk),
		 const struct sock *sk, const struct request_sock *req)

/* Since 4.15. Also where the socket is closed already: not a death by itself. */
TP_WITH_FALLBACK(tcp_receive_reset, HOOK_RECEIVE_RESET, sk, reset_received(sk),
		 const struct sock *sk)

/* Since 4.15. Either is NULL where there is none. */
TP_WITH_FALLBACK(tcp_send_reset, HOOK_SEND_RESET, sk ? (__u64)sk : (__u64)skb, reset_sent(sk, skb),
		 const struct sock *sk, const struct sk_buff *skb)

/* Since 2.6; the timer wheel's softirq. */
SEC("tp_btf/timer_expire_entry")
int BPF_PROG(timer_expire_entry, struct timer_list *timer)
{
	return timer_entry(timer);
}

SEC("tp_btf/timer_expire_exit")
int BPF_PROG(timer_expire_exit, struct timer_list *timer)
{
	return timer_exit(timer);
}

/*
 * Run by user space, in its context: rcu_read_lock() is held, and preemption off
 * (bpf_prog_test_run_raw_tp, since 5.10). Nothing attaches them.
 */
SEC("raw_tp")
int walk_run(void *ctx)
{
	return walk();
}

SEC("raw_tp")
int netns_list_run(void *ctx)
{
	return list_netns();
}

SEC("raw_tp")
int watch_run(void *ctx)
{
	return watch_batch();
}

SEC("raw_tp")
int resolve_pending_run(void *ctx)
{
	return resolve_pending_batch();
}

SEC("iter/task_file")
int owners_pass(struct bpf_iter__task_file *ctx)
{
	return owner_of(ctx);
}

SEC("iter/task_file")
int cookies_pass(struct bpf_iter__task_file *ctx)
{
	return assign_cookie(ctx);
}

SEC("iter/task")
int netns_task_pass(struct bpf_iter__task *ctx)
{
	return netns_of_task(ctx);
}

SEC("iter/task_file")
int netns_file_pass(struct bpf_iter__task_file *ctx)
{
	return netns_of_file(ctx);
}

SEC("iter/task_file")
int learn_pass(struct bpf_iter__task_file *ctx)
{
	return learn_from(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
