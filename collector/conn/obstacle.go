// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// obstacleRetry is the time after which the path of a connection is looked at again.
const obstacleRetry = 5 * time.Second

// Obstacle returns what keeps this host from sending on the path, or the peer's answer from
// coming back; the zero value if the path shows nothing. IPv6 packets leave with a local address that
// is gone, but no answer to them can arrive.
func (p *Path) Obstacle(f *Flow) Reason {
	local, d := p.LocalDevice, p.Route.Device
	switch {
	case local == nil:
		return Reason{ReasonLocalAddressGone, fmt.Sprintf("No device of this host's network namespace has the local address %s any more.", f.Local.Addr())}
	case p.Route.Errno != "" && !local.Up:
		return Reason{ReasonInterfaceDown, fmt.Sprintf("The device %s of the local address is down, and there is no route to %s.", local.Name, f.Remote.Addr())}
	case p.Route.Errno != "":
		return Reason{ReasonNoRoute, fmt.Sprintf("There is no route to %s (%s, %s).", f.Remote.Addr(), p.Route.Type, p.Route.Errno)}
	case d != nil && !d.Up:
		return Reason{ReasonInterfaceDown, fmt.Sprintf("The device %s of the route to %s is down.", d.Name, f.Remote.Addr())}
	case d != nil && !d.LowerUp:
		return Reason{ReasonInterfaceDown, fmt.Sprintf("The device %s of the route to %s has no carrier.", d.Name, f.Remote.Addr())}
	case p.Neighbour != nil && p.Neighbour.State == "failed":
		return Reason{ReasonNeighbourFailed, fmt.Sprintf("The next hop %s does not answer neighbour resolution (ARP, or neighbour discovery).", p.Neighbour.Addr)}
	}
	return Reason{}
}

// flowEnds is what the path of a connection depends on, but for its mark and ports.
type flowEnds struct {
	netns         uint32
	local, remote netip.Addr
}

// FlowInDoubt is a connection in trouble whose path should be looked at. Others have the same
// ends: Cookies has all of them.
type FlowInDoubt struct {
	Flow
	Netns   uint32 // inode number
	Cookies []uint64
}

// FlowsInDoubt returns at most limit flows whose paths should be looked at now: those of
// connections with unanswered solicitations, or with some that this host failed to send, whose
// last look began long enough ago.
func (t *Tracker) FlowsInDoubt(now time.Time, limit int) []FlowInDoubt {
	index := make(map[flowEnds]int)
	var flows []FlowInDoubt
	for cookie, tc := range t.tracked {
		c := &tc.conn
		if c.Unanswered == 0 && c.Attempts == 0 || now.Sub(tc.pathSearched) < obstacleRetry {
			continue
		}
		ends := flowEnds{c.Netns, c.Local().Addr(), c.Remote().Addr()}
		i, ok := index[ends]
		if !ok {
			if len(flows) >= limit {
				continue
			}
			i = len(flows)
			index[ends] = i
			flows = append(flows, FlowInDoubt{Flow: Flow{Cookie: cookie, Local: c.Local(), Remote: c.Remote()}, Netns: c.Netns})
		}
		flows[i].Cookies = append(flows[i].Cookies, cookie)
	}
	return flows
}

// setObstacles applies what looks at paths found, that began at that time.
func (t *Tracker) setObstacles(obstacles map[uint64]*Reason, at time.Time) {
	for cookie, o := range obstacles {
		tc := t.tracked[cookie]
		if tc == nil {
			continue
		}
		tc.pathSearched = at
		if o == nil {
			continue
		}
		tc.obstacle = *o
		if o.Code == "" && tc.conn.Unanswered > 0 {
			tc.asked = true
		}
	}
}

// DropsInDoubt reports whether it is useful to see why this host drops packets: something is
// unanswered, or failed to be sent, its path shows no reason or the host has dropped it, and no
// program has seen that a solicitation left.
func (t *Tracker) DropsInDoubt() bool {
	for _, tc := range t.tracked {
		if c := &tc.conn; (c.Unanswered > 0 || c.Attempts > 0) && !tc.sent && (!tc.obstructed() || tc.dropped) {
			return true
		}
	}
	return false
}

// obstructed reports whether the path has an obstacle that is not the peer's. A neighbour that
// does not answer may be the peer itself.
func (tc *tracked) obstructed() bool {
	return tc.obstacle.Code != "" && tc.obstacle.Code != ReasonNeighbourFailed
}

// withObstacle returns the verdict of a connection with the record c, where the rules have v.
// Solicitations that this host dropped, or that could not leave, or whose answers cannot arrive,
// say nothing about the peer. But a zombie stays one if it was asked before.
func (tc *tracked) withObstacle(v Verdict, c *abi.Conn) Verdict {
	dropped := tc.dropped || c.Drop >= abi.DropFilter
	if v == Zombie && (tc.obstructed() && !tc.asked || dropped && !tc.sent) {
		return Blocked
	}
	return v
}

// blame completes the description of a connection, whose record is c, by the obstacle on its
// path, which says more than the reason of a drop.
func (tc *tracked) blame(connection *Connection, c *abi.Conn) {
	v := connection.Verdict
	if v != Blocked && v != Zombie && v != Suspect {
		return
	}
	if tc.obstructed() || connection.Reason.Code == "" {
		connection.Reason = tc.obstacle
	}
	if v == Blocked {
		connection.Attempts = max(int(c.Attempts), int(c.Unanswered))
		connection.Unanswered = 0
	}
}

// dropReason returns why this host dropped what it tried to send last on a connection with the
// record c; the zero value if that was not seen.
func dropReason(c *abi.Conn) Reason {
	congested := Congested(c)
	switch {
	case c.Drop == abi.DropFilter && congested:
		return Reason{ReasonEgressDrop, "A netfilter rule at the egress hook of the device (nftables, table netdev) drops what this connection sends."}
	case c.Drop == abi.DropFilter:
		return Reason{ReasonOutputFilter, "A netfilter rule (nftables, iptables) in the output or postrouting hook drops what this connection sends."}
	case c.Drop == abi.DropCgroup:
		return Reason{ReasonOutputFilter, "A BPF program of a control group (cgroup_skb/egress, such as IPAddressDeny= of systemd) drops what this connection sends."}
	case c.Drop == abi.DropNoRoute:
		return Reason{ReasonNoRoute, fmt.Sprintf("The kernel finds no route to %s.", c.Remote().Addr())}
	case c.Drop == abi.DropTc:
		return Reason{ReasonEgressDrop, "A filter or BPF program at the egress of the device (tc) drops what this connection sends."}
	case c.Drop == abi.DropQueue:
		return Reason{ReasonEgressDrop, "The queueing discipline of the device (tc qdisc) drops what this connection sends."}
	case congested:
		return Reason{ReasonEgressDrop, "The device does not take what this connection sends: its queue, or a filter at its egress (tc, nftables), drops it."}
	}
	return Reason{}
}
