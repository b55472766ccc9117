// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector/conn"
)

// flowQuestion asks the kernel, on a thread in the flow's network namespace, how it would
// send a packet of the flow.
type flowQuestion struct {
	flow          conn.Flow
	local, remote netip.Addr // v4-mapped addresses as IPv4
	family        uint8
	sockets       map[int]*nl.SocketHandle // of rtnetlink

	// Of the socket.
	device uint32  // the index of the device that it is bound to; 0: none
	uid    uint32  // of its user
	mark   *uint32 // nil: not known
}

func newFlowQuestion(flow conn.Flow) (*flowQuestion, error) {
	q := &flowQuestion{flow: flow, local: flow.Local.Addr().Unmap().WithZone(""), remote: flow.Remote.Addr().Unmap().WithZone("")}
	switch {
	case !q.local.IsValid() || q.local.BitLen() != q.remote.BitLen():
		return nil, fmt.Errorf("%s and %s are not the ends of a connection", flow.Local, flow.Remote)
	case q.local.Is4():
		q.family = unix.AF_INET
	default:
		q.family = unix.AF_INET6
	}
	return q, nil
}

// netlinkTimeout bounds the wait for one answer of the kernel, which takes microseconds.
var netlinkTimeout = unix.Timeval{Sec: 1}

// ask asks. The thread has no capabilities afterwards.
func (q *flowQuestion) ask() (*conn.Path, error) {
	switch err := q.askSocket(); {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("sock_diag does not find the socket: it has ended, or the kernel lacks CONFIG_INET_TCP_DIAG (%w)", err)
	case err != nil:
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	if err := dropThreadCapabilities(); err != nil {
		return nil, err
	}
	s, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	q.sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	local, err := q.localDevice()
	if err != nil {
		return nil, fmt.Errorf("find the local address: %w", err)
	}
	p := &conn.Path{Mark: q.mark}
	devices := make(map[uint32]link)
	if p.LocalDevice, err = q.linkOf(local, devices); err != nil {
		return nil, err
	}
	// The kernel has no route from an IPv4 address that is not local (ip_route_output_key).
	r, err := q.route(q.remote, q.family == unix.AF_INET6 || local != 0, 0)
	if err != nil {
		return nil, fmt.Errorf("find the route: %w", err)
	}
	p.Route = r.Route
	if p.Route.Device, err = q.linkOf(r.device, devices); err != nil {
		return nil, err
	}
	if r.Type == conn.RouteUnicast && devices[r.device].resolves() {
		p.Neighbour, err = q.neighbour(r)
	}
	return p, err
}

// dropThreadCapabilities empties the capability sets of the calling thread, which cannot
// get any back.
func dropThreadCapabilities() error {
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop the capabilities of the thread: %w", err)
	}
	return nil
}

// openNetlink opens a netlink socket in the calling thread's network namespace.
func openNetlink(protocol int) (*nl.NetlinkSocket, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := errors.Join(s.SetSendTimeout(&netlinkTimeout), s.SetReceiveTimeout(&netlinkTimeout)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// one returns the one message that the kernel answers, and its attributes after a header of
// that length.
func one(sockets map[int]*nl.SocketHandle, protocol int, req *nl.NetlinkRequest, header int) ([]byte, map[uint16]syscall.NetlinkRouteAttr, error) {
	req.Sockets = sockets
	messages, err := req.Execute(protocol, 0)
	if err != nil {
		return nil, nil, err
	}
	if len(messages) != 1 || len(messages[0]) < header {
		return nil, nil, fmt.Errorf("%d answers to one question", len(messages))
	}
	attributes, err := nl.ParseRouteAttrAsMap(messages[0][header:])
	return messages[0], attributes, err
}

// askSocket reads from sock_diag what of the socket decides about its route. It takes
// CAP_NET_ADMIN to read the mark.
func (q *flowQuestion) askSocket() error {
	s, err := openNetlink(unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	req.AddRawData(q.diagRequest())
	const header = 72 // struct inet_diag_msg
	m, attributes, err := one(map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}, unix.NETLINK_INET_DIAG, req, header)
	if err != nil {
		return err
	}
	q.device, q.uid = binary.NativeEndian.Uint32(m[40:]), binary.NativeEndian.Uint32(m[64:])
	if a, ok := attributes[netlink.INET_DIAG_MARK]; ok && len(a.Value) == 4 {
		q.mark = new(binary.NativeEndian.Uint32(a.Value))
	}
	return nil
}

// diagRequest returns a struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h) for the
// flow's socket, without INET_DIAG_INFO, for which the kernel would lock the socket.
func (q *flowQuestion) diagRequest() []byte {
	b := make([]byte, 56)
	b[0], b[1] = q.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], 1<<32-1) // in all states
	binary.BigEndian.PutUint16(b[8:], q.flow.Local.Port())
	binary.BigEndian.PutUint16(b[10:], q.flow.Remote.Port())
	copy(b[12:28], q.local.AsSlice())
	copy(b[28:44], q.remote.AsSlice())
	binary.NativeEndian.PutUint32(b[48:], uint32(q.flow.Cookie))
	binary.NativeEndian.PutUint32(b[52:], uint32(q.flow.Cookie>>32))
	return b
}

// routed is a route, and the index of its device; 0: none.
type routed struct {
	conn.Route
	device uint32
}

// route asks for the route to an address, from the local one if that is wanted. flags are
// those of struct rtmsg.
func (q *flowQuestion) route(to netip.Addr, withSource bool, flags uint32) (routed, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	bits := uint8(to.BitLen())
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: q.family, Dst_len: bits, Flags: flags}}
	req.AddData(msg)
	add := func(attribute int, value []byte) { req.AddData(nl.NewRtAttr(attribute, value)) }
	add(unix.RTA_DST, to.AsSlice())
	if withSource {
		msg.Src_len = bits
		add(unix.RTA_SRC, q.local.AsSlice())
	}
	if q.device != 0 {
		add(unix.RTA_OIF, nl.Uint32Attr(q.device))
	}
	if q.mark != nil {
		add(unix.RTA_MARK, nl.Uint32Attr(*q.mark))
	}
	add(unix.RTA_UID, nl.Uint32Attr(q.uid))
	add(unix.RTA_IP_PROTO, []byte{unix.IPPROTO_TCP})
	add(unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, q.flow.Local.Port()))
	add(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, q.flow.Remote.Port()))
	m, attributes, err := one(q.sockets, unix.NETLINK_ROUTE, req, unix.SizeofRtMsg)
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if kind, refused := refusedRoutes[errno]; refused {
			return routed{Route: conn.Route{Type: kind, Errno: unix.ErrnoName(errno)}}, nil
		}
	}
	if err != nil {
		return routed{}, err
	}
	kind := nl.DeserializeRtMsg(m).Type
	r := routed{Route: conn.Route{Type: routeTypes[kind]}}
	if r.Type == "" {
		r.Type = fmt.Sprintf("type %d", kind)
	}
	if a := attributes[unix.RTA_OIF].Value; len(a) == 4 {
		r.device = binary.NativeEndian.Uint32(a)
	}
	r.Gateway, _ = netip.AddrFromSlice(attributes[unix.RTA_GATEWAY].Value)
	if via := attributes[unix.RTA_VIA].Value; len(via) > 2 { // of the other family
		r.Gateway, _ = netip.AddrFromSlice(via[2:])
	}
	return r, nil
}

// refusedRoutes are the errors by which the kernel answers where it would not send
// (fib_props in net/ipv4/fib_semantics.c, fib6_prop in net/ipv6/route.c).
var refusedRoutes = map[syscall.Errno]string{
	unix.EINVAL:       conn.RouteBlackhole,
	unix.EHOSTUNREACH: conn.RouteUnreachable,
	unix.EACCES:       conn.RouteProhibit,
	unix.ENETUNREACH:  conn.RouteNone,
}

var routeTypes = map[uint8]string{
	unix.RTN_UNICAST: conn.RouteUnicast, unix.RTN_LOCAL: conn.RouteLocal,
	unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast",
	unix.RTN_BLACKHOLE: conn.RouteBlackhole, unix.RTN_UNREACHABLE: conn.RouteUnreachable, unix.RTN_PROHIBIT: conn.RouteProhibit,
}

// maxAddresses is the most addresses of a namespace that localDevice reads.
const maxAddresses = 4096

// localDevice returns the index of the device that has the local address, 0 if none has.
func (q *flowQuestion) localDevice() (uint32, error) {
	// The entry of the table "local" has the device, also where a route makes a whole
	// prefix local, as for 127.0.0.0/8.
	r, err := q.route(q.local, false, unix.RTM_F_FIB_MATCH)
	if err != nil || r.Type == conn.RouteLocal {
		return r.device, err
	}
	// The device may be in a VRF, whose table this is not, or the address not usable yet.
	s, err := openNetlink(unix.NETLINK_ROUTE) // its own: the rest of a long answer is left unread
	if err != nil {
		return 0, err
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(int(q.family)))
	if err := s.Send(req); err != nil {
		return 0, err
	}
	for n := 0; n <= maxAddresses; {
		messages, _, err := s.Receive()
		if err != nil {
			return 0, err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return 0, nil
			case unix.NLMSG_ERROR:
				return 0, fmt.Errorf("list the addresses: %w", unix.EIO)
			}
			n++
			if device, ok := q.isLocal(m.Data); ok {
				return device, nil
			}
		}
	}
	return 0, fmt.Errorf("its network namespace has more than %d addresses", maxAddresses)
}

// isLocal reports whether a message of RTM_GETADDR has the local address, and on which
// device.
func (q *flowQuestion) isLocal(m []byte) (device uint32, ok bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return 0, false
	}
	attributes, err := nl.ParseRouteAttrAsMap(m[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, false
	}
	a, has := attributes[unix.IFA_LOCAL] // of a point-to-point device IFA_ADDRESS is the peer
	if !has {
		a = attributes[unix.IFA_ADDRESS]
	}
	addr, _ := netip.AddrFromSlice(a.Value)
	return nl.DeserializeIfAddrmsg(m).Index, addr == q.local
}

// link is a device, and its flags (IFF_...).
type link struct {
	device *conn.Device
	flags  uint32
}

// resolves reports whether the device resolves the addresses of next hops.
func (l link) resolves() bool {
	return l.flags&(unix.IFF_NOARP|unix.IFF_LOOPBACK|unix.IFF_POINTOPOINT) == 0
}

// operStates are the values of IFLA_OPERSTATE (RFC 2863), as in sysfs.
var operStates = []string{"unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"}

// linkOf returns the device of that index, nil for 0. known has those that were read.
func (q *flowQuestion) linkOf(index uint32, known map[uint32]link) (*conn.Device, error) {
	if l, ok := known[index]; ok || index == 0 {
		return l.device, nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	m, attributes, err := one(q.sockets, unix.NETLINK_ROUTE, req, unix.SizeofIfInfomsg)
	if err != nil {
		return nil, fmt.Errorf("read device %d: %w", index, err)
	}
	flags := nl.DeserializeIfInfomsg(m).Flags
	d := &conn.Device{
		Name: unix.ByteSliceToString(attributes[unix.IFLA_IFNAME].Value),
		Up:   flags&unix.IFF_UP != 0, LowerUp: flags&unix.IFF_LOWER_UP != 0, OperState: operStates[0],
	}
	if a := attributes[unix.IFLA_MTU].Value; len(a) == 4 {
		d.MTU = binary.NativeEndian.Uint32(a)
	}
	if a := attributes[unix.IFLA_OPERSTATE].Value; len(a) == 1 && int(a[0]) < len(operStates) {
		d.OperState = operStates[a[0]]
	}
	known[index] = link{d, flags}
	return d, nil
}

// neighbourStates are the names of NUD_... (ip-neighbour(8)).
var neighbourStates = map[uint16]string{
	netlink.NUD_NONE: "none", netlink.NUD_INCOMPLETE: "incomplete", netlink.NUD_REACHABLE: "reachable", netlink.NUD_STALE: "stale",
	netlink.NUD_DELAY: "delay", netlink.NUD_PROBE: "probe", netlink.NUD_FAILED: "failed", netlink.NUD_NOARP: "noarp", netlink.NUD_PERMANENT: "permanent",
}

// neighbour returns the entry of the route's next hop.
func (q *flowQuestion) neighbour(r routed) (*conn.Neighbour, error) {
	n := &conn.Neighbour{Addr: r.Gateway, State: "none"}
	if !r.Gateway.IsValid() {
		n.Addr = q.remote
	}
	family := uint8(unix.AF_INET)
	if n.Addr.Is6() {
		family = unix.AF_INET6
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: family, Index: r.device})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, n.Addr.AsSlice()))
	m, _, err := one(q.sockets, unix.NETLINK_ROUTE, req, unix.SizeofNdMsg)
	switch {
	case errors.Is(err, unix.ENOENT):
		return n, nil
	case err != nil:
		return nil, fmt.Errorf("read the neighbour: %w", err)
	}
	if state, ok := neighbourStates[binary.NativeEndian.Uint16(m[8:])]; ok { // ndm_state
		n.State = state
	}
	return n, nil
}
