/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The network namespaces: how many there are, which have a hash table of their own, and
 * what leads into them.
 */
#ifndef HALFOPEN_NETNS_H
#define HALFOPEN_NETNS_H

#include "owners.h"

#define NETNS_MAX 4096
#define NETNS_STEP 512 /* namespaces of the list in one go */
#define FOUND_MAX 16384

/*
 * The first network namespace, from which a list leads to all others, and the hash
 * tables that those share which have none of their own: addresses.
 */
volatile __u64 first_net = 0;
volatile __u64 shared_info = 0;

/* The hash table of connections of a namespace that has one of its own. */
struct own_table {
	__u64 net; /* addresses */
	__u64 info;
	__u64 ehash;
	__u32 chains;
	__u32 netns; /* inode number */
};

/* What list_netns() found in one run. Written by it, read by user space. */
struct netns_list {
	__u32 tables;
	__u32 pad;
	struct own_table table[NETNS_STEP];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct netns_list);
} netns_list SEC(".maps");

/*
 * Where the next run goes on: the place in the list, 0: the first. How many
 * namespaces were passed, and how often the list was begun again.
 */
volatile __u64 netns_at = 0;
volatile __u32 netns_count = 0;
volatile __u32 netns_restarts = 0;

/* The word at an address, 0 if it cannot be read. */
static __always_inline __u64 read_ptr(__u64 address)
{
	__u64 value;

	if (casts)
		return AS(struct rb_node, address)->__rb_parent_color;
	return bpf_probe_read_kernel(&value, sizeof(value), (void *)address) ? 0 : value;
}

/* A network namespace that list_netns() has got to. */
__attribute__((noinline)) int found_netns(__u64 address)
{
	const struct net *net = (const void *)address;
	const struct inet_hashinfo *info;
	__u32 zero = 0, n;
	struct netns_list *l = bpf_map_lookup_elem(&netns_list, &zero);

	if (!l || is_going(net))
		return 0;
	netns_count++;
	info = hashinfo_of(net);
	n = l->tables;
	if ((__u64)info == shared_info || n >= NETNS_STEP)
		return 0;
	n &= NETNS_STEP - 1; /* for verifiers that lose the bound */
	l->table[n].net = address;
	l->table[n].info = (__u64)info;
	l->table[n].ehash = (__u64)BPF_CORE_READ(info, ehash);
	l->table[n].chains = BPF_CORE_READ(info, ehash_mask) + 1;
	l->table[n].netns = BPF_CORE_READ(net, ns.inum);
	l->tables = n + 1;
	return 0;
}

/*
 * The network namespaces, from the kernel's own list (net_namespace_list, under
 * RCU), some in each run. Returns 1 at the end. Where the namespace at which the last
 * run stopped has left the list, which poisons the way back (list_del_rcu), the list
 * is begun again.
 */
static __always_inline int list_netns(void)
{
	const __u32 offset = bpf_core_field_offset(struct net, list);
	__u64 head, node = netns_at;
	__u32 zero = 0, i;
	struct netns_list *l = bpf_map_lookup_elem(&netns_list, &zero);

	if (!l)
		return 1;
	l->tables = 0;
	/* The first namespace was the first in the list, and stays in it. */
	head = read_ptr(first_net + offset + sizeof(__u64));
	if (node && node != head && read_ptr(read_ptr(node + sizeof(__u64))) != node) {
		netns_restarts++;
		node = 0;
	}
	if (!node) {
		node = first_net + offset;
		netns_count = 0;
	}
	for (i = 0; i < NETNS_STEP; i++) {
		if (!node || node == head)
			return 1;
		found_netns(node - offset);
		node = read_ptr(node);
	}
	netns_at = node;
	return 0;
}

/*
 * Network namespaces that were found in this search: inode number to the number
 * of the search. LRU: one more than fit may be told twice.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WANTED_MAX);
	__type(key, __u32);
	__type(value, __u32);
} found SEC(".maps");

volatile __u32 search = 0;

/* Tells of a network namespace that has not been found yet. */
static __always_inline int tell_netns(struct seq_file *seq, const struct net *net, __u32 pid,
				      __u32 fd, __u32 kind)
{
	struct holder h = {
		.netns = READ(CAST, net, ns.inum),
		.pid = pid,
		.fd = fd,
		.kind = kind,
	};
	__u32 now = search, *before;

	before = bpf_map_lookup_elem(&found, &h.netns);
	if (!h.netns || (before && *before == now))
		return 0;
	/* Full: the kernel will call us once more. */
	if (!bpf_seq_write(seq, &h, sizeof(h)))
		bpf_map_update_elem(&found, &h.netns, &now, BPF_ANY);
	return 0;
}

/* Process context: every thread. */
static __always_inline int netns_of_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct net *net;

	if (!task)
		return 0;
	net = BPF_CORE_READ(task, nsproxy, net_ns);
	return net ? tell_netns(ctx->meta->seq, net, task->pid, 0, HOLDER_TASK) : 0;
}

/* Process context: every file descriptor of every process. */
static __always_inline int netns_of_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	const struct ns_common *ns;
	const struct sock *sk;

	if (!task || !file)
		return 0;
	sk = file_sock(file);
	if (sk)
		return tell_netns(ctx->meta->seq, READ(CAST, sk, __sk_common.skc_net.net),
				  task->tgid, ctx->fd, HOLDER_SOCKET);
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) != NSFS_MAGIC)
		return 0;
	ns = BPF_CORE_READ(file, f_inode, i_private);
	if (!ns || BPF_CORE_READ(ns, ops) != BPF_CORE_READ(task, nsproxy, net_ns, ns.ops))
		return 0;
	return tell_netns(ctx->meta->seq, (const void *)ns - bpf_core_field_offset(struct net, ns),
			  task->tgid, ctx->fd, HOLDER_FILE);
}

#endif /* HALFOPEN_NETNS_H */
