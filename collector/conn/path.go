// SPDX-License-Identifier: Apache-2.0

package conn

import "net/netip"

// Flow identifies one connection in its network namespace.
type Flow struct {
	Cookie        uint64
	Local, Remote netip.AddrPort
}

// Path is how the kernel would send a packet of one connection at one moment: facts of its
// network namespace. What netfilter, tc or BPF programs do to packets is not among them.
type Path struct {
	// LocalDevice has the local address; nil: it is an address of no device.
	LocalDevice *Device
	Route       Route
	// Neighbour is the entry of the next hop; nil: there is no next hop, or its device
	// resolves no addresses.
	Neighbour *Neighbour
	// Mark is the socket's (SO_MARK); nil: not known, and rules for a mark were left out.
	Mark *uint32
}

// Route is the route to the remote address.
type Route struct {
	Type string // one of the constants below, or another type of a route by its name
	// Errno is the error by which the kernel refuses to send, such as ENETUNREACH; "":
	// it does not.
	Errno   string
	Gateway netip.Addr // zero: none
	Device  *Device    // nil if Errno is not ""
}

// Types of routes.
const (
	RouteUnicast     = "unicast"
	RouteLocal       = "local" // to an address of the same network namespace
	RouteBlackhole   = "blackhole"
	RouteUnreachable = "unreachable"
	RouteProhibit    = "prohibit"
	RouteNone        = "none" // there is no route
)

// Device is a network device.
type Device struct {
	Name      string // a user may have chosen it: any bytes but 0, '/' and white space
	Up        bool   // IFF_UP: it is switched on
	LowerUp   bool   // IFF_LOWER_UP: it has a carrier
	OperState string // as in /sys/class/net/NAME/operstate
	MTU       uint32
}

// Neighbour is an entry of the tables of ARP and neighbour discovery.
type Neighbour struct {
	Addr  netip.Addr
	State string // as in ip-neighbour(8), in lower case; "none": there is no entry
}
