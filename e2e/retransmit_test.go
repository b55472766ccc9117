// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// retransmissions are counts by type: the agent's, or the kernel's own.
type retransmissions map[string]int

func (a *agent) retransmissions() retransmissions {
	a.t.Helper()
	m, r := a.metrics(), make(retransmissions)
	for _, kind := range []string{"timeout", "fast", "tail_loss_probe", "syn", "synack"} {
		r[kind] = int(m.value("halfopen_tcp_retransmits_total", "type", kind))
	}
	return r
}

func (r retransmissions) since(before retransmissions) retransmissions {
	d := make(retransmissions)
	for kind := range r {
		d[kind] = r[kind] - before[kind]
	}
	return d
}

// grown is what a namespace's counters of TCP have grown by, if they have.
func grown(t testing.TB, n *lab.Namespace, before map[string]int) map[string]int {
	t.Helper()
	d := netstat(t, n)
	for name := range d {
		if d[name] -= before[name]; d[name] == 0 || !strings.HasPrefix(name, "Tcp") {
			delete(d, name)
		}
	}
	return d
}

// counted is what the kernel itself counts of a namespace's retransmissions. It
// has no counter for each type, but each is a difference of some:
//
//   - RetransSegs is all that __tcp_retransmit_skb() tried and tcp_rtx_synack()
//     sent. RetransFail is what could not be sent of the former.
//   - TCPSynRetrans is the SYNs tried and the SYN-ACKs sent; in a client's
//     namespace the one, in a server's the other.
//   - TCPTimeouts is every RTO that tcp_retransmit_timer() acts upon, each of which
//     tries one segment, a SYN included. It would also count the last of a
//     connection, which kills, and each timer of a SYN-ACK; nobody dies here, and
//     where SYN-ACKs are lost no data is.
//   - TCPFastRetrans and TCPSlowStartRetrans are what tcp_xmit_retransmit_queue()
//     sent, outside of any RTO.
//   - TCPLossProbes is tail loss probes, of new data also. Those that retransmit
//     are what is left of RetransSegs: nobody else calls __tcp_retransmit_skb().
//
// These count segments and the tracepoint counts buffers, so each buffer has to
// be one segment. What failed is taken for RTOs: only those are made to fail.
func counted(client, server map[string]int) retransmissions {
	r := retransmissions{
		"syn":    client["TcpExtTCPSynRetrans"],
		"synack": server["TcpExtTCPSynRetrans"],
	}
	for _, n := range []map[string]int{client, server} {
		fast := n["TcpExtTCPFastRetrans"] + n["TcpExtTCPSlowStartRetrans"]
		timeout := n["TcpExtTCPTimeouts"] - n["TcpExtTCPRetransFail"]
		if n["TcpExtTCPSynRetrans"] > 0 {
			timeout = 0
		}
		r["timeout"] += timeout
		r["fast"] += fast
		r["tail_loss_probe"] += n["TcpRetransSegs"] - n["TcpExtTCPRetransFail"] - n["TcpExtTCPSynRetrans"] - fast - timeout
	}
	return r
}

// situation is one way to retransmit.
type situation struct {
	name string
	run  func(t *testing.T, n *network)
	// holds says what else must be true, so that it was this situation indeed.
	holds func(r retransmissions, client map[string]int) bool
}

// retransmitting is a situation in some networks, with the counters from before it.
type retransmitting struct {
	situation
	networks []*network
	agent    *agent
	tracers  retransmissionTracers
	before   retransmissions // the agent's
	hidden   int             // by the tracers
	skipped  float64
	others   func() int // those of others are counted as well
}

// prepare makes the networks and reads the counters.
func (s situation) prepare(t *testing.T, a *agent, w retransmissionTracers) *retransmitting {
	t.Helper()
	a.waitForLeftovers()
	r := &retransmitting{situation: s, agent: a, tracers: w, skipped: a.settled(t, time.Second).skipped()}
	for _, family := range []string{"ipv4", "ipv6"} {
		n := newNetwork(t, family)
		oneSegmentABuffer(t, n)
		r.networks = append(r.networks, n)
	}
	r.others = w.countOthers(t)
	r.before = a.retransmissions()
	r.hidden = w.hidden(t)
	return r
}

// expected is what the kernel has counted in the networks. An RTO that finds its segment
// still queued on this host tries nothing, and then the kernel leaves open what it tried:
// untried is how many those are.
func (r *retransmitting) expected(t *testing.T) (all retransmissions, untried int, err error) {
	t.Helper()
	all = make(retransmissions)
	for _, n := range r.networks {
		client, server := grown(t, n.Client, nil), grown(t, n.Server, nil)
		one := counted(client, server)
		if !r.holds(one, client) {
			return nil, 0, fmt.Errorf("%s: it was not so: %v, of %v", n.family, one, client)
		}
		untried += client["TcpExtTCPSpuriousRtxHostQueues"] + server["TcpExtTCPSpuriousRtxHostQueues"]
		for kind := range one {
			all[kind] += one[kind]
		}
	}
	return all, untried, nil
}

// forgive takes off what the agent cannot have counted as the kernel has: timeouts that
// tried nothing, and what no program saw.
func (r retransmissions) forgive(got retransmissions, untried, hidden int) {
	if off := r["timeout"] - got["timeout"]; off > 0 && off <= untried {
		r["timeout"] -= off
		r["tail_loss_probe"] += off
	}
	for kind, n := range r {
		if off := n - got[kind]; off > 0 && off <= hidden {
			r[kind] -= off
			hidden -= off
		}
	}
}

// compare returns an error unless the agent has counted what the kernel has.
func (r *retransmitting) compare(t *testing.T) error {
	t.Helper()
	expected, untried, err := r.expected(t)
	if err != nil {
		return err
	}
	got := r.agent.retransmissions().since(r.before)
	expected.forgive(got, untried, r.tracers.hidden(t)-r.hidden)
	foreign := r.others()
	surplus := 0
	for kind, n := range expected {
		surplus += got[kind] - n
		if got[kind] < n || surplus > foreign {
			return fmt.Errorf("the agent counted %v, the kernel %v, and %d of others; it skipped %v programs", got, expected, foreign,
				r.agent.metrics().skipped()-r.skipped)
		}
	}
	t.Logf("%v, and %d of others", expected, foreign)
	return nil
}

// situations are the ways to retransmit.
var situations = []situation{
	{"SYN lost", synLost, func(r retransmissions, _ map[string]int) bool {
		return r["syn"] >= many && r["synack"] == 0
	}},
	{"SYN-ACK lost", synackLost, func(r retransmissions, _ map[string]int) bool {
		return r["syn"] >= many && r["synack"] >= many
	}},
	{"tail loss probe that retransmits", probeRetransmits, func(r retransmissions, c map[string]int) bool {
		return r["tail_loss_probe"] > many/2 && c["TcpExtTCPLossProbes"] <= many
	}},
	{"tail loss probe of new data", probeOfNewData, func(r retransmissions, c map[string]int) bool {
		return r["tail_loss_probe"] <= 0 && c["TcpExtTCPLossProbes"] >= many && r["fast"] > 0
	}},
	{"timeout", timeout, func(r retransmissions, _ map[string]int) bool {
		return r["timeout"] >= 3*many && r["tail_loss_probe"] == 0
	}},
	{"sending fails", sendingFails, func(r retransmissions, c map[string]int) bool {
		return r["timeout"] > 0 && c["TcpExtTCPRetransFail"] >= many
	}},
	{"bulk data over loss", bulk, func(r retransmissions, _ map[string]int) bool {
		return r["timeout"] > 0 && r["fast"] > many && r["tail_loss_probe"] > 0
	}},
}

// Every type of retransmission, against the kernel's own counters of the
// namespaces. Not parallel: the agent's counters are of the whole node.
func TestRetransmissionsAreCountedExactlyByType(t *testing.T) {
	a := startAgent(t)
	var w retransmissionTracers
	for i, p := range []tracepoint{tcpRetransmissions, tcpSynackRetransmissions} {
		w[i] = startTracer(t, p, labAddress)
	}
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			r := s.prepare(t, a.of(t), w)
			var wg sync.WaitGroup
			for _, n := range r.networks {
				wg.Go(func() { s.run(t, n) })
			}
			wg.Wait()
			eventually(t, "the counters agree", func() error { return r.compare(t) })
		})
	}
}

// retransmissionTracers trace what is retransmitted: SYN-ACKs have a tracepoint of their own.
type retransmissionTracers [2]*referenceTracer

// hidden is how many of those that were sent so far no program saw.
func (w retransmissionTracers) hidden(t *testing.T) (n int) {
	t.Helper()
	for _, tracer := range w {
		sent, _ := tracer.hiddenRetransmissions(t)
		n += sent
	}
	return n
}

// countOthers returns a function that counts those of others since now.
func (w retransmissionTracers) countOthers(t *testing.T) func() int {
	t.Helper()
	others := [len(w)]func() int{w[0].countOthers(t), w[1].countOthers(t)}
	return func() int { return others[0]() + others[1]() }
}

// hiddenRetransmissions is how many so far no program saw: of those that were sent, and of
// those that the host itself has dropped (of which kernels tell since 6.17).
func (w *referenceTracer) hiddenRetransmissions(t *testing.T) (sent, failed int) {
	t.Helper()
	for _, line := range w.hidden(t) {
		if !strings.Contains(line.says, " err=") || strings.HasSuffix(line.says, " err=0") {
			sent++
		} else {
			failed++
		}
	}
	return sent, failed
}

// oneSegmentABuffer keeps TCP from making bigger ones.
func oneSegmentABuffer(t *testing.T, n *network) {
	t.Helper()
	for _, ns := range []*lab.Namespace{n.Client, n.Server} {
		err := ns.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetGSOMaxSegs(link, 1)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// await waits until a counter of a namespace reaches a value.
func await(t *testing.T, n *lab.Namespace, counter string, atLeast int) {
	t.Helper()
	eventually(t, counter, func() error {
		if got := netstat(t, n)[counter]; got < atLeast {
			return fmt.Errorf("%d, expected %d", got, atLeast)
		}
		return nil
	})
}

// connectOver dials while something is lost, until there were so many
// retransmissions.
func connectOver(t *testing.T, n *network, r lab.Rule, at *lab.Namespace) {
	n.serve(droppedPort, func(*net.TCPConn) {})
	restore := n.drop(r)
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), generous)
			defer cancel()
			c, err := n.Client.Dial(ctx, n.server(droppedPort))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { c.Close() })
		})
	}
	await(t, at, "TcpExtTCPSynRetrans", 2*many)
	restore()
	wg.Wait()
}

func synLost(t *testing.T, n *network) {
	connectOver(t, n, lab.Rule{Port: droppedPort, Direction: lab.Out, Percent: 100}, n.Client)
}

func synackLost(t *testing.T, n *network) {
	connectOver(t, n, lab.Rule{Port: droppedPort, Direction: lab.In, Percent: 100}, n.Server)
}

// greeted has connections that have spoken, so that their round trip is known and
// none is in its handshake.
func greeted(n *network) []*net.TCPConn {
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, many)
	n.greet(conns)
	return conns
}

func write(t *testing.T, conns []*net.TCPConn, size int) {
	t.Helper()
	for _, c := range conns {
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Error(err)
		}
	}
}

// answered reads the echo of what was written.
func answered(t *testing.T, conns []*net.TCPConn, size int) {
	t.Helper()
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(generous))
		if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
			t.Error(err)
		}
	}
}

// One small segment and nothing else to send.
func probeRetransmits(t *testing.T, n *network) {
	conns := greeted(n)
	restore := n.cut(droppedPort)
	write(t, conns, 10)
	await(t, n.Client, "TcpExtTCPTimeouts", many)
	restore()
	answered(t, conns, 10)
}

// More than the congestion window of ten: the probe is the eleventh segment. What
// is lost then is retransmitted after the RTO, by slow start. The server sends
// nothing but its FIN: of data, an ACK that is delayed would make it probe as well.
func probeOfNewData(t *testing.T, n *network) {
	n.serve(droppedPort, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	})
	conns := n.dial(droppedPort, many)
	restore := n.cut(droppedPort)
	write(t, conns, 15*1448)
	await(t, n.Client, "TcpExtTCPTimeouts", many)
	restore()
	for _, c := range conns {
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(generous))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
	}
}

func withoutProbes(n *network) {
	for _, ns := range []*lab.Namespace{n.Client, n.Server} {
		if err := ns.Sysctl("net.ipv4.tcp_early_retrans", "0"); err != nil {
			n.t.Fatal(err)
		}
	}
}

func timeout(t *testing.T, n *network) {
	withoutProbes(n)
	conns := greeted(n)
	restore := n.cut(droppedPort)
	write(t, conns, 10)
	await(t, n.Client, "TcpExtTCPTimeouts", 3*many)
	restore()
	answered(t, conns, 10)
}

// A firewall on the way out is an error to TCP. On kernels that trace what could
// not be sent (since 6.17), that is no retransmission either.
func sendingFails(t *testing.T, n *network) {
	withoutProbes(n)
	conns := greeted(n)
	restore := n.cut(droppedPort)
	write(t, conns, 10)
	await(t, n.Client, "TcpExtTCPTimeouts", many)
	allow := refuseOut(t, n.Client, droppedPort)
	await(t, n.Client, "TcpExtTCPRetransFail", 2*many)
	restore()
	allow()
	answered(t, conns, 10)
}

// refuseOut drops what is sent to a port at the output hook.
func refuseOut(t *testing.T, n *lab.Namespace, port uint16) (allow func()) {
	t.Helper()
	table := &nftables.Table{Name: "halfopen_e2e", Family: nftables.TableFamilyINet}
	batch := func(f func(*nftables.Conn)) {
		t.Helper()
		err := n.Do(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			f(conn)
			return conn.Flush()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	batch(func(conn *nftables.Conn) {
		conn.AddTable(table)
		chain := conn.AddChain(&nftables.Chain{
			Name: "out", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	})
	return func() { batch(func(conn *nftables.Conn) { conn.DelTable(table) }) }
}

// Bulk data both ways over loss: everything there is, one within the other. The
// writers hold their sockets often enough that some timers are deferred.
func bulk(t *testing.T, n *network) {
	const streams = 5
	stop := make(chan struct{})
	var wg sync.WaitGroup
	pump := func(c *net.TCPConn) {
		_ = c.SetReadBuffer(1 << 20) // a window that closes would be probed
		wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
		wg.Go(func() {
			buf := make([]byte, 20000)
			for {
				select {
				case <-stop:
					_ = c.CloseWrite()
					return
				default:
				}
				if _, err := c.Write(buf); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	n.serve(droppedPort, pump)
	conns := n.dial(droppedPort, streams)
	restore := n.drop(lab.Rule{Port: droppedPort, Percent: 5})
	for _, c := range conns {
		pump(c)
	}
	eventually(t, "there are many of each", func() error {
		r := counted(grown(t, n.Client, nil), grown(t, n.Server, nil))
		if r["fast"] < 100*many || r["timeout"] < many || r["tail_loss_probe"] < many {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	restore()
	close(stop)
	wg.Wait()
}
