/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Gets cache lines before they are read.
 *
 * On a large node nearly each structure is out of the cache. A walk that follows pointers
 * waits for one line after the other, and that is most of its time. The loops here follow
 * many pointers side by side, so that the processor waits for many lines at once. They
 * decide nothing: the walk that follows reads the same structures again, and checks them.
 */
#ifndef HALFOPEN_FETCH_H
#define HALFOPEN_FETCH_H

#include "config.h"

#define FETCH_MAX 256 /* structures side by side */
#define FETCH_PART 16 /* steps of a loop that the verifier checks only once */
#define FETCH_DEPTH 4 /* sockets of a chain; a chain of a full table has about as many */
#define FETCH_FILES 32
_Static_assert(FETCH_MAX % FETCH_PART == 0 && FETCH_FILES <= FETCH_MAX, "they are parts");

/* Where the loops are. Passes that run at the same time may spoil each other's: no harm. */
struct fetch {
	__u64 at[FETCH_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fetch);
} fetch SEC(".maps");

/* Loads a field through a pointer that AS() returned, and does not use it. */
#define FETCH(p, f)                               \
	do {                                      \
		__u64 loaded = (__u64)(p)->f;     \
		asm volatile("" : : "r"(loaded)); \
	} while (0)

/*
 * Follows the chains of a hash table of connections by one socket each: those whose numbers,
 * among the chains that fetch_chains() fetches, begin with first. Not inlined, so that the
 * verifier checks it only once.
 */
__attribute__((noinline)) int fetch_next(__u32 first)
{
	__u32 zero = 0, i;
	struct fetch *f = bpf_map_lookup_elem(&fetch, &zero);
	__u64 node;

	if (!f)
		return 0;
	for (i = 0; i < FETCH_PART; i++) {
		node = f->at[(first + i) & (FETCH_MAX - 1)];
		if (node && !(node & 1)) /* not the end of the chain */
			f->at[(first + i) & (FETCH_MAX - 1)] = read_ptr(node);
	}
	return 0;
}

/* Reads the pointers to the first sockets of some chains. head: the address of the first. */
__attribute__((noinline)) int fetch_heads(__u64 head, __u32 first)
{
	__u32 zero = 0, i;
	struct fetch *f = bpf_map_lookup_elem(&fetch, &zero);

	if (!f)
		return 0;
	for (i = 0; i < FETCH_PART; i++)
		f->at[(first + i) & (FETCH_MAX - 1)] =
			read_ptr(head + (__u64)i * bpf_core_type_size(struct inet_ehash_bucket));
	return 0;
}

/* Follows each chain by a socket: fetch_next(). Not inlined, for the same reason. */
__attribute__((noinline)) int fetch_deeper(__u32 chains)
{
	__u32 first;

	for (first = 0; first < FETCH_MAX; first += FETCH_PART) {
		if (first >= chains)
			break;
		fetch_next(first);
	}
	return 0;
}

/*
 * Gets what the walk of so many chains reads of a socket to come to the next one. head: the
 * address of the first chain.
 */
static __always_inline void fetch_chains(__u64 head, __u32 chains)
{
	__u32 first, depth;

	for (first = 0; first < FETCH_MAX; first += FETCH_PART) {
		if (first >= chains)
			break;
		fetch_heads(head + (__u64)first * bpf_core_type_size(struct inet_ehash_bucket),
			    first);
	}
	for (depth = 0; depth < FETCH_DEPTH; depth++)
		fetch_deeper(chains);
}

/*
 * Gets what a census reads of a socket that waits for nothing. A stub is smaller than these
 * fields.
 */
static __always_inline void fetch_socket(__u64 sk)
{
	const struct tcp_sock *tp = AS(struct tcp_sock, sk);
	__u8 state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		return;
	FETCH(tp, inet_conn.icsk_inet.sk.sk_receive_queue.qlen);
	FETCH(tp, inet_conn.icsk_inet.sk.sk_wmem_queued);
	FETCH(tp, inet_conn.icsk_ack.lrcvtime);
	FETCH(tp, inet_conn.icsk_user_timeout);
	FETCH(tp, lsndtime);
	FETCH(tp, keepalive_time);
}

/*
 * Gets what a pass over descriptors reads of the files of a process. files: the address of
 * the pointer to the first file. Not inlined, so that the verifier checks it only once.
 */
__attribute__((noinline)) int fetch_files(__u64 files, __u32 count)
{
	__u32 zero = 0, i;
	struct fetch *f = bpf_map_lookup_elem(&fetch, &zero);
	const struct file *file;
	__u64 at;

	if (!f || !casts)
		return 0;
	for (i = 0; i < FETCH_FILES; i++)
		f->at[i] = i < count ? read_ptr(files + (__u64)i * sizeof(__u64)) : 0;
	for (i = 0; i < FETCH_FILES; i++) {
		at = f->at[i];
		if (!at)
			continue;
		/* The kernel counts its references at the end of the structure. */
		read_ptr(at + bpf_core_type_size(struct file) - sizeof(__u64));
		file = AS(struct file, at);
		f->at[i] = (__u64)file->f_op == socket_ops ? (__u64)file->private_data : 0;
	}
	for (i = 0; i < FETCH_FILES; i++) {
		at = f->at[i];
		if (at)
			f->at[i] = (__u64)AS(struct socket, at)->sk;
	}
	for (i = 0; i < FETCH_FILES; i++) {
		at = f->at[i];
		if (at)
			FETCH(AS(struct sock, at), __sk_common.skc_cookie.counter);
	}
	return 0;
}

/* The descriptors of the process that the last fetch was for: up to which it fetched. */
volatile __u64 fetched_files = 0; /* the address of the process's table */
volatile __u32 fetched_fds = 0;

/* Fetches the files of the next descriptors of a process, unless it has. */
static __always_inline void fetch_ahead(const struct task_struct *task, __u32 fd)
{
	__u64 files, table, files_at;
	__u32 most;

	if (!casts)
		return;
	files = (__u64)task->files;
	if (!files)
		return;
	if (files == fetched_files && fd < fetched_fds && fd + FETCH_FILES >= fetched_fds)
		return;
	table = read_ptr(files + bpf_core_field_offset(struct files_struct, fdt));
	most = AS(struct fdtable, table)->max_fds;
	if (fd >= most)
		return;
	files_at = read_ptr(table + bpf_core_field_offset(struct fdtable, fd));
	fetch_files(files_at + (__u64)fd * sizeof(__u64), most - fd);
	fetched_files = files;
	fetched_fds = fd + FETCH_FILES;
}

#endif /* HALFOPEN_FETCH_H */
