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
	// ErrPrivilege is returned where the process may not make namespaces.
	ErrPrivilege = errors.New("network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN: run as root")

	// ErrClosed is returned by every use of a Namespace after its Close.
	ErrClosed = errors.New("network namespace is closed")

	errExited = errors.New("function ended its goroutine")
)

// A Namespace is one private network namespace. Its methods may be called from
// any goroutine.
type Namespace struct {
	holder *os.Process
	inode  uint32
	addr4  netip.Addr
	addr6  netip.Addr
	peer   *Namespace // at the other end of the veth, or nil

	jobs chan func()   // for the keeper's thread
	quit chan struct{} // closed by Close
	done chan struct{} // closed by the keeper when nothing is left

	mu    sync.Mutex // guards ns, drops and closing quit
	ns    netns.NsHandle
	drops int // calls of Drop so far, to name their chains

	closeErr error // set before done is closed
}

// NewNamespace makes a namespace with nothing in it but a loopback link, which
// is up. The error is [ErrPrivilege] when the process may not.
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

// keep is the life of the keeper's thread: it starts the holder, enters the
// namespace, and forks there what [Namespace.Start] asks for, until Close.
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

// release undoes open, however far it got.
func (n *Namespace) release() error {
	// A connection closed while its peer is out of reach is an orphan that holds
	// the namespace in the kernel for minutes, 8 retransmissions of its FIN. One
	// is enough here; it does not matter if this fails.
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

// Close removes the namespace and kills what [Namespace.Start] left running in
// it. It may be called again, and then returns the same error.
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

// Inode returns the inode of the namespace, which names it in /proc/PID/ns/net
// and in the kernel.
func (n *Namespace) Inode() uint32 { return n.inode }

// Path returns the file of the namespace, /proc/PID/ns/net of its holder, as
// nsenter --net= takes it. It exists until Close.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/ns/net", n.holder.Pid)
}

// Addr4 returns the IPv4 address of the veth, or the zero Addr if there is none.
func (n *Namespace) Addr4() netip.Addr { return n.addr4 }

// Addr6 returns the IPv6 address of the veth, or the zero Addr if there is none.
func (n *Namespace) Addr6() netip.Addr { return n.addr6 }

// Do runs f inside the namespace and returns its error. f has an OS thread to
// itself, which ends with it; goroutines that f starts are outside again.
//
// /proc/net and /proc/self/net are those of the main thread, which is outside:
// read /proc/thread-self/net. /proc/sys/net is that of the calling thread.
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

// enter moves the calling thread into the namespace, for good.
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

// Start starts cmd inside the namespace, as [exec.Cmd.Start] does; the caller
// must Wait for it. It is killed when the namespace is closed or this process
// dies.
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

// Output runs a command inside the namespace and returns what it wrote to
// stdout. The error of a command that fails carries its stderr.
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

// Sysctl sets a sysctl of the namespace. The key is written as for sysctl(8),
// "net.ipv4.tcp_retries2"; a dot inside a link's name is written as a slash. Keys
// outside "net." are the whole machine's, and refused.
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
		return fmt.Errorf("set sysctl %s: not of a network namespace", key)
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
