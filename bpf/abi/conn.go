// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package abi

import "net/netip"

// IdleBuckets is the largest number of upper bounds that [CensusCounts].Idle has room
// for. The element after the last bound counts the connections above it.
const IdleBuckets = len(CensusCounts{}.Idle) - 1

// Total returns how many sockets a census counted.
func (n *CensusCounts) Total() (sockets uint64) {
	for _, classes := range n.Sockets {
		for _, count := range classes {
			sockets += count
		}
	}
	return sockets
}

// Local returns the connection's own address and port. For an IPv4 connection of an
// IPv6 socket the address is the IPv4 address, as on the wire. The result is the zero
// AddrPort if the address family is unknown.
func (c *Conn) Local() netip.AddrPort { return addrPort(c.Family, &c.Laddr, c.Lport) }

// Remote returns the peer's address and port, as [Conn.Local] does.
func (c *Conn) Remote() netip.AddrPort { return addrPort(c.Family, &c.Raddr, c.Rport) }

// ListenDrops returns how many SYNs, and ACKs that end a handshake, a listener has dropped
// (modulo 1<<32).
func (c *Conn) ListenDrops() uint32 { return c.TotalRetrans }

func addrPort(family uint16, a *[16]uint8, port uint16) netip.AddrPort {
	switch family {
	case FamilyInet:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[:4])), port)
	case FamilyInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(*a).Unmap(), port)
	}
	return netip.AddrPort{}
}
