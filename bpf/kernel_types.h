/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The types of the kernel that the programs read.
 *
 * A struct here has only the fields that the programs use. With preserve_access_index the
 * loader adapts each access to the running kernel (CO-RE): the name and the size of a
 * field must be those of the kernel; its order and its neighbours need not. The kernel's
 * anonymous structs and unions are flattened, since CO-RE looks into them. If the kernel
 * lacks a field, the programs cannot be loaded, unless a difference allows for that
 * (kernel_compat.h, differences.go).
 */
#ifndef HALFOPEN_KERNEL_TYPES_H
#define HALFOPEN_KERNEL_TYPES_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

#define NULL ((void *)0)
#define true 1
#define false 0

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* include/uapi/linux/bpf.h: the values that the programs use. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};

/* bpf_map_update_elem() flags. */
enum {
	BPF_ANY = 0,
	BPF_EXIST = 2,
};

/* Flags of a map. */
enum {
	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,
};

/* include/linux/socket.h */
enum address_family {
	AF_INET = 2,
	AF_INET6 = 10,
};

/* include/uapi/linux/in.h, include/uapi/linux/stat.h */
#define IPPROTO_TCP 6
#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* include/uapi/asm-generic/errno.h; the same on amd64, arm64 and riscv64. */
#define EPIPE 32
#define ECONNABORTED 103
#define ECONNRESET 104
#define ETIMEDOUT 110
#define ECONNREFUSED 111

/* include/net/tcp_states.h */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
	TCP_NEW_SYN_RECV, /* a request socket; ss shows syn_recv */
	TCP_MAX_STATES = 16,
};

/* include/net/sock.h enum sock_flags, bits of skc_flags; 5.10 to 7.x alike. */
#define SOCK_DEAD 0
#define SOCK_DONE 1
#define SOCK_KEEPOPEN 3
#define SOCK_LINGER 4

/* include/net/sock.h, sk_shutdown */
#define RCV_SHUTDOWN 1
#define SHUTDOWN_MASK 3 /* both directions */

/* include/net/inet_connection_sock.h, values of icsk_pending; 5.10 to 7.x alike. */
#define ICSK_TIME_RETRANS 1
#define ICSK_TIME_PROBE0 3
#define ICSK_TIME_LOSS_PROBE 5
#define ICSK_TIME_REO_TIMEOUT 6

/* include/linux/tcp.h; the number differs between kernels, the name does not. */
enum tsq_enum {
	TCP_WRITE_TIMER_DEFERRED = 3,
};

/* include/net/dropreason-core.h; likewise. See DROPPED_FOR(). */
enum skb_drop_reason {
	SKB_DROP_REASON_NETFILTER_DROP = 1,
	SKB_DROP_REASON_BPF_CGROUP_EGRESS,
	SKB_DROP_REASON_IP_OUTNOROUTES,
	SKB_DROP_REASON_TC_EGRESS,
	SKB_DROP_REASON_QDISC_DROP,
	SKB_DROP_REASON_QDISC_OVERLIMIT,
	SKB_DROP_REASON_QDISC_CONGESTED,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct timer_list {
	struct hlist_node entry; /* pprev is NULL if the timer is not pending */
	unsigned long expires; /* jiffies */
	void (*function)(struct timer_list *);
	__u32 flags; /* from bit TIMER_ARRAYSHIFT on: its bucket of the wheel */
};

/* include/linux/timer.h, kernel/time/timer.c; 5.10 to 7.x alike. */
#define TIMER_ARRAYSHIFT 22
#define LVL_SIZE 64
#define LVL_CLK_SHIFT 3
#define LVL_MAX 8 /* the highest level */

struct proc_ns_operations;

struct ns_common {
	unsigned int inum;
	const struct proc_ns_operations *ops; /* one for each kind of namespace */
};

typedef struct {
	int counter;
} atomic_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

struct hlist_nulls_node {
	struct hlist_nulls_node *next; /* odd: the end of the chain */
	struct hlist_nulls_node **pprev; /* NULL: in no chain; follows next */
};

struct hlist_nulls_head {
	struct hlist_nulls_node *first;
};

struct inet_ehash_bucket {
	struct hlist_nulls_head chain;
};

struct inet_listen_hashbucket {
	struct hlist_nulls_head nulls_head;
};

/* The hash tables of TCP sockets, which network namespaces share or have for themselves. */
struct inet_hashinfo {
	struct inet_ehash_bucket *ehash;
	unsigned int ehash_mask;
	struct inet_listen_hashbucket *lhash2; /* see listeners_of() */
	unsigned int lhash2_mask;
};

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo;
};

/* The sysctls of a namespace. They apply to sockets that have no value of their own. */
struct netns_ipv4 {
	int sysctl_tcp_keepalive_time; /* jiffies */
	int sysctl_tcp_keepalive_intvl; /* jiffies */
	__u8 sysctl_tcp_keepalive_probes;
	__u8 sysctl_tcp_retries2;
	__u8 sysctl_tcp_orphan_retries;
	__u8 sysctl_tcp_syn_retries;
	__u8 sysctl_tcp_synack_retries;
	__u8 sysctl_tcp_thin_linear_timeouts;
	int sysctl_tcp_fin_timeout; /* jiffies */
};

struct list_head {
	struct list_head *next, *prev;
};

struct net_device;

struct net {
	struct list_head list; /* of all network namespaces, init_net first */
	struct ns_common ns;
	struct netns_ipv4 ipv4;
	struct net_device *loopback_dev;
};

/* A route. That of a destination in the same network namespace has the loopback device. */
struct dst_entry {
	struct net_device *dev;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	__u8 s6_addr[16];
};

typedef struct {
	__s64 counter;
} atomic64_t;

typedef struct {
	__u32 val;
} kuid_t;

struct sock_common {
	struct hlist_nulls_node skc_nulls_node;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie; /* 0 until something asks for it */
	unsigned long skc_flags; /* a union: in a stub, it is a pointer */
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup; /* see cgroup_of() */
};

struct socket;

struct sk_buff_head {
	__u32 qlen;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue; /* what the application has not read */
	struct dst_entry *sk_dst_cache; /* NULL: the next segment looks for a route */
	struct socket *sk_socket; /* NULL: orphaned, or not accepted yet */
	unsigned long sk_tsq_flags; /* bits of enum tsq_enum */
	int sk_wmem_queued; /* bytes of memory of data that is not acknowledged or not sent */
	int sk_err;
	int sk_err_soft; /* the error of the last ICMP message */
	__u32 sk_ack_backlog; /* listener: ss shows it as Recv-Q */
	__u32 sk_max_ack_backlog; /* listener: ss shows it as Send-Q */
	atomic_t sk_drops; /* listener: tcp_listendrop() counts here */
	__u16 sk_protocol;
	__u8 sk_shutdown;
	unsigned long sk_lingertime; /* jiffies that close(2) may wait, if SOCK_LINGER is set */
	struct sock_cgroup_data sk_cgrp_data; /* empty without CONFIG_SOCK_CGROUP_DATA */
	kuid_t sk_uid;
};

/* The stub of a connection that has ended. It begins with a struct sock_common. */
struct inet_timewait_sock {
	volatile unsigned char tw_substate; /* TCP_TIME_WAIT or TCP_FIN_WAIT2 */
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport; /* skc_num is already 0 at some state changes */
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	__u8 icsk_retransmits;
	__u8 icsk_pending;
	__u8 icsk_backoff;
	__u8 icsk_probes_out;
	__u8 icsk_syn_retries; /* 0: the sysctl applies */
	__u32 icsk_rto; /* jiffies */
	struct {
		__u32 lrcvtime; /* jiffies: when data was last received */
	} icsk_ack;
	__u32 icsk_probes_tstamp; /* jiffies: when the first zero-window probe was sent */
	__u32 icsk_user_timeout; /* ms */
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 copied_seq; /* what the application has read up to */
	__u32 rcv_nxt;
	struct {
		__u64 time; /* us of CLOCK_MONOTONIC: when the application last read, or earlier */
	} rcvq_space;
	__u32 snd_una;
	__u32 write_seq;
	__u32 snd_wnd;
	__u32 lsndtime; /* jiffies: when data was last sent */
	__u32 rcv_tstamp; /* jiffies: when an ACK was last received */
	__u32 segs_in; /* segments received, also those that were then dropped */
	__u32 last_oow_ack_time; /* jiffies: when one of these was last answered; 0: never */
	__u64 bytes_acked; /* the SYN counts as one */
	__u64 bytes_received; /* of data */
	__u32 packets_out;
	__u32 mss_cache;
	__u32 srtt_us; /* eight times the smoothed round-trip time */
	__u32 rttvar_us;
	struct request_sock *fastopen_rsk; /* not NULL in syn_recv: made by TCP Fast Open */
	int linger2; /* jiffies in FIN_WAIT2; 0: the sysctl applies; -1: none */
	__u8 thin_lto : 1; /* TCP_THIN_LINEAR_TIMEOUTS */
	__u32 total_retrans;
	__u32 retrans_stamp; /* of the first retransmission, see retransmitting_for() */
	unsigned int keepalive_time; /* jiffies; 0: the sysctl applies */
	unsigned int keepalive_intvl; /* jiffies; 0: the sysctl applies */
	__u8 keepalive_probes; /* 0: the sysctl applies */
};

struct request_sock;

struct sk_buff {
	struct sock *sk; /* of a packet that a socket sends: this socket, until a device has it */
	unsigned int len; /* bytes of data, without headers where TCP keeps it */
};

struct super_block {
	unsigned long s_magic;
};

/* include/uapi/linux/magic.h: s_magic of the files of namespaces. */
#define NSFS_MAGIC 0x6e736673

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	void *i_private; /* nsfs: struct ns_common */
};

struct file {
	struct inode *f_inode;
	const struct file_operations *f_op;
	void *private_data;
};

/* For read_ptr(), which needs a struct whose first field is a number of 64 bits. */
struct rb_node {
	unsigned long __rb_parent_color;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

/* The descriptors of a process. */
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	int pid;
	int tgid;
	struct nsproxy *nsproxy; /* NULL: the thread has ended */
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct files_struct *files; /* NULL: the thread has ended */
	char comm[16];
	__u64 start_time; /* ns of CLOCK_MONOTONIC */
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#endif /* HALFOPEN_KERNEL_TYPES_H */
