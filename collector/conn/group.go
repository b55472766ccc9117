// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"cmp"
	"net/netip"
	"slices"
)

// Grouping says by what connections are grouped to count them.
type Grouping uint8

// The groupings.
const (
	ByOwner Grouping = iota
	ByRemote
	ByVerdict
	ByNetns
	// BySettings is ByNetns, and has the settings of each namespace, too.
	BySettings
)

var groupingNames = [...]string{ByOwner: "owner", ByRemote: "remote", ByVerdict: "verdict", ByNetns: "netns"}

// String returns the name of the grouping, as in `halfopen list --by`.
func (g Grouping) String() string {
	if g == BySettings {
		g = ByNetns
	}
	return groupingNames[g]
}

// ParseGrouping is the reverse of String.
func ParseGrouping(s string) (Grouping, error) {
	v, err := parseName(s, groupingNames[:], GroupingNames(), "grouping")
	return Grouping(v), err
}

// GroupingNames returns the names of all groupings.
func GroupingNames() []string { return slices.Clone(groupingNames[:]) }

// OwnerKind is the kind of an owner.
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

// GroupKey is what the connections of one group have in common. Only the fields of the
// [Grouping] are set.
type GroupKey struct {
	OwnerKind OwnerKind
	Owner     string // see [Connection.Owner]
	// Remote is the remote end. Its port is 0 if the peer is a client, whose port has no
	// meaning. It is the zero value for listeners.
	Remote  netip.AddrPort
	Judged  bool // the connections have a verdict: Verdict
	Verdict Verdict
	Netns   uint32 // inode number
}

// Count is the number of connections in a group.
type Count struct {
	GroupKey
	Total    int
	Verdicts [Verdicts]int // listeners and stubs have no verdict, so the sum may be below Total
	Settings Settings      // only BySettings
}

// GroupKeyOf returns the group of a connection. listeners has the listeners of the node;
// only ByRemote needs them.
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
	case ByNetns, BySettings:
		k.Netns = connection.Netns
	}
	return k
}

// inbound reports whether the remote end is a client: the local port has a listener. If
// the listener has gone, a high remote port and a low local port decide.
func inbound(connection *Connection, listeners map[Listener]bool) bool {
	return listeners[Listener{connection.Netns, connection.Local.Port()}] ||
		connection.Local.Port() < ephemeralFrom && connection.Remote.Port() >= ephemeralFrom
}

// CompareCounts orders counts worst first: by the number of zombies, then of suspects,
// and so on down to unguarded connections, then by Total, then by name.
func CompareCounts(a, b Count) int {
	for v := Zombie; v > Idle; v-- {
		if d := cmp.Compare(b.Verdicts[v], a.Verdicts[v]); d != 0 {
			return d
		}
	}
	return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.OwnerKind, b.OwnerKind),
		a.Remote.Compare(b.Remote), cmp.Compare(b.Verdict, a.Verdict), cmp.Compare(a.Netns, b.Netns))
}

// Listener is a port that a socket listens on.
type Listener struct {
	Netns uint32 // inode number
	Port  uint16
}
