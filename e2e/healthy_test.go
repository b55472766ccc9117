// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// soakTime is how long healthy connections are watched: $HALFOPEN_SOAK, or a minute.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv("HALFOPEN_SOAK"), "1m"))
	if err != nil || d < time.Minute {
		t.Fatalf("HALFOPEN_SOAK is %q, expected a duration of at least a minute, such as 10m", os.Getenv("HALFOPEN_SOAK"))
	}
	return d
}

// each is how many connections there are of each kind, over each family.
const each = 13

// The ports: of those that lose packets each connection has its own.
const (
	quietPort  = 7200 // idle, keepalive is answered
	pausedPort = 7201 // the window is closed, with nothing in flight
	shrunkPort = 7202 // the window is closed under data in flight
	jerkyPort  = 7203 // paused and read in turn
	chattyPort = 7300 // and those that follow
	lossyPort  = 7400 // idle over loss, and those that follow
)

// TestHealthyConnectionsAreNeverCalledDead has connections that are healthy in
// every way that looks like trouble: a quarter of the packets lost, idle with
// keepalive, paused by a closed window. None of them is called a zombie, or dead, in a minute, and
// in ten with `make soak`.
//
// With independent losses some connection would now and then really hear nothing
// for the ten seconds of --zombie-silence, and zombie be the right verdict: five
// or six retransmissions at growing intervals fill them, and of each, or its
// answer, 44 % are lost. So no two packets in a row of one connection and
// direction are lost here: of the peer's retransmissions at least every second
// arrives, and of any question every fourth is answered. That is a few seconds
// of silence at most, whatever the dice say.
func TestHealthyConnectionsAreNeverCalledDead(t *testing.T) {
	t.Parallel()
	lasting := soakTime(t)
	a := startAgent(t)
	var soaks []*soak
	for _, family := range []string{"ipv4", "ipv6"} {
		s := &soak{network: newNetwork(t, family), failed: make(chan error, 1), over: make(chan struct{})}
		defer close(s.over) // before the connections are closed
		s.start()
		soaks = append(soaks, s)
	}
	seen := make(map[string]int)
	for began := time.Now(); time.Since(began) < lasting; {
		var living struct {
			Connections []connection `json:"connections"`
		}
		var dead struct {
			Deaths []death `json:"deaths"`
		}
		if err := a.get("/api/v1/connections?limit=100000", &living); err != nil {
			t.Fatal(err)
		}
		if err := a.get("/api/v1/deaths?limit=100000", &dead); err != nil {
			t.Fatal(err)
		}
		for _, s := range soaks {
			verdicts, err := s.judge(living.Connections, dead.Deaths)
			if err != nil {
				t.Fatalf("after %v, over %s: %v", time.Since(began).Round(time.Second), s.family, err)
			}
			for _, v := range verdicts {
				seen[v]++
			}
		}
		select {
		case err := <-soaks[0].failed:
			t.Fatal(err)
		case err := <-soaks[1].failed:
			t.Fatal(err)
		case <-time.After(time.Second):
		}
	}
	for _, s := range soaks {
		s.end()
	}
	t.Logf("verdicts seen: %v", seen)
	for _, verdict := range []string{"active", "suspect", "stalled"} {
		if seen[verdict] == 0 {
			t.Errorf("none was ever %s", verdict)
		}
	}
}

// soak is a network of healthy connections.
type soak struct {
	*network
	conns  []*net.TCPConn // the clients' ends
	failed chan error     // what an application got that it should not
	over   chan struct{}
}

// fail reports an error that an application got before the end.
func (s *soak) fail(err error) {
	select {
	case <-s.over:
	case s.failed <- fmt.Errorf("an application over %s got %w", s.family, err):
	default:
	}
}

func (s *soak) start() {
	patient := func(c *net.TCPConn) {
		if err := lab.SetKeepalive(c, time.Second, time.Second, 9); err != nil {
			s.fail(err)
		}
		s.drain(c)
	}
	for i := range each {
		s.serve(chattyPort+i, s.chat)
		s.open(chattyPort+i, s.chat)
		s.serve(lossyPort+i, s.drain)
		s.open(lossyPort+i, patient)
	}
	servers := map[int]func(*net.TCPConn){quietPort: s.drain, pausedPort: s.hold}
	if fullReceiversAnswer(s.t) {
		servers[jerkyPort] = s.jerk
		servers[shrunkPort] = func(c *net.TCPConn) {
			_ = c.SetReadBuffer(4096)
			s.hold(c)
		}
	} else {
		for _, kind := range []string{"paused and read in turn", "window closed under data in flight"} {
			leftOut(s.t, s.t.Name()+"/"+kind, "a receiver whose buffer is full does not answer")
		}
	}
	for port, serve := range servers {
		s.serve(port, serve)
		client := s.flood
		if port == quietPort {
			client = patient
		}
		for range each {
			s.open(port, client)
		}
	}
	// From here on, so that all are connected at once.
	for i := range each {
		for _, port := range []int{chattyPort, lossyPort} {
			for _, d := range []lab.Direction{lab.In, lab.Out} {
				s.drop(lab.Rule{Port: uint16(port + i), Direction: d, Percent: 25, Apart: true})
			}
		}
	}
}

func (s *soak) open(port int, client func(*net.TCPConn)) {
	c := s.dial(port, 1)[0]
	s.conns = append(s.conns, c)
	go client(c)
}

// drain reads until the end, which must not come.
func (s *soak) drain(c *net.TCPConn) {
	buf := make([]byte, 4096)
	for {
		if _, err := c.Read(buf); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *soak) chat(c *net.TCPConn) {
	go s.drain(c)
	for {
		if _, err := io.WriteString(c, "what a line"); err != nil {
			s.fail(err)
			return
		}
		if !s.wait(200 * time.Millisecond) {
			return
		}
	}
}

// wait is false at the end.
func (s *soak) wait(d time.Duration) bool {
	select {
	case <-s.over:
		return false
	case <-time.After(d):
		return true
	}
}

// flood writes as much as there is room for.
func (s *soak) flood(c *net.TCPConn) {
	_ = c.SetWriteBuffer(1 << 16)
	for buf := make([]byte, 1<<16); ; {
		if _, err := c.Write(buf); err != nil {
			s.fail(err)
			return
		}
	}
}

// hold keeps the connection open and reads nothing.
func (s *soak) hold(*net.TCPConn) { <-s.over }

// jerk reads a little twice a minute.
func (s *soak) jerk(c *net.TCPConn) {
	for s.wait(25 * time.Second) {
		if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
			s.fail(err)
			return
		}
	}
}

// judge looks through what the agent says of the network's connections, both
// ends, and returns their verdicts.
func (s *soak) judge(living []connection, dead []death) (verdicts []string, err error) {
	ours := func(c connection) bool { return c.Netns == s.Client.Inode() || c.Netns == s.Server.Inode() }
	for _, d := range dead {
		// The kernel uses the number of a namespace that is gone again.
		if ours(d.connection) && d.At.After(s.made) {
			return nil, fmt.Errorf("a death: %+v", d)
		}
	}
	for _, c := range living {
		if !ours(c) {
			continue
		}
		lossy := min(c.Local.Port, c.Remote.Port) >= chattyPort
		if c.Verdict == "zombie" || c.Verdict == "suspect" && !lossy {
			return nil, fmt.Errorf("a %s: %+v", c.Verdict, c)
		}
		verdicts = append(verdicts, c.Verdict)
	}
	if len(verdicts) != 2*len(s.conns) {
		return nil, fmt.Errorf("%d ends of connections, expected %d", len(verdicts), 2*len(s.conns))
	}
	return verdicts, nil
}

// end checks that all are still there, and that they had something to survive.
func (s *soak) end() {
	for _, ns := range []*lab.Namespace{s.Client, s.Server} {
		out, err := ns.Output("ss", "-Htn", "state", "established")
		if err != nil {
			s.t.Fatal(err)
		}
		if got := strings.Count(string(out), "\n"); got != len(s.conns) {
			s.t.Errorf("%s: ss shows %d connections, expected %d", s.family, got, len(s.conns))
		}
	}
	client, server := netstat(s.t, s.Client), netstat(s.t, s.Server)
	s.t.Logf("%s: %d retransmissions, %d timeouts, %d keepalives, %d window probes of %d connections", s.family,
		client["TcpRetransSegs"]+server["TcpRetransSegs"], client["TcpExtTCPTimeouts"]+server["TcpExtTCPTimeouts"],
		client["TcpExtTCPKeepAlive"], client["TcpExtTCPWinProbe"], len(s.conns))
	for name, least := range map[string]int{
		"TcpRetransSegs": 10 * each, "TcpExtTCPTimeouts": each, "TcpExtTCPKeepAlive": 10 * each, "TcpExtTCPWinProbe": each,
	} {
		if client[name] < least {
			s.t.Errorf("%s: %s is only %d: there was nothing to survive", s.family, name, client[name])
		}
	}
}
