/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What all connections to the remote address of a zombie say about its peer.
 */
#ifndef HALFOPEN_PEERHOSTS_H
#define HALFOPEN_PEERHOSTS_H

#include "connection.h"

#define PEER_HOSTS_MAX 1024

/*
 * The remote addresses of zombies. User space inserts them before a periodic census, and reads
 * and deletes them after it. If it is full, the other addresses are not counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PEER_HOSTS_MAX);
	__type(key, struct peer_host_key);
	__type(value, struct peer_host);
} peer_hosts SEC(".maps");

/* Counts a connection that classify() has read, if its remote address is in peer_hosts. */
static __always_inline void count_host(const struct conn *c, const struct sock_common *skc,
				       const struct tcp_sock *tp, const struct watch *seen,
				       const enum access how)
{
	const struct net *net = READ(how, skc, skc_net.net);
	__u32 now = (__u32)c->jiffies, silent;
	struct peer_host_key key = {};
	struct peer_host *host;
	__u64 heard;

	key.netns = READ(how, net, ns.inum);
	if (READ(how, skc, skc_family) == AF_INET6) {
		BPF_CORE_READ_INTO(&key.addr, skc, skc_v6_daddr);
	} else {
		*(__u32 *)&key.addr[8] = __builtin_bswap32(0xffff);
		*(__u32 *)&key.addr[12] = READ(how, skc, skc_daddr);
	}
	host = bpf_map_lookup_elem(&peer_hosts, &key);
	if (!host)
		return;
	host->connections++;
	if (c->class != CLASS_ACTIVE && !(c->flags & CONN_TROUBLE))
		host->exposed++;
	silent = silent_for(tp, seen, accepted_at(tp, now, how), READ(how, tp, segs_in), now, how);
	heard = bpf_ktime_get_ns() - (__u64)silent * TICK_NSEC;
	if (silent != AGE_NONE && heard > host->heard)
		host->heard = heard;
}

#endif /* HALFOPEN_PEERHOSTS_H */
