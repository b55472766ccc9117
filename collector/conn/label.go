// SPDX-License-Identifier: Apache-2.0

package conn

import "strconv"

// OwnerLabel has the labels of one series of TrackerStats.ZombiesByOwner or TroubleByOwner, or
// of the connections at risk by owner.
type OwnerLabel struct {
	Name       string // of the owner, any bytes; "": not known
	RemotePort string // of a service, decimal; "": the peer is a client
	// Namespace, Pod and Container are those of the owner's Cgroup.
	Namespace, Pod, Container string
	Verdict                   string // in TroubleByOwner, else ""
	Risk                      string // of connections at risk, else ""
	Excluded                  string // ExcludedOwner: see [Tracker.ExcludeOwners]; else ""
}

// ExcludedOwner is the value of the label of connections that alerts leave out.
const ExcludedOwner = "true"

// OtherOwners is the name under which the owners without a series of their own are summed up.
const OtherOwners = "other"

// ephemeralFrom is the first port of Linux's default ip_local_port_range.
const ephemeralFrom = 32768

// servicePort returns a remote port as a label: the port of a service, or "" for the
// port of a client, of which there are too many.
func servicePort(port uint16) string {
	if port >= ephemeralFrom {
		return ""
	}
	return strconv.Itoa(int(port))
}
