/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
//go:build ignore

/*
 * The kernel programs of halfopen. What each does:
 *
 *   timer softirq                     any context
 *   call_timer_fn()                   tcp_retransmit_skb     counts by type
 *     timer_expire_entry  remembers   tcp_retransmit_synack  counts
 *     tcp_keepalive_timer()           tcp_receive_reset      remembers
 *       or tcp_write_timer()          tcp_send_reset         remembers
 *         ... set_state(CLOSE) ...    inet_sock_set_state    cookie, death
 *     timer_expire_exit   compares
 *
 *   kfree_skb, attached only at times    remembers why the host dropped what a timer sent
 *
 *   run by user space (BPF_PROG_TEST_RUN): walk, netns_list, watch, unread, resolve_pending
 *   read by user space (iter/task, iter/task_file): owners, cookies, netns, learn
 *
 * Two rules. For a healthy connection the programs count, but send no event and insert
 * nothing into a map, unless the census finds data in its receive queue. And the programs do
 * not guess: a solicitation is the growth of a socket's counter while its timer ran; the
 * cause of a death is what ran at that moment.
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
#include "fetch.h"
#include "owners.h"
#include "netns.h"
#include "cgroups.h"
#include "walk.h"
#include "learn.h"

/* Since 4.16. The only hook that has both the new state and the error of a socket. */
TP_WITH_FALLBACK(inet_sock_set_state, HOOK_SET_STATE, change_matters(sk, oldstate, newstate), sk,
		 state_changed(sk, oldstate, newstate), &on_death, const struct sock *sk,
		 int oldstate, int newstate)

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connection_died, const struct sock *sk, int oldstate)
{
	return died(sk, oldstate);
}

/* Since 4.15. */
TP_WITH_FALLBACK(tcp_retransmit_skb, HOOK_RETRANSMIT_SKB, true, sk, true, &on_retransmission,
		 const struct sock *sk)

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(segment_retransmitted, const struct sock *sk, const struct sk_buff *skb)
{
	return retransmitted(sk, skb, retransmit_error_of(ctx));
}

/* Since 4.15. sk is the listener, or a socket that TCP Fast Open made. */
TP_WITH_FALLBACK(tcp_retransmit_synack, HOOK_RETRANSMIT_SYNACK, true, req, synack_retransmitted(sk),
		 NULL, const struct sock *sk, const struct request_sock *req)

/* Since 4.15. The socket may be closed already; then no death follows. */
TP_WITH_FALLBACK(tcp_receive_reset, HOOK_RECEIVE_RESET, true, sk, reset_received(sk), NULL,
		 const struct sock *sk)

/* Since 4.15. sk or skb may be NULL. */
TP_WITH_FALLBACK(tcp_send_reset, HOOK_SEND_RESET, true, sk ? (__u64)sk : (__u64)skb,
		 reset_sent(sk, skb), &on_reset, const struct sock *sk, const struct sk_buff *skb)

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(reset_answered, const struct sock *sk)
{
	return reset_in_answer(sk);
}

/* Since 2.6. The next two programs run in the softirq of the timer wheel. */
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
 * Since 2.6. User space attaches it only while this host may fail to send on a connection. A
 * nested drop on the same CPU is not seen, which no timer of TCP causes.
 */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb, struct sk_buff *skb)
{
	return dropped(ctx, skb);
}

/*
 * The following programs are not attached. User space runs them in its own context, under
 * RCU and with preemption off (bpf_prog_test_run_raw_tp, since 5.10).
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
int unread_run(void *ctx)
{
	return unread_batch();
}

SEC("raw_tp")
int resolve_pending_run(void *ctx)
{
	return resolve_pending_batch();
}

/* User space reads the following iterators. Linux has iter/task and iter/task_file since 5.8. */
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
