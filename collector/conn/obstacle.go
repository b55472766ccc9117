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

// withObstacle returns the verdict of a connection whose path has an obstacle, where the
// rules have v. Solicitations that could not leave, or whose answers cannot arrive, say
// nothing about the peer. But a zombie stays one: it was asked before. And a neighbour that
// does not answer may be the peer itself.
func (tc *tracked) withObstacle(v Verdict) Verdict {
	if v != Zombie || tc.asked || tc.obstacle.Code == "" || tc.obstacle.Code == ReasonNeighbourFailed {
		return v
	}
	return Blocked
}

// blame completes the description of a connection, whose record is c, by the obstacle on its
// path.
func (tc *tracked) blame(connection *Connection, c *abi.Conn) {
	if tc.obstacle.Code == "" || connection.Verdict != Blocked && connection.Verdict != Zombie {
		return
	}
	connection.Reason = tc.obstacle
	if connection.Verdict == Blocked {
		connection.Attempts = max(int(c.Attempts), int(c.Unanswered))
		connection.Unanswered = 0
	}
}
