/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters and events. Counters are exact, even if events are lost or suppressed.
 */
#ifndef HALFOPEN_COUNTERS_H
#define HALFOPEN_COUNTERS_H

#include "config.h"

#define EVENTS_BYTES (4 << 20)

/* The rate limit: at most so many events of a kind in each window, on each CPU. */
#define RATE_WINDOW_NS 100000000ULL
#define RATE_PER_WINDOW 1000

/*
 * Events for user space. 4 MiB hold some 20,000. If the buffer is full, the event is lost
 * and counted (counters.lost), and user space learns of the connection from the census.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
} events SEC(".maps");

/* The counters. User space reads them at every scrape. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* The current window of the rate limit for one kind of event. */
struct rate {
	__u64 since; /* when the window began, ns of CLOCK_MONOTONIC */
	__u64 count; /* events in it */
};

/* Kinds of events, keys of rates: deaths by their causes, and solicitations. */
#define RATE_SOLICITATION CAUSE_SLOTS

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RATE_SOLICITATION + 1);
	__type(key, __u32);
	__type(value, struct rate);
} rates SEC(".maps");

static __always_inline struct counters *cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counts, &zero);
}

/* Adds 1 to a counter. Atomically, since a softirq may interrupt process context. */
#define COUNT(field)                                             \
	do {                                                     \
		struct counters *count_ = cpu_counters();        \
		if (count_)                                      \
			__sync_fetch_and_add(&count_->field, 1); \
	} while (0)

/*
 * Returns whether an event of this kind may be sent. If not, the event is over the rate
 * limit, and is counted as suppressed.
 */
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
	COUNT(suppressed[type & (EVENT_SLOTS - 1)]);
	return false;
}

/* Returns room for an event in the ring buffer, with conn not set; NULL if it is full. */
static __always_inline struct event *reserve(__u32 type)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		COUNT(lost[type & (EVENT_SLOTS - 1)]);
		return NULL;
	}
	COUNT(events[type & (EVENT_SLOTS - 1)]);
	e->type = type;
	e->cause = 0;
	e->during = 0;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	e->err = 0;
	return e;
}

#endif /* HALFOPEN_COUNTERS_H */
