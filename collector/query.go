// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/halfopen/halfopen/bpf"
)

// Query selects connections: within a field any, between fields all. The zero
// value selects every connection.
type Query struct {
	Verdicts []Verdict
	States   []State
	Ports    []uint16 // local or remote
	PIDs     []uint32
	Owners   []string // see [Connection.OwnedBy]
	Remotes  []netip.Prefix
	Risks    []Risk
	Netns    []uint32 // inode numbers
	All      bool     // also sockets that are no connections: listeners and stubs
	Limit    int      // 0: no limit
}

// look is what a look at the connections is for.
type look struct {
	Query
	owners    bool              // who owns them is asked for
	listeners map[listener]bool // if not nil, those that there are, as they are found
}

// listener is what accepts connections to a port.
type listener struct {
	netns uint32
	port  uint16
}

// wants tells, as soon as possible, whether a socket can match.
func (q *Query) wants(k *bpf.Conn) bool {
	if k.Class == bpf.ClassNone && (!q.All || len(q.Verdicts)+len(q.Risks) > 0) { // it has neither
		return false
	}
	return anyOf(q.States, stateOf(k.State)) && anyOf(q.Netns, k.Netns) &&
		(len(q.Ports) == 0 || slices.Contains(q.Ports, k.Lport) || slices.Contains(q.Ports, k.Rport)) &&
		(len(q.Risks) == 0 || slices.ContainsFunc(q.Risks, func(r Risk) bool { return k.Risks&(1<<r) != 0 })) &&
		(len(q.Remotes) == 0 || isRemote(k) && slices.ContainsFunc(q.Remotes, func(p netip.Prefix) bool { return p.Contains(bpf.Remote(k).Addr()) }))
}

// isRemote tells whether a socket has a remote end. A listener has none.
func isRemote(k *bpf.Conn) bool { return stateOf(k.State) != Listen }

// judges tells whether a connection has one of the verdicts.
func (q *Query) judges(conn *Connection) bool {
	return len(q.Verdicts) == 0 || conn.Judged() && slices.Contains(q.Verdicts, conn.Verdict)
}

// byOwner tells whether who owns a connection decides.
func (q *Query) byOwner() bool { return len(q.PIDs)+len(q.Owners) > 0 }

// ofOwner tells whether a connection is of one of the owners, once they are
// filled in.
func (q *Query) ofOwner(conn *Connection) bool {
	return (len(q.PIDs) == 0 || conn.Process != nil && slices.Contains(q.PIDs, conn.Process.PID)) &&
		(len(q.Owners) == 0 || slices.ContainsFunc(q.Owners, conn.OwnedBy))
}

func anyOf[T comparable](wanted []T, v T) bool { return len(wanted) == 0 || slices.Contains(wanted, v) }

// classes are those that the census has to write out.
func (q *look) classes() []uint8 {
	classes := []uint8{bpf.ClassTrouble}
	for _, class := range []uint8{bpf.ClassActive, bpf.ClassIdle, bpf.ClassUnguarded} {
		if anyOf(q.Verdicts, ofClass(class)) {
			classes = append(classes, class)
		}
	}
	if q.All && len(q.Verdicts)+len(q.Risks) == 0 || q.listeners != nil {
		classes = append(classes, bpf.ClassNone)
	}
	return classes
}

// ownersBatch is of how many connections owners are looked for at once, where
// they decide what is kept.
const ownersBatch = 16384

// each looks at what the query selects now, and calls visit for each: as the kernel
// wrote it and as it is to be described, with its owner if that is asked for or
// decides. The kernel has the listeners of a network namespace come before its
// connections. What visit is given is not kept, so that a look takes no more memory
// than what the visitor keeps.
func (c *Collector) each(ctx context.Context, q *look, visit func(*bpf.Conn, *Connection)) error {
	c.catchUp()
	var batch []Connection
	var written []bpf.Conn // of the batch
	var conn Connection    // one for all: visit makes it escape
	var failed error
	flush := func() {
		if failed == nil {
			failed = c.fillOwners(batch, q.PIDs)
		}
		for i := range batch {
			if failed == nil && q.ofOwner(&batch[i]) {
				visit(&written[i], &batch[i])
			}
		}
		batch, written = batch[:0], written[:0]
	}
	res, err := c.kernel.Census(ctx, q.classes(), func(k *bpf.Conn) {
		if q.listeners != nil && stateOf(k.State) == Listen {
			q.listeners[listener{k.Netns, k.Lport}] = true
		}
		if !q.wants(k) {
			return
		}
		conn, _ = c.update(k)
		switch {
		case !q.judges(&conn):
		case !q.owners && !q.byOwner():
			visit(k, &conn)
		default:
			batch, written = append(batch, conn), append(written, *k)
			if len(batch) == ownersBatch {
				flush()
			}
		}
	})
	if err != nil {
		return err
	}
	c.noteUnwalked(&res)
	flush()
	return failed
}

// noteUnwalked notes what a look that somebody waited for did not get through.
func (c *Collector) noteUnwalked(res *bpf.CensusResult) {
	c.unwalked.Store(int64(len(res.Unwalked)))
	if len(res.Unwalked) > 0 {
		now := time.Now()
		c.degraded.change(now, func(f *facts) { f.unlisted, f.unlistedAt = len(res.Unwalked), now })
	}
}

// Unwalked is how many hash tables of single network namespaces the last look at the
// connections did not get through, since they are large: what is in them is not listed.
func (c *Collector) Unwalked() int { return int(c.unwalked.Load()) }

// OwnedBy tells whether the connection is of the owner of that name: its
// process's name, its unit with or without .service or .scope, the beginning (8
// digits or more) of its container's id or its pod's UID; "-" where no owner is
// known.
func (c *Connection) OwnedBy(name string) bool {
	id := func(s string) bool { return len(name) >= 8 && strings.HasPrefix(s, name) }
	switch g := &c.Group; {
	case name == "-":
		return c.Owner() == ""
	case c.Process != nil && c.Process.Comm == name, id(g.ContainerID), id(g.PodUID):
		return true
	default:
		return g.Unit != "" && (g.Unit == name || g.Unit == name+".service" || g.Unit == name+".scope")
	}
}

// ParseOwner checks a name for [Query].Owners.
func ParseOwner(s string) (string, error) {
	if s == "" {
		return "", errors.New("the name is empty; - is for those that have none")
	}
	return s, nil
}

// ParseRemote parses an address, or a prefix in CIDR notation.
func ParseRemote(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8", s)
	}
	if bits := p.Bits() - 96; p.Addr().Is4In6() && bits >= 0 {
		p = netip.PrefixFrom(p.Addr().Unmap(), bits)
	}
	return p.Masked(), nil
}

// ParseNetns parses the inode number of a network namespace.
func ParseNetns(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%q is not the inode number of a network namespace such as 4026531840 (see lsns -t net)", s)
	}
	return uint32(v), nil
}
