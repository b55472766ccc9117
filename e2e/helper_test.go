// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary a helper process instead of running the tests. Its value
// is the Unix socket of its controller.
const helperEnv = "HALFOPEN_E2E_HELPER"

// A helper process is a process of its own that holds sockets, and does with them what it
// is told: the tests of owners need several, and those of a great many sockets
// need more descriptors than one process may have.
type helperProcess struct {
	t    testing.TB
	PID  int
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

// A command is what a helper process is told; the answer is what came of it.
type command struct {
	Do      string
	FD      int            `json:",omitempty"`
	FDs     []int          `json:",omitempty"`
	Path    string         `json:",omitempty"`
	Addr    netip.AddrPort // of listen and connect
	UID     int            `json:",omitempty"` // of the socket that is opened
	Name    string         `json:",omitempty"`
	Options [][3]int       `json:",omitempty"` // level, name, value
	Paths   []string       `json:",omitempty"` // of namespaces
	Count   int            `json:",omitempty"`
}

type answer struct {
	Err    string `json:",omitempty"`
	FD     int
	Cookie string // as ss prints it
	PID    int
	FDs    []int
}

// runHelper is the main function of the child process. It ends when its controller
// hangs up.
func runHelper(path string) int {
	runtime.LockOSThread() // namespaces and user ids are a thread's
	conn, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	if out.Encode(answer{PID: os.Getpid()}) != nil {
		return 1
	}
	p := &runner{path: path}
	for {
		var o command
		if in.Decode(&o) != nil {
			return 0
		}
		a, err := p.run(&o)
		if err != nil {
			a.Err = fmt.Sprintf("%s: %v", o.Do, err)
		}
		if out.Encode(a) != nil {
			return 0
		}
	}
}

// runner is a helper process as it sees itself.
type runner struct {
	path string
	unix *net.UnixListener // await
}

// commands are what a helper process can do.
var commands = map[string]func(p *runner, o *command, a *answer) error{
	"name": func(_ *runner, o *command, _ *answer) error {
		return os.WriteFile("/proc/self/comm", []byte(o.Name), 0)
	},
	"enter":   func(_ *runner, o *command, _ *answer) error { return enter(o.Path) },
	"listen":  (*runner).listen,
	"connect": (*runner).connect,
	"accept":  (*runner).accept,
	"write":   func(_ *runner, o *command, _ *answer) error { return writeTo(o.FD) },
	"close":   func(_ *runner, o *command, _ *answer) error { return unix.Close(o.FD) },
	"fork":    (*runner).fork,
	"await": func(p *runner, o *command, _ *answer) (err error) { // what another helper passes
		p.unix, err = net.ListenUnix("unix", &net.UnixAddr{Name: o.Path, Net: "unix"})
		return err
	},
	"pass": func(_ *runner, o *command, _ *answer) error { return pass(o.Path, o.FD) },
	"take": func(p *runner, _ *command, a *answer) (err error) {
		a.FD, err = take(p.unix)
		return err
	},
	"connect many": func(_ *runner, o *command, a *answer) (err error) {
		a.FDs, err = connectMany(o)
		return err
	},
	"write all": func(_ *runner, o *command, _ *answer) error { return writeTo(o.FDs...) },
	"populate": func(_ *runner, o *command, a *answer) (err error) {
		a.FDs, err = populate(o)
		return err
	},
	"visit": func(_ *runner, o *command, _ *answer) error { return visit(o) },
}

func (p *runner) run(o *command) (a answer, err error) {
	do := commands[o.Do]
	if do == nil {
		return a, errors.New("unknown command")
	}
	err = do(p, o, &a)
	return a, err
}

func (*runner) listen(o *command, a *answer) (err error) {
	if a.FD, err = open(o); err != nil {
		return err
	}
	return errors.Join(unix.SetsockoptInt(a.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(a.FD, sockaddr(o.Addr)), unix.Listen(a.FD, 128))
}

func (*runner) connect(o *command, a *answer) (err error) {
	if a.FD, err = open(o); err != nil {
		return err
	}
	for _, opt := range o.Options {
		if err := unix.SetsockoptInt(a.FD, opt[0], opt[1], opt[2]); err != nil {
			return err
		}
	}
	if err := unix.Connect(a.FD, sockaddr(o.Addr)); err != nil {
		return err
	}
	a.Cookie, err = cookieAt(a.FD)
	return err
}

func (*runner) accept(o *command, a *answer) (err error) {
	if a.FD, _, err = unix.Accept4(o.FD, unix.SOCK_CLOEXEC); err != nil {
		return err
	}
	a.Cookie, err = cookieAt(a.FD)
	return err
}

// fork starts a child of this process, which has the descriptor as its 3.
func (p *runner) fork(o *command, a *answer) error {
	f := os.NewFile(uintptr(o.FD), "inherited")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+p.path)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	keep = append(keep, f) // its finalizer would close the descriptor
	a.PID, a.FD = cmd.Process.Pid, 3
	return nil
}

// writeTo writes something on each connection.
func writeTo(fds ...int) error {
	for _, fd := range fds {
		if _, err := unix.Write(fd, []byte("anybody there?")); err != nil {
			return err
		}
	}
	return nil
}

// keep are descriptors that must stay open.
var keep []*os.File

// open opens a socket, which belongs to a user.
func open(o *command) (int, error) {
	if o.UID != 0 {
		if err := unix.Setfsuid(o.UID); err != nil {
			return 0, err
		}
		defer func() { _ = unix.Setfsuid(0) }()
	}
	return newSocket(o.Addr)
}

func cookieAt(fd int) (string, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return fmt.Sprintf("%x", cookie), err
}

func pass(path string, fd int) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = conn.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil)
	return err
}

func take(l *net.UnixListener) (int, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil {
		return 0, err
	}
	if len(messages) != 1 {
		return 0, fmt.Errorf("%d control messages", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// controller is where the helper processes of a test report.
type controller struct {
	t testing.TB
	l *net.UnixListener
}

func newController(t testing.TB) *controller {
	t.Helper()
	// Short: the path of a Unix socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "halfopen-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &controller{t, l}
}

// start starts one, in a namespace if that is not "".
func (h *controller) start(name, netns string) *helperProcess {
	h.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+h.l.Addr().String())
	stderr := &buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if said := stderr.String(); said != "" {
			h.t.Logf("helper %s said: %s", name, said)
		}
	})
	p := h.accept()
	p.must(command{Do: "name", Name: name})
	if netns != "" {
		p.must(command{Do: "enter", Path: netns})
	}
	return p
}

// accept waits for the next helper process that connects.
func (h *controller) accept() *helperProcess {
	h.t.Helper()
	if err := h.l.SetDeadline(time.Now().Add(generous)); err != nil {
		h.t.Fatal(err)
	}
	conn, err := h.l.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	p := &helperProcess{t: h.t, conn: conn, in: json.NewDecoder(conn), out: json.NewEncoder(conn)}
	var hello answer
	if err := p.in.Decode(&hello); err != nil {
		h.t.Fatal(err)
	}
	p.PID = hello.PID
	return p
}

// must carries a command out; the test ends if that fails.
func (p *helperProcess) must(o command) answer {
	p.t.Helper()
	a, err := p.do(o)
	if err != nil {
		p.t.Fatalf("helper %d: %v", p.PID, err)
	}
	return a
}

// do carries a command out. Other goroutines than the test's may call it.
func (p *helperProcess) do(o command) (a answer, err error) {
	if err := p.out.Encode(o); err != nil {
		return a, err
	}
	if err := p.in.Decode(&a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

// exit ends the process.
func (p *helperProcess) exit() {
	p.t.Helper()
	p.conn.Close()
	eventually(p.t, "the process has ended", func() error {
		body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		// Its other threads may still hold what the first has let go of.
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID))
		if err != nil || strings.Contains(string(body), ") Z ") && len(threads) <= 1 {
			return nil
		}
		return errors.New("it runs")
	})
}

// descriptor returns what a file descriptor is, as /proc names it.
func (p *helperProcess) descriptor(fd int) string {
	p.t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.PID, fd))
	if err != nil {
		p.t.Fatal(err)
	}
	return link
}

// comm is the name of the process.
func (p *helperProcess) comm() string {
	p.t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSuffix(string(body), "\n")
}

// connectMany makes connections from the first of two namespaces to the second,
// holds both ends, and returns the clients'.
func connectMany(o *command) (fds []int, err error) {
	if err := enter(o.Paths[1]); err != nil {
		return nil, err
	}
	listener, err := newListener(o.Addr, 8)
	if err != nil {
		return nil, err
	}
	if err := enter(o.Paths[0]); err != nil {
		return nil, err
	}
	for range o.Count {
		fd, _, err := pair(listener, o.Addr)
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// populate makes so many connections of a namespace with itself in each of the
// namespaces, and leaves them there in several states. It returns the listeners.
func populate(o *command) (listeners []int, err error) {
	for _, path := range o.Paths {
		if err := enter(path); err != nil {
			return nil, err
		}
		listener, err := newListener(o.Addr, 8)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, listener)
		for i := range o.Count {
			fd, _, err := pair(listener, o.Addr)
			if err != nil {
				return nil, fmt.Errorf("connection %d: %w", i, err)
			}
			if i == 0 { // fin_wait2 here, close_wait there
				if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
					return nil, err
				}
			}
		}
	}
	return listeners, nil
}

// pair connects from the thread's namespace with a listener, which accepts.
func pair(listener int, addr netip.AddrPort) (fd, accepted int, err error) {
	if fd, err = newSocket(addr); err != nil {
		return 0, 0, err
	}
	if err = unix.Connect(fd, sockaddr(addr)); err != nil {
		return 0, 0, err
	}
	accepted, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	return fd, accepted, err
}

// visit has so many short connections in each of the namespaces, and leaves one
// end of each in time_wait.
func visit(o *command) error {
	for i, path := range o.Paths {
		if err := enter(path); err != nil {
			return err
		}
		for range o.Count {
			fd, accepted, err := pair(o.FDs[i], o.Addr)
			if err != nil {
				return err
			}
			if err := errors.Join(unix.Close(fd), unix.Close(accepted)); err != nil {
				return err
			}
		}
	}
	return nil
}
