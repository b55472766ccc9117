// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// peerHost is what the agent knows of the remote address of a zombie.
type peerHost struct {
	Connections  int      `json:"connections"`
	Zombies      int      `json:"zombies"`
	HeardSeconds *float64 `json:"heard_seconds"`
}

// zombieTo waits until the client's connection to a port is a zombie for a reason, and returns
// what the agent knows of its address.
func (a *agent) zombieTo(n *network, port int, reason string, fits func(*peerHost) bool) {
	a.t.Helper()
	eventually(a.t, fmt.Sprintf("port %d has a zombie, %s", port, reason), func() error {
		var doc struct {
			Connections []struct {
				connection
				PeerHost *peerHost `json:"peer_host"`
			}
		}
		if err := a.get(fmt.Sprintf("/api/v1/connections?port=%d&netns=%d", port, n.Client.Inode()), &doc); err != nil {
			return err
		}
		if len(doc.Connections) != 1 {
			return fmt.Errorf("%d connections", len(doc.Connections))
		}
		c := &doc.Connections[0]
		if c.Verdict != "zombie" || c.Reason == nil || c.Reason.Code != reason || c.PeerHost == nil || !fits(c.PeerHost) {
			return fmt.Errorf("it is %s, %+v, %+v", c.Verdict, c.Reason, c.PeerHost)
		}
		return nil
	})
}

// A zombie whose address still answers other connections is not most likely gone. If none of
// them hears anything either, the quiet ones among them are at risk.
func TestWhatAnAddressTellsOfOtherConnections(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--zombie-silence=2s", "--idle-after=2s", "--census-interval=1s", "--census-cpu=100%")
		const lost, probed, quiet = 7330, 7331, 7332
		for _, port := range []int{lost, probed, quiet} {
			n.serve(port, echo)
			conns := n.dial(port, 1)
			n.greet(conns)
			if port != quiet {
				n.keepalive(conns, time.Second, 2*time.Second, 120)
			}
		}
		out, err := n.Client.Output("ss", "-Htn", "state", "established")
		if all := strings.Count(string(out), "\n"); err != nil || all != 3 {
			t.Fatalf("ss shows %d connections, error %v\n%s", all, err, out)
		}
		restoreOne := n.cut(lost)
		a.zombieTo(n, lost, "peer_host_alive", func(h *peerHost) bool {
			return h.Connections == 3 && h.Zombies == 1 && h.HeardSeconds != nil
		})
		if c := a.ofPort(n, quiet); c.Verdict != "unguarded" || slices.Contains(c.Risks, "peer_host_silent") {
			t.Errorf("while the address answers, a quiet connection to it is %s at risks %v", c.Verdict, c.Risks)
		}
		restoreOther := n.cut(probed)
		for _, port := range []int{lost, probed} {
			a.zombieTo(n, port, "peer_host_silent", func(h *peerHost) bool {
				return h.Connections == 3 && h.Zombies == 2 && h.HeardSeconds != nil && *h.HeardSeconds > 2
			})
		}
		listed := list(t, "--url", a.url, "--risk=peer_host_silent", "--netns", fmt.Sprint(n.Client.Inode()))
		if len(listed) != 1 || listed[0].Remote.Port != quiet {
			t.Errorf("at risk are %+v", listed)
		}
		if v := a.metrics().value("halfopen_tcp_connections_at_risk", "risk", "peer_host_silent"); v < 1 {
			t.Errorf("the metric counts %v", v)
		}
		restoreOne()
		restoreOther()
		eventually(t, "nothing is at risk any more", func() error {
			if listed := list(t, "--url", a.url, "--risk=peer_host_silent", "--netns", fmt.Sprint(n.Client.Inode())); len(listed) > 0 {
				return fmt.Errorf("%+v", listed)
			}
			return nil
		})
	})
}
