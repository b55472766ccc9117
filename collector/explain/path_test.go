// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/collector/conn"
)

func TestPathInSentences(t *testing.T) {
	flow := &conn.Flow{Local: netip.MustParseAddrPort("10.9.0.1:1"), Remote: netip.MustParseAddrPort("10.9.0.2:2")}
	gateway := netip.MustParseAddr("10.0.0.254")
	eth0 := &conn.Device{Name: "eth0", Up: true, LowerUp: true, OperState: "up", MTU: 1500}
	down := &conn.Device{Name: "eth1", OperState: "down", MTU: 1500}
	cable := &conn.Device{Name: "eth2", Up: true, OperState: "down", MTU: 1500}
	dormant := &conn.Device{Name: "eth3", Up: true, LowerUp: true, OperState: "dormant", MTU: 1500}
	none := conn.Route{Type: conn.RouteNone, Errno: "ENETUNREACH"}
	for _, tt := range []struct {
		name    string
		path    *conn.Path
		unknown error
		want    string
	}{
		{"not known", nil, errors.New("it hangs"), "How the kernel would send to the peer is not known: it hangs."},
		{"all is well", &conn.Path{
			LocalDevice: eth0, Route: conn.Route{Type: conn.RouteUnicast, Gateway: gateway, Device: eth0},
			Neighbour: &conn.Neighbour{Addr: gateway, State: "reachable"}, Mark: new(uint32),
		}, nil, "Local address 10.9.0.1 is on eth0. Route to 10.9.0.2 by gateway 10.0.0.254 on eth0 (up, MTU 1500). Neighbour 10.0.0.254 REACHABLE."},
		{"nothing is", &conn.Path{Route: none, Mark: new(uint32)}, nil,
			"Local address 10.9.0.1 is on no device of its network namespace. No route to 10.9.0.2 (ENETUNREACH)."},
		{"the device is down", &conn.Path{LocalDevice: down, Route: none, Mark: new(uint32)}, nil,
			"Local address 10.9.0.1 is on eth1. No route to 10.9.0.2 (ENETUNREACH). eth1 is down."},
		{"two devices are", &conn.Path{LocalDevice: down, Route: conn.Route{Type: conn.RouteUnicast, Device: cable}, Mark: new(uint32)}, nil,
			"Local address 10.9.0.1 is on eth1. Route to 10.9.0.2 on eth2 (no carrier, MTU 1500). eth1 is down. eth2 is up and has no carrier."},
		{"one device twice", &conn.Path{LocalDevice: dormant, Route: conn.Route{Type: conn.RouteUnicast, Device: dormant}, Mark: new(uint32)}, nil,
			"Local address 10.9.0.1 is on eth3. Route to 10.9.0.2 on eth3 (dormant, MTU 1500). eth3 is dormant."},
		{"a blackhole", &conn.Path{LocalDevice: eth0, Route: conn.Route{Type: conn.RouteBlackhole, Errno: "EINVAL"}, Mark: new(uint32(42))}, nil,
			"Local address 10.9.0.1 is on eth0. No route to 10.9.0.2 (blackhole, EINVAL). The socket has the mark 0x2a."},
		{"a peer of its own", &conn.Path{LocalDevice: eth0, Route: conn.Route{Type: conn.RouteLocal, Device: eth0}, Mark: new(uint32)}, nil,
			"Local address 10.9.0.1 is on eth0. 10.9.0.2 is an address of the same network namespace."},
		{"no neighbour, no mark", &conn.Path{LocalDevice: eth0, Route: conn.Route{Type: "anycast", Device: eth0}, Neighbour: &conn.Neighbour{Addr: gateway, State: "none"}}, nil,
			"Local address 10.9.0.1 is on eth0. Route to 10.9.0.2 (anycast) on eth0 (up, MTU 1500). No neighbour entry for 10.0.0.254. " +
				"The socket's mark is not known (CAP_NET_ADMIN): rules for a mark are left out."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(Path(flow, tt.path, tt.unknown), " "); got != tt.want {
				t.Errorf("%s\nexpected %s", got, tt.want)
			}
		})
	}
}
