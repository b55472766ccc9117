/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Exact counters, and events, of which details are bounded: counters are exact whatever
 * was lost or suppressed.
 */
#ifndef HALFOPEN_COUNTERS_H
#define HALFOPEN_COUNTERS_H

#include "config.h"

#define EVENTS_BYTES (4 << 20)

/*
 * Details are bounded, counters are exact: at most this many events of a kind
 * in each window, on each CPU.
 */
#define RATE_WINDOW_NS 100000000ULL
#define RATE_PER_WINDOW 1000

/*
 * Events for user space. 4 MiB hold some 30,000; when it is full the event is
 * dropped and counted (counters.lost), and the census repairs the picture.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
} events SEC(".maps");

/* Inserted: never. Read: user space, at every scrape. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* Event rate limit, for each kind: windows of RATE_WINDOW_NS. */
struct rate {
	__u64 since; /* ns, CLOCK_MONOTONIC */
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 32); /* deaths by cause, then solicitations */
	__type(key, __u32);
	__type(value, struct rate);
} rates SEC(".maps");
#define RATE_SOLICITATION 16

static __always_inline struct counters *count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counts, &zero);
}

/* Atomic: process context may be interrupted by softirq on the same CPU. */
#define COUNT(field)                                             \
	do {                                                     \
		struct counters *count_ = count();               \
		if (count_)                                      \
			__sync_fetch_and_add(&count_->field, 1); \
	} while (0)

/* False when this kind of event is over its rate and has been counted so. */
static __always_inline bool within_rate(__u32 kind, __u32 type)
{
	struct rate *r = bpf_map_lookup_elem(&rates, &kind);
	__u64 now = bpf_ktime_get_ns();

	if (!r)
		return false;
	if (now - r->since > RATE_WINDOW_NS) {
		r->since = now;
		r->count = 0;
	}
	if (r->count++ < RATE_PER_WINDOW)
		return true;
	COUNT(suppressed[type & 3]);
	return false;
}

static __always_inline struct event *reserve(__u32 type)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		COUNT(lost[type & 3]);
		return NULL;
	}
	COUNT(events[type & 3]);
	e->type = type;
	e->cause = 0;
	e->during = 0;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	e->err = 0;
	return e;
}

#endif /* HALFOPEN_COUNTERS_H */
