// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// silence is how long nothing may arrive for a direction to count as cut. The
// first retransmission comes within 200 ms.
const silence = 500 * time.Millisecond

func mustDrop(t *testing.T, n *Namespace, r Rule) (remove func()) {
	t.Helper()
	f, err := n.Drop(r)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		for range 2 {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func receiveNothing(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(silence))
	buf := make([]byte, 64)
	if n, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("received %q, want silence (%v)", buf[:n], err)
	}
}

// tcpStat returns a counter of the Tcp lines of the namespace's /proc/net/snmp.
func tcpStat(t *testing.T, n *Namespace, name string) int {
	t.Helper()
	counters, err := n.Netstat()
	if err != nil {
		t.Fatal(err)
	}
	value, ok := counters["Tcp"+name]
	if !ok {
		t.Fatalf("no counter %s in %v", name, counters)
	}
	return value
}

func TestDropSilencesADirection(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct {
		name               string
		at                 *Namespace
		direction          Direction
		toServer, toClient bool // what still passes
	}{
		{"what the client sends", l.Client, Out, false, true},
		{"what the client receives", l.Client, In, true, false},
		{"all of the client", l.Client, Both, false, false},
		{"what the server sends", l.Server, Out, true, false},
		{"what the server receives", l.Server, In, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			families(t, l, func(t *testing.T, server netip.Addr) {
				client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
				resets := tcpStat(t, l.Client, "OutRsts") + tcpStat(t, l.Server, "OutRsts")
				remove := mustDrop(t, l.Client, Rule{Port: 5431, Percent: 100})
				send(t, client, "before")
				receive(t, accepted, "before")
				remove()

				remove = mustDrop(t, tt.at, Rule{Port: 5432, Direction: tt.direction, Percent: 100})
				send(t, client, "question")
				send(t, accepted, "answer")
				for _, dir := range []struct {
					passes bool
					to     net.Conn
					text   string
				}{{tt.toServer, accepted, "question"}, {tt.toClient, client, "answer"}} {
					if dir.passes {
						receive(t, dir.to, dir.text)
					} else {
						receiveNothing(t, dir.to)
					}
				}
				for _, n := range []*Namespace{l.Client, l.Server} {
					out, err := n.Output("ss", "-Htno", "state", "established", "( sport = :5432 or dport = :5432 )")
					if err != nil {
						t.Fatal(err)
					}
					// Both ends miss the acknowledgement of what they sent; a
					// loss shows as retransmission, not as a local error would,
					// as a zero-window probe.
					if strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "timer:(on,") {
						t.Errorf("want one established connection that retransmits, not %q", out)
					}
				}

				remove()
				if !tt.toServer {
					receive(t, accepted, "question")
				}
				if !tt.toClient {
					receive(t, client, "answer")
				}
				if n := tcpStat(t, l.Client, "OutRsts") + tcpStat(t, l.Server, "OutRsts") - resets; n != 0 {
					t.Errorf("%d resets were sent", n)
				}
				// Bury the connection, so that the next one is alone under ss.
				client.Close()
				accepted.Close()
			})
		})
	}
}

func TestDropSparesOtherPorts(t *testing.T) {
	l := newLab(t)
	client, accepted := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	spared, sparedEnd := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5433))
	mustDrop(t, l.Client, Rule{Port: 5432, Percent: 100})
	send(t, client, "lost")
	for i := range 23 {
		send(t, spared, fmt.Sprintf("question %d", i))
		receive(t, sparedEnd, fmt.Sprintf("question %d", i))
	}
	receiveNothing(t, accepted)

	mustDrop(t, l.Client, Rule{Percent: 100}) // port 0 spares none
	send(t, spared, "lost")
	receiveNothing(t, sparedEnd)
}

func TestDropByClass(t *testing.T) {
	l := newLab(t)
	families(t, l, func(t *testing.T, server netip.Addr) {
		client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
		spared, sparedEnd := connect(t, l, netip.AddrPortFrom(server, 5433))
		mustDrop(t, l.Client, Rule{Class: 0x44, Percent: 100})
		for c, class := range map[*net.TCPConn]uint8{client: 0x44, spared: 0x48} {
			if err := SetClass(c, class); err != nil {
				t.Fatal(err)
			}
		}
		send(t, client, "lost")
		send(t, spared, "question")
		receive(t, sparedEnd, "question")
		receiveNothing(t, accepted)
		if err := SetClass(client, 0); err != nil {
			t.Fatal(err)
		}
		receive(t, accepted, "lost")
	})
}

func TestDropAbove(t *testing.T) {
	l := newLab(t)
	families(t, l, func(t *testing.T, server netip.Addr) {
		client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
		remove := mustDrop(t, l.Client, Rule{Port: 5432, Direction: Out, Percent: 100, Above: 572})
		send(t, client, "small")
		receive(t, accepted, "small")
		large := strings.Repeat("large", 200)
		send(t, client, large)
		receiveNothing(t, accepted)
		send(t, accepted, "answer")
		receive(t, client, "answer")
		remove()
		receive(t, accepted, large)
	})
}

func TestReject(t *testing.T) {
	l := newLab(t)
	for i, tt := range []struct {
		why    Unreachable
		v4, v6 unix.Errno
	}{
		{NetUnreachable, unix.ENETUNREACH, unix.ENETUNREACH},
		{HostUnreachable, unix.EHOSTUNREACH, unix.EHOSTUNREACH},
		{PortUnreachable, unix.ECONNREFUSED, unix.ECONNREFUSED},
		{AdminProhibited, unix.EHOSTUNREACH, unix.EACCES},
		{HostProhibited, unix.EHOSTUNREACH, unix.EHOSTUNREACH},
		{SourceProhibited, unix.ENETUNREACH, unix.EACCES},
	} {
		port := uint16(6000 + i)
		if _, err := l.Client.Reject(Rule{Port: port, Direction: Out, Percent: 100}, tt.why); err != nil {
			t.Fatal(err)
		}
		for addr, want := range map[netip.Addr]unix.Errno{l.Server.Addr4(): tt.v4, l.Server.Addr6(): tt.v6} {
			// More at once than the kernel sends to one host if it is let. One
			// that comes back while connect() still has the socket ends
			// nothing, but that for the next SYN does, a second later.
			var wg sync.WaitGroup
			for range 11 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
					defer cancel()
					c, err := l.Client.Dial(ctx, netip.AddrPortFrom(addr, port))
					if err == nil {
						c.Close()
					}
					if !errors.Is(err, want) {
						t.Errorf("%+v of %s: %v, want %v", tt.why, addr, err, want)
					}
				})
			}
			wg.Wait()
		}
	}
}

func TestRulesAddUp(t *testing.T) {
	l := newLab(t)
	client, accepted := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	removeFirst := mustDrop(t, l.Client, Rule{Port: 5432, Percent: 100})
	removeSecond := mustDrop(t, l.Client, Rule{Percent: 100})
	removeThird := mustDrop(t, l.Server, Rule{Direction: In, Percent: 100})
	send(t, client, "question")
	removeSecond()
	removeThird()
	receiveNothing(t, accepted)
	removeFirst()
	receive(t, accepted, "question")
}

func TestDropOnLoopback(t *testing.T) {
	n := newNamespace(t)
	l := &Lab{Client: n, Server: n}
	for _, direction := range []Direction{In, Out, Both} {
		client, accepted := connect(t, l, netip.MustParseAddrPort("[::1]:5432"))
		remove := mustDrop(t, n, Rule{Port: 5432, Direction: direction, Percent: 100})
		send(t, client, "question")
		receiveNothing(t, accepted)
		remove()
		receive(t, accepted, "question")
		client.Close()
		accepted.Close()
	}
}

// TestDropPercent sends bare segments past the client's TCP, so that each is one
// packet and none is sent again. Of 10007 independent packets, 25 % lost has a
// standard deviation of 43; the tolerance is 7 of them. Of every second packet
// half lost deviates by less.
func TestDropPercent(t *testing.T) {
	t.Run("independent", func(t *testing.T) { dropPercent(t, Rule{Port: 5432, Direction: Out, Percent: 25}) })
	t.Run("never two in a row", func(t *testing.T) {
		dropPercent(t, Rule{Port: 5432, Direction: Out, Percent: 25, Apart: true})
	})
}

func dropPercent(t *testing.T, rule Rule) {
	const (
		packets   = 10007
		percent   = 25
		expected  = packets * percent / 100
		tolerance = 300
	)
	l := newLab(t)
	mustDrop(t, l.Client, rule)
	before := tcpStat(t, l.Server, "InSegs")
	err := l.Client.Do(func() error { return sendResets(l.Server.Addr4(), 5432, packets) })
	if err != nil {
		t.Fatal(err)
	}
	// What is not lost is counted by the server's TCP, and all is accounted for.
	var lost, arrived int
	eventually(t, "every packet is either lost or arrived", func() bool {
		lost, arrived = droppedBy(t, l.Server), tcpStat(t, l.Server, "InSegs")-before
		return lost+arrived == packets
	})
	if lost < expected-tolerance || lost > expected+tolerance {
		t.Errorf("%d of %d packets were lost, want %d ± %d", lost, packets, expected, tolerance)
	}
}

// Every second packet lost is the most that never loses two in a row.
func TestDropApart(t *testing.T) {
	l := newLab(t)
	client, accepted := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	mustDrop(t, l.Client, Rule{Port: 5432, Direction: Out, Percent: 50, Apart: true})
	for i := range 23 {
		before := tcpStat(t, l.Client, "RetransSegs")
		send(t, client, fmt.Sprintf("question %d", i))
		receive(t, accepted, fmt.Sprintf("question %d", i))
		if n := tcpStat(t, l.Client, "RetransSegs") - before; n > 1 {
			t.Errorf("question %d was sent again %d times", i, n)
		}
	}
	if lost := droppedBy(t, l.Server); lost < 11 {
		t.Errorf("only %d packets were lost", lost)
	}
}

// sendResets sends RST segments, which are not answered, from the calling thread's
// namespace. It paces itself by a socket buffer of few packets, so that the
// backlog of the receiving CPU never overflows.
func sendResets(to netip.Addr, port uint16, count int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		return err
	}
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment[0:], 40000)
	binary.BigEndian.PutUint16(segment[2:], port)
	segment[12] = 5 << 4 // header length in words
	segment[13] = 1 << 2 // RST
	for range count {
		if err := unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			return err
		}
	}
	return nil
}

// droppedBy sums the counters of the namespace's rules.
func droppedBy(t *testing.T, n *Namespace) int {
	t.Helper()
	var packets uint64
	err := n.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		for _, chain := range chains {
			rules, err := conn.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			for _, rule := range rules {
				for _, e := range rule.Exprs {
					if counter, ok := e.(*expr.Counter); ok {
						packets += counter.Packets
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return int(packets)
}

func TestRuleValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule Rule
		ok   bool
	}{
		{"a share of everything is fine", Rule{Percent: 1}, true},
		{"all of a port is fine", Rule{Port: 5432, Direction: Out, Percent: 100}, true},
		{"nothing lost is no rule", Rule{}, false},
		{"more than everything cannot be lost", Rule{Percent: 101}, false},
		{"half can be lost, and never two in a row", Rule{Percent: 50, Apart: true}, true},
		{"no more than half can", Rule{Percent: 51, Apart: true}, false},
		{"less than nothing cannot be lost", Rule{Percent: -1}, false},
		{"a traffic class is fine", Rule{Class: 0xb8, Percent: 100}, true},
		{"the bits of ECN are no traffic class", Rule{Class: 0xb9, Percent: 100}, false},
		{"there is no fourth direction", Rule{Direction: Out + 1, Percent: 100}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.rule.Validate(); (err == nil) != tt.ok {
				t.Errorf("error is %v", err)
			}
		})
	}
	if _, err := newNamespace(t).Drop(Rule{}); err == nil {
		t.Error("Drop took a rule that is not valid")
	}
}
