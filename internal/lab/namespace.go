// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	// ErrPrivilege is the error of a process that may not make namespaces.
	ErrPrivilege = errors.New("network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN: run as root")

	// ErrClosed is the error of every use of a Namespace after its Close.
	ErrClosed = errors.New("network namespace is closed")

	errExited = errors.New("function ended its goroutine")
)

// A Namespace is a private network namespace. It is safe for concurrent use.
type Namespace struct {
	holder *os.Process
	inode  uint32
	addr4  netip.Addr
	addr6  netip.Addr
	peer   *Namespace // at the other end of the veth, or nil

	jobs chan func()   // functions for the keeper's thread to run
	quit chan struct{} // closed by Close
	done chan struct{} // closed by the keeper when nothing is left

	mu    sync.Mutex // guards ns, drops and closing quit
	ns    netns.NsHandle
	drops int // calls of Drop so far, to name their chains

	closeErr error // set before done is closed
}

// NewNamespace makes a namespace that has only a loopback link, which is up. The error is
// [ErrPrivilege] if the process may not make namespaces.
func NewNamespace() (*Namespace, error) {
	n := &Namespace{
		ns:   netns.None(),
		jobs: make(chan func()),
		quit: make(chan struct{}),
		done: make(chan struct{}),
	}
	ready := make(chan error, 1)
	onThread(func() { n.keep(ready) })
	if err := <-ready; err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// keep runs on the keeper's thread until Close: it starts the holder, enters the namespace,
// and forks the commands of [Namespace.Start] there.
func (n *Namespace) keep(ready chan<- error) {
	defer close(n.done)
	err := n.open()
	ready <- err
	for open := true; open; {
		select {
		case job := <-n.jobs:
			job()
		case <-n.quit:
			open = false
		}
	}
	n.closeErr = n.release()
}

func (n *Namespace) open() error {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		return fmt.Errorf("find namespace holder: %w", err)
	}
	// No Files: the child closes stdin, stdout and stderr.
	n.holder, err = os.StartProcess(sleep, []string{"sleep", "infinity"}, &os.ProcAttr{
		Dir: "/",
		Env: []string{},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL},
	})
	if errors.Is(err, unix.EPERM) {
		return ErrPrivilege
	}
	if err != nil {
		return fmt.Errorf("start namespace holder: %w", err)
	}
	if n.ns, err = netns.GetFromPid(n.holder.Pid); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(n.ns), &st); err != nil {
		return fmt.Errorf("stat network namespace: %w", err)
	}
	n.inode = uint32(st.Ino)
	if err := n.enter(); err != nil {
		return err
	}
	return linkUp("lo")
}

// release undoes open, also after an error of open.
func (n *Namespace) release() error {
	// A connection that was closed while its peer was unreachable is an orphan. It keeps
	// the namespace in the kernel for minutes, until 8 retransmissions of its FIN. Reduce
	// these to one; an error does not matter.
	_ = n.Sysctl("net.ipv4.tcp_orphan_retries", "1")

	var errs []error
	if n.holder != nil {
		if err := n.holder.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("kill namespace holder: %w", err))
		}
		if _, err := n.holder.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("reap namespace holder: %w", err))
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ns.IsOpen() {
		if err := n.ns.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close network namespace: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Close removes the namespace and kills the commands of [Namespace.Start] that still run in
// it. A second call returns the same error.
func (n *Namespace) Close() error {
	n.mu.Lock()
	select {
	case <-n.quit:
	default:
		close(n.quit)
	}
	n.mu.Unlock()
	<-n.done
	return n.closeErr
}

// Inode returns the inode number of the namespace, by which /proc/PID/ns/net and the kernel
// identify it.
func (n *Namespace) Inode() uint32 { return n.inode }

// Path returns the path of the namespace's file, /proc/PID/ns/net of its holder, for
// nsenter --net=. The file exists until Close.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/ns/net", n.holder.Pid)
}

// Addr4 returns the IPv4 address of the veth, or the zero Addr if there is none.
func (n *Namespace) Addr4() netip.Addr { return n.addr4 }

// Addr6 returns the IPv6 address of the veth, or the zero Addr if there is none.
func (n *Namespace) Addr6() netip.Addr { return n.addr6 }

// Do runs f inside the namespace and returns its error. f has its own OS thread, which ends
// with f; goroutines that f starts run outside the namespace.
//
// /proc/net and /proc/self/net show the namespace of the main thread, which is outside:
// read /proc/thread-self/net instead. /proc/sys/net shows that of the calling thread.
func (n *Namespace) Do(f func() error) error {
	err := errExited // unless f returns
	done := make(chan struct{})
	onThread(func() {
		defer close(done)
		if e := n.enter(); e != nil {
			err = e
			return
		}
		err = f()
	})
	<-done
	return err
}

// enter moves the calling thread into the namespace permanently.
func (n *Namespace) enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ns.IsOpen() {
		return ErrClosed
	}
	if err := netns.Set(n.ns); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// Start starts cmd inside the namespace, as [exec.Cmd.Start] does; the caller must Wait for
// it. The command is killed when the namespace is closed or this process ends.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Pdeathsig = unix.SIGKILL // the keeper's thread is the parent
	cmd.SysProcAttr = &attr

	result := make(chan error, 1)
	select {
	case n.jobs <- func() { result <- cmd.Start() }:
		return <-result
	case <-n.done:
		return ErrClosed
	}
}

// Output runs a command inside the namespace and returns its stdout. If the command fails,
// the error contains its stderr.
func (n *Namespace) Output(name string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.Bytes(), fmt.Errorf("run %s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// Sysctl sets a sysctl of the namespace. The key has the form of sysctl(8),
// "net.ipv4.tcp_retries2", with a slash for each dot inside a link's name. It refuses keys
// outside "net.", because they belong to the whole machine.
func (n *Namespace) Sysctl(key, value string) error {
	path := filepath.Join("/proc/sys", strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key))
	if !strings.HasPrefix(path, "/proc/sys/net/") {
		return fmt.Errorf("set sysctl %s: it does not belong to a network namespace", key)
	}
	err := n.Do(func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", key, err)
	}
	return nil
}
