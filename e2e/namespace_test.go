// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/halfopen/halfopen/internal/lab"
)

// fds counts a process's file descriptors.
func fds(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// strays are the threads of a process outside its own network namespace.
func strays(t *testing.T, pid int) []string {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home {
			found = append(found, task)
		}
	}
	return found
}

// namespaceCount follows the number of network namespaces that the census counts while
// nothing but the test makes any. Those of earlier tests may still vanish at any moment:
// a connection that its application has closed keeps its namespace until the kernel
// gives it up. So only a rise above the lowest count seen so far is the test's own.
type namespaceCount struct {
	agent  *agent
	lowest int
}

func (a *agent) countNamespaces() *namespaceCount {
	a.t.Helper()
	return &namespaceCount{a, int(a.nextCensus().value("halfopen_census_namespaces"))}
}

func (c *namespaceCount) now() int {
	return int(c.agent.metrics().value("halfopen_census_namespaces"))
}

// waitForMore waits until the census counts the namespaces that the test has made. It
// returns the count.
func (c *namespaceCount) waitForMore(made int) int {
	c.agent.t.Helper()
	var got int
	eventually(c.agent.t, "the census counts them", func() error {
		// Each is another than those of earlier tests, of which the loopback's is one.
		if got = c.now(); got <= made || got > c.lowest+made {
			return fmt.Errorf("%d namespaces, expected %d, or fewer by what earlier tests left", got, c.lowest+made)
		}
		return nil
	})
	return got
}

// waitForFewer waits until the count is as low as before, and lower by gone than
// counted, which was taken while the namespaces that have gone still existed.
func (c *namespaceCount) waitForFewer(counted, gone int) {
	c.agent.t.Helper()
	eventually(c.agent.t, "the census counts them no more", func() error {
		got := c.now()
		if got > c.lowest || got > counted-gone {
			return fmt.Errorf("%d namespaces, there were %d before, and %d with the %d that have gone", got, c.lowest, counted, gone)
		}
		c.lowest = got
		return nil
	})
}

func TestNamespacesComeAndGo(t *testing.T) {
	// Not parallel: it counts namespaces. The interval stretches with their
	// number, to keep to the census's share of a core.
	a := startAgent(t, "--census-interval=500ms")
	pid := a.cmd.Process.Pid
	namespaces := a.countNamespaces()
	seen := func(made map[uint32]*lab.Namespace) map[uint32]bool {
		var list struct {
			Connections []connection `json:"connections"`
		}
		if err := a.get(fmt.Sprintf("/api/v1/connections?port=%d", healthy), &list); err != nil {
			t.Fatal(err)
		}
		seen := make(map[uint32]bool)
		for _, c := range list.Connections {
			if made[c.Netns] != nil {
				seen[c.Netns] = true
			}
		}
		return seen
	}
	seen(nil)
	baseFDs, baseGoroutines := fds(t, pid), a.metrics().value("go_goroutines")

	for round := range 3 {
		made := make(map[uint32]*lab.Namespace)
		var sockets []io.Closer
		for range many {
			n, err := lab.NewNamespace()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { n.Close() })
			made[n.Inode()] = n
			l, err := n.Listen("tcp", netip.MustParseAddrPort("127.0.0.1:7001"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			sockets = append(sockets, l)
			c, err := n.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:7001"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sockets = append(sockets, c)
		}
		if got := len(seen(made)); got != many {
			t.Errorf("round %d: connections of %d namespaces seen, expected %d", round, got, many)
		}
		counted := namespaces.waitForMore(many)
		for _, s := range sockets { // each of them would keep its namespace
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range made {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
		namespaces.waitForFewer(counted, many)
	}

	eventually(t, "nothing is held", func() error {
		if got := strays(t, pid); len(got) > 0 {
			return fmt.Errorf("threads in other namespaces: %v", got)
		}
		if got := fds(t, pid); got > baseFDs+1 { // one may be a scrape's connection
			return fmt.Errorf("%d file descriptors, there were %d", got, baseFDs)
		}
		if got := a.metrics().value("go_goroutines"); got > baseGoroutines+2 {
			return fmt.Errorf("%v goroutines, there were %v", got, baseGoroutines)
		}
		return nil
	})
}

// loaded counts the kernel's BPF programs and links.
func loaded(t *testing.T) (programs, links int) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; programs++ {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		links++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return programs, links
}

func TestNothingIsLeftInTheKernel(t *testing.T) {
	programs, links := loaded(t) // not parallel: it counts every program
	checkGone := func(t *testing.T) {
		eventually(t, "unloaded", func() error {
			if p, l := loaded(t); p > programs || l > links {
				return fmt.Errorf("%d programs and %d links, there were %d and %d", p, l, programs, links)
			}
			return nil
		})
	}

	t.Run("after SIGTERM", func(t *testing.T) {
		a := startAgent(t)
		if p, l := loaded(t); p <= programs || l <= links {
			t.Fatalf("%d programs and %d links with an agent, %d and %d without", p, l, programs, links)
		}
		if status := a.stop(); status != 0 {
			t.Errorf("exit status %d: %s", status, a.log)
		}
		checkGone(t)
	})
	t.Run("after kill -9", func(t *testing.T) {
		a := startAgent(t)
		if err := a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-a.done
		checkGone(t)
	})
	t.Run("after a demo that was interrupted", func(t *testing.T) {
		holders := func() int {
			comms, _ := filepath.Glob("/proc/[0-9]*/ns/net")
			home, _ := os.Readlink("/proc/self/ns/net")
			n := 0
			for _, path := range comms {
				if ns, err := os.Readlink(path); err == nil && strings.HasPrefix(ns, "net:") && ns != home {
					n++
				}
			}
			return n
		}
		before := holders()
		cmd, out := start(t, "demo")
		eventually(t, "it has its namespaces", func() error {
			if holders() < before+2 {
				return errors.New("not yet")
			}
			return nil
		})
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if got := holders(); got != before {
			t.Errorf("%d processes in other namespaces are left\n%s", got-before, out)
		}
		checkGone(t)
	})
}

// held are a process's descriptors, threads, goroutines and memory.
type held struct {
	fds, threads, goroutines int
	resident                 float64 // MB
}

func holdings(t *testing.T, a *agent) held {
	t.Helper()
	pid := a.cmd.Process.Pid
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := a.metrics()
	return held{fds(t, pid), len(threads), int(m.value("go_goroutines")), m.value("process_resident_memory_bytes") / 1e6}
}

// A thousand namespaces come and go, some of which nothing but a descriptor or a
// socket holds. Not parallel: it counts namespaces.
func TestThousandNamespacesLeaveNothing(t *testing.T) {
	const batch = 25
	a := startAgent(t, "--census-interval=100ms", "--census-cpu=100%")
	namespaces := a.countNamespaces()
	// round has so many come and go; a descriptor and a socket outlast two of them.
	var outlast []io.Closer
	release := func() {
		t.Helper()
		for _, c := range outlast {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		outlast = nil
	}
	t.Cleanup(release)
	keepBy := func(n *lab.Namespace, socket bool) {
		t.Helper()
		var c io.Closer
		var err error
		if socket {
			c, err = n.Listen("tcp", netip.MustParseAddrPort("127.0.0.1:7001"))
		} else {
			c, err = os.Open(n.Path())
		}
		if err != nil {
			t.Fatal(err)
		}
		outlast = append(outlast, c)
	}
	var counted int // by the last round, with all that it made
	round := func() {
		t.Helper()
		made := make([]*lab.Namespace, batch)
		for i := range made {
			n, err := lab.NewNamespace()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { n.Close() })
			made[i] = n
		}
		if counted = int(a.nextCensus().value("halfopen_census_namespaces")); counted <= batch {
			t.Errorf("%d namespaces, %d of them were made", counted, batch)
		}
		release() // those of the round before
		keepBy(made[0], true)
		keepBy(made[1], false)
		for _, n := range made {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	rounds := func(n int) held {
		t.Helper()
		for range n {
			round()
		}
		release()
		namespaces.waitForFewer(counted, batch)
		a.nextCensus()
		return holdings(t, a)
	}
	first := rounds(scaled(200 / batch))
	second := rounds(scaled(800 / batch))
	t.Logf("after a fifth of the namespaces %+v, after all %+v", first, second)
	eventually(t, "nothing is held", func() error {
		now := holdings(t, a)
		// One may be a scrape's connection, and threads are kept for later.
		if now.fds > first.fds+1 || now.goroutines > first.goroutines+2 || now.threads > first.threads+4 || now.resident > first.resident+8 {
			return fmt.Errorf("%+v, after a fifth %+v", now, first)
		}
		if got := strays(t, a.cmd.Process.Pid); len(got) > 0 {
			return fmt.Errorf("threads in other namespaces: %v", got)
		}
		return nil
	})

	t.Run("those that nothing is in are found", func(t *testing.T) {
		for i := range 2 * many {
			n, err := lab.NewNamespace()
			if err != nil {
				t.Fatal(err)
			}
			keepBy(n, i%2 == 0)
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
		counted := namespaces.waitForMore(2 * many) // the search takes place every 30 s
		release()
		namespaces.waitForFewer(counted, 2*many)
		a.nextCensus()
		if now := holdings(t, a); now.fds > first.fds+1 {
			t.Errorf("%+v, before %+v", now, first)
		}
	})
}

// What is left of a connection that a listener began, and the listener has gone;
// or of one that has ended.
func TestWhatIsLeftInANamespaceIsFound(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t)
		agree := func(want ...string) {
			t.Helper()
			eventually(t, "the agent and ss agree", func() error {
				var states []string
				before := ssAll(t, n.Server)
				var list struct{ Connections []socketObject }
				if err := a.get(fmt.Sprintf("/api/v1/connections?all=true&netns=%d", n.Server.Inode()), &list); err != nil {
					return err
				}
				for _, c := range list.Connections {
					states = append(states, c.State)
				}
				if slices.Sort(states); !slices.Equal(states, want) || len(before) != len(want) {
					return fmt.Errorf("%v, ss says %v, expected %v", states, before, want)
				}
				return nil
			})
		}
		agree()
		agree()

		l, err := n.Server.Listen("tcp", n.server(7000))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		agree("listen")
		if _, err := n.Client.Drop(lab.Rule{Port: 7000, Direction: lab.In, Percent: 100}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			if c, err := n.Client.Dial(ctx, n.server(7000)); err == nil {
				c.Close()
			}
		}()
		agree("listen", "syn_recv")
		l.Close()
		agree("syn_recv")
		cancel()
		agree() // it is given up

		if l, err = n.Server.Listen("tcp", n.server(7001)); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := n.Client.Dial(t.Context(), n.server(7001))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
		agree("time_wait")
	})
}

// A namespace may have a hash table of TCP sockets of its own: if the one that it
// is made in says so (net.ipv4.tcp_child_ehash_entries, 6.1).
func TestNamespacesWithHashTablesOfTheirOwn(t *testing.T) { // not parallel, for it makes all that are made meanwhile so
	const sysctl = "/proc/sys/net/ipv4/tcp_child_ehash_entries"
	usual, err := os.ReadFile(sysctl)
	if errors.Is(err, os.ErrNotExist) {
		leftOut(t, t.Name(), "there are none without net.ipv4.tcp_child_ehash_entries")
		t.SkipNow()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sysctl, []byte("512"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t, "ipv4")
	if err := os.WriteFile(sysctl, usual, 0o644); err != nil {
		t.Fatal(err)
	}
	entries, err := n.Server.Output("cat", "/proc/sys/net/ipv4/tcp_ehash_entries")
	if err != nil || strings.TrimSpace(string(entries)) != "512" {
		t.Fatalf("it has not: %q, %v", entries, err)
	}
	n.sockets()
	a := startAgent(t)
	for _, ns := range []*lab.Namespace{n.Client, n.Server} {
		for name, args := range map[string][]string{"alone": nil, "from an agent": {"--url", a.url}, "again": {"--url", a.url}} {
			eventually(t, name, func() error {
				before := ssAll(t, ns)
				rows := make(map[string]row)
				conns := list(t, append([]string{"--all", "--netns", strconv.FormatUint(uint64(ns.Inode()), 10)}, args...)...)
				for i := range conns {
					rows[conns[i].Cookie] = rowOf(&conns[i])
				}
				if after := ssAll(t, ns); !maps.Equal(before, after) {
					return fmt.Errorf("they change: %v, then %v", before, after)
				}
				if len(rows) == 0 || !maps.Equal(before, rows) {
					return fmt.Errorf("%v, ss says %v", rows, before)
				}
				if len(conns) != len(rows) { // listeners are in a hash table that all share
					t.Fatalf("%d sockets are listed %d times", len(rows), len(conns))
				}
				return nil
			})
		}
	}
}
