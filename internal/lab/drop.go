// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of the nftables table, of family inet, with a namespace's rules.
// Each call of Drop adds its own base chain to it, so that one batch adds a rule and one
// batch removes it.
const tableName = "halfopen_lab"

// A Direction selects the packets that the namespace sends, receives, or both.
type Direction int

// The directions.
const (
	Both Direction = iota
	In             // packets the namespace receives
	Out            // packets the namespace sends
)

// A Rule selects the packets to drop.
type Rule struct {
	Port      uint16    // TCP source or destination port; 0: any port
	Class     uint8     // traffic class, as [SetClass] gives it to a socket; 0: any class
	Direction Direction // the zero value means both
	Percent   int       // probability to drop a packet, 1 to 100 percent
	Above     uint32    // only packets of more bytes than this, IP header included; 0: any packet

	// Apart never drops two packets of a direction in a row: only every second packet can
	// be dropped, so Percent is at most 50. With one port for each connection, no
	// connection loses many packets in a row by chance.
	Apart bool
}

// Unreachable is an ICMP or ICMPv6 message of type destination unreachable, given by its
// ICMP code and its ICMPv6 code.
type Unreachable struct{ V4, V6 uint8 }

// Messages that a router may send about a destination. TCP does not give up an established
// connection because of the first two; it retransmits faster (RFC 6069). With IPv6, only
// the first one makes it faster.
var (
	NetUnreachable   = Unreachable{0, 0}
	HostUnreachable  = Unreachable{1, 3}
	PortUnreachable  = Unreachable{3, 4}
	AdminProhibited  = Unreachable{13, 1}
	HostProhibited   = Unreachable{10, 2} // beyond scope of the source address
	SourceProhibited = Unreachable{9, 5}  // source address failed a policy
)

// Validate reports the first field that is out of range.
func (r Rule) Validate() error {
	if r.Direction < Both || r.Direction > Out {
		return fmt.Errorf("unknown direction %d", r.Direction)
	}
	if r.Class&3 != 0 {
		return fmt.Errorf("class %#x uses the two bits of ECN, which TCP sets itself", r.Class)
	}
	if r.Percent < 1 || r.Percent > 100 {
		return fmt.Errorf("percent %d is not in 1 to 100", r.Percent)
	}
	if r.Apart && r.Percent > 50 {
		return fmt.Errorf("a loss of %d percent needs two packets in a row, which Apart forbids", r.Percent)
	}
	return nil
}

// Drop drops the TCP packets that match r silently: the sender gets no ICMP message, no RST
// and no error. The rule is in force when Drop returns; several rules add up. remove
// removes the rule; it may be called twice, and after Close.
//
// Drop works where packets arrive: for In at this namespace's input hook, for Out at that
// of its peer. The output hook would not simulate a loss: a drop there is an error for the
// sender's TCP, -EPERM from ip_queue_xmit. TCP then treats the segment as never sent, and
// polls with the zero-window probe timer (tcp_write_xmit, tcp_check_probe_timer) instead of
// retransmitting.
//
// A large segment that no link has split counts as one packet.
func (n *Namespace) Drop(r Rule) (remove func() error, err error) {
	return n.refuse(r, nil)
}

// Reject drops packets as Drop does, and answers each with an ICMP or ICMPv6 message,
// without the kernel's rate limit.
func (n *Namespace) Reject(r Rule, why Unreachable) (remove func() error, err error) {
	return n.refuse(r, &why)
}

func (n *Namespace) refuse(r Rule, why *Unreachable) (remove func() error, err error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("drop rule: %w", err)
	}
	var undo []func() error
	remove = sync.OnceValue(func() error {
		var errs []error
		for _, f := range undo {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	})
	for _, a := range n.arrivals(r.Direction) {
		f, err := a.at.lose(r, why, a.link)
		if err != nil {
			return nil, errors.Join(err, remove())
		}
		undo = append(undo, f)
	}
	return remove, nil
}

// An arrival is a place where the packets of a direction arrive: one link of a namespace,
// or all its links.
type arrival struct {
	at   *Namespace
	link string // empty: all links
}

func (n *Namespace) arrivals(d Direction) []arrival {
	var list []arrival
	if d == Out {
		list = append(list, arrival{n, "lo"})
	} else {
		list = append(list, arrival{n, ""})
	}
	if d != In && n.peer != nil {
		list = append(list, arrival{n.peer, linkName})
	}
	return list
}

// lose adds r to the namespace's input hook, for packets from a link. why is the ICMP
// answer; nil: none.
func (n *Namespace) lose(r Rule, why *Unreachable, link string) (undo func() error, err error) {
	if why != nil {
		if err := n.unthrottleICMP(); err != nil {
			return nil, err
		}
	}
	return n.addRule(nftables.ChainHookInput, r.exprs(link, why))
}

// addRule adds a chain with these rules to a hook of the namespace.
func (n *Namespace) addRule(hook *nftables.ChainHook, rules [][]expr.Any) (undo func() error, err error) {
	n.mu.Lock()
	n.drops++
	name := fmt.Sprintf("drop%d", n.drops)
	n.mu.Unlock()

	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	chain := &nftables.Chain{
		Name:     name,
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  hook,
		Priority: nftables.ChainPriorityFilter,
	}
	err = n.nft(func(conn *nftables.Conn) {
		conn.AddTable(table)
		conn.AddChain(chain)
		for _, exprs := range rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("add drop rule: %w", err)
	}
	return func() error {
		err := n.nft(func(conn *nftables.Conn) { conn.DelChain(chain) }) // also deletes its rules
		if err != nil && !errors.Is(err, ErrClosed) {
			return fmt.Errorf("remove drop rule: %w", err)
		}
		return nil
	}, nil
}

// nft sends one batch to the namespace's nftables, which accepts all of it or nothing.
func (n *Namespace) nft(batch func(*nftables.Conn)) error {
	return n.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		batch(conn)
		return conn.Flush()
	})
}

// unthrottleICMP makes the namespace send every message of type destination unreachable.
// By default the kernel sends only a few per second to each host.
func (n *Namespace) unthrottleICMP() error {
	if err := n.Sysctl("net.ipv4.icmp_ratemask", "0"); err != nil {
		return err
	}
	if !n.addr6.IsValid() {
		return nil
	}
	return n.Sysctl("net.ipv6.icmp.ratemask", "0") // a type that is never sent
}

// exprs returns the rules of one chain as nftables expressions: one rule for each way in
// which a packet may match.
func (r Rule) exprs(link string, why *Unreachable) [][]expr.Any {
	match := slices.Concat(matchLink(link), matchTCP(), matchAbove(r.Above))
	ports := [][]expr.Any{nil}
	if r.Port != 0 {
		ports = [][]expr.Any{matchPort(0, r.Port), matchPort(2, r.Port)}
	}
	families := []byte{0}
	if r.Class != 0 || why != nil {
		families = []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}
	}
	var rules [][]expr.Any
	for _, port := range ports {
		for _, family := range families {
			rules = append(rules, slices.Concat(match, port, matchClass(family, r.Class), r.verdict(family, why)))
		}
	}
	return rules
}

// matchClass matches the packets of an address family that have a traffic class, that is,
// the DS field without the two bits of ECN.
func matchClass(family, class byte) []expr.Any {
	if family == 0 {
		return nil
	}
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
	if class == 0 {
		return match
	}
	// IPv4 has the field in the second byte; IPv6 after the four bits of the version.
	offset, mask, want := uint32(1), []byte{0xfc}, []byte{class}
	if family == unix.NFPROTO_IPV6 {
		offset, mask, want = 0, []byte{0x0f, 0xc0}, []byte{class >> 4, class << 4}
	}
	n := uint32(len(mask))
	return append(match,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want},
	)
}

func matchLink(name string) []expr.Any {
	if name == "" {
		return nil
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

func matchTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// matchAbove matches packets of more than so many bytes.
func matchAbove(bytes uint32) []expr.Any {
	if bytes == 0 {
		return nil
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
		// cmp orders registers as bytes, most significant first.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binaryutil.BigEndian.PutUint32(bytes)},
	}
}

// matchPort matches the port at an offset of the TCP header: 0 for the source port, 2 for
// the destination port.
func matchPort(offset uint32, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// verdict chooses packets at random, counts each of them, and drops or rejects it.
func (r Rule) verdict(family byte, why *Unreachable) []expr.Any {
	end := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	if why != nil {
		code := why.V4
		if family == unix.NFPROTO_IPV6 {
			code = why.V6
		}
		end[1] = &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}
	}
	if r.Percent == 100 {
		return end
	}
	if r.Apart {
		return slices.Concat(
			[]expr.Any{
				&expr.Numgen{Register: 1, Type: unix.NFT_NG_INCREMENTAL, Modulus: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
			},
			lot(2*r.Percent), end)
	}
	return slices.Concat(lot(r.Percent), end)
}

// lot passes percent of 100 packets on to the next expression, at random.
func lot(percent int) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
		// cmp orders registers as bytes, most significant first.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(percent))},
	}
}
