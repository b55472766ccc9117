// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// HostKey is a remote address in a network namespace. NAT and load balancers can have many
// hosts at one address.
type HostKey struct {
	Netns uint32 // inode number
	Addr  netip.Addr
}

// HostCount is what a census finds of the connections to a remote address.
type HostCount struct {
	Connections int
	Exposed     int       // those that are idle or unguarded, and not in trouble
	HeardAt     time.Time // when the last segment came on any of them; zero: never
}

// PeerHost is what the last census found of all connections to the remote address of a zombie,
// in its network namespace.
type PeerHost struct {
	Connections int
	Zombies     int
	Heard       time.Duration // since anything was heard on any of them; -1: never
}

// peerHost is the remote address of zombies.
type peerHost struct {
	HostCount
	zombies int
	counted time.Time // the end of the census
	asked   time.Time // when the latest zombie began not to answer: see silentSince
}

// hostJitter is by how much two readings of one time may differ.
const hostJitter = time.Second

// silent reports whether nothing was heard from the address since its zombies do not answer.
func (h *peerHost) silent() bool { return !h.HeardAt.After(h.asked.Add(hostJitter)) }

// silentSince returns when a zombie with the record c, which was read at that time, began not to
// answer: the time of the first unanswered solicitation. It may have been idle for long before.
func (r *Rules) silentSince(c *abi.Conn, at time.Time) time.Time {
	silent := r.Age(c.Silent)
	if asked := r.askedFor(c, 1); asked >= 0 {
		silent = min(silent, asked)
	}
	return at.Add(-silent)
}

// hostOf returns the remote address of a connection.
func hostOf(c *abi.Conn) HostKey { return HostKey{c.Netns, c.Remote().Addr()} }

// ZombieHosts returns the remote addresses of zombies, at most limit, in no order.
func (t *Tracker) ZombieHosts(limit int) (hosts []HostKey) {
	seen := make(map[HostKey]bool)
	for _, tc := range t.tracked {
		if key := hostOf(&tc.conn); tc.verdict == Zombie && !seen[key] && len(hosts) < limit {
			seen[key] = true
			hosts = append(hosts, key)
		}
	}
	return hosts
}

// setHosts applies what a census, which ended at counted, counted of the connections to the
// addresses of zombies. It forgets the addresses that have no zombie any more.
func (t *Tracker) setHosts(counts map[HostKey]HostCount, counted time.Time) {
	t.hosts = make(map[HostKey]*peerHost)
	if len(counts) == 0 {
		return
	}
	for _, tc := range t.tracked {
		key := hostOf(&tc.conn)
		count, ok := counts[key]
		if tc.verdict != Zombie || !ok {
			continue
		}
		h := t.hosts[key]
		if h == nil {
			h = &peerHost{HostCount: count, counted: counted}
			t.hosts[key] = h
		}
		h.zombies++
		if asked := t.rules.silentSince(&tc.conn, tc.at); asked.After(h.asked) {
			h.asked = asked
		}
	}
}

// exposed returns how many connections have the risk peer_host_silent.
func (t *Tracker) exposed() (n int) {
	for _, h := range t.hosts {
		if h.silent() {
			n += h.Exposed
		}
	}
	return n
}

// askHost completes the description of a connection, whose record is c, by what the last census
// found of the others to its remote address.
func (t *Tracker) askHost(connection *Connection, c *abi.Conn) {
	if len(t.hosts) == 0 {
		return
	}
	h := t.hosts[hostOf(c)]
	if h == nil {
		return
	}
	switch connection.Verdict {
	case Zombie:
		connection.PeerHost = &PeerHost{Connections: h.Connections, Zombies: h.zombies, Heard: -1}
		if !h.HeardAt.IsZero() {
			connection.PeerHost.Heard = max(connection.At.Sub(h.HeardAt), 0)
		}
		if connection.Reason.Code == "" {
			connection.Reason = h.reason(connection)
		}
	case Idle, Unguarded:
		heard := connection.At.Add(-connection.Silent)
		if h.silent() && (connection.Silent < 0 || !heard.After(h.asked.Add(hostJitter))) {
			connection.Risks = append(connection.Risks, RiskPeerHostSilent)
		}
	}
}

// reason returns what the other connections to the address of a zombie say about its peer.
func (h *peerHost) reason(zombie *Connection) Reason {
	others := h.Connections - 1
	if others < 1 {
		return Reason{}
	}
	who, heard := fmt.Sprintf("%s to %s", otherConnections(others), zombie.Remote.Addr()), h.counted.Sub(h.HeardAt).Round(time.Second)
	switch {
	case h.HeardAt.IsZero():
		return Reason{ReasonPeerHostSilent, fmt.Sprintf("At the last census, none of %s had ever been heard, either.", who)}
	case h.silent():
		return Reason{ReasonPeerHostSilent, fmt.Sprintf("At the last census, none of %s had been heard for %v, either.", who, heard)}
	}
	return Reason{ReasonPeerHostAlive, fmt.Sprintf("At the last census, one at least of %s had been heard %v before, after this one stopped to answer: the host is there, and has lost this connection, or the way has. But NAT and load balancers share addresses, so that it may be another host.", who, heard)}
}

// otherConnections names so many other connections.
func otherConnections(n int) string {
	if n == 1 {
		return "one other connection"
	}
	return fmt.Sprintf("%d other connections", n)
}
