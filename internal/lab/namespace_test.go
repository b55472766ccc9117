// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// host is the namespace of the tests, read before any thread moved.
var host, _ = os.Readlink("/proc/self/ns/net")

func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	needRoot(t)
	n, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close namespace: %v", err)
		}
	})
	return n
}

// nsName returns the name of the namespace as the links in /proc show it.
func nsName(n *Namespace) string { return fmt.Sprintf("net:[%d]", n.Inode()) }

func TestDoRunsInside(t *testing.T) {
	first, second := newNamespace(t), newNamespace(t)
	for _, n := range []*Namespace{first, second, first} {
		var got string
		err := n.Do(func() (err error) {
			got, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got != nsName(n) || got == host {
			t.Errorf("inside is %s, want %s; the host is %s", got, nsName(n), host)
		}
		if got, err := os.Readlink(n.Path()); err != nil || got != nsName(n) {
			t.Errorf("%s is %s, want %s (%v)", n.Path(), got, nsName(n), err)
		}
	}
	if first.Inode() == second.Inode() {
		t.Errorf("both namespaces are %d", first.Inode())
	}
	if first.Addr4().IsValid() || first.Addr6().IsValid() {
		t.Errorf("a namespace without a veth has addresses %s and %s", first.Addr4(), first.Addr6())
	}
}

func TestDoReturnsTheErrorOfItsFunction(t *testing.T) {
	n := newNamespace(t)
	want := errors.New("mine")
	if err := n.Do(func() error { return want }); err != want {
		t.Errorf("error is %v, want %v", err, want)
	}
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err != errExited {
		t.Errorf("error is %v, want %v", err, errExited)
	}
}

func TestDoLeavesNoThreadInside(t *testing.T) {
	n := newNamespace(t)
	// All at once, so that no idle thread is left out, the main one included.
	const threads = 61
	var wg, arrived sync.WaitGroup
	arrived.Add(threads)
	for range threads {
		wg.Go(func() {
			err := n.Do(func() error {
				arrived.Done()
				arrived.Wait()
				return nil
			})
			if err != nil {
				t.Error(err)
				arrived.Done()
			}
		})
	}
	wg.Wait()
	if main, err := os.Readlink("/proc/self/ns/net"); err != nil || main != host {
		t.Fatalf("the main thread is in %s, want %s (%v)", main, host, err)
	}
	eventually(t, "only the keeper's thread is inside", func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		inside := 0
		for _, task := range tasks {
			if target, _ := os.Readlink(task); target == nsName(n) {
				inside++
			}
		}
		return inside == 1
	})
}

func TestOutputRunsInside(t *testing.T) {
	n := newNamespace(t)
	out, err := n.Output("readlink", "/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != nsName(n) {
		t.Errorf("inside is %s, want %s", got, nsName(n))
	}
	if _, err := n.Output("ls", "/no such file"); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("a command that fails returns %v", err)
	}
	if _, err := n.Output("no such command"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a command that does not exist returns %v", err)
	}
}

func TestCloseKillsWhatStartStarted(t *testing.T) {
	n := newNamespace(t)
	cmd := exec.Command("sleep", "infinity")
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if pids := inside(t, n.Inode()); len(pids) != 2 {
		t.Errorf("processes %v are inside, want the holder and %d", pids, cmd.Process.Pid)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // returns once the command is dead
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("the command ended with %s", cmd.ProcessState)
	}
}

func TestSysctl(t *testing.T) {
	n := newNamespace(t)
	const file = "/proc/sys/net/ipv4/tcp_retries2"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Sysctl("net.ipv4.tcp_retries2", "7"); err != nil {
		t.Fatal(err)
	}
	var inside []byte
	err = n.Do(func() (err error) {
		inside, err = os.ReadFile(file)
		return err
	})
	if err != nil || string(inside) != "7\n" {
		t.Errorf("inside it is %q, want 7 (%v)", inside, err)
	}
	after, err := os.ReadFile(file)
	if err != nil || string(after) != string(before) {
		t.Errorf("the host's went from %q to %q (%v)", before, after, err)
	}

	for _, key := range []string{
		"kernel.hostname", "net", "net.//.kernel.hostname", "net.ipv4.no_such_key", "",
	} {
		if err := n.Sysctl(key, "1"); err == nil {
			t.Errorf("%q was set", key)
		}
	}
}
