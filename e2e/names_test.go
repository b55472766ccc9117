// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/escape"
)

const (
	// Owners that have zombies all the time, and those that come and go in each wave.
	lastingNames = 60
	passingNames = 100
	mostSeries   = 50 // of a metric with owners
	// The ports of both. No other test has them.
	lastingPort, passingPort = 7031, 7032
)

// hostileNames are names of units, with a number in each.
var hostileNames = []string{
	"\x1b]0;%d\x07.service", "\u202e%d\u2066.service", "\u009b31m%d.service", "%d\xff\xfe.service",
	`%d"} 1.service`, `%d\.service`, `%d{owner="x"}.service`, "\r%d.service", " %d .service", "\u200b%d\u0301.service",
}

// namedZombies are connections of one process, each made in a control group with a hostile
// name of its own, which is its owner for good.
type namedZombies struct {
	t      testing.TB
	client *helperProcess
	n      *network
	top    string // the group of the process, in which the others are
	next   int    // the number of the next name
	groups []string
}

// connect makes connections to a port that end after so many probes, with that many
// seconds between them.
func (z *namedZombies) connect(count, port, probes, interval int) {
	z.t.Helper()
	for range count {
		at := filepath.Join(z.top, fmt.Sprintf(hostileNames[z.next%len(hostileNames)], z.next))
		z.next++
		if err := os.Mkdir(at, 0o755); err != nil {
			z.t.Fatal(err)
		}
		z.groups = append(z.groups, at)
		z.client.joins(at)
		z.client.must(command{Do: "connect", Addr: z.n.server(port), Options: append(probing(probes), [3]int{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, interval})})
	}
	z.client.joins(z.top)
}

// remove removes all but the first so many groups.
func (z *namedZombies) remove(but int) {
	z.t.Helper()
	for _, at := range z.groups[min(but, len(z.groups)):] {
		eventually(z.t, "a control group is removed", func() error { return os.Remove(at) })
	}
	z.groups = z.groups[:min(but, len(z.groups))]
}

// ownerSeries checks one scrape, and returns the series of halfopen_tcp_zombies_by_owner,
// those of others' connections apart.
func ownerSeries(t *testing.T, a *agent) (ours, others map[string]bool) {
	t.Helper()
	_, body, err := a.text("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if line = strings.TrimSuffix(line, "\n"); !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !escape.Visible(r) }) {
			t.Fatalf("a line of /metrics has what a terminal should not get: %q", line)
		}
	}
	ours, others = make(map[string]bool), make(map[string]bool)
	for name, f := range a.metrics().families {
		series := 0
		for _, m := range f.Metric {
			labels := labelsOf(m)
			if _, has := labels["owner"]; !has {
				continue
			}
			series++
			switch key := labels["owner"] + " " + labels["remote_port"]; {
			case labels["remote_port"] == fmt.Sprint(lastingPort), labels["remote_port"] == fmt.Sprint(passingPort):
				ours[name+" "+key] = true
			case labels["owner"] != "other":
				others[name+" "+key] = true
			}
		}
		if series > mostSeries {
			t.Fatalf("%d series of %s at once", series, name)
		}
	}
	return ours, others
}

func labelsOf(m *dto.Metric) map[string]string {
	labels := make(map[string]string)
	for _, l := range m.Label {
		labels[l.GetName()] = l.GetValue()
	}
	return labels
}

// Names without end make few series: at most fifty at once and, while the owners that have
// them still have zombies, no others. With HALFOPEN_SOAK this takes that long, and an hour
// has 10,000 names.
func TestHostileNamesMakeFewSeries(t *testing.T) {
	t.Parallel()
	end := time.Now()  // after one wave
	const probes = 127 // the most that there can be
	interval := 1
	if os.Getenv("HALFOPEN_SOAK") != "" {
		d := soakTime(t)
		end, interval = end.Add(d), 1+int(d.Seconds())/(probes-7)
	}
	n := newNetwork(t, "ipv4")
	n.serve(lastingPort, echo)
	n.serve(passingPort, echo)
	a := launchAgent(t, "--zombie-silence=3s")
	defer a.stop()
	a.ready()

	h := newController(t)
	z := &namedZombies{t: t, n: n, top: group(t, hierarchy(t, ""), fmt.Sprintf("halfopen-e2e-names-%d.slice", os.Getpid()))}
	t.Cleanup(func() { z.remove(0) })
	z.client = h.start("client", n.Client.Path())
	z.connect(lastingNames, lastingPort, probes, interval)
	n.cut(lastingPort)
	eventually(t, "zombies with hostile names", func() error {
		return all(a.connections(n, lastingPort, ""), lastingNames, "zombie")
	})
	var first, foreign map[string]bool
	eventually(t, "as many series as there may be", func() error { // the owners are found soon after
		if first, foreign = ownerSeries(t, a); len(first) == 0 || len(first)+len(foreign) < mostSeries-1 {
			return fmt.Errorf("%d series of %d owners, and %d of others", len(first), lastingNames, len(foreign))
		}
		return nil
	})
	names, scrapes := 0, 0
	for wave := true; wave || time.Now().Before(end); wave = false {
		z.connect(passingNames, passingPort, 20, 1)
		restore := n.cut(passingPort)
		zombies := 0
		eventually(t, "all of a wave have been zombies, and have ended", func() error {
			now := a.connections(n, passingPort, "")
			count := 0
			for _, c := range now {
				if c.Verdict == "zombie" {
					count++
				}
			}
			zombies = max(zombies, count)
			ours, others := ownerSeries(t, a)
			scrapes++
			for key := range others {
				foreign[key] = true
			}
			for key := range ours {
				// A place that an owner of another test has left may be given again.
				if !first[key] && len(first) >= mostSeries-1+len(foreign) {
					t.Fatalf("a new series %q, while the %d owners that have one have zombies", key, len(first))
				}
				first[key] = true
			}
			if len(now) > 0 {
				return fmt.Errorf("%d of %d are still there", len(now), passingNames)
			}
			return nil
		})
		restore()
		if zombies <= mostSeries {
			t.Fatalf("%d of a wave were zombies at once, which proves nothing", zombies)
		}
		names += passingNames
		z.remove(lastingNames)
	}
	t.Logf("%d names, %d scrapes: %d series of ours in all, %d of others", lastingNames+names, scrapes, len(first), len(foreign))
}
