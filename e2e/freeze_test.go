// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// childTables is the sysctl that gives the network namespaces which are made next a
// hash table of their own, of so many chains (6.1).
const childTables = "/proc/sys/net/ipv4/tcp_child_ehash_entries"

// withOwnTables runs f, which makes network namespaces; each gets a hash table of its
// own. It returns false where the kernel has none. Not for tests that run in parallel,
// for others make namespaces as well.
func withOwnTables(t *testing.T, chains int, f func()) bool {
	t.Helper()
	usual, err := os.ReadFile(childTables)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(childTables, []byte(strconv.Itoa(chains)), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(childTables, usual, 0o644); err != nil {
			t.Fatal(err)
		}
	}()
	f()
	return true
}

// A process may sleep with its socket locked for as long as it likes: in a page fault
// on a file that does not answer, while it sends. Any user can have one such, in a
// network namespace with a hash table of its own.
func TestLockedSocketHoldsNobodyUp(t *testing.T) {
	for _, own := range []bool{false, true} {
		name := "in the hash table that namespaces share"
		if own {
			name = "in a hash table of its own"
		}
		t.Run(name, func(t *testing.T) {
			var n *network
			made := true
			if own {
				made = withOwnTables(t, 65536, func() { n = newNetwork(t, "ipv4") })
			} else {
				n = newNetwork(t, "ipv4")
			}
			if !made {
				leftOut(t, t.Name(), "there are none without net.ipv4.tcp_child_ehash_entries")
				t.SkipNow()
			}
			holdsUpNobody(t, n, own)
		})
	}
}

func holdsUpNobody(t *testing.T, n *network, own bool) {
	l, err := n.Server.Listen("tcp", n.server(servedPort))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := n.Client.Dial(t.Context(), n.server(servedPort))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	release, err := lab.LockSocket(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // before the connection is closed, and an agent waited for
		if err := release(); err != nil {
			t.Error(err)
		}
	}()
	netns := strconv.FormatUint(uint64(n.Client.Inode()), 10)
	// What takes longer than this hangs, on any machine.
	const soon = 30 * time.Second
	within := func(what string, f func()) {
		t.Helper()
		done, began := make(chan struct{}), time.Now()
		go func() {
			defer close(done)
			f()
		}()
		select {
		case <-done:
			t.Logf("%s: %v", what, time.Since(began).Round(time.Millisecond))
		case <-time.After(soon * patience):
			t.Fatalf("%s takes longer than %v", what, soon*patience)
		}
	}

	var listed []socketObject
	within("list by itself", func() { listed = list(t, "--netns", netns) })
	if len(listed) != 1 {
		t.Fatalf("%d connections are listed, expected one", len(listed))
	}
	within("explain by itself", func() {
		cmd, out := start(t, "explain", "--url=none", listed[0].Cookie)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	a := startAgent(t, "--census-interval=200ms")
	for range 3 {
		within("a census", func() { a.nextCensus() })
	}
	within("the API", func() {
		var list struct{ Connections []connection }
		if err := a.get("/api/v1/connections?netns="+netns, &list); err != nil || len(list.Connections) != 1 {
			t.Errorf("%d connections, error %v", len(list.Connections), err)
		}
	})
	within("one connection", func() { a.story(listed[0].Cookie) })
	m := a.metrics()
	for _, fault := range []string{"pass_failed", "census_full"} {
		if got := m.value("halfopen_events_lost_total", "type", fault); got != 0 {
			t.Errorf("%v %s", got, fault)
		}
	}
	if own { // who makes such namespaces is worth knowing
		within("the doctor", func() {
			stdout, stderr, status := run(t, exec.Command(binary, "doctor"))
			if status != 0 || !regexp.MustCompile(`(?m)^-- +hash tables .*\b`+netns+`\b`).MatchString(stdout) {
				t.Errorf("the doctor does not name network namespace %s: exit status %d, %q\n%s", netns, status, stderr, stdout)
			}
		})
		if got := m.value("halfopen_census_namespaces_own_table"); got < 2 {
			t.Errorf("%v namespaces have a hash table of their own, expected the two", got)
		}
	}
	within("SIGTERM", func() {
		if status := a.stop(); status != 0 {
			t.Errorf("exit status %d", status)
		}
	})
	a = startAgent(t)
	within("SIGKILL", func() {
		if err := a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		<-a.done
	})
}

// Any user can make network namespaces with large hash tables. They have a budget of
// their own, and put off no census of the others.
func TestLargeHashTablesPutOffNoCensus(t *testing.T) { // not parallel, for it makes all that are made meanwhile so
	const tables = 16
	a := startAgent(t, "--census-interval=1s", "--census-cpu=4%")
	interval := func() float64 { return a.nextCensus().value("halfopen_census_interval_seconds") }
	before := interval()
	var namespaces []*lab.Namespace
	made := withOwnTables(t, scaled(1<<20), func() {
		for range tables {
			n, err := lab.NewNamespace()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { n.Close() })
			namespaces = append(namespaces, n)
		}
	})
	if !made {
		leftOut(t, t.Name(), "there are none without net.ipv4.tcp_child_ehash_entries")
		t.SkipNow()
	}
	// One connection in each, which has to be found and counted in the end.
	for _, n := range namespaces {
		addr := netip.MustParseAddrPort("127.0.0.1:7001")
		l, err := n.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := n.Dial(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var worst float64
	for range 5 {
		worst = max(worst, interval())
	}
	t.Logf("the interval is %.1f s without, at most %.1f s with %d hash tables of %d chains", before, worst, tables, scaled(1<<20))
	if worst > 5*before+1 { // it was 25 times, and more with larger ones
		t.Errorf("hash tables of namespaces' own stretch the interval from %.1f s to %.1f s", before, worst)
	}
	counted := func() error {
		if got := a.nextCensus().value("halfopen_tcp_connections", "state", "established", "verdict", "active"); got < 2*tables {
			return fmt.Errorf("%v connections, expected at least %d", got, 2*tables)
		}
		for _, n := range namespaces { // others have connections as well
			var list struct{ Total int }
			if err := a.get(fmt.Sprintf("/api/v1/connections?netns=%d", n.Inode()), &list); err != nil || list.Total != 2 {
				return fmt.Errorf("%d ends of a connection in namespace %d, error %v", list.Total, n.Inode(), err)
			}
		}
		return nil
	}
	eventually(t, "all of them are counted, and listed by their namespace", counted)
}

// reuseport makes so many listeners of one port in a namespace, and returns it. The
// kernel has all of them in one chain of its hash table.
func reuseport(t *testing.T, n *lab.Namespace, listeners int, family string) (port int) {
	t.Helper()
	err := n.Do(func() error {
		for range listeners {
			domain := unix.AF_INET
			var addr unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
			if family == "ipv6" {
				domain = unix.AF_INET6
				addr = &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}
			}
			fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Bind(fd, addr), unix.Listen(fd, 1)); err != nil {
				return err
			}
			if port == 0 {
				sa, err := unix.Getsockname(fd)
				if err != nil {
					return err
				}
				switch sa := sa.(type) {
				case *unix.SockaddrInet4:
					port = sa.Port
				case *unix.SockaddrInet6:
					port = sa.Port
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// A server with a worker a core, or many more, has all their listeners in one chain of
// a hash table. At the first look, too, and whether or not the agent saw them begin.
func TestReuseportListenersAreAllListed(t *testing.T) {
	families(t, func(t *testing.T, net *network) {
		a := startAgent(t, "--census-interval=200ms")
		const most = 1500
		for _, listeners := range []int{50, 120, 150, 200, most} {
			port := reuseport(t, net.Server, listeners, net.family)
			filter := []string{"--all", "--state=listen", "--port", strconv.Itoa(port)}
			if scale == 1 || listeners == most { // it loads the programs each time
				if got := len(list(t, filter...)); got != listeners {
					t.Errorf("%d of %d listeners are listed at a first look", got, listeners)
				}
			}
			if got := len(list(t, append(filter, "--url", a.url)...)); got != listeners {
				t.Errorf("the agent lists %d of %d listeners", got, listeners)
			}
			ss, err := net.Server.Output("ss", "-Htln", "sport", "=", strconv.Itoa(port))
			if err != nil || strings.Count(string(ss), "\n") != listeners {
				t.Errorf("ss shows %d, error %v", strings.Count(string(ss), "\n"), err)
			}
		}
		a.nextCensus()
		if got := a.nextCensus().value("halfopen_events_lost_total", "type", "census_full"); got != 0 {
			t.Errorf("%v censuses have left something out", got)
		}
	})
}

// The kernel gives the memory of a socket that has ended to the next at once, whoever
// reads it: what is written out of it must be all of one socket.
func TestRecordsAreOfOneSocket(t *testing.T) {
	t.Parallel()
	nets := []*network{newNetwork(t, "ipv4"), newNetwork(t, "ipv4")}
	ports := make(map[int]uint32)
	for i, n := range nets {
		port := 29471 + i // which no other test uses
		ports[port] = n.Server.Inode()
		l, err := n.Server.Listen("tcp", n.server(port))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		go func() {
			for t.Context().Err() == nil {
				if c, err := n.Client.Dial(t.Context(), n.server(port)); err == nil {
					_ = c.SetLinger(0)
					c.Close()
				}
			}
		}()
	}
	a := startAgent(t)
	looks := 0
	throughout(t.Context(), 5*time.Second, func() {
		var list struct{ Connections []json.RawMessage }
		if err := a.get("/api/v1/connections?limit=100000", &list); err != nil {
			t.Fatal(err)
		}
		for _, raw := range list.Connections {
			var c connection
			if err := json.Unmarshal(raw, &c); err != nil {
				t.Fatal(err)
			}
			if want, ok := ports[c.Local.Port]; ok && c.Netns != want {
				t.Errorf("a connection of port %d in namespace %d, expected %d: %s", c.Local.Port, c.Netns, want, raw)
			}
			if c.Cookie == "0" {
				t.Errorf("no cookie: %s", raw)
			}
		}
		looks++
	})
	t.Logf("%d looks", looks)
}
