// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/lab"
)

// connected returns one end of a connection over loopback, and its network namespace.
func connected(t *testing.T, n *lab.Namespace) (conn.Flow, bpf.NetnsRef) {
	t.Helper()
	l, err := n.Listen("tcp", netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := n.Dial(t.Context(), l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	cookie, err := lab.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	return conn.Flow{Cookie: cookie, Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: c.RemoteAddr().(*net.TCPAddr).AddrPort()},
		bpf.NetnsRef{Inode: n.Inode(), Path: n.Path()}
}

func namespace(t *testing.T) *lab.Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: sudo make test")
	}
	n, err := lab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// A thread that has asked can change nothing any more, also where it has entered a
// namespace with all capabilities.
func TestThreadThatAsksForAPathCannotWrite(t *testing.T) {
	n := namespace(t)
	flow, _ := connected(t, n)
	lo := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
	route := &netlink.Route{LinkIndex: 1, Dst: &net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)}}
	if err := n.Do(func() error {
		if err := errors.Join(netlink.RouteAdd(route), netlink.RouteDel(route)); err != nil {
			return err // it could before
		}
		q, err := newFlowQuestion(flow)
		if err != nil {
			return err
		}
		if p, err := q.ask(); err != nil || p.LocalDevice.Name != "lo" || p.Route.Type != conn.RouteLocal || p.Mark == nil {
			t.Errorf("%+v, %v", p, err)
		}
		for name, err := range map[string]error{
			"a route": netlink.RouteAdd(route), "a link": netlink.LinkSetDown(lo),
			"a neighbour": netlink.NeighSet(&netlink.Neigh{LinkIndex: 1, IP: net.IPv4(10, 0, 0, 1), State: netlink.NUD_FAILED}),
			"an address":  netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, 1), Mask: net.CIDRMask(32, 32)}}),
		} {
			if !errors.Is(err, unix.EPERM) {
				t.Errorf("the thread changes %s: %v", name, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestFlowPathOfWhatIsNotThere(t *testing.T) {
	n := namespace(t)
	flow, ref := connected(t, n)
	d := NewDirect()
	if _, err := d.FlowPath(t.Context(), ref, flow); err != nil {
		t.Fatal(err)
	}
	another := flow
	another.Cookie++
	none := flow
	none.Local = netip.AddrPortFrom(flow.Local.Addr(), 1)
	mixed := flow
	mixed.Remote = netip.MustParseAddrPort("[::1]:1")
	file := filepath.Join(t.TempDir(), "no namespace")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		ref  bpf.NetnsRef
		flow conn.Flow
		want error
	}{
		{"another socket of the same addresses", ref, another, unix.ENOENT},
		{"no such socket", ref, none, unix.ENOENT},
		{"a namespace that nothing leads to", bpf.NetnsRef{Inode: 1}, flow, nil},
		{"a file that is not a namespace", bpf.NetnsRef{Inode: 1, Path: file}, flow, unix.ESRCH},
		{"another namespace", bpf.NetnsRef{Inode: 1, Path: ref.Path}, flow, unix.ESRCH},
		{"no file", bpf.NetnsRef{Inode: 1, Path: file + " missing"}, flow, unix.ENOENT},
		{"two families", ref, mixed, nil},
		{"no addresses", ref, conn.Flow{}, nil},
	} {
		p, err := d.FlowPath(t.Context(), tt.ref, tt.flow)
		if p != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %+v, %v", tt.name, p, err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := d.FlowPath(t.Context(), ref, flow); p != nil || !errors.Is(err, unix.ENOENT) {
		t.Errorf("a namespace that is gone: %+v, %v", p, err)
	}
}

// An answer that does not come delays the question no longer than its context, and few
// wait for one.
func TestFlowPathThatHangs(t *testing.T) {
	d := NewDirect()
	for range cap(d.flows.running) {
		d.flows.running <- struct{}{} // a thread that hangs
	}
	flow := conn.Flow{Cookie: 1, Local: netip.MustParseAddrPort("10.0.0.1:1"), Remote: netip.MustParseAddrPort("10.0.0.2:2")}
	if p, err := d.FlowPath(t.Context(), bpf.NetnsRef{}, flow); p != nil || !errors.Is(err, unix.EBUSY) {
		t.Errorf("%+v, %v", p, err)
	}
	<-d.flows.running
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := d.FlowPath(ended, bpf.NetnsRef{}, flow); p != nil || err == nil {
		t.Errorf("%+v, %v", p, err)
	}
}
