// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pathObject is `path` of a connection in the API.
type pathObject struct {
	LocalDevice *deviceObject `json:"local_device"`
	Route       struct {
		Type    string        `json:"type"`
		Errno   string        `json:"errno"`
		Gateway string        `json:"gateway"`
		Device  *deviceObject `json:"device"`
	} `json:"route"`
	Neighbour *struct {
		IP    string `json:"ip"`
		State string `json:"state"`
	} `json:"neighbour"`
	Mark *uint32 `json:"mark"`
}

type deviceObject struct {
	Name      string `json:"name"`
	Up        bool   `json:"up"`
	LowerUp   bool   `json:"lower_up"`
	OperState string `json:"operstate"`
	MTU       int    `json:"mtu"`
}

type withPath struct {
	Path        *pathObject `json:"path"`
	Explanation struct {
		Path []string `json:"path"`
	} `json:"explanation"`
}

// A pathCase is what was changed in the client's namespace under a connection, and what
// becomes of its path.
type pathCase struct {
	name   string
	family string // "": both
	// change runs on a thread in the namespace.
	change func(n *network, eth0 netlink.Link) error
	route  string   // type and errno
	says   []string // regular sentences of the explanation, L the local and R the remote address
	mapped bool     // the socket is of IPv6, with v4-mapped addresses
	mark   int      // of the socket
}

// host returns the prefix of one address.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// subnet returns the prefix of the network's link.
func (n *network) subnet() *net.IPNet {
	a, bits := n.client(), 24
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// client returns the client's address.
func (n *network) client() netip.Addr {
	if n.family == "ipv6" {
		return n.Client.Addr6()
	}
	return n.Client.Addr4()
}

// routeOf returns a change that adds a route of a type to the server.
func routeOf(kind int) func(*network, netlink.Link) error {
	return func(n *network, _ netlink.Link) error {
		return netlink.RouteAdd(&netlink.Route{Dst: host(n.server(0).Addr()), Type: kind})
	}
}

// deleteSubnet deletes the route of the link's own subnet.
func deleteSubnet(n *network, eth0 netlink.Link) error {
	subnet := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: n.subnet()}
	if n.family == "ipv4" {
		subnet.Scope = netlink.SCOPE_LINK
	}
	return netlink.RouteDel(subnet)
}

var pathCases = []pathCase{
	{name: "all is well", route: "unicast", says: []string{
		"Local address L is on eth0.", "Route to R on eth0 (up, MTU 1500).", "Neighbour R REACHABLE."}},
	{name: "v4-mapped addresses", family: "ipv4", mapped: true, route: "unicast", says: []string{
		"Local address L is on eth0.", "Route to R on eth0 (up, MTU 1500).", "Neighbour R REACHABLE."}},
	{name: "a gateway", route: "unicast", change: func(n *network, eth0 netlink.Link) error {
		gateway := n.server(0).Addr().Next()
		return errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: host(n.server(0).Addr()), Gw: gateway.AsSlice()}),
			netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: gateway.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}),
		)
	}, says: []string{"Local address L is on eth0.", "Route to R by gateway G on eth0 (up, MTU 1500).", "Neighbour G PERMANENT."}},
	{name: "no local address", change: deleteAddress, route: "unicast", says: []string{
		"Local address L is on no device of its network namespace.", "Route to R on eth0 (up, MTU 1500)."}},
	{name: "a local route", change: func(n *network, eth0 netlink.Link) error {
		net := n.subnet()
		net.IP = n.client().AsSlice()
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrDel(eth0, &netlink.Addr{IPNet: net}), netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: n.subnet()}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: host(n.client()), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}))
	}, route: "unicast", says: []string{"Local address L is on lo.", "Route to R on eth0 (up, MTU 1500)."}},
	{name: "no route", change: deleteSubnet, route: "none ENETUNREACH", says: []string{"Local address L is on eth0.", "No route to R (ENETUNREACH)."}},
	{name: "a blackhole", change: routeOf(unix.RTN_BLACKHOLE), route: "blackhole EINVAL", says: []string{"No route to R (blackhole, EINVAL)."}},
	{name: "an unreachable route", change: routeOf(unix.RTN_UNREACHABLE), route: "unreachable EHOSTUNREACH", says: []string{"No route to R (unreachable, EHOSTUNREACH)."}},
	{name: "a prohibited route", change: routeOf(unix.RTN_PROHIBIT), route: "prohibit EACCES", says: []string{"No route to R (prohibit, EACCES)."}},
	// An IPv6 address goes with the link.
	{name: "the link is down", family: "ipv4", change: func(_ *network, eth0 netlink.Link) error { return netlink.LinkSetDown(eth0) },
		route: "none ENETUNREACH", says: []string{"Local address L is on eth0.", "No route to R (ENETUNREACH).", "eth0 is down."}},
	{name: "the link is down", family: "ipv6", change: func(_ *network, eth0 netlink.Link) error { return netlink.LinkSetDown(eth0) },
		route: "none ENETUNREACH", says: []string{"Local address L is on no device of its network namespace.", "No route to R (ENETUNREACH)."}},
	{name: "no carrier", change: func(n *network, _ netlink.Link) error {
		return n.Server.Do(func() error {
			peer, err := netlink.LinkByName("eth0")
			return errors.Join(err, netlink.LinkSetDown(peer))
		})
	}, says: []string{"Local address L is on eth0.", "eth0 is up and has no carrier."}},
	{name: "another MTU", change: func(_ *network, eth0 netlink.Link) error { return netlink.LinkSetMTU(eth0, 1400) },
		route: "unicast", says: []string{"Route to R on eth0 (up, MTU 1400)."}},
	{name: "the neighbour failed", change: func(n *network, eth0 netlink.Link) error {
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: n.server(0).Addr().AsSlice(), State: netlink.NUD_FAILED})
	}, route: "unicast", says: []string{"Neighbour R FAILED."}},
	{name: "no neighbour", change: func(n *network, eth0 netlink.Link) error {
		neigh := &netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: n.server(0).Addr().AsSlice()}
		return errors.Join(netlink.NeighDel(neigh))
	}, route: "unicast", says: []string{"Route to R on eth0 (up, MTU 1500)."}},
	{name: "a rule for the mark", mark: 42, change: func(n *network, _ netlink.Link) error {
		rule := netlink.NewRule()
		rule.Mark, rule.Table, rule.Priority = 42, 100, 100
		rule.Family = netlink.FAMILY_V4
		if n.family == "ipv6" {
			rule.Family = netlink.FAMILY_V6
		}
		return errors.Join(netlink.RuleAdd(rule), netlink.RouteAdd(&netlink.Route{Dst: host(n.server(0).Addr()), Type: unix.RTN_PROHIBIT, Table: 100}))
	}, route: "prohibit EACCES", says: []string{"No route to R (prohibit, EACCES).", "The socket has the mark 0x2a."}},
	{name: "a hostile name", change: func(_ *network, eth0 netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(eth0), netlink.LinkSetName(eth0, hostileDevice), netlink.LinkSetUp(eth0))
	}, says: []string{"Local address L is on " + strings.ToValidUTF8(hostileDevice, "\ufffd") + "."}, family: "ipv4"},
}

// hostileDevice turns a terminal red, its text around, and is not UTF-8.
const hostileDevice = "e\x1b[31m\u202e\xff"

// The path of a connection is what the namespace makes it, as ip(8) has it. The agent has
// dropped its privileges, and asks its helper.
func TestPathOfAConnection(t *testing.T) {
	t.Parallel()
	a := sharedAgent(t)
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, tt := range pathCases {
			if tt.family != "" && tt.family != family {
				continue
			}
			t.Run(family+"/"+tt.name, func(t *testing.T) { tt.run(t, a, newNetwork(t, family)) })
		}
	}
}

// run makes the connection and the change, and compares the agent's path.
func (tt *pathCase) run(t *testing.T, a *agent, n *network) {
	n.serve(servedPort, echo)
	c := tt.connect(n)
	cookie := cookieOf(t, c)
	if tt.change != nil {
		if err := n.Client.Do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			return errors.Join(err, tt.change(n, eth0))
		}); err != nil {
			t.Fatal(err)
		}
	}
	got := tt.path(t, a, n, cookie)
	if m := got.Path.Mark; m == nil || *m != uint32(tt.mark) {
		t.Errorf("its mark is %v, expected %d", m, tt.mark)
	}
	switch tt.name {
	case "all is well": // without an agent, too
		checkPathHere(t, cookie, &got)
	case "a hostile name":
		checkHostileDevice(t, a, cookie)
	}
}

// path waits until the path of the connection is as expected.
func (tt *pathCase) path(t *testing.T, a *agent, n *network, cookie string) (got withPath) {
	t.Helper()
	says := strings.NewReplacer(" L ", " "+n.client().String()+" ", " R ", " "+n.server(0).Addr().String()+" ",
		" G ", " "+n.server(0).Addr().Next().String()+" ")
	eventually(t, "the path as it is now", func() error {
		if err := a.get("/api/v1/connections/"+cookie, &got); err != nil {
			return err
		}
		if got.Path == nil {
			return errors.New(strings.Join(got.Explanation.Path, " "))
		}
		text := " " + strings.Join(got.Explanation.Path, " ") + " "
		for _, want := range tt.says {
			if want = says.Replace(" " + want + " "); !strings.Contains(text, want) {
				return fmt.Errorf("expected %q: %s", want, text)
			}
		}
		if is := strings.TrimSpace(got.Path.Route.Type + " " + got.Path.Route.Errno); tt.route != "" && is != tt.route {
			return fmt.Errorf("route %q, expected %q", is, tt.route)
		}
		return n.pathAsIP(got.Path, tt.mark)
	})
	return got
}

// checkPathHere compares the agent's path with the one that explain finds by itself.
func checkPathHere(t *testing.T, cookie string, got *withPath) {
	t.Helper()
	var here withPath
	stdout, stderr, status := run(t, exec.Command(binary, "explain", "-o", "json", "--url=none", cookie))
	if err := json.Unmarshal([]byte(stdout), &here); err != nil || status != 0 {
		t.Fatalf("exit status %d, %v: %s", status, err, stderr)
	}
	got.Path.Neighbour.State, here.Path.Neighbour.State = "", "" // which changes by itself
	if diff := cmp.Diff(got.Path, here.Path); diff != "" {
		t.Errorf("explain --url=none has another path (-agent +here)\n%s", diff)
	}
}

// checkHostileDevice checks that the name of the device does nothing to its reader.
func checkHostileDevice(t *testing.T, a *agent, cookie string) {
	t.Helper()
	stdout, _, status := run(t, exec.Command(binary, "explain", "--url", a.url, cookie))
	if want := `is on e\x1b[31m\u202e` + "\ufffd."; status != 0 || !strings.Contains(stdout, want) || strings.ContainsAny(stdout, "\x1b\u202e") {
		t.Errorf("exit status %d, expected %s\n%q", status, want, stdout)
	}
	if _, body, err := a.text("/api/v1/connections/" + cookie); err != nil || strings.ContainsAny(body, "\x1b\u202e") || !utf8.ValidString(body) {
		t.Errorf("%v %q", err, body)
	}
}

// connect returns a connection of the client whose first words were answered, so that
// both ends know each other's link addresses.
func (tt *pathCase) connect(n *network) *net.TCPConn {
	n.t.Helper()
	if !tt.mapped && tt.mark == 0 {
		c := n.dial(servedPort, 1)
		n.greet(c)
		return c[0]
	}
	var c *net.TCPConn
	if err := n.Client.Do(func() error {
		to := n.server(servedPort)
		family := unix.AF_INET6
		var addr unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()} // v4-mapped if it is of IPv4
		if to.Addr().Is4() && !tt.mapped {
			family, addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, tt.mark), unix.Connect(fd, addr))
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err != nil {
			return err
		}
		conn, err := net.FileConn(f)
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	n.greet([]*net.TCPConn{c})
	return c
}

// ipJSON runs ip -j in the client's namespace. has is false where ip cannot do that.
func (n *network) ipJSON(into any, args ...string) (has bool, err error) {
	if out, err := exec.Command("ip", "-V").Output(); err != nil || !strings.Contains(string(out), "iproute2") {
		return false, nil // busybox's
	}
	out, err := n.Client.Output("ip", append([]string{"-j"}, args...)...)
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	return true, err
}

// pathAsIP compares a path with what ip(8) says.
func (n *network) pathAsIP(p *pathObject, mark int) error {
	if d := p.LocalDevice; d != nil && d.Name != "eth0" && d.Name != "lo" {
		return nil // ip does not escape the name, and prints no JSON
	}
	if has, err := n.localAsIP(p); !has || err != nil {
		return err
	}
	local, remote := n.client().String(), n.server(0).Addr().String()
	args := []string{"route", "get", remote, "mark", fmt.Sprint(mark)}
	if p.LocalDevice != nil {
		args = append(args, "from", local)
	}
	var routes []struct {
		Type, Gateway, Dev string
	}
	switch _, err := n.ipJSON(&routes, args...); {
	case err != nil && p.Route.Errno == "":
		return err
	case err != nil:
		if errno := strings.ToLower(syscall.Errno(errnoNamed(p.Route.Errno)).Error()); !strings.Contains(strings.ToLower(err.Error()), errno) {
			return fmt.Errorf("the route fails with %s, but ip: %w", errno, err)
		}
		return nil
	case len(routes) != 1 || routes[0].Gateway != p.Route.Gateway || routes[0].Dev != p.Route.Device.Name:
		return fmt.Errorf("route %+v, but ip: %+v", p.Route, routes)
	}
	return n.linkAsIP(p)
}

// localAsIP compares the device of the local address with what ip(8) says. has is false
// where ip prints no JSON.
func (n *network) localAsIP(p *pathObject) (has bool, err error) {
	local := n.client().String()
	var addrs []struct {
		Ifname string `json:"ifname"`
	}
	has, err = n.ipJSON(&addrs, "addr", "show", "to", local)
	if !has || err != nil {
		return has, err
	}
	if p.LocalDevice == nil && len(addrs) > 0 && addrs[0].Ifname != "" {
		return has, fmt.Errorf("ip says that %s is on %s", local, addrs[0].Ifname)
	}
	if d := p.LocalDevice; d != nil && d.Name != "lo" && (len(addrs) != 1 || addrs[0].Ifname != d.Name) {
		return has, fmt.Errorf("ip says that %s is on %v, not on %s", local, addrs, d.Name)
	}
	return true, nil
}

// linkAsIP compares the device of the route, and the neighbour, with what ip(8) says.
func (n *network) linkAsIP(p *pathObject) error {
	if p.Route.Device.Name != "eth0" {
		return nil
	}
	var links []struct {
		Flags     []string `json:"flags"`
		MTU       int      `json:"mtu"`
		OperState string   `json:"operstate"`
	}
	if _, err := n.ipJSON(&links, "link", "show", "dev", "eth0"); err != nil {
		return err
	}
	l, d := links[0], p.Route.Device
	if l.MTU != d.MTU || strings.ToLower(l.OperState) != d.OperState || slices.Contains(l.Flags, "UP") != d.Up || slices.Contains(l.Flags, "LOWER_UP") != d.LowerUp {
		return fmt.Errorf("device %+v, but ip: %+v", d, l)
	}
	var neighbours []struct {
		State []string `json:"state"`
	}
	if _, err := n.ipJSON(&neighbours, "neigh", "show", "to", p.Neighbour.IP, "dev", "eth0"); err != nil {
		return err
	}
	state := "none"
	if len(neighbours) > 0 {
		state = strings.ToLower(neighbours[0].State[0])
	}
	if state != p.Neighbour.State {
		return fmt.Errorf("neighbour %+v, but ip: %s", p.Neighbour, state)
	}
	return nil
}

// errnoNamed returns the number of an errno.
func errnoNamed(name string) (errno uintptr) {
	for ; unix.ErrnoName(syscall.Errno(errno)) != name && errno < 200; errno++ {
	}
	return errno
}
