// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"cmp"
	"net/netip"
	"slices"
)

// Grouping is what connections have in common that are counted together.
type Grouping uint8

// The groupings.
const (
	ByOwner Grouping = iota
	ByRemote
	ByVerdict
)

var groupingNames = [...]string{ByOwner: "owner", ByRemote: "remote", ByVerdict: "verdict"}

// String returns the grouping's name, as in `halfopen list --by`.
func (g Grouping) String() string { return groupingNames[g] }

// ParseGrouping is the reverse of String.
func ParseGrouping(s string) (Grouping, error) {
	v, err := parseName(s, groupingNames[:], GroupingNames(), "grouping")
	return Grouping(v), err
}

// GroupingNames returns the names of all groupings.
func GroupingNames() []string { return slices.Clone(groupingNames[:]) }

// OwnerKind is what kind of thing an owner is.
type OwnerKind uint8

// The kinds of owners.
const (
	NoOwner OwnerKind = iota
	OwnerProcess
	OwnerUnit
	OwnerContainer
	OwnerPod
)

var ownerKindNames = [...]string{
	OwnerProcess:   "process",
	OwnerUnit:      "unit",
	OwnerContainer: "container",
	OwnerPod:       "pod",
}

// String returns the kind's name, "" for NoOwner.
func (k OwnerKind) String() string { return ownerKindNames[k] }

// GroupKey is what the connections counted by a [ConnCount] have in common: the
// fields of its grouping; the others are zero.
type GroupKey struct {
	OwnerKind OwnerKind
	Owner     string // see [Connection.Owner]
	// Remote is where the connections go. Its port is 0 where it is that of a
	// client and says nothing. The zero value: they have no remote end.
	Remote  netip.AddrPort
	Judged  bool // they have Verdict
	Verdict Verdict
}

// ConnCount counts connections that have something in common.
type ConnCount struct {
	GroupKey
	Total    int
	Verdicts [Verdicts]int // in all fewer than Total if some sockets have no verdict
}

// GroupKeyOf returns the key of the group that a connection belongs to. By remote it needs
// the listeners, to tell clients from services.
func GroupKeyOf(connection *Connection, by Grouping, listeners map[Listener]bool) (k GroupKey) {
	switch by {
	case ByOwner:
		k.OwnerKind, k.Owner = connection.OwnerName()
	case ByRemote:
		if connection.State == Listen {
			break
		}
		k.Remote = connection.Remote
		if inbound(connection, listeners) {
			k.Remote = netip.AddrPortFrom(k.Remote.Addr(), 0)
		}
	case ByVerdict:
		if k.Judged = connection.Judged(); k.Judged {
			k.Verdict = connection.Verdict
		}
	}
	return k
}

// inbound tells whether the remote end is a client: it came to a port that is
// listened on here. Where nobody listens there any more, the ports have to tell.
func inbound(connection *Connection, listeners map[Listener]bool) bool {
	return listeners[Listener{connection.Netns, connection.Local.Port()}] ||
		connection.Local.Port() < ephemeralFrom && connection.Remote.Port() >= ephemeralFrom
}

// CompareCounts orders groups worst first: by how many zombies they have, then
// suspects, and so on; by their size if all is well; then by name.
func CompareCounts(a, b ConnCount) int {
	for v := Zombie; v > Idle; v-- {
		if d := cmp.Compare(b.Verdicts[v], a.Verdicts[v]); d != 0 {
			return d
		}
	}
	return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.OwnerKind, b.OwnerKind),
		a.Remote.Compare(b.Remote), cmp.Compare(b.Verdict, a.Verdict))
}

// Listener is what accepts connections to a port.
type Listener struct {
	Netns uint32 // inode number
	Port  uint16
}
