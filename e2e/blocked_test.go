// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// obstacles are what can keep a host from sending, or an answer from coming back, with the
// reasons over IPv4 and IPv6.
var obstacles = map[string]struct {
	make   func(n *network, eth0 netlink.Link) error
	v4, v6 string
}{
	"address gone": {deleteAddress, "local_address_gone", "local_address_gone"},
	"no route":     {deleteSubnet, "no_route", "no_route"},
	"blackhole":    {routeOf(unix.RTN_BLACKHOLE), "no_route", "no_route"},
	// An IPv6 address goes with the link.
	"link down": {func(_ *network, eth0 netlink.Link) error { return netlink.LinkSetDown(eth0) }, "interface_down", "local_address_gone"},
	"no carrier": {func(n *network, _ netlink.Link) error {
		return n.Server.Do(func() error {
			peer, err := netlink.LinkByName("eth0")
			return errors.Join(err, netlink.LinkSetDown(peer))
		})
	}, "interface_down", "interface_down"},
}

// deleteAddress takes the client's address away, and keeps the route to the server.
func deleteAddress(n *network, eth0 netlink.Link) error {
	own := n.subnet()
	own.IP = n.client().AsSlice()
	return errors.Join(netlink.AddrDel(eth0, &netlink.Addr{IPNet: own}), netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: n.subnet()}))
}

// A host that cannot send, or cannot be answered, is to blame and not its peer: with data
// in flight and with keepalive.
func TestBlockedHostIsToBlame(t *testing.T) { // not parallel: the agent looks at few paths a second
	a := startAgent(t, "--zombie-silence=6s")
	for name, o := range obstacles {
		for family, reason := range map[string]string{"ipv4": o.v4, "ipv6": o.v6} {
			for _, what := range []string{"retransmit", "keepalive"} {
				t.Run(name+"/"+family+"/"+what, func(t *testing.T) {
					t.Parallel()
					n := newNetwork(t, family)
					n.serve(servedPort, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
					c := n.dial(servedPort, 1)[0]
					if _, err := c.Write([]byte("hello")); err != nil {
						t.Fatal(err)
					}
					if what == "keepalive" {
						if err := lab.SetKeepalive(c, time.Second, time.Second, 127); err != nil {
							t.Fatal(err)
						}
					}
					cookie := cookieOf(t, c)
					if err := n.Client.Do(func() error {
						eth0, err := netlink.LinkByName("eth0")
						return errors.Join(err, o.make(n, eth0))
					}); err != nil {
						t.Fatal(err)
					}
					if what == "retransmit" {
						if _, err := c.Write([]byte("lost")); err != nil {
							t.Fatal(err)
						}
					}
					a := a.of(t)
					a.becomesBlocked(cookie, reason)
					for _, e := range a.story(cookie) {
						if e.To == "zombie" {
							t.Errorf("it was a zombie at %v", e.At)
						}
					}
				})
			}
		}
	}
}

// becomesBlocked waits until the agent says that a connection is blocked for a reason.
func (a *agent) becomesBlocked(cookie, reason string) {
	a.t.Helper()
	eventually(a.t, "the connection is blocked", func() error {
		var c connection
		if err := a.get("/api/v1/connections/"+cookie, &c); err != nil {
			return err
		}
		if c.Verdict != "blocked" || c.Reason == nil || c.Reason.Code != reason || c.Attempts < 3 || c.Unanswered != 0 {
			return fmt.Errorf("%s, reason %+v, %d attempts, %d unanswered", c.Verdict, c.Reason, c.Attempts, c.Unanswered)
		}
		return nil
	})
}
