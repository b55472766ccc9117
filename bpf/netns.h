/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Lists the network namespaces, finds those with a hash table of their own, and finds
 * threads and descriptors through which user space can enter them.
 */
#ifndef HALFOPEN_NETNS_H
#define HALFOPEN_NETNS_H

#include "owners.h"

#define NETNS_MAX 4096
#define NETNS_STEP 512 /* namespaces in one run of list_netns() */
_Static_assert((NETNS_STEP & (NETNS_STEP - 1)) == 0, "an index is masked with NETNS_STEP - 1");

/* Addresses that learn_from() finds. */
volatile __u64 first_net = 0; /* the first network namespace, where the list begins */
volatile __u64 shared_info = 0; /* the hash tables that namespaces share */

/* The hash table of connections of a network namespace that does not use the shared one. */
struct own_table {
	__u64 net; /* address of the namespace */
	__u64 info; /* addresses of its tables */
	__u64 ehash;
	__u32 chains;
	__u32 netns; /* inode number */
};

/* The sysctls of a network namespace, for sockets that have no values of their own. */
struct netns_sysctls {
	__u32 netns; /* inode number */
	__u32 keepalive_time; /* jiffies */
	__u32 keepalive_intvl; /* jiffies */
	__u32 fin_timeout; /* jiffies */
	__u8 keepalive_probes;
	__u8 retries2;
	__u8 syn_retries;
	__u8 orphan_retries;
};
_Static_assert(sizeof(struct netns_sysctls) == 20, "struct netns_sysctls has holes");

/* What one run of list_netns() finds, for user space. */
struct netns_list {
	__u32 tables;
	__u32 namespaces; /* with sysctls */
	struct own_table table[NETNS_STEP];
	struct netns_sysctls sysctls[NETNS_STEP];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct netns_list);
} netns_list SEC(".maps");

/* The state of list_netns(). User space clears it before the first run. */
volatile __u64 netns_at = 0; /* the next of the list; 0: begin with the first */
volatile __u32 netns_count = 0; /* namespaces that the runs have passed */
volatile __u32 netns_restarts = 0; /* how often a run has begun the list again */
volatile __u32 netns_with_sysctls = 0; /* write the sysctls of each, set by user space */

/* Writes the sysctls of a network namespace. */
static __always_inline void add_sysctls(struct netns_list *l, const struct net *net)
{
	__u32 n = l->namespaces;
	struct netns_sysctls *s;

	if (n >= NETNS_STEP)
		return;
	s = &l->sysctls[n & (NETNS_STEP - 1)]; /* for verifiers that lose the bound */
	s->netns = BPF_CORE_READ(net, ns.inum);
	s->keepalive_time = BPF_CORE_READ(net, ipv4.sysctl_tcp_keepalive_time);
	s->keepalive_intvl = BPF_CORE_READ(net, ipv4.sysctl_tcp_keepalive_intvl);
	s->fin_timeout = BPF_CORE_READ(net, ipv4.sysctl_tcp_fin_timeout);
	s->keepalive_probes = BPF_CORE_READ(net, ipv4.sysctl_tcp_keepalive_probes);
	s->retries2 = BPF_CORE_READ(net, ipv4.sysctl_tcp_retries2);
	s->syn_retries = BPF_CORE_READ(net, ipv4.sysctl_tcp_syn_retries);
	s->orphan_retries = BPF_CORE_READ(net, ipv4.sysctl_tcp_orphan_retries);
	l->namespaces = n + 1;
}

/*
 * Counts a network namespace of the list, and writes its table if it has one of its own.
 * Not inlined, so that the verifier checks it only once.
 */
__attribute__((noinline)) int add_netns(__u64 address)
{
	const struct net *net = (const void *)address;
	const struct inet_hashinfo *info;
	__u32 zero = 0, n;
	struct netns_list *l = bpf_map_lookup_elem(&netns_list, &zero);

	if (!l || is_going(net))
		return 0;
	netns_count++;
	if (netns_with_sysctls)
		add_sysctls(l, net);
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
 * Lists some of the network namespaces in the kernel's own list (net_namespace_list, under
 * RCU). Returns 1 at the end of the list. If the namespace where the last run stopped has
 * left the list, this begins the list again: list_del_rcu() poisons prev.
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
	l->namespaces = 0;
	/* The first namespace is the first of the list, and never leaves it. */
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
		add_netns(node - offset);
		node = read_ptr(node);
	}
	netns_at = node;
	return 0;
}

/*
 * Network namespaces that a search has reported: inode number to the number of the last
 * search that did. LRU: if there are more, a search may report one twice.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WANTED_MAX);
	__type(key, __u32);
	__type(value, __u32);
} found SEC(".maps");

volatile __u32 search = 0; /* number of the current search, set by user space */

/* Reports a network namespace, unless this search has reported it already. */
static __always_inline int report_netns(struct seq_file *seq, const struct net *net, __u32 pid,
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
	/* If the buffer is full, the kernel calls this program once more. */
	if (!bpf_seq_write(seq, &h, sizeof(h)))
		bpf_map_update_elem(&found, &h.netns, &now, BPF_ANY);
	return 0;
}

/* Process context, for every thread: reports its network namespace. */
static __always_inline int netns_of_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct net *net;

	if (!task)
		return 0;
	net = BPF_CORE_READ(task, nsproxy, net_ns);
	return net ? report_netns(ctx->meta->seq, net, task->pid, 0, HOLDER_TASK) : 0;
}

/*
 * Process context, for every file descriptor of every process: reports the network
 * namespace that it refers to, or that its socket is in.
 */
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
		return report_netns(ctx->meta->seq, READ(CAST, sk, __sk_common.skc_net.net),
				    task->tgid, ctx->fd, HOLDER_SOCKET);
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) != NSFS_MAGIC)
		return 0;
	ns = BPF_CORE_READ(file, f_inode, i_private);
	if (!ns || BPF_CORE_READ(ns, ops) != BPF_CORE_READ(task, nsproxy, net_ns, ns.ops))
		return 0;
	return report_netns(ctx->meta->seq,
			    (const void *)ns - bpf_core_field_offset(struct net, ns), task->tgid,
			    ctx->fd, HOLDER_FILE);
}

#endif /* HALFOPEN_NETNS_H */
