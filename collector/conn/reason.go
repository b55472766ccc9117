// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"

	"github.com/halfopen/halfopen/bpf/abi"
)

// ReasonCode is the kind of a [Reason]. Its value is the name in the contract.
type ReasonCode string

// The reasons. Each is seen, or follows from something seen.
const (
	// ReasonPathMTU: segments of full size are lost, and smaller ones pass.
	ReasonPathMTU ReasonCode = "path_mtu"
	// ReasonOneWay: what this host sends is lost, and what the peer sends arrives.
	ReasonOneWay ReasonCode = "one_way"
	// ReasonNeverAccepted: the peer acknowledged the SYN, and nothing since: the listener there
	// does not accept the connection.
	ReasonNeverAccepted ReasonCode = "never_accepted"
	// ReasonPeerHostAlive: other connections to the address of a zombie were heard since.
	ReasonPeerHostAlive ReasonCode = "peer_host_alive"
	// ReasonPeerHostSilent: no other connection to the address of a zombie was heard since.
	ReasonPeerHostSilent ReasonCode = "peer_host_silent"
	// ReasonLocalAddressGone: no device of the network namespace has the local address.
	ReasonLocalAddressGone ReasonCode = "local_address_gone"
	// ReasonNoRoute: the network namespace has no route to the peer, or one that refuses.
	ReasonNoRoute ReasonCode = "no_route"
	// ReasonInterfaceDown: the device of the route is switched off, or has no carrier.
	ReasonInterfaceDown ReasonCode = "interface_down"
	// ReasonOutputFilter: netfilter, or a BPF program of a control group, drops what is sent.
	ReasonOutputFilter ReasonCode = "output_filter"
	// ReasonEgressDrop: the queue of the device, or a filter at its egress, drops what is sent.
	ReasonEgressDrop ReasonCode = "egress_drop"
	// ReasonNeighbourFailed: the next hop does not answer ARP or neighbour discovery.
	ReasonNeighbourFailed ReasonCode = "neighbour_failed"
)

// mostOptions is how many bytes of a segment TCP options can take, which c.Mss may not
// leave out.
const mostOptions = 40

// Reason says why a connection has its verdict.
type Reason struct {
	Code   ReasonCode // "": unknown
	Detail string     // in sentences
}

// reason returns the reason for a verdict on a connection with the record c.
//
// If full-sized segments are not acknowledged, the way loses either these, or everything
// that this host sends. In the latter case the peer does not get the acknowledgements of
// what it sends, and sends it again: that is out of the window, so the newest sign of life
// is a segment that TCP did not accept. If TCP accepted nothing since the handshake, the peer
// sends its SYN-ACK again.
func (r *Rules) reason(c *abi.Conn, v Verdict) Reason {
	switch v {
	case Blocked, Zombie, Suspect:
		return dropReason(c)
	case Stuck:
	default:
		return Reason{}
	}
	if repeatsHandshake(c) {
		return Reason{ReasonNeverAccepted, "Segments of the peer arrive here, but since the handshake it has acknowledged nothing: its listener does not accept the connection, which is so while its accept queue is full; or the way loses all that this host sends after its SYN."}
	}
	oneWay := Reason{ReasonOneWay, "The segments of the peer arrive here, but nothing that this host sends is acknowledged."}
	switch {
	case Evidence(c.Evidence) != EvidenceRetransmit:
		return oneWay
	case c.Retransmitted == 0 || c.Mss == 0:
		return Reason{}
	case c.Retransmitted+mostOptions < c.Mss || c.Silent < Accepted(c):
		return oneWay
	}
	return Reason{ReasonPathMTU, fmt.Sprintf("Full-sized segments (%d bytes of data) are not acknowledged, and smaller ones pass: the MTU of the path may be smaller than that of the route.", c.Mss)}
}
