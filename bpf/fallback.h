/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Two programs on each tracepoint that process context and softirq both reach.
 */
#ifndef HALFOPEN_FALLBACK_H
#define HALFOPEN_FALLBACK_H

#include "counters.h"

/*
 * The kernel skips a program that is running already on that CPU: one in process
 * context that a softirq interrupts (bpf_trace_run). So that nothing is lost,
 * there are two programs on each tracepoint which both contexts reach. The first
 * notes what it works on, and the second works where it finds no such note: the
 * first was skipped. It may itself be skipped only where the first was not.
 *
 * Softirqs do not nest, so there are two notes at most, the second of what
 * interrupted the first. A note that the second program did not take away, since
 * it was skipped, is overwritten by the next one at its level, or dropped when
 * another task runs.
 */
struct note {
	__u64 task; /* that the first is of, or was interrupted in */
	__u64 of[2];
	__u64 depth;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOK_MAX);
	__type(key, __u32);
	__type(value, struct note);
} notes SEC(".maps");

static __always_inline void note(__u32 hook, __u64 of)
{
	__u64 task = bpf_get_current_task();
	__u32 key = hook;
	volatile struct note *n = bpf_map_lookup_elem(&notes, &key);

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

/* Takes the note away, and tells whether there was none. */
static __always_inline bool stands_in(__u32 hook, __u64 of)
{
	__u32 key = hook;
	volatile struct note *n = bpf_map_lookup_elem(&notes, &key);

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
	COUNT(stood_in[hook]);
	return true;
}

/* The two programs of a tracepoint; of is what tells an event from those around it. */
#define STANDS_IN(tracepoint, hook, of, work, args...) \
	SEC("tp_btf/" #tracepoint)                     \
	int BPF_PROG(tracepoint, args)                 \
	{                                              \
		note(hook, (__u64)(of));               \
		work;                                  \
		return 0;                              \
	}                                              \
	SEC("tp_btf/" #tracepoint)                     \
	int BPF_PROG(tracepoint##_2, args)             \
	{                                              \
		if (stands_in(hook, (__u64)(of)))      \
			work;                          \
		return 0;                              \
	}

#endif /* HALFOPEN_FALLBACK_H */
