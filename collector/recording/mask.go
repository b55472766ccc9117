// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Mask copies a recording, and replaces what could identify anybody: addresses, by others
// of the same family and kind (loopback, link-local, private, public), the names of
// processes, and the paths and names of control groups, units, containers and pods. The
// same one is replaced by the same one everywhere. Ports, process ids, user ids, cookies,
// inode numbers and times stay. The addresses :: and ::1, and 0.0.0.0, stay as well: they
// say nothing. It returns how many facts it has copied; where the end of the recording is
// missing, so it is in the copy, and the error is ErrNoEnd.
func Mask(w io.Writer, r io.Reader) (facts int, err error) {
	in, err := NewReader(r)
	if err != nil {
		return 0, err
	}
	in.Header.Masked = true
	out, err := newWriter(w, in.Header)
	if err != nil {
		return 0, err
	}
	m := masker{addresses: make(map[netip.Addr]netip.Addr), names: make(map[string]string), used: make(map[string]int)}
	for {
		e, f, err := in.next()
		if err != nil {
			return facts, errors.Join(err, out.Flush())
		}
		if e.End != "" {
			return facts, out.end(e.End)
		}
		if f != nil {
			facts++
		}
		if err := m.entry(e); err != nil {
			return facts, errors.Join(in.wrong(err), out.Flush())
		}
		if err := out.entry(e); err != nil {
			return facts, err
		}
	}
}

// masker knows what replaces what.
type masker struct {
	addresses map[netip.Addr]netip.Addr
	names     map[string]string // by kind and name
	used      map[string]int    // by kind of name or address: how many there are
}

func (m *masker) entry(e *entry) error {
	var records []*record
	if e.Event != nil {
		records = append(records, &e.Event.Conn)
	}
	if e.Conn != nil {
		records = append(records, e.Conn)
	}
	if e.Census != nil {
		for i := range e.Census.Troubled {
			records = append(records, &e.Census.Troubled[i].Conn)
		}
	}
	for _, r := range records {
		for _, a := range []*[16]uint8{&r.Laddr, &r.Raddr} {
			masked, err := m.address(addressOf(*a, r.Family))
			if err != nil {
				return err
			}
			*a = bytesOf(masked)
		}
	}
	for i := range e.Owners {
		o := &e.Owners[i]
		if o.Process != nil {
			o.Process.Comm = m.name("process", o.Process.Comm, "process-%d")
		}
		g := &o.Cgroup
		unit := "unit-%d.service"
		if strings.HasSuffix(g.Unit, ".scope") {
			unit = "unit-%d.scope"
		}
		if g.Path != "/" {
			g.Path = m.name("path", g.Path, "/group-%d")
		}
		g.Unit = m.name("unit", g.Unit, unit)
		g.ContainerID = m.name("container", g.ContainerID, "%064x")
		g.PodUID = m.name("pod", g.PodUID, "00000000-0000-0000-0000-%012x")
		g.Namespace = m.name("namespace", g.Namespace, "namespace-%d")
		g.Pod = m.name("pod name", g.Pod, "pod-%d")
		g.Container = m.name("container name", g.Container, "container-%d")
	}
	return nil
}

// name returns what replaces a name of a kind, by a format that gets a number; "" stays.
func (m *masker) name(kind, name, format string) string {
	if name == "" {
		return ""
	}
	key := kind + "\x00" + name
	masked, ok := m.names[key]
	if !ok {
		m.used[kind]++
		masked = fmt.Sprintf(format, m.used[kind])
		m.names[key] = masked
	}
	return masked
}

// prefixes are where addresses of each family and kind go. Nobody uses 240.0.0.0/4, which
// is reserved, and 2001:db8::/32, which is for documents.
var prefixes = map[string]netip.Prefix{
	"IPv4 loopback":   netip.MustParsePrefix("127.128.0.0/9"),
	"IPv4 link-local": netip.MustParsePrefix("169.254.128.0/17"),
	"IPv4 private":    netip.MustParsePrefix("10.128.0.0/9"),
	"IPv4 public":     netip.MustParsePrefix("240.0.0.0/4"),
	"IPv6 link-local": netip.MustParsePrefix("fe80::ffff:0:0/96"),
	"IPv6 private":    netip.MustParsePrefix("fd00:db8::/32"),
	"IPv6 public":     netip.MustParsePrefix("2001:db8::/32"),
}

// shared is the address space of carrier-grade NAT (RFC 6598), which is private enough.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// address returns what replaces an address.
func (m *masker) address(a netip.Addr) (netip.Addr, error) {
	if a.Is4In6() { // of an IPv6 socket: the same address
		masked, err := m.address(a.Unmap())
		return netip.AddrFrom16(masked.As16()), err
	}
	if a.IsUnspecified() || a == netip.IPv6Loopback() {
		return a, nil
	}
	if masked, ok := m.addresses[a]; ok {
		return masked, nil
	}
	kind := "IPv6 "
	if a.Is4() {
		kind = "IPv4 "
	}
	switch {
	case a.IsLoopback():
		kind += "loopback"
	case a.IsLinkLocalUnicast():
		kind += "link-local"
	case a.IsPrivate(), shared.Contains(a):
		kind += "private"
	default:
		kind += "public"
	}
	m.used[kind]++
	masked, ok := nth(prefixes[kind], m.used[kind])
	if !ok {
		return a, fmt.Errorf("it has more %s addresses than there are to replace them", kind)
	}
	m.addresses[a] = masked
	return masked, nil
}

// nth returns the n-th address of a prefix, if there is one.
func nth(p netip.Prefix, n int) (netip.Addr, bool) {
	b := p.Addr().AsSlice()
	for i := len(b) - 1; n > 0 && i >= 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a, p.Contains(a)
}
