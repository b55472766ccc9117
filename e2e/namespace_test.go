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
	"github.com/vishvananda/netlink"

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

// threadsOutside are the threads of a process outside its own network namespace.
func threadsOutside(t *testing.T, pid int) []string {
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

// testNamespaces are the network namespaces that a test makes. Each has a link to one
// that stays: the kernel removes the link with the namespace, so that the links which are
// left show which namespaces are, whatever else uses this machine.
type testNamespaces struct {
	agent  *agent
	home   *lab.Namespace
	made   int
	before int // what the census counted
}

func newTestNamespaces(t *testing.T, a *agent) *testNamespaces {
	t.Helper()
	home, err := lab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { home.Close() })
	return &testNamespaces{agent: a, home: home, before: int(a.nextCensus().value("halfopen_census_namespaces"))}
}

// add makes another.
func (s *testNamespaces) add(t *testing.T) *lab.Namespace {
	t.Helper()
	n, err := lab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	file, err := os.Open(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s.made++
	err = s.home.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("to%d", s.made)},
			PeerName:  "home", PeerNamespace: netlink.NsFd(file.Fd()),
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// waitUntilCounted waits until the census counts so many of them.
func (s *testNamespaces) waitUntilCounted(t *testing.T, made int) {
	t.Helper()
	eventually(t, "the census counts them", func() error {
		// Those of earlier tests may vanish at any moment, of which the host's is none.
		got := int(s.agent.of(t).metrics().value("halfopen_census_namespaces"))
		if got <= made || alone && got > s.before+made {
			return fmt.Errorf("%d namespaces, of which %d were made; there were %d before", got, made, s.before)
		}
		return nil
	})
}

// waitUntilGone waits until the kernel has removed all of them, and the census does not
// count them any more.
func (s *testNamespaces) waitUntilGone(t *testing.T) {
	t.Helper()
	eventually(t, "the namespaces are gone", func() error {
		left := 0
		err := s.home.Do(func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				if l.Type() == "veth" {
					left++
				}
			}
			return err
		})
		if err != nil || left > 0 {
			return fmt.Errorf("%d are left, error %v", left, err)
		}
		if got := int(s.agent.of(t).metrics().value("halfopen_census_namespaces")); alone && got > s.before {
			return fmt.Errorf("%d namespaces are counted, there were %d before", got, s.before)
		}
		return nil
	})
}

func TestNamespacesComeAndGo(t *testing.T) {
	// Not parallel: where nothing else uses the machine, namespaces are counted. The
	// interval stretches with their number, to keep to the census's share of a core.
	a := startAgent(t, "--census-interval=500ms")
	pid := a.cmd.Process.Pid
	namespaces := newTestNamespaces(t, a)
	seen := func(made map[uint32]*lab.Namespace) map[uint32]bool {
		var list struct {
			Connections []connection `json:"connections"`
		}
		if err := a.get(fmt.Sprintf("/api/v1/connections?port=%d", servedPort), &list); err != nil {
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
			n := namespaces.add(t)
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
		namespaces.waitUntilCounted(t, many)
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
		namespaces.waitUntilGone(t)
	}

	eventually(t, "nothing is held", func() error {
		if got := threadsOutside(t, pid); len(got) > 0 {
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

// bpfObjects are the ids of the BPF programs and links that a process holds.
type bpfObjects struct {
	programs []ebpf.ProgramID
	links    []link.ID
}

func bpfObjectsOf(t *testing.T, pid int) (o bpfObjects) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.ReadFile(file)
		if err != nil {
			continue // it has been closed
		}
		for line := range strings.Lines(string(info)) {
			var id uint32
			if _, err := fmt.Sscanf(line, "link_id: %d", &id); err == nil {
				o.links = append(o.links, link.ID(id))
				break // what follows are its program's
			}
			if _, err := fmt.Sscanf(line, "prog_id: %d", &id); err == nil {
				o.programs = append(o.programs, ebpf.ProgramID(id))
			}
		}
	}
	return o
}

// left returns an error if any of them is still in the kernel.
func (o *bpfObjects) left() error {
	for _, id := range o.programs {
		if p, err := ebpf.NewProgramFromID(id); !errors.Is(err, os.ErrNotExist) {
			p.Close()
			return fmt.Errorf("program %d is loaded, error %v", id, err)
		}
	}
	for _, id := range o.links {
		if l, err := link.NewFromID(id); !errors.Is(err, os.ErrNotExist) {
			if err == nil {
				l.Close()
			}
			return fmt.Errorf("link %d is there, error %v", id, err)
		}
	}
	return nil
}

func TestNothingIsLeftInTheKernel(t *testing.T) {
	t.Parallel()
	loaded := func(t *testing.T, pid int) (o bpfObjects) {
		t.Helper()
		eventually(t, "the programs are attached", func() error {
			if o = bpfObjectsOf(t, pid); len(o.programs) < 5 || len(o.links) < 5 {
				return fmt.Errorf("%d programs and %d links", len(o.programs), len(o.links))
			}
			return nil
		})
		return o
	}
	t.Run("after SIGTERM", func(t *testing.T) {
		a := startAgent(t)
		o := loaded(t, a.cmd.Process.Pid)
		if status := a.stop(); status != 0 {
			t.Errorf("exit status %d: %s", status, a.log)
		}
		eventually(t, "unloaded", o.left)
	})
	t.Run("after kill -9", func(t *testing.T) {
		a := startAgent(t)
		o := loaded(t, a.cmd.Process.Pid)
		if err := a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-a.done
		eventually(t, "unloaded", o.left)
	})
	t.Run("after a demo that was interrupted", func(t *testing.T) {
		cmd, out := start(t, "demo")
		pid := cmd.Process.Pid
		var holders []int
		eventually(t, "it has its namespaces", func() error {
			if holders = children(t, pid); len(holders) < 2 {
				return fmt.Errorf("its children are %v", holders)
			}
			return nil
		})
		o := loaded(t, pid)
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for _, holder := range holders {
			if err := syscall.Kill(holder, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("process %d in another namespace is left (%v)\n%s", holder, err, out)
			}
		}
		eventually(t, "unloaded", o.left)
	})
}

// usage is a process's descriptors, threads, goroutines and memory.
type usage struct {
	fds, threads, goroutines int
	resident                 float64 // MB
}

func usageOf(t *testing.T, a *agent) usage {
	t.Helper()
	pid := a.cmd.Process.Pid
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := a.metrics()
	return usage{fds(t, pid), len(threads), int(m.value("go_goroutines")), m.value("process_resident_memory_bytes") / 1e6}
}

// compareUsage returns an error if a process has more than before. One descriptor more may
// be a scrape's connection, and threads are kept for later.
func compareUsage(before, now usage) error {
	if now.fds > before.fds+1 || now.goroutines > before.goroutines+2 || now.threads > before.threads+4 || now.resident > before.resident+8 {
		return fmt.Errorf("%+v, before %+v", now, before)
	}
	return nil
}

// outliving are descriptors and sockets that keep network namespaces which nothing else is in.
type outliving []io.Closer

// keep keeps a namespace: by a socket, or by a descriptor.
func (o *outliving) keep(t *testing.T, n *lab.Namespace, bySocket bool) {
	t.Helper()
	var c io.Closer
	var err error
	if bySocket {
		c, err = n.Listen("tcp", netip.MustParseAddrPort("127.0.0.1:7001"))
	} else {
		c, err = os.Open(n.Path())
	}
	if err != nil {
		t.Fatal(err)
	}
	*o = append(*o, c)
}

// release lets all of them go.
func (o *outliving) release(t *testing.T) {
	t.Helper()
	for _, c := range *o {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	*o = nil
}

// comeAndGo makes a batch of namespaces, waits until the census counts them, and closes
// them. A descriptor and a socket outlive two of them.
func (s *testNamespaces) comeAndGo(t *testing.T, kept *outliving, batch int) {
	t.Helper()
	made := make([]*lab.Namespace, batch)
	for i := range made {
		made[i] = s.add(t)
	}
	if counted := int(s.agent.nextCensus().value("halfopen_census_namespaces")); counted <= batch {
		t.Errorf("%d namespaces, %d of them were made", counted, batch)
	}
	kept.release(t) // those of the batch before
	kept.keep(t, made[0], true)
	kept.keep(t, made[1], false)
	for _, n := range made {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A thousand namespaces come and go, some of which nothing but a descriptor or a
// socket holds. Not parallel: where nothing else uses the machine, they are counted.
func TestThousandNamespacesLeaveNothing(t *testing.T) {
	const batch = 25
	a := startAgent(t, "--census-interval=100ms", "--census-cpu=100%")
	namespaces := newTestNamespaces(t, a)
	var kept outliving
	t.Cleanup(func() { kept.release(t) })
	// usageAfter returns the agent's after so many batches have gone.
	usageAfter := func(batches int) usage {
		t.Helper()
		for range batches {
			namespaces.comeAndGo(t, &kept, batch)
		}
		kept.release(t)
		namespaces.waitUntilGone(t)
		a.nextCensus()
		return usageOf(t, a)
	}
	first := usageAfter(scaled(200 / batch))
	second := usageAfter(scaled(800 / batch))
	t.Logf("after a fifth of the namespaces %+v, after all %+v", first, second)
	eventually(t, "nothing is held", func() error {
		if err := compareUsage(first, usageOf(t, a)); err != nil {
			return err
		}
		if got := threadsOutside(t, a.cmd.Process.Pid); len(got) > 0 {
			return fmt.Errorf("threads in other namespaces: %v", got)
		}
		return nil
	})

	t.Run("those that nothing is in are found", func(t *testing.T) {
		var listening []uint32
		for i := range 2 * many {
			n := namespaces.add(t)
			kept.keep(t, n, i%2 == 0)
			if i%2 == 0 {
				listening = append(listening, n.Inode())
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
		namespaces.waitUntilCounted(t, 2*many)
		for _, inode := range listening {
			eventually(t, "the listener in it is listed", func() error {
				var list struct{ Connections []socketObject }
				err := a.get(fmt.Sprintf("/api/v1/connections?all=true&netns=%d", inode), &list)
				if err == nil && len(list.Connections) != 1 {
					err = fmt.Errorf("%d sockets in namespace %d", len(list.Connections), inode)
				}
				return err
			})
		}
		kept.release(t)
		namespaces.waitUntilGone(t)
		a.nextCensus()
		if now := usageOf(t, a); now.fds > first.fds+1 {
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
		n.drop(lab.Rule{Port: 7000, Direction: lab.In, Percent: 100})
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
