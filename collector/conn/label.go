// SPDX-License-Identifier: Apache-2.0

package conn

import "strconv"

// OwnerLabel is a series of Stats.ZombiesByOwner.
type OwnerLabel struct {
	Name       string // any bytes; "" where nothing holds the socket
	RemotePort string // "" where the peer is a client
}

// ephemeralFrom is where Linux's default ip_local_port_range begins.
const ephemeralFrom = 32768

// servicePort is a remote port fit for a label: that of a service, "" for that
// of a client.
func servicePort(port uint16) string {
	if port >= ephemeralFrom {
		return ""
	}
	return strconv.Itoa(int(port))
}
