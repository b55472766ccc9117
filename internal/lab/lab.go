// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkName is the name of the veth in each namespace.
const linkName = "eth0"

// linkTimeout is the longest wait until the veth carries packets, which usually takes
// milliseconds.
const linkTimeout = 10 * time.Second

// A Lab has two network namespaces, joined by a veth pair.
type Lab struct {
	Client *Namespace // has the first address of each subnet
	Server *Namespace // has the second address of each subnet
}

// Subnets returns the IPv4 and IPv6 subnets of the labs with a number: 10.77.0.0/24 and
// fd77::/64 for number 0.
func Subnets(number uint8) (ipv4, ipv6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, number, 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 7: number}), 64)
}

// New makes a lab in the subnets with number 0. When it returns, IPv4 and IPv6 traffic
// passes both ways. The error is [ErrPrivilege] if the process may not make namespaces.
func New() (*Lab, error) { return NewIn(0) }

// NewIn makes a lab as New does, in the subnets with this number. Use it if the addresses
// must differ from those of other labs.
func NewIn(number uint8) (*Lab, error) {
	client, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	server, err := NewNamespace()
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	l := &Lab{Client: client, Server: server}
	if err := l.join(number); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close removes both namespaces and everything in them. A second call does nothing.
func (l *Lab) Close() error {
	return errors.Join(l.Client.Close(), l.Server.Close())
}

// join connects the namespaces and assigns their addresses.
func (l *Lab) join(number uint8) error {
	err := l.Client.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: linkName},
			PeerName:      linkName,
			PeerNamespace: netlink.NsFd(l.Server.ns),
		})
	})
	if err != nil {
		return fmt.Errorf("create veth: %w", err)
	}
	l.Client.peer, l.Server.peer = l.Server, l.Client

	// Set both ends up before waiting for either: a veth has no carrier until its peer is
	// up.
	for _, n := range []*Namespace{l.Client, l.Server} {
		if err := n.Do(func() error { return linkUp(linkName) }); err != nil {
			return err
		}
	}
	subnet4, subnet6 := Subnets(number)
	addr4, addr6 := subnet4.Addr(), subnet6.Addr()
	for _, n := range []*Namespace{l.Client, l.Server} {
		addr4, addr6 = addr4.Next(), addr6.Next()
		if err := n.addAddrs(netip.PrefixFrom(addr4, subnet4.Bits()), netip.PrefixFrom(addr6, subnet6.Bits())); err != nil {
			return err
		}
	}
	return nil
}

// addAddrs waits until the veth is operational, then assigns its addresses. It skips IPv6
// if the kernel was booted without it.
func (n *Namespace) addAddrs(addr4, addr6 netip.Prefix) error {
	prefixes := []netip.Prefix{addr4, addr6}
	// New namespaces may inherit the host's disable_ipv6
	// (net.core.devconf_inherit_init_net).
	err := n.Sysctl("net.ipv6.conf.all.disable_ipv6", "0")
	if errors.Is(err, os.ErrNotExist) {
		prefixes = prefixes[:1]
	} else if err != nil {
		return err
	}
	err = n.Do(func() error {
		link, err := waitLink(linkName)
		if err != nil {
			return err
		}
		for _, prefix := range prefixes {
			addr := &netlink.Addr{IPNet: &net.IPNet{
				IP:   prefix.Addr().AsSlice(),
				Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
			}}
			if prefix.Addr().Is6() {
				// Otherwise the address is unusable for about a second, until
				// duplicate address detection ends.
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add address %s: %w", prefix, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.addr4 = addr4.Addr()
	if len(prefixes) > 1 {
		n.addr6 = addr6.Addr()
	}
	return nil
}

// linkUp sets a link of the calling thread's namespace up.
func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// waitLink waits until a link of the calling thread's namespace is operational. When both
// ends are up, the kernel makes it so on a work queue; until then it discards packets.
func waitLink(name string) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(context.Background(), linkTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("find link %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return link, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("link %s is %s after %s", name, link.Attrs().OperState, linkTimeout)
		}
	}
}
