// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"strings"

	"github.com/halfopen/halfopen/collector/conn"
)

// Path says in sentences how the kernel would send a packet of the flow; if p is nil, why
// that is not known.
func Path(flow *conn.Flow, p *conn.Path, unknown error) []string {
	if p == nil {
		return []string{fmt.Sprintf("How the kernel would send to the peer is not known: %v.", unknown)}
	}
	local := fmt.Sprintf("Local address %s is on no device of its network namespace.", flow.Local.Addr())
	if p.LocalDevice != nil {
		local = fmt.Sprintf("Local address %s is on %s.", flow.Local.Addr(), p.LocalDevice.Name)
	}
	says := []string{local, route(flow, &p.Route)}
	for _, d := range []*conn.Device{p.LocalDevice, p.Route.Device} {
		if s := trouble(d); s != "" && says[len(says)-1] != s {
			says = append(says, s)
		}
	}
	switch n := p.Neighbour; {
	case n == nil:
	case n.State == "none":
		says = append(says, fmt.Sprintf("No neighbour entry for %s.", n.Addr))
	default:
		says = append(says, fmt.Sprintf("Neighbour %s %s.", n.Addr, strings.ToUpper(n.State)))
	}
	switch m := p.Mark; {
	case m == nil:
		says = append(says, "The socket's mark is not known (CAP_NET_ADMIN): rules for a mark are left out.")
	case *m != 0:
		says = append(says, fmt.Sprintf("The socket has the mark %#x.", *m))
	}
	return says
}

// route says what the route is.
func route(flow *conn.Flow, r *conn.Route) string {
	to := flow.Remote.Addr()
	switch {
	case r.Type == conn.RouteNone:
		return fmt.Sprintf("No route to %s (%s).", to, r.Errno)
	case r.Errno != "":
		return fmt.Sprintf("No route to %s (%s, %s).", to, r.Type, r.Errno)
	}
	how := fmt.Sprintf("Route to %s", to)
	switch {
	case r.Type == conn.RouteLocal:
		return fmt.Sprintf("%s is an address of the same network namespace.", to)
	case r.Gateway.IsValid():
		how += fmt.Sprintf(" by gateway %s", r.Gateway)
	case r.Type != conn.RouteUnicast:
		how += fmt.Sprintf(" (%s)", r.Type)
	}
	if r.Device == nil {
		return how + "."
	}
	return fmt.Sprintf("%s on %s (%s, MTU %d).", how, r.Device.Name, state(r.Device), r.Device.MTU)
}

// state returns the state of a device in a word or two.
func state(d *conn.Device) string {
	switch {
	case !d.Up:
		return "down"
	case !d.LowerUp:
		return "no carrier"
	case d.OperState != "up" && d.OperState != "unknown": // that is up, for a device that does not say
		return d.OperState
	}
	return "up"
}

// trouble says that a device is not up; "" if it is, or if there is no device.
func trouble(d *conn.Device) string {
	if d == nil {
		return ""
	}
	switch s := state(d); s {
	case "up":
		return ""
	case "no carrier":
		return fmt.Sprintf("%s is up and has no carrier.", d.Name)
	default:
		return fmt.Sprintf("%s is %s.", d.Name, s)
	}
}
