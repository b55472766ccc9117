// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"

	"github.com/halfopen/halfopen/collector/conn"
)

// adviseStuck advises on a connection whose peer is heard and acknowledges nothing. The
// path is to be mended, and no option of the socket does that.
func (x *explainer) adviseStuck() (string, []Advice) {
	assessment := "The peer is there, so keepalive would change nothing: look at the path to it."
	var advice []Advice
	switch x.conn.Reason.Code {
	case conn.ReasonNeverAccepted:
		assessment = "The peer is there, so keepalive would change nothing: look at its listener first, then at the path to it."
		advice = append(x.adviseNeverAccepted(), x.adviseOneWay()...)
	case conn.ReasonOneWay:
		advice = x.adviseOneWay()
	case conn.ReasonPathMTU:
		advice = x.advisePathMTU()
	default:
		advice = append(x.advisePathMTU(), x.adviseOneWay()...)
	}
	if x.conn.Evidence == conn.EvidenceRetransmit && x.retransmitsFor() > soon {
		advice = append(advice, x.boundRetransmission()[0])
	}
	return assessment, advice
}

// adviseNeverAccepted advises on a connection that the peer's listener does not accept.
func (x *explainer) adviseNeverAccepted() []Advice {
	port := x.conn.Remote.Port()
	return []Advice{{
		Text: fmt.Sprintf("On the peer's host, see whether the accept queue of the listener on port %d is full (Recv-Q above Send-Q), and whether ListenOverflows grows. If so, its application accepts too slowly, or not at all: find out what it waits for, or restart it. A longer queue (the backlog of listen(2), up to net.core.somaxconn) helps only against bursts.", port),
		How:  []string{fmt.Sprintf("ss -ltn sport = :%d", port), "nstat -az TcpExtListenOverflows TcpExtListenDrops", "halfopen list --risk accept_queue_full"},
	}}
}

// advisePathMTU advises on a path that loses large segments.
func (x *explainer) advisePathMTU() []Advice {
	return []Advice{
		x.inside(Advice{
			Text: "Compare the MTU of the route and its device with what the path lets through. A tunnel or overlay (VXLAN, WireGuard, IPsec) on the way takes 50 to 80 bytes of each packet: the devices whose packets it carries need a smaller MTU.",
		}, "ip route get "+x.conn.Remote.Addr().String(), "tracepath -n "+x.conn.Remote.Addr().String()),
		x.inside(Advice{
			Text: "Or let the kernel try smaller segments where these are lost, for all sockets of " + x.namespace() + "; this one follows at one of its next retransmissions.",
		}, sysctl("tcp_mtu_probing", 1)),
		{
			Text: "Or, for connections made later, clamp the MSS on the router where the smaller MTU begins. And let ICMP through: `fragmentation needed` (IPv4) and `packet too big` (IPv6) tell the sender.",
			How:  []string{"nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu"},
		},
	}
}

// adviseOneWay advises on a path that lets segments through to this host only.
func (x *explainer) adviseOneWay() []Advice {
	return []Advice{
		{
			Text: "On the peer's host, see whether the segments of this host arrive. If they do, its kernel does not accept them, or its answers are lost.",
			How:  []string{fmt.Sprintf("tcpdump -ni any host %s and tcp port %d", x.conn.Local.Addr(), x.conn.Local.Port())},
		},
		x.inside(Advice{
			Text: "If they do not, look for what lets only one direction through: a filter, a NAT or load balancer that has forgotten the connection, or a route of one direction. This host can be that, too.",
		}, "ip route get "+x.conn.Remote.Addr().String(), "nft list ruleset"),
	}
}

// adviseBlocked advises on a connection of which this host lets nothing out.
func (x *explainer) adviseBlocked() (string, []Advice) {
	local, remote := x.conn.Local.Addr(), x.conn.Remote.Addr()
	path := x.inside(Advice{
		Text: fmt.Sprintf("Is there a route to %s, does this host still have the address %s, and is the link up?", remote, local),
	}, fmt.Sprintf("ip route get %s from %s", remote, local), "ip addr", "ip -s link")
	advice := []Advice{path, x.inside(Advice{
		Text: "Does an output filter drop the segments, or the queue of the device?",
	}, "nft list ruleset", "tc -s qdisc")}
	switch x.conn.Reason.Code {
	case conn.ReasonNoRoute, conn.ReasonLocalAddressGone, conn.ReasonInterfaceDown:
		advice = []Advice{path}
	case conn.ReasonOutputFilter:
		advice = []Advice{x.inside(Advice{
			Text: "Find the rule that drops the segments: in a chain of the hook output or postrouting, or in a BPF program of a control group.",
		}, "nft list ruleset", "bpftool cgroup tree")}
	case conn.ReasonEgressDrop:
		advice = []Advice{x.inside(Advice{
			Text: "Look at the device of the route: its queueing discipline drops the segments (`dropped` grows), or a filter or BPF program at its egress does.",
		}, fmt.Sprintf("ip route get %s from %s", remote, local), "tc -s qdisc", "bpftool net", "nft list ruleset netdev")}
	}
	return "This host sends nothing, so no setting of the connection changes anything: find what keeps the segments back here.", advice
}
