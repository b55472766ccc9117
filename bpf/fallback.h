/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A second program on each tracepoint that both process context and softirqs reach.
 */
#ifndef HALFOPEN_FALLBACK_H
#define HALFOPEN_FALLBACK_H

#include "counters.h"

/*
 * The kernel skips a program that is already running on the same CPU: one in process
 * context that a softirq has interrupted (bpf_trace_run). Two programs on the tracepoint
 * make up for this. The primary program records the event that it handles. The fallback
 * handles an event only if it finds no record, that is, if the kernel skipped the
 * primary. The kernel skips the fallback only if it did not skip the primary.
 *
 * Softirqs do not nest, so there are at most two records: of an event, and of another
 * that interrupted its handling. A record stays if the kernel skipped the fallback that
 * would have removed it. The next record at the same level overwrites it, or the first
 * record of another task drops it.
 */
struct primary_mark {
	__u64 task; /* the task in which the first event happened */
	__u64 of[2]; /* the identities of the events */
	__u64 depth; /* the number of records */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOK_SLOTS);
	__type(key, __u32);
	__type(value, struct primary_mark);
} primary_marks SEC(".maps");

/* Records that the primary program of a hook handles an event. */
static __always_inline void mark_primary(__u32 hook, __u64 of)
{
	__u64 task = bpf_get_current_task();
	__u32 key = hook;
	volatile struct primary_mark *n = bpf_map_lookup_elem(&primary_marks, &key);

	if (!n)
		return;
	if (!n->depth || n->task != task) {
		n->task = task;
		n->of[0] = of;
		n->depth = 1;
	} else {
		n->of[1] = of;
		n->depth = 2;
	}
}

/* Removes the record of an event. Returns true if there was no record. */
static __always_inline bool primary_skipped(__u32 hook, __u64 of)
{
	__u32 key = hook;
	volatile struct primary_mark *n = bpf_map_lookup_elem(&primary_marks, &key);

	if (!n)
		return false;
	if (n->depth == 2 && n->of[1] == of) {
		n->depth = 1;
		return false;
	}
	if (n->depth && n->of[0] == of) {
		n->depth = 0;
		return false;
	}
	COUNT(fallbacks[hook]);
	return true;
}

/*
 * A large program with which the two programs of a tracepoint go on. User space inserts it before
 * it attaches them: the same program for both or, where a program has a stack of its own on each
 * CPU, a copy for the fallback. The fallback's may interrupt the primary's, and with one program it
 * would write over that stack: of a program that a tail call runs, the kernel does not prevent that
 * it interrupts itself.
 */
#define CONTINUATION(map)                              \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, 2);                \
		__type(key, __u32);                    \
		__type(value, __u32);                  \
	} map SEC(".maps")

enum { OF_PRIMARY, OF_FALLBACK }; /* keys of a continuation */

CONTINUATION(on_death);
CONTINUATION(on_retransmission);
CONTINUATION(on_reset);

/*
 * The two programs of a tracepoint. matters: whether an event needs anything of us, which must not
 * depend on what the primary does; `of` is a value that identifies an event; work handles it. If
 * work is true, the continuation `then` goes on, or none if that is NULL.
 */
#define TP_WITH_FALLBACK(tracepoint, hook, matters, of, work, then, args...)            \
	SEC("tp_btf/" #tracepoint)                                                      \
	int BPF_PROG(tracepoint, args)                                                  \
	{                                                                               \
		void *next_ = (then);                                                   \
		if (!(matters))                                                         \
			return 0;                                                       \
		mark_primary(hook, (__u64)(of));                                        \
		if ((work) && next_)                                                    \
			bpf_tail_call(ctx, next_, OF_PRIMARY);                          \
		return 0;                                                               \
	}                                                                               \
	SEC("tp_btf/" #tracepoint)                                                      \
	int BPF_PROG(tracepoint##_2, args)                                              \
	{                                                                               \
		void *next_ = (then);                                                   \
		if ((matters) && primary_skipped(hook, (__u64)(of)) && (work) && next_) \
			bpf_tail_call(ctx, next_, OF_FALLBACK);                         \
		return 0;                                                               \
	}

#endif /* HALFOPEN_FALLBACK_H */
