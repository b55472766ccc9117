// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// Query selects connections. A connection has to match one value of each field that is not
// empty. The zero value selects every connection.
type Query struct {
	Verdicts   []conn.Verdict
	States     []conn.State
	Ports      []uint16 // local or remote
	PIDs       []uint32
	Owners     []string // see [conn.OwnerSet]
	Namespaces []string // of Kubernetes
	Pods       []string // names, without the namespace
	Remotes    []netip.Prefix
	Risks      []conn.Risk
	Netns      []uint32 // inode numbers
	All        bool     // also sockets that are not connections: listeners and stubs
	Limit      int      // 0: no limit
}

// Listeners reports whether the query selects listeners: without All, it does so if it asks for
// their state, or for the risk that only they have.
func (q *Query) Listeners() bool {
	if len(q.Risks) > 0 && !slices.Contains(q.Risks, conn.RiskAcceptQueueFull) ||
		len(q.States) > 0 && !slices.Contains(q.States, conn.Listen) {
		return false
	}
	return len(q.Verdicts) == 0 && (q.All || len(q.Risks)+len(q.States) > 0)
}

// stubs reports whether the query selects stubs, which have no verdict and no risk.
func (q *Query) stubs() bool { return q.All && len(q.Verdicts)+len(q.Risks) == 0 }

// everyConnection reports whether the query selects every connection, and nothing else.
func (q *Query) everyConnection() bool {
	return !q.All && !q.needsOwners() && len(q.Verdicts)+len(q.States)+len(q.Ports)+len(q.Remotes)+len(q.Risks)+len(q.Netns) == 0
}

// needsOwners reports whether the query depends on the owners of connections.
func (q *Query) needsOwners() bool {
	return len(q.PIDs)+len(q.Owners)+len(q.Namespaces)+len(q.Pods) > 0
}

// classes returns the classes of sockets that the query can select.
func (q *Query) classes() bpf.Classes {
	classes := bpf.ClassesOf(abi.ClassTrouble, abi.ClassUnread)
	for _, class := range []uint8{abi.ClassActive, abi.ClassIdle, abi.ClassUnguarded} {
		if len(q.Verdicts) == 0 || slices.Contains(q.Verdicts, conn.VerdictOfClass(class)) {
			classes |= bpf.ClassesOf(class)
		}
	}
	if q.Listeners() || q.stubs() {
		classes |= bpf.ClassesOf(abi.ClassNone)
	}
	return classes
}

// A matcher decides whether sockets match a query. The time that it takes for a socket
// depends little on how many values the query has.
type matcher struct {
	verdicts, states, risks uint64 // a bit for each wanted value; 0: any
	ports                   set[uint16]
	netns, pids             set[uint32]
	remotes                 prefixes
	namespaces, pods        set[string]
	owners                  *conn.OwnerSet // nil: any
	listeners, stubs        bool           // also these, which are of ClassNone
}

func (q *Query) matcher() *matcher {
	m := &matcher{
		verdicts: bitsOf(q.Verdicts), states: bitsOf(q.States), risks: bitsOf(q.Risks),
		ports: newSet(q.Ports), netns: newSet(q.Netns), pids: newSet(q.PIDs), remotes: newPrefixes(q.Remotes),
		namespaces: newSet(q.Namespaces), pods: newSet(q.Pods),
		listeners: q.Listeners(), stubs: q.stubs(),
	}
	if len(q.Owners) > 0 {
		m.owners = conn.NewOwnerSet(q.Owners)
	}
	return m
}

// matches reports whether a socket matches all fields but Verdicts, a risk that only the tracker
// knows, and those of matchesOwner, which cannot be decided from its record alone.
func (m *matcher) matches(k *abi.Conn) bool {
	return (k.Class != abi.ClassNone || m.matchesOther(k)) &&
		(m.states == 0 || m.states&(1<<conn.StateOf(k.State)) != 0) &&
		(m.risks == 0 || m.risks&uint64(k.Risks|1<<conn.RiskPeerHostSilent) != 0) &&
		(m.netns == nil || m.netns.has(k.Netns)) &&
		(m.ports == nil || m.ports.has(k.Lport) || m.ports.has(k.Rport)) &&
		(m.remotes == nil || isRemote(k) && m.remotes.contain(k.Remote().Addr()))
}

// matchesOther reports whether a socket that is not a connection may match.
func (m *matcher) matchesOther(k *abi.Conn) bool {
	if conn.StateOf(k.State) == conn.Listen {
		return m.listeners
	}
	return m.stubs
}

// isRemote reports whether a socket has a remote end. A listener has none.
func isRemote(k *abi.Conn) bool { return conn.StateOf(k.State) != conn.Listen }

// matchesVerdict reports whether a connection has one of the verdicts, and one of the risks.
func (m *matcher) matchesVerdict(connection *conn.Connection) bool {
	return (m.verdicts == 0 || connection.Judged() && m.verdicts&(1<<connection.Verdict) != 0) &&
		(m.risks == 0 || m.risks&bitsOf(connection.Risks) != 0)
}

// matchesOwner reports whether a connection has one of the owners. Its owner must be set.
func (m *matcher) matchesOwner(connection *conn.Connection) bool {
	return (m.pids == nil || connection.Process != nil && m.pids.has(connection.Process.PID)) &&
		(m.namespaces == nil || m.namespaces.has(connection.Cgroup.Namespace)) &&
		(m.pods == nil || m.pods.has(connection.Cgroup.Pod)) &&
		(m.owners == nil || m.owners.Owns(connection))
}

// bitsOf returns a set of small numbers as bits.
func bitsOf[T ~uint8](values []T) (bits uint64) {
	for _, v := range values {
		bits |= 1 << v
	}
	return bits
}

// set is a set of values.
type set[T comparable] map[T]struct{}

// newSet returns nil if there are no values.
func newSet[T comparable](values []T) set[T] {
	if len(values) == 0 {
		return nil
	}
	s := make(set[T], len(values))
	for _, v := range values {
		s[v] = struct{}{}
	}
	return s
}

func (s set[T]) has(v T) bool {
	_, ok := s[v]
	return ok
}

// prefixes are prefixes of addresses, sorted. None is within another.
type prefixes []netip.Prefix

// newPrefixes returns nil if there are no prefixes.
func newPrefixes(of []netip.Prefix) (sorted prefixes) {
	of = slices.Clone(of)
	for i := range of {
		of[i] = of[i].Masked()
	}
	slices.SortFunc(of, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range of { // each follows those that it is within
		if n := len(sorted); n == 0 || !sorted[n-1].Contains(p.Addr()) {
			sorted = append(sorted, p)
		}
	}
	return sorted
}

// contain reports whether one of the prefixes contains an address.
func (p prefixes) contain(addr netip.Addr) bool {
	i, found := slices.BinarySearchFunc(p, addr, func(p netip.Prefix, addr netip.Addr) int { return p.Addr().Compare(addr) })
	return found || i > 0 && p[i-1].Contains(addr)
}

// ParsePort parses the number of a port, which is not 0.
func ParsePort(s string) (uint16, error) {
	v, err := strconv.ParseUint(s, 10, 16)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", s)
	}
	return uint16(v), nil
}

// ParsePID parses the id of a process.
func ParsePID(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 31) // the kernel's pid_t is signed
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%q is not a process id", s)
	}
	return uint32(v), nil
}

// ParseOwner checks a name for Query.Owners.
func ParseOwner(s string) (string, error) {
	if s == "" {
		return "", errors.New("the name is empty; - is for those that have none")
	}
	return s, nil
}

// ParseName checks a name for Query.Namespaces and Query.Pods.
func ParseName(s string) (string, error) {
	if s == "" {
		return "", errors.New("the name is empty")
	}
	return s, nil
}

// ParseNetns parses the inode number of a network namespace.
func ParseNetns(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%q is not the inode number of a network namespace such as 4026531840 (see lsns -t net)", s)
	}
	return uint32(v), nil
}
