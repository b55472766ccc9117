/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What user space sets: what was learned of the kernel, and what the user may choose.
 */
#ifndef HALFOPEN_CONFIG_H
#define HALFOPEN_CONFIG_H

#include "kernel_types.h"
#include "kernel_compat.h"
#include "halfopen.h"

#define TICK_NSEC ((1000000000 + hz / 2) / (hz ?: 1)) /* of a jiffy, as the kernel rounds it */

/*
 * Set before anything is attached: the addresses of the kernel's two timer
 * functions and jiffies a second, as learn_from() found them.
 */
volatile __u64 keepalive_timer_fn = 0;
volatile __u64 socket_ops = 0; /* what the files are known by that are sockets */
volatile __u64 write_timer_fn = 0;

/* Knobs. May change at any time. */
volatile __u32 idle_after = 0; /* jiffies */
volatile __u32 middlebox_timeout = 0; /* jiffies */
volatile __u32 events_from = 2; /* unanswered: the first are not worth an event */
volatile __u32 census_write = 0; /* 1 << enum class: what a pass writes out */
volatile __u64 census_cookie = 0; /* if not 0, only this socket */
volatile __u32 hz = 0; /* jiffies a second */
volatile __u32 idle_bounds[IDLE_BUCKETS] = {}; /* jiffies, ascending */

/*
 * When jiffy 0 would have begun, ns of CLOCK_MONOTONIC. A jiffy is never early
 * (tick_do_update_jiffies64), and timers run right after it: the earliest that
 * any saw is it. Two CPUs that find one at once may keep the later, until the
 * next.
 */
volatile __s64 jiffies_epoch = 0x7fffffffffffffffLL;

#endif /* HALFOPEN_CONFIG_H */
