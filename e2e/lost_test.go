// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// solicitationEvents is what became of the solicitations that are events.
func solicitationEvents(m metrics) (told, lost int) {
	m.t.Helper()
	for _, name := range []string{"events", "events_suppressed", "events_lost"} {
		n := int(m.value("halfopen_"+name+"_total", "type", "solicitation"))
		if name == "events_lost" {
			lost = n
		}
		told += n
	}
	return told, lost
}

// timeoutsSent is how many retransmissions by timeout a namespace has sent, where
// nothing else is retransmitted but by tail loss probes; see counted. What the host
// itself drops is not sent, and asks no peer anything: the veth's backlog takes a
// thousand packets of one softirq.
func timeoutsSent(c map[string]int) int {
	return c["TcpRetransSegs"] - c["TcpExtTCPRetransFail"] - c["TcpExtTCPLossProbes"]
}

// probesOfOthers is how many keepalive and window probes there have been on this node. No
// tracepoint shows them; of window probes, only those of the host's own network namespace
// are counted.
func probesOfOthers(m metrics) int {
	m.t.Helper()
	return int(m.value("halfopen_tcp_keepalive_probes_sent_total")) + netstat(m.t, nil)["TcpExtTCPWinProbe"]
}

// A ring buffer of one page has room for twenty events, and in a storm hundreds of
// timers expire in one softirq, during which the agent does not read: most events do not fit, each
// of them is counted, and the table is right all the same. Not parallel: the counters
// are of the whole node.
func TestLostEventsAreCountedAndRepaired(t *testing.T) {
	const (
		census       = 2 * time.Second
		networkCount = 3
		storm        = 7961 // a port that no other test uses
	)
	pairs := scaled(3001)
	a := startAgent(t, "--debug.events-bytes=4096", fmt.Sprintf("--census-interval=%v", census), "--census-cpu=100%")
	var networks []*network
	h := newController(t)
	var clients []*helperProcess
	var victims [][]int
	for range networkCount {
		n := newNetwork(t, "ipv4")
		p := h.start("storm", "")
		all := p.must(command{Do: "connect many", Paths: []string{n.Client.Path(), n.Server.Path()}, Addr: n.server(storm), Count: pairs})
		networks, clients, victims = append(networks, n), append(clients, p), append(victims, all.FDs)
	}
	timeouts := func() (sum int) {
		for _, n := range networks {
			sum += timeoutsSent(netstat(t, n.Client))
		}
		return sum
	}
	tracer := startTracer(t, tcpRetransmissions, regexp.MustCompile(fmt.Sprintf(`\bdport=%d `, storm)))
	begun := timeouts()
	m := a.metrics()
	before, lostBefore := solicitationEvents(m)
	probed := probesOfOthers(m)
	for i, n := range networks {
		n.drop(lab.Rule{Percent: 100})
		clients[i].must(command{Do: "write all", FDs: victims[i]})
	}

	// By ss: retransmissions by timeout in a row, which are to be three at least
	// without those that were not sent, and ten seconds of silence.
	truth := func() (n int) {
		for _, net := range networks {
			n += net.overdue(storm, 5, 10*time.Second)
		}
		return n
	}
	everyone := networkCount * pairs
	eventually(t, "by ss all are zombies", func() error {
		if got := truth(); got != everyone {
			return fmt.Errorf("%d, expected %d", got, everyone)
		}
		return nil
	})
	// What lies between is less than a census, and how long asking takes.
	within(t, census+10*patience*time.Second, "the table has them all", func() error {
		if got := a.metrics().zombies(storm); got != everyone {
			return fmt.Errorf("%d zombies, expected %d", got, everyone)
		}
		return nil
	})
	for i, n := range networks {
		if err := all(a.connections(n, storm, ""), pairs, "zombie"); err != nil {
			t.Errorf("network %d: %v", i, err)
		}
	}

	// The intervals double: there comes a time when nothing is sent.
	var got, lost, sent int
	eventually(t, "nothing is sent while the counters are read", func() error {
		sent = timeouts()
		got, lost = solicitationEvents(a.metrics())
		time.Sleep(100 * time.Millisecond) // a time in which to see that nothing happens
		if now := timeouts(); now != sent {
			return fmt.Errorf("%d retransmissions", now-sent)
		}
		return nil
	})
	got, lost, sent = got-before, lost-lostBefore, sent-begun
	// The first of each row is not worth an event.
	expected := sent - everyone
	end := a.metrics()
	// What others ask of their peers is counted as well.
	_, foreign := tracer.counts(t)
	foreign += probesOfOthers(end) - probed
	// Of a row that began unseen the agent takes the kernel's count, in which there is
	// also what the host itself has dropped.
	hidden, hiddenFailed := tracer.hiddenRetransmissions(t)
	t.Logf("%d retransmissions: %d are to be told, %d were told, suppressed or lost, %d of them lost; %d hidden, %d of them not sent, and %d of others",
		sent, expected, got, lost, hidden+hiddenFailed, hiddenFailed, foreign)
	if lost == 0 {
		t.Error("nothing was lost: nothing was tried")
	}
	skipped := int(end.skipped() - m.skipped())
	for _, fault := range []string{"no_cookie", "watch_full"} {
		if n := end.value("halfopen_events_lost_total", "type", fault) - m.value("halfopen_events_lost_total", "type", fault); n > 0 {
			t.Errorf("%v times %s", n, fault)
		}
	}
	if got < expected-hidden-skipped || got > expected+foreign+hiddenFailed {
		t.Errorf("%d were told, suppressed or lost, expected %d (%d hidden, %d of them not sent, %d skipped, %d of others)", got, expected, hidden+hiddenFailed, hiddenFailed, skipped, foreign)
	}
}

// overdue counts by ss the client's connections to a port with so many
// retransmissions by timeout in a row that have not heard anything for so long.
func (n *network) overdue(port, least int, silence time.Duration) (count int) {
	n.t.Helper()
	out, err := n.Client.Output("ss", "-OHtnoi", "state", "established", fmt.Sprintf("dport = :%d", port))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		timer := ssTimer.FindStringSubmatch(line)
		if timer == nil || timer[1] != "on" {
			continue
		}
		if row, _ := strconv.Atoi(timer[2]); row < least {
			continue
		}
		heard := ssHeard.FindAllStringSubmatch(line, 2)
		if len(heard) != 2 {
			n.t.Fatalf("ss does not say when the peer was heard: %s", line)
		}
		silent := true
		for _, m := range heard {
			ms, _ := strconv.Atoi(m[1])
			silent = silent && time.Duration(ms)*time.Millisecond >= silence
		}
		if silent {
			count++
		}
	}
	return count
}

// ssHeard is since when, in milliseconds, no data and no ACK has come.
var ssHeard = regexp.MustCompile(`\blast(?:rcv|ack):(\d+)`)
