// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Difference is a difference between kernels that halfopen knows of.
type Difference struct {
	Name string
	// Here is the variant that this kernel has.
	Here string
	// Lost is what halfopen cannot find out on this kernel; "" if nothing.
	Lost string
}

// Differences returns all differences, with the variants that the running kernel has. It
// requires no privileges.
func Differences() ([]Difference, error) {
	kernel, err := kernelTypes(btf.NewCache())
	if err != nil {
		return nil, err
	}
	all := make([]Difference, len(differences))
	for i, d := range differences {
		all[i].Name = d.name
		if v := d.in(kernel); v != nil {
			all[i].Here, all[i].Lost = v.here+v.versions(), v.lost
		} else {
			all[i].Lost = "none of what halfopen knows: " + d.known()
		}
	}
	return all, nil
}

// difference is something that kernels have in one variant or another.
// kernel_compat.h has what the programs do about it.
type difference struct {
	name string
	// first is the name of the programs' variable that is true if the kernel has the
	// first variant; "" if they have none.
	first string
	// variants are checked in order. Load refuses a kernel that has none of them.
	variants []variant
}

// variant is one variant of a difference.
type variant struct {
	has          []feature // a kernel that has all of them has this variant
	since, until string    // mainline versions; "" for no bound
	here, lost   string    // see Difference
}

var differences = []*difference{cookies, dropReasons, {
	// 08dfe370239e "tcp: introduce icsk->icsk_keepalive_timer". sk_timer is still
	// there, but is another timer.
	name: "keepalive timer",
	variants: []variant{
		{has: []feature{field("inet_connection_sock.icsk_keepalive_timer")}, since: "6.19", here: "inet_connection_sock.icsk_keepalive_timer"},
		{has: []feature{field("sock.sk_timer")}, until: "6.19", here: "sock.sk_timer"},
	},
}, {
	// 9a5e5334adc0 "tcp: remove icsk->icsk_retransmit_timer".
	name: "retransmission timer",
	variants: []variant{
		{has: []feature{field("sock.tcp_retransmit_timer")}, since: "6.19", here: "sock.tcp_retransmit_timer"},
		{has: []feature{field("inet_connection_sock.icsk_retransmit_timer")}, until: "6.19", here: "inet_connection_sock.icsk_retransmit_timer"},
	},
}, {
	// 614e8316aa4c "tcp: add support for usec resolution in TCP TS values".
	name: "retransmission stamps",
	variants: []variant{
		{has: []feature{field("tcp_sock.tcp_usec_ts")}, since: "6.7", here: "in ms, or in us where tcp_usec_ts is set"},
		{until: "6.7", here: "in ms"},
	},
}, {
	// 54a378f43425 "tcp: add the ability to control max RTO", 1280c26228bd "tcp: add
	// tcp_rto_max_ms sysctl".
	name: "longest retransmission timeout",
	variants: []variant{
		{has: []feature{field("inet_connection_sock.icsk_rto_max"), field("netns_ipv4.sysctl_tcp_rto_max_ms")}, since: "6.15", here: "by TCP_RTO_MAX_MS and tcp_rto_max_ms"},
		{until: "6.15", here: "always 120 s"},
	},
}, {
	// a35b9af4ec2c "bpf: Add a kfunc for generic type cast".
	name:  "reads of the census",
	first: "casts",
	variants: []variant{
		{has: []feature{function("bpf_rdonly_cast")}, since: "6.2", here: "by plain loads"},
		{until: "6.2", here: "by a probe for each field, which takes more time"},
	},
}, {
	// ad892e912b84 "tcp: trace retransmit failures in tcp_retransmit_skb".
	name:  "retransmissions that fail",
	first: "retransmit_error",
	variants: []variant{
		{has: []feature{argument{"tcp_retransmit_skb", 3}}, since: "6.17", here: "reported by tcp_retransmit_skb, with the error"},
		{until: "6.17", here: "not reported by tcp_retransmit_skb"},
	},
}, {
	// ccce324dabfe "tcp: make the first N SYN RTO backoffs linear".
	name: "SYN retransmissions",
	variants: []variant{
		{has: []feature{field("netns_ipv4.sysctl_tcp_syn_linear_timeouts")}, since: "6.5", here: "linear at first, by tcp_syn_linear_timeouts"},
		{until: "6.5", here: "each wait is twice the one before"},
	},
}, {
	// 8520e224f547 "bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed mode".
	name: "control groups of sockets",
	variants: []variant{
		{has: []feature{field("sock_cgroup_data.cgroup")}, since: "5.15", here: "sock_cgroup_data.cgroup"},
		{has: []feature{field("sock_cgroup_data.val")}, until: "5.15", here: "sock_cgroup_data.val",
			lost: "once net_cls or net_prio of cgroup v1 has been used, no unit or container is known of a new socket that no process holds"},
		{lost: "no unit or container is known of a socket that no process holds: the kernel has no CONFIG_SOCK_CGROUP_DATA"},
	},
}, {
	// 024596a4e280 "ns: rename to __ns_ref", 8b8f3e666fc6 "net: Use generic
	// ns_common::count".
	name: "holders of network namespaces",
	variants: []variant{
		{has: []feature{field("ns_common.__ns_ref")}, since: "6.18", here: "ns_common.__ns_ref"},
		{has: []feature{field("ns_common.count")}, since: "5.11", until: "6.18", here: "ns_common.count"},
		{has: []feature{field("net.count")}, until: "5.11", here: "net.count"},
	},
}, {
	// 90ee6ed776c0 "fs: port files to file_ref".
	name: "references to files",
	variants: []variant{
		{has: []feature{field("file.f_ref")}, since: "6.13", here: "file.f_ref"},
		{has: []feature{field("file.f_count")}, until: "6.13", here: "file.f_count"},
	},
}, {
	// fbb8295248e1 "tcp: allocate tcp_death_row outside of struct netns_ipv4",
	// e9bd0cca09d1 "tcp: Don't allocate tcp_death_row outside of struct netns_ipv4."
	name: "way to the hash tables",
	variants: []variant{
		{has: []feature{pointer("netns_ipv4.tcp_death_row")}, since: "5.18", until: "6.1", here: "netns_ipv4.tcp_death_row, a pointer"},
		{has: []feature{field("netns_ipv4.tcp_death_row.hashinfo")}, here: "netns_ipv4.tcp_death_row"},
	},
}, {
	// cae3873c5b3a "net: inet: Retire port only listening_hash". lhash2 was there
	// before, but did not have all listeners.
	name: "hash table of listeners",
	variants: []variant{
		{has: []feature{field("inet_hashinfo.listening_hash")}, until: "5.19", here: "inet_hashinfo.listening_hash"},
		{has: []feature{field("inet_hashinfo.lhash2"), field("inet_hashinfo.lhash2_mask")}, since: "5.19", here: "inet_hashinfo.lhash2"},
	},
}, ownTables, silentReceivers, privateStacks}

// cookies: c5dbb89fc2ac "bpf: Expose bpf_get_socket_cookie to tracing programs". We cannot
// look for the helper's number, since that is older. See cookie.go.
var cookies = &difference{
	name:  "cookies",
	first: "cookie_helper",
	variants: []variant{
		{has: []feature{function("bpf_get_socket_ptr_cookie")}, since: "5.12", here: "given by our programs"},
		{until: "5.12", here: "given by sock_diag, and to new connections by a program of the root cgroup"},
	},
}

// dropReasons: c504e5c2f964 "net: skb: introduce kfree_skb_reason()", 5.17; those of what a host
// sends are of 5.18.
var dropReasons = &difference{
	name:  "reasons of drops",
	first: "drop_reasons",
	variants: []variant{
		{has: []feature{argument{"kfree_skb", 3}, field("skb_drop_reason"),
			enumerator{"skb_drop_reason", "SKB_DROP_REASON_NETFILTER_DROP"}}, since: "5.18", here: "reported by kfree_skb"},
		{until: "5.18", here: "not reported by kfree_skb",
			lost: "of a connection that this host blocks by an output filter, no reason is known"},
	},
}

// ownTables: d1e5e6408b30 "tcp: Introduce optional per-netns ehash.".
var ownTables = &difference{
	name: "hash tables of connections",
	variants: []variant{
		{has: []feature{field("netns_ipv4.sysctl_tcp_child_ehash_entries")}, since: "6.1", here: "one for all network namespaces but those that have their own"},
		{until: "6.1", here: "one for all network namespaces"},
	},
}

// silentReceivers: e2142825c120 "net: tcp: send zero-window ACK when no memory". Before,
// tcp_data_queue() silently drops data that the receive buffer has no room for: to the
// sender, the receiver looks like a peer that is gone.
var silentReceivers = &difference{
	name: "receivers whose buffer is full",
	variants: []variant{
		{has: []feature{enumerator{"inet_csk_ack_state_t", "ICSK_ACK_NOMEM"}}, since: "6.6", here: "close their window"},
		{until: "6.6", here: "may drop data in silence",
			lost: "their senders on this host are called zombies, and the kernel gives them up, though the receiver is there"},
	},
}

// privateStacks: a76ab5731e32 "bpf: Find eligible subprogs for private stack support". A program
// that interrupts itself then writes over what it has on its stack.
var privateStacks = &difference{
	name: "stacks of programs",
	variants: []variant{
		{has: []feature{function("bpf_jit_supports_private_stack")}, since: "6.13", here: "one for each program and CPU"},
		{until: "6.13", here: "the kernel's"},
	},
}

// FullReceiversAnswer reports whether a receiver on this kernel answers when its buffer
// is full. It requires no privileges.
func FullReceiversAnswer() (bool, error) {
	kernel, err := kernelTypes(btf.NewCache())
	if err != nil {
		return false, err
	}
	return silentReceivers.isFirst(kernel), nil
}

// in returns the variant that a kernel has, nil if it has none.
func (d *difference) in(kernel *btf.Spec) *variant {
	for i := range d.variants {
		if v := &d.variants[i]; !slices.ContainsFunc(v.has, func(f feature) bool { return !f.in(kernel) }) {
			return v
		}
	}
	return nil
}

// isFirst reports whether a kernel has the first variant.
func (d *difference) isFirst(kernel *btf.Spec) bool { return d.in(kernel) == &d.variants[0] }

// known returns a list of the features by which the variants are recognised.
func (d *difference) known() string {
	var all []string
	for _, v := range d.variants {
		for _, f := range v.has {
			all = append(all, fmt.Sprint(f))
		}
	}
	return strings.Join(all, " or ")
}

// versions returns the mainline versions that have a variant, in brackets.
func (v *variant) versions() string {
	switch {
	case v.since != "" && v.until != "":
		return fmt.Sprintf(" (from %s until %s)", v.since, v.until)
	case v.since != "":
		return fmt.Sprintf(" (since %s)", v.since)
	case v.until != "":
		return fmt.Sprintf(" (before %s)", v.until)
	}
	return ""
}

// feature is something whose presence the kernel's BTF shows.
type feature interface {
	in(kernel *btf.Spec) bool
}

type (
	field    string   // struct.member
	pointer  string   // struct.member that is a pointer
	function string   // of the kernel
	argument struct { // of a tracepoint; the first is 1
		tracepoint string
		number     int
	}
	enumerator struct{ enum, name string }
)

func (f field) in(kernel *btf.Spec) bool {
	return fieldOf(kernel, strings.Split(string(f), ".")) != nil
}

func (p pointer) in(kernel *btf.Spec) bool {
	_, is := fieldOf(kernel, strings.Split(string(p), ".")).(*btf.Pointer)
	return is
}

func (f function) in(kernel *btf.Spec) bool {
	var fn *btf.Func
	return kernel.TypeByName(string(f), &fn) == nil
}

func (a argument) in(kernel *btf.Spec) bool {
	var def *btf.Typedef
	if kernel.TypeByName(tracepointPrefix+a.tracepoint, &def) != nil {
		return false
	}
	fn, ok := btf.UnderlyingType(def).(*btf.Pointer)
	if !ok {
		return false
	}
	proto, ok := fn.Target.(*btf.FuncProto)
	return ok && len(proto.Params) > a.number // the first is a void *
}

func (e enumerator) in(kernel *btf.Spec) bool {
	var enum *btf.Enum
	return kernel.TypeByName(e.enum, &enum) == nil &&
		slices.ContainsFunc(enum.Values, func(v btf.EnumValue) bool { return v.Name == e.name })
}

func (e enumerator) String() string { return e.name }

func (a argument) String() string { return fmt.Sprintf("argument %d of %s", a.number, a.tracepoint) }
