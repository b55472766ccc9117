/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads the file descriptors of all processes: to find those that hold a socket, and to
 * give cookies to sockets that have none.
 */
#ifndef HALFOPEN_OWNERS_H
#define HALFOPEN_OWNERS_H

#include "fetch.h"

#define WANTED_MAX 16384

/* The cookies of the sockets whose owners user space wants. It inserts and deletes them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WANTED_MAX);
	__type(key, __u64);
	__type(value, __u8);
} wanted SEC(".maps");

/*
 * A bit for each of the low bits of a cookie: whether a wanted cookie has these. Most sockets
 * are not wanted, and a look at a bit takes far less time than one into the map.
 */
#define WANTED_BITS 65536
volatile __u64 wanted_bits[WANTED_BITS / 64] = {};

/*
 * User space wants the owners of all TCP sockets. A pass over all descriptors takes as long
 * for all sockets as for one.
 */
volatile __u32 all_wanted = 0;

/*
 * Returns the socket of a file, or NULL. bpf_sock_from_file() is not in all kernels that
 * we support. The file operations show whether it is a socket; so would the inode, for
 * another cache miss.
 */
static __always_inline const struct sock *file_sock(struct file *file)
{
	if ((__u64)file->f_op != socket_ops)
		return NULL;
	return READ(CAST, (const struct socket *)file->private_data, sk);
}

static __always_inline bool owner_wanted(const struct sock *sk, __u64 cookie)
{
	if (all_wanted)
		return READ(CAST, sk, sk_protocol) == IPPROTO_TCP;
	if (!(wanted_bits[cookie / 64 % (WANTED_BITS / 64)] & 1ULL << cookie % 64))
		return false;
	return bpf_map_lookup_elem(&wanted, &cookie);
}

/*
 * Process context, for every file descriptor of every process: reports it if it holds a
 * wanted socket.
 */
static __always_inline int owner_of(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct fd_holder h = {};
	const struct sock *sk;

	if (!task || !file)
		return 0;
	fetch_ahead(task, ctx->fd);
	sk = file_sock(file);
	if (!sk)
		return 0;
	h.cookie = READ(CAST, sk, __sk_common.skc_cookie.counter);
	if (!h.cookie || !owner_wanted(sk, h.cookie))
		return 0;
	h.pid = task->tgid;
	h.fd = ctx->fd;
	h.started = BPF_CORE_READ(task, group_leader, start_time);
	BPF_CORE_READ_INTO(&h.comm, task, group_leader, comm);
	/* If the buffer is full, the kernel calls this program for this file once more. */
	bpf_seq_write(ctx->meta->seq, &h, sizeof(h));
	return 0;
}

/*
 * Process context, for every file descriptor of every process: gives a TCP socket that is
 * older than the agent its cookie.
 */
static __always_inline int assign_cookie(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	const struct sock *sk;
	struct socket *socket;

	if (!cookie_helper || !task || !file)
		return 0;
	fetch_ahead(task, ctx->fd);
	sk = file_sock(file);
	if (!sk || READ(CAST, sk, __sk_common.skc_cookie.counter) ||
	    READ(CAST, sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	socket = bpf_sock_from_file(file); /* 5.11 */
	if (socket && socket->sk)
		bpf_get_socket_cookie(socket->sk);
	return 0;
}

#endif /* HALFOPEN_OWNERS_H */
