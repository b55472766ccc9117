// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// Query selects connections. A connection has to match one value of each field that is not
// empty. The zero value selects every connection.
type Query struct {
	Verdicts []conn.Verdict
	States   []conn.State
	Ports    []uint16 // local or remote
	PIDs     []uint32
	Owners   []string // see [conn.Connection.OwnedBy]
	Remotes  []netip.Prefix
	Risks    []conn.Risk
	Netns    []uint32 // inode numbers
	All      bool     // also sockets that are not connections: listeners and stubs
	Limit    int      // 0: no limit
}

// matches reports whether a socket matches all fields but Verdicts, PIDs and Owners, which
// cannot be decided from its record alone.
func (q *Query) matches(k *abi.Conn) bool {
	if k.Class == abi.ClassNone && (!q.All || len(q.Verdicts)+len(q.Risks) > 0) { // it has no verdict and no risk
		return false
	}
	return anyOf(q.States, conn.StateOf(k.State)) && anyOf(q.Netns, k.Netns) &&
		(len(q.Ports) == 0 || slices.Contains(q.Ports, k.Lport) || slices.Contains(q.Ports, k.Rport)) &&
		(len(q.Risks) == 0 || slices.ContainsFunc(q.Risks, func(r conn.Risk) bool { return k.Risks&(1<<r) != 0 })) &&
		(len(q.Remotes) == 0 || isRemote(k) && slices.ContainsFunc(q.Remotes, func(p netip.Prefix) bool { return p.Contains(k.Remote().Addr()) }))
}

// isRemote reports whether a socket has a remote end. A listener has none.
func isRemote(k *abi.Conn) bool { return conn.StateOf(k.State) != conn.Listen }

// matchesVerdict reports whether a connection has one of the verdicts.
func (q *Query) matchesVerdict(connection *conn.Connection) bool {
	return len(q.Verdicts) == 0 || connection.Judged() && slices.Contains(q.Verdicts, connection.Verdict)
}

// needsOwners reports whether the query depends on the owners of connections.
func (q *Query) needsOwners() bool { return len(q.PIDs)+len(q.Owners) > 0 }

// matchesOwner reports whether a connection has one of the owners. Its owner must be set.
func (q *Query) matchesOwner(connection *conn.Connection) bool {
	return (len(q.PIDs) == 0 || connection.Process != nil && slices.Contains(q.PIDs, connection.Process.PID)) &&
		(len(q.Owners) == 0 || slices.ContainsFunc(q.Owners, connection.OwnedBy))
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

// ParseRemote parses an address, or a prefix in CIDR notation.
func ParseRemote(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8", s)
	}
	if bits := p.Bits() - 96; p.Addr().Is4In6() && bits >= 0 {
		p = netip.PrefixFrom(p.Addr().Unmap(), bits)
	}
	return p.Masked(), nil
}

// ParseNetns parses the inode number of a network namespace.
func ParseNetns(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%q is not the inode number of a network namespace such as 4026531840 (see lsns -t net)", s)
	}
	return uint32(v), nil
}
