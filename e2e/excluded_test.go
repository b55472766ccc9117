// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// The zombies of an excluded owner are counted apart from those of others.
func TestExcludedOwnersAreCountedApart(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--alert.exclude-owner=halfopen-chaos-"+n.family+"-*")
		v2, top := hierarchy(t, ""), fmt.Sprintf("halfopen-e2e-excluded-%d-%s.slice", os.Getpid(), n.family)
		h := newController(t)
		n.serve(droppedPort, func(*net.TCPConn) {})
		owners := map[string]struct {
			excluded string
			zombies  int
		}{
			"halfopen-chaos-" + n.family + "-7.service": {"true", 7}, "api-" + n.family + ".service": {"", 3},
		}
		for unit, o := range owners {
			at := group(t, v2, filepath.Join(top, unit))
			p := h.start("lonely", n.Client.Path())
			p.joins(at)
			for range o.zombies {
				p.must(command{Do: "connect", Addr: n.server(droppedPort), Options: probing(60)})
			}
		}
		n.cut(droppedPort)
		eventually(t, "zombies by owner", func() error {
			m := a.metrics()
			for unit, o := range owners {
				labels := map[string]string{
					"owner": unit, "excluded": o.excluded, "namespace": "", "pod": "", "container": "", "remote_port": strconv.Itoa(droppedPort),
				}
				if got := m.series("halfopen_tcp_zombies_by_owner", labels); got != o.zombies {
					return fmt.Errorf("%s has %d zombies: %v", unit, got, m.zombiesByOwner(droppedPort))
				}
			}
			// Other tests have none of this owner.
			if got := m.series("halfopen_tcp_connections", map[string]string{"state": "established", "verdict": "zombie", "excluded": "true"}); got != 7 {
				return fmt.Errorf("%d excluded zombies", got)
			}
			if got := m.series("halfopen_tcp_connections", map[string]string{"state": "established", "verdict": "zombie", "excluded": ""}); got < 3 {
				return fmt.Errorf("%d other zombies", got)
			}
			return nil
		})
		if oldest := a.metrics().value("halfopen_tcp_zombie_oldest_seconds", "excluded", "true"); oldest <= 0 {
			t.Errorf("the oldest excluded one is one for %v s", oldest)
		}
	})
}
