// SPDX-License-Identifier: Apache-2.0

package api

import "github.com/halfopen/halfopen/collector/conn"

// Path is how the kernel would send a packet of a connection now, see [conn.Path].
type Path struct {
	LocalDevice *Device    `json:"local_device"` // null: no device has the local address
	Route       Route      `json:"route"`
	Neighbour   *Neighbour `json:"neighbour"` // null: the route needs none
	Mark        *uint32    `json:"mark"`      // null: not known
}

// Route is the route to the remote address.
type Route struct {
	Type    string  `json:"type"`
	Errno   *string `json:"errno"`   // null: the kernel would send
	Gateway *string `json:"gateway"` // null: none
	Device  *Device `json:"device"`  // null: none
}

// Device is a network device. A byte of Name that is not UTF-8 is encoded as U+FFFD.
type Device struct {
	Name      string `json:"name"`
	Up        bool   `json:"up"`
	LowerUp   bool   `json:"lower_up"`
	OperState string `json:"operstate"`
	MTU       uint32 `json:"mtu"`
}

// Neighbour is an entry of the tables of ARP and neighbour discovery.
type Neighbour struct {
	IP    string `json:"ip"`
	State string `json:"state"` // "none": there is no entry
}

func newPath(p *conn.Path) *Path {
	if p == nil {
		return nil
	}
	out := &Path{
		LocalDevice: newDevice(p.LocalDevice),
		Route:       Route{Type: p.Route.Type, Errno: nonEmpty(p.Route.Errno), Device: newDevice(p.Route.Device)},
		Mark:        p.Mark,
	}
	if p.Route.Gateway.IsValid() {
		out.Route.Gateway = new(p.Route.Gateway.String())
	}
	if n := p.Neighbour; n != nil {
		out.Neighbour = &Neighbour{IP: n.Addr.String(), State: n.State}
	}
	return out
}

func newDevice(d *conn.Device) *Device {
	if d == nil {
		return nil
	}
	return new(Device(*d))
}
