// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

// patience bounds every wait for something that should happen at once.
const patience = 20 * time.Second

// childEnv makes the test binary play a part of its own instead of the tests.
const childEnv = "HALFOPEN_LAB_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "new":
		os.Exit(childNew())
	case "linger":
		os.Exit(childLinger())
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: sudo make test")
	}
}

// newLab returns a lab that is closed, and must close well, after the test.
func newLab(t *testing.T) *Lab {
	t.Helper()
	needRoot(t)
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

// eventually waits until ok, asking every few milliseconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// families calls f with the server's address of each IP version.
func families(t *testing.T, l *Lab, f func(t *testing.T, server netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { f(t, l.Server.Addr4()) })
	t.Run("IPv6", func(t *testing.T) { f(t, l.Server.Addr6()) })
}

func TestTrafficPassesAsSoonAsNewReturns(t *testing.T) {
	for range 5 {
		l := newLab(t)
		families(t, l, func(t *testing.T, server netip.Addr) {
			client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
			// A SYN sent before the veth carries packets would be sent again.
			if n := tcpStat(t, l.Client, "RetransSegs"); n != 0 {
				t.Errorf("%d segments were sent again to connect", n)
			}
			for i := range 23 {
				send(t, client, fmt.Sprintf("question %d", i))
				receive(t, accepted, fmt.Sprintf("question %d", i))
				send(t, accepted, fmt.Sprintf("answer %d", i))
				receive(t, client, fmt.Sprintf("answer %d", i))
			}
		})
	}
}

func TestSubnetsOfANumber(t *testing.T) {
	for number, want := range map[uint8][2]string{0: {"10.77.0.0/24", "fd77::/64"}, 44: {"10.77.44.0/24", "fd77:0:0:2c::/64"}} {
		if ipv4, ipv6 := Subnets(number); ipv4.String() != want[0] || ipv6.String() != want[1] {
			t.Errorf("subnets %d are %v and %v, want %v", number, ipv4, ipv6, want)
		}
	}
	needRoot(t)
	l, err := NewIn(44)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, server := l.Client.Addr4().String(), l.Server.Addr4().String(); client != "10.77.44.1" || server != "10.77.44.2" {
		t.Errorf("the addresses are %s and %s", client, server)
	}
}

func TestAddressesStayInside(t *testing.T) {
	l := newLab(t)
	for _, prefix := range []string{"10.77.0.0/24", "fd77::/64"} {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if host := netip.MustParsePrefix(a.String()); host.Overlaps(netip.MustParsePrefix(prefix)) {
				t.Errorf("the host has %s", host)
			}
		}
	}
	for _, tt := range []struct {
		n        *Namespace
		addr     string
		returned netip.Addr
	}{
		{l.Client, "10.77.0.1/24", l.Client.Addr4()},
		{l.Client, "fd77::1/64", l.Client.Addr6()},
		{l.Server, "10.77.0.2/24", l.Server.Addr4()},
		{l.Server, "fd77::2/64", l.Server.Addr6()},
	} {
		out, err := tt.n.Output("ip", "-o", "address", "show", "dev", linkName)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out), tt.addr) {
			t.Errorf("no %s in %s", tt.addr, out)
		}
		if want := netip.MustParsePrefix(tt.addr).Addr(); tt.returned != want {
			t.Errorf("address is %s, want %s", tt.returned, want)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	round := func() {
		l := newLab(t)
		client, accepted := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
		remove, err := l.Client.Drop(Rule{Percent: 100})
		if err != nil {
			t.Fatal(err)
		}
		client.Close()
		accepted.Close()
		holders := []int{l.Client.holder.Pid, l.Server.holder.Pid}
		inodes := []uint32{l.Client.Inode(), l.Server.Inode()}
		for range 2 {
			if err := l.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		for _, pid := range holders {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("holder %d after Close: %v", pid, err)
			}
		}
		if pids := inside(t, inodes...); len(pids) > 0 {
			t.Errorf("processes %v are left inside", pids)
		}
		if err := remove(); err != nil {
			t.Errorf("remove a rule after Close: %v", err)
		}
		if err := l.Client.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("Do after Close: %v", err)
		}
		if err := l.Client.Start(exec.Command("true")); !errors.Is(err, ErrClosed) {
			t.Errorf("Start after Close: %v", err)
		}
	}
	round() // what the runtime opens once stays: epoll, eventfd
	before := openFiles(t)
	for range 7 {
		round()
	}
	eventually(t, "as many descriptors as before", func() bool { return openFiles(t) <= before })
	if err := goleak.Find(); err != nil {
		t.Error(err)
	}
}

func TestKernelForgetsANamespaceWhoseConnectionsCannotSayGoodbye(t *testing.T) {
	l := newLab(t)
	client, _ := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	if _, err := l.Client.Drop(Rule{Percent: 100}); err != nil {
		t.Fatal(err)
	}
	send(t, client, "lost")
	client.Close()
	if err := l.Client.Close(); err != nil {
		t.Fatal(err)
	}
	// One end of a veth goes with the other.
	eventually(t, "the server's link goes with the client's namespace", func() bool {
		err := l.Server.Do(func() error {
			_, err := netlink.LinkByName(linkName)
			return err
		})
		return errors.As(err, new(netlink.LinkNotFoundError))
	})
}

// lingering is what the child process reports about its lab.
type lingering struct {
	Inodes []uint32
	Pids   []int
}

// childLinger makes a lab with a process running in it, reports it and waits
// to be killed.
func childLinger() int {
	l, err := New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("sleep", "infinity")
	if err := l.Client.Start(cmd); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := l.Client.Drop(Rule{Percent: 100}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	json.NewEncoder(os.Stdout).Encode(lingering{
		Inodes: []uint32{l.Client.Inode(), l.Server.Inode()},
		Pids:   []int{l.Client.holder.Pid, l.Server.holder.Pid, cmd.Process.Pid},
	})
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func TestKill9LeavesNothing(t *testing.T) {
	needRoot(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"=linger")
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	var told lingering
	if err == nil {
		err = json.Unmarshal(line, &told)
	}
	running := inside(t, told.Inodes...)
	child.Process.Kill()
	child.Wait()
	if err != nil {
		t.Fatalf("child said %q: %v", line, err)
	}
	if len(running) != len(told.Pids) {
		t.Errorf("processes %v were inside, want %v", running, told.Pids)
	}
	eventually(t, "no process is left inside", func() bool { return len(inside(t, told.Inodes...)) == 0 })
	for _, pid := range told.Pids {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool {
			return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid)
		})
	}
}

func childNew() int {
	_, err := New()
	fmt.Println(err)
	if errors.Is(err, ErrPrivilege) {
		return 0
	}
	return 1
}

func TestNewSaysToRunAsRoot(t *testing.T) {
	needRoot(t) // to become another user
	dir, err := os.MkdirTemp("", "halfopen-lab")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "lab.test")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(path)
	child.Dir = dir
	child.Env = append(os.Environ(), childEnv+"=new")
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := child.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if got, want := strings.TrimSpace(string(out)), ErrPrivilege.Error(); got != want {
		t.Errorf("error is %q, want %q", got, want)
	}
}

// inside returns the processes of the machine that are in one of the namespaces,
// found as the agent finds them.
func inside(t *testing.T, inodes ...uint32) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		target, _ := os.Readlink(link) // the process may be gone
		for _, inode := range inodes {
			if target == fmt.Sprintf("net:[%d]", inode) {
				found = append(found, link)
			}
		}
	}
	return found
}

// zombie reports whether a process is dead and waits only for its new parent.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}
