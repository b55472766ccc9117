// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// stuckCase is a way that loses what the client sends, while the client hears its peer.
type stuckCase struct {
	loss   lab.Rule // of packets that the client sends
	bytes  int      // that the client writes then
	reason string
	advice string // a command that explain prints
	probes bool   // the server sends keepalive probes, not data
}

var stuckCases = map[string]stuckCase{
	"full-sized segments are lost":                 {lab.Rule{Above: 1000}, 8 << 10, "path_mtu", "net.ipv4.tcp_mtu_probing=1", false},
	"all segments are lost, the peer's probes not": {lab.Rule{}, 100, "one_way", "tcpdump -ni any", true},
}

// begin makes a connection to a port and the loss, and writes. It returns the client's
// end, and a function that ends the loss.
func (s stuckCase) begin(t *testing.T, n *network, port int) (c *net.TCPConn, restore func()) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	n.serve(port, func(peer *net.TCPConn) {
		if s.probes { // as many as there can be: it must not give up
			if err := lab.SetKeepalive(peer, time.Second, time.Second, 127); err != nil {
				t.Error(err)
			}
		} else {
			go beat(peer, done)
		}
		_, _ = io.Copy(io.Discard, peer)
	})
	c = n.dial(port, 1)[0]
	go func() { _, _ = io.Copy(io.Discard, c) }()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the greeting is acknowledged", func() error {
		if info, err := lab.Info(c); err != nil || info.Unacked > 0 {
			return fmt.Errorf("not acknowledged: %v", err)
		}
		return nil
	})
	loss := s.loss
	loss.Port, loss.Direction, loss.Percent = uint16(port), lab.Out, 100
	restore = n.drop(loss)
	if _, err := c.Write(bytes.Repeat([]byte("x"), s.bytes)); err != nil {
		t.Fatal(err)
	}
	return c, restore
}

// beat writes a byte four times a second, until done is closed or the connection ends.
func beat(c *net.TCPConn, done <-chan struct{}) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.Write([]byte(".")); err != nil {
			return
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// A connection whose data is lost while its peer is heard is stuck, and no zombie at any
// time: seen from its beginning, or found in this state by an agent that starts later.
func TestHeardButNotAcknowledgedIsStuck(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		first := startAgent(t, "--zombie-silence=3s")
		port := 7300
		for name, s := range stuckCases {
			port++
			t.Run(name, func(t *testing.T) {
				c, restore := s.begin(t, n, port)
				stuck := first.becomesStuck(n, port, c)
				if stuck.Reason == nil || stuck.Reason.Code != s.reason {
					t.Errorf("its reason is %+v, expected %s", stuck.Reason, s.reason)
				}
				stdout, stderr, status := run(t, exec.Command(binary, "explain", stuck.Cookie, "--url", first.url))
				if status != 0 || !strings.Contains(stdout, "WHAT TO DO") || !strings.Contains(stdout, s.advice) {
					t.Errorf("explain: exit status %d: %s\n%s", status, stderr, stdout)
				}
				for _, e := range first.story(stuck.Cookie) {
					if e.To == "zombie" {
						t.Errorf("it was a zombie at %v", e.At)
					}
				}
				later := startAgent(t, "--zombie-silence=3s")
				later.becomesStuck(n, port, c)
				later.stop()

				restore()
				eventually(t, "what was lost is acknowledged", func() error {
					info, err := lab.Info(c)
					if err != nil || info.Unacked > 0 {
						return fmt.Errorf("%d segments are not acknowledged, %v", info.Unacked, err)
					}
					return nil
				})
				eventually(t, "it is active again", func() error {
					if got := first.ofPort(n, port); got.Verdict != "active" || got.Unanswered != 0 || got.Reason != nil {
						return fmt.Errorf("it is %s, %d unanswered, reason %+v", got.Verdict, got.Unanswered, got.Reason)
					}
					return nil
				})
			})
		}
	})
}

// becomesStuck waits until the agent says that the client's connection to a port is stuck
// by retransmissions, as many as the kernel counts, and hears the peer as the kernel does.
func (a *agent) becomesStuck(n *network, port int, client *net.TCPConn) (stuck connection) {
	a.t.Helper()
	eventually(a.t, "the connection is stuck", func() error {
		before, err := lab.Info(client)
		if err != nil {
			return err
		}
		stuck = a.ofPort(n, port)
		after, err := lab.Info(client)
		switch {
		case err != nil:
			return err
		case stuck.Verdict != "stuck" || stuck.Evidence != "retransmit":
			return fmt.Errorf("it is %s by %s", stuck.Verdict, stuck.Evidence)
		case before.Retransmits != after.Retransmits || before.Segs_in != after.Segs_in:
			return errors.New("it changed meanwhile")
		case stuck.Unanswered != int(before.Retransmits) || stuck.SegmentsIn != int(before.Segs_in):
			return fmt.Errorf("%d unanswered and %d segments in, but the kernel counts %d retransmissions and %d segments", stuck.Unanswered, stuck.SegmentsIn, before.Retransmits, before.Segs_in)
		case stuck.SilentSeconds > 2:
			return fmt.Errorf("silent for %.1f s, though the peer sends each second", stuck.SilentSeconds)
		}
		return nil
	})
	return stuck
}

// A client without keepalive whose server sends keepalive probes hears it, though TCP
// accepts no such probe.
func TestKeepaliveOfThePeerIsHeard(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		n.serve(7310, func(peer *net.TCPConn) {
			if err := lab.SetKeepalive(peer, time.Second, time.Second, 9); err != nil {
				t.Error(err)
			}
			_, _ = io.Copy(io.Discard, peer)
		})
		c := n.dial(7310, 1)[0]
		a := startAgent(t)
		eventually(t, "the peer has probed for five seconds", func() error {
			info, err := lab.Info(c)
			if err != nil {
				return err
			}
			if info.Last_ack_recv < 5000 {
				return fmt.Errorf("TCP last accepted a segment %d ms ago", info.Last_ack_recv)
			}
			return nil
		})
		if got := a.ofPort(n, 7310); got.SilentSeconds > 2 || got.SegmentsIn < 4 {
			t.Errorf("silent for %.1f s with %d segments in", got.SilentSeconds, got.SegmentsIn)
		}
	})
}
