/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Variables that user space sets: facts that it has learned about the kernel, and options
 * of the user.
 */
#ifndef HALFOPEN_CONFIG_H
#define HALFOPEN_CONFIG_H

#include "kernel_types.h"
#include "kernel_compat.h"
#include "halfopen.h"

#define TICK_NSEC                                                                      \
	((1000000000 + hz / 2) / (hz ?: 1)) /* ns of a jiffy, rounded as in the kernel \
					     */

/* Kernel addresses that learn_from() finds before the programs are attached. */
volatile __u64 keepalive_timer_fn = 0; /* the function of a socket's keepalive timer */
volatile __u64 socket_ops = 0; /* file operations of sockets */
volatile __u64 write_timer_fn = 0; /* the function of a socket's write timer */

/* User space sets these before it attaches the programs. */
volatile __u32 hz = 0; /* jiffies a second */
volatile __u32 idle_after = 0; /* jiffies */
/* The shortest and the longest time for which a middlebox remembers a silent flow; jiffies. */
volatile __u32 middlebox_least = 0;
volatile __u32 middlebox_most = 0;
volatile __u32 unread_after = 0; /* jiffies */
volatile __u32 events_from = 0; /* unanswered solicitations from which each is an event */
volatile __u32 idle_bounds[IDLE_BUCKETS] = {}; /* jiffies, ascending */

#define MIDDLEBOXES_MAX 1024

/* A prefix of the address of a destination; that of an IPv4 address as ::ffff:a.b.c.d. */
struct destination {
	__u32 bits;
	__u32 address[4]; /* network byte order */
};

/*
 * For how many jiffies a middlebox on the way to a destination remembers a silent flow. User
 * space inserts all before it attaches the programs, ::/0 and ::ffff:0:0/96 among them, so
 * that each address has an entry. Read: of connections whose keepalive is neither quicker
 * than the least nor slower than the most.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MIDDLEBOXES_MAX + 2);
	__type(key, struct destination);
	__type(value, __u32);
} middleboxes SEC(".maps");

/* User space sets these before each census. */
volatile __u32 census_write = 0; /* 1 << enum class: the classes to write out */
/* For each class, how long a connection without trouble must be idle to be written out. */
volatile __u32 census_idle[CLASS_SLOTS] = {};
volatile __u64 census_cookie = 0; /* if not 0, write out only this socket */
volatile __u32 census_cgroups = 0; /* count the connections at risk by their control groups */
volatile __u32 census_hosts = 0; /* count the connections to the addresses in peer_hosts */

/* User space sets it while the program of kfree_skb is attached. */
volatile __u32 drops_watched = 0;

/*
 * When jiffy 0 would have begun, in ns of CLOCK_MONOTONIC. A jiffy is never early
 * (tick_do_update_jiffies64), and timers run right after it begins, so this is the
 * earliest time that any timer has seen. If two CPUs find an earlier one at once, the
 * later of both may stay until the next timer.
 */
volatile __s64 jiffies_epoch = 0x7fffffffffffffffLL;

#endif /* HALFOPEN_CONFIG_H */
