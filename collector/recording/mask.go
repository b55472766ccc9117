// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Mask copies a recording, and replaces the data that could identify a person or a
// machine: addresses, the names of processes, and the paths and names of control groups,
// units, containers and pods. It leaves out the details of obstacles, and the destinations of
// --middlebox-timeout. An address is replaced by another of the same family and
// kind (loopback, link-local, private, public), and a value by the same replacement
// wherever it occurs. Ports, process ids, user ids, cookies, inode numbers and times stay.
// The addresses ::, ::1 and 0.0.0.0 stay too, because they identify no machine.
//
// Mask returns the number of facts that it has copied. If the end of the recording is
// missing, it is missing in the copy too, and the error is ErrNoEnd.
func Mask(w io.Writer, r io.Reader) (facts int, err error) {
	in, err := NewReader(r)
	if err != nil {
		return 0, err
	}
	in.Header.Masked = true
	in.Header.Rules.MiddleboxTimeouts = nil // they name networks, and no fact depends on them
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

// masker holds the replacements made so far.
type masker struct {
	addresses map[netip.Addr]netip.Addr
	names     map[string]string // replacement of each name, by kind and name
	used      map[string]int    // number of replacements made, by kind of name or address
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
	if e.Census != nil {
		for i := range e.Census.Hosts {
			h := &e.Census.Hosts[i]
			masked, err := m.address(h.Addr)
			if err != nil {
				return err
			}
			h.Addr = masked
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
	for i := range e.Obstacles {
		e.Obstacles[i].Detail = "" // it has addresses, and names of devices
	}
	return nil
}

// name returns the replacement of a name: the format with the name's number. "" stays "".
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

// prefixes hold the replacements of each family and kind of address. No host uses
// 240.0.0.0/4, which is reserved, or 2001:db8::/32, which is for documentation.
var prefixes = map[string]netip.Prefix{
	"IPv4 loopback":   netip.MustParsePrefix("127.128.0.0/9"),
	"IPv4 link-local": netip.MustParsePrefix("169.254.128.0/17"),
	"IPv4 private":    netip.MustParsePrefix("10.128.0.0/9"),
	"IPv4 public":     netip.MustParsePrefix("240.0.0.0/4"),
	"IPv6 link-local": netip.MustParsePrefix("fe80::ffff:0:0/96"),
	"IPv6 private":    netip.MustParsePrefix("fd00:db8::/32"),
	"IPv6 public":     netip.MustParsePrefix("2001:db8::/32"),
}

// shared is the address space of carrier-grade NAT (RFC 6598). Mask treats it as private.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// address returns the replacement of an address.
func (m *masker) address(a netip.Addr) (netip.Addr, error) {
	if a.Is4In6() { // an IPv6 socket's form of the same address
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
		return a, fmt.Errorf("it has more %s addresses than there are replacements", kind)
	}
	m.addresses[a] = masked
	return masked, nil
}

// nth returns the n-th address of a prefix, and whether the prefix has one.
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
