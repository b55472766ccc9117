// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package abi

import (
	"net/netip"
	"testing"
)

func TestAddressesOfAConnection(t *testing.T) {
	for name, test := range map[string]struct {
		family       uint16
		laddr, raddr [16]uint8
		local, peer  string // "" is the zero value
	}{
		"IPv4": {
			family: FamilyInet, laddr: [16]uint8{192, 0, 2, 1}, raddr: [16]uint8{192, 0, 2, 2},
			local: "192.0.2.1:80", peer: "192.0.2.2:40000",
		},
		"IPv6": {
			family: FamilyInet6, laddr: netip.MustParseAddr("2001:db8::1").As16(), raddr: netip.MustParseAddr("2001:db8::2").As16(),
			local: "[2001:db8::1]:80", peer: "[2001:db8::2]:40000",
		},
		"IPv4 by an IPv6 socket": {
			family: FamilyInet6, laddr: netip.MustParseAddr("::ffff:192.0.2.1").As16(), raddr: netip.MustParseAddr("::ffff:192.0.2.2").As16(),
			local: "192.0.2.1:80", peer: "192.0.2.2:40000",
		},
		"an unknown family": {family: 1},
	} {
		c := Conn{Family: test.family, Laddr: test.laddr, Raddr: test.raddr, Lport: 80, Rport: 40000}
		for got, want := range map[netip.AddrPort]string{c.Local(): test.local, c.Remote(): test.peer} {
			if want == "" && got != (netip.AddrPort{}) || want != "" && got.String() != want {
				t.Errorf("%s: %v, expected %q", name, got, want)
			}
		}
	}
}
