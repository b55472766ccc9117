/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counts the connections at risk by the control groups of their sockets.
 */
#ifndef HALFOPEN_CGROUPS_H
#define HALFOPEN_CGROUPS_H

#include "connection.h"

#define CGROUPS_MAX 4096

/* The numbers of connections at each risk. */
struct risk_counts {
	__u32 risks[RISK_SLOTS];
};

/*
 * The connections at risk by the control group of their socket: its id in the cgroup v2
 * hierarchy, 0 for none. Inserted: by a walk that census_cgroups asks to. User space reads
 * and deletes all after it. If it is full, the other groups are not counted: user space
 * knows from census_counts how many connections they have.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CGROUPS_MAX);
	__type(key, __u64);
	__type(value, struct risk_counts);
} cgroup_risks SEC(".maps");

/* Counts the risks of a socket for the control group of that id. */
__attribute__((noinline)) int count_cgroup(__u64 id, __u32 risks)
{
	struct risk_counts none = {}, *n;
	__u32 i;

	n = bpf_map_lookup_elem(&cgroup_risks, &id);
	if (!n) {
		bpf_map_update_elem(&cgroup_risks, &id, &none, BPF_ANY);
		n = bpf_map_lookup_elem(&cgroup_risks, &id);
		if (!n)
			return 0;
	}
	for (i = 0; i < RISK_MAX; i++)
		if (risks & (1 << i))
			n->risks[i]++;
	return 0;
}

#endif /* HALFOPEN_CGROUPS_H */
