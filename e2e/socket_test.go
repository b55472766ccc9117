// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	machineSocket = "/run/halfopen/halfopen.sock"
	halfopenGroup = 4242
	nobody        = 65534
)

// A mountNamespace has a /run and an /etc of its own: a machine as far as
// its socket goes. The group halfopen is there.
type mountNamespace struct {
	t  *testing.T
	ns *os.File
}

func newMountNamespace(t *testing.T) *mountNamespace {
	t.Helper()
	r := &mountNamespace{t: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with this
		made <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			for _, dir := range []string{"/run", "/etc"} {
				if err := unix.Mount("none", dir, "tmpfs", 0, "mode=0755"); err != nil {
					return err
				}
			}
			err := os.WriteFile("/etc/group", fmt.Appendf(nil, "root:x:0:\nhalfopen:x:%d:\n", halfopenGroup), 0o644)
			if err == nil {
				r.ns, err = os.Open("/proc/thread-self/ns/mnt")
			}
			return err
		}()
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.ns.Close() })
	return r
}

// do calls f in the mount namespace.
func (r *mountNamespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with this
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(r.ns.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (r *mountNamespace) must(f func() error) {
	r.t.Helper()
	if err := r.do(f); err != nil {
		r.t.Fatal(err)
	}
}

// as is the binary as that user, of that group as well.
func as(uid, group int, args ...string) *exec.Cmd {
	cmd := exec.Command(publicBinary, args...)
	cmd.Dir = "/"
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	if group != 0 {
		c.Groups = []uint32{uint32(group)}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c}
	return cmd
}

// run runs a command in the mount namespace to its end.
func (r *mountNamespace) run(cmd *exec.Cmd) (stdout, stderr string, status int) {
	r.t.Helper()
	out, errs := &buffer{}, &buffer{}
	cmd.Stdout, cmd.Stderr = out, errs
	r.must(cmd.Start)
	timer := time.AfterFunc(generous, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// fails runs a command that has to fail, with one line that says this.
func (r *mountNamespace) fails(cmd *exec.Cmd, says ...string) {
	r.t.Helper()
	stdout, stderr, status := r.run(cmd)
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "halfopen: ") {
		r.t.Errorf("%v: exit status %d, stdout %q, stderr %q", cmd.Args[1:], status, stdout, stderr)
	}
	for _, word := range says {
		if !strings.Contains(stderr, word) {
			r.t.Errorf("%v: %q does not say %q", cmd.Args[1:], stderr, word)
		}
	}
}

// works runs a command that must succeed, and returns its output.
func (r *mountNamespace) works(cmd *exec.Cmd) (stdout string) {
	r.t.Helper()
	stdout, stderr, status := r.run(cmd)
	if status != 0 {
		r.t.Errorf("%v: exit status %d: %s", cmd.Args[1:], status, stderr)
	}
	return stdout
}

// agent runs one in the mount namespace until the test ends, on the machine's socket.
func (r *mountNamespace) agent(flags ...string) *agent {
	r.t.Helper()
	addr := freeAddr(r.t)
	cmd := exec.Command(binary, append([]string{"agent", "--web.listen-address=" + addr}, flags...)...)
	return r.launch(addr, cmd)
}

func (r *mountNamespace) launch(addr string, cmd *exec.Cmd) *agent {
	r.t.Helper()
	a := launch(r.t, addr, cmd, func() error { return r.do(cmd.Start) })
	r.t.Cleanup(func() {
		a.stop()
		if r.t.Failed() {
			r.t.Logf("the agent said:\n%s", a.log)
		}
	})
	a.ready()
	return a
}

func (a *agent) warnings() int { return strings.Count(a.log.String(), "level=WARN") }

func TestCommandsAskTheAgentOfTheMachine(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	n.serve(servedPort, echo)
	n.serve(droppedPort, echo)
	conns := n.dial(servedPort, 3)
	n.greet(conns)
	r := newMountNamespace(t)
	none := exec.Command(binary, "list", "--cause=refused")
	if _, stderr, status := r.run(none); status != 1 || !strings.Contains(stderr, "--cause needs an agent") {
		t.Errorf("without an agent: exit status %d: %s", status, stderr)
	}
	a := r.agent("--zombie-silence=2s", "--log.level=debug")
	r.must(func() error {
		for path, want := range map[string]os.FileMode{filepath.Dir(machineSocket): os.ModeDir | 0o755, machineSocket: os.ModeSocket | 0o660} {
			info, err := os.Lstat(path)
			if err != nil {
				return err
			}
			if st := info.Sys().(*syscall.Stat_t); info.Mode() != want || st.Uid != 0 || st.Gid != halfopenGroup {
				t.Errorf("%s: %v, of %d:%d", path, info.Mode(), st.Uid, st.Gid)
			}
		}
		return nil
	})

	port, local := fmt.Sprint(servedPort), conns[0].LocalAddr().String()
	// A user who may not load programs, and is in the group, gets it from the agent.
	member := func(args ...string) *exec.Cmd { return as(nobody, halfopenGroup, args...) }
	if out := r.works(member("list", "--port", port)); !strings.Contains(out, local) {
		t.Errorf("no %s in\n%s", local, out)
	}
	if out := r.works(member("list", "--port", port, "-o", "json")); !json.Valid([]byte(out)) || !strings.Contains(out, `"generated_at"`) {
		t.Errorf("no JSON: %s", out)
	}
	r.works(member("list", "--by=verdict"))
	r.works(member("list", "--cause=refused"))
	if out := r.works(member("explain", local)); !strings.Contains(out, "WHAT IT IS DOING") {
		t.Errorf("explained as\n%s", out)
	}
	r.works(exec.Command(binary, "list", "--cause=refused")) // root
	if log := a.log.String(); !strings.Contains(log, "Request over the socket") || !strings.Contains(log, fmt.Sprintf("uid=%d", nobody)) {
		t.Errorf("the agent does not know who asks:\n%s", log)
	}
	// By itself, if that is asked for, or if only that can do it.
	for _, args := range [][]string{
		{"list", "--url=none"}, {"explain", local, "--url=none"}, {"trace", "--url=none"},
		{"list", "--idle-after=1m"}, {"trace", "--all"}, {"trace", "--census-interval=1s"},
	} {
		r.fails(member(args...), "not permitted to load BPF programs")
	}
	if out := r.works(exec.Command(binary, "list", "--url=none", "--port", port)); !strings.Contains(out, local) {
		t.Errorf("no %s in\n%s", local, out)
	}
	// Others are told what to do, and may have it by another way.
	for _, args := range [][]string{{"list"}, {"explain", local}, {"trace"}} {
		r.fails(as(nobody, 0, args...), "permission denied", "sudo", "group halfopen", "--url")
	}
	r.works(as(nobody, 0, "list", "--url", a.url))
	r.works(member("list", "--url=unix://"+machineSocket))

	if code := a.stop(); code != 0 || a.warnings() != 0 {
		t.Errorf("the agent: exit status %d\n%s", code, a.log)
	}
	if err := r.do(func() error { _, err := os.Lstat(machineSocket); return err }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	r.works(exec.Command(binary, "list", "--port", port))
	r.fails(member("list"), "not permitted to load BPF programs")
}

func TestTraceThroughTheAgentOfTheMachine(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, 7)
	n.greet(conns)
	n.keepalive(conns, time.Second, time.Second, 5)
	r := newMountNamespace(t)
	r.agent("--zombie-silence=2s")
	cmd := as(nobody, halfopenGroup, "trace", "-o", "json", "--port", fmt.Sprint(droppedPort))
	trace := startTrace(t, cmd, func() error { return r.do(cmd.Start) })
	if said := trace.stderr.String(); said != "watching through "+machineSocket+"; press Ctrl-C to stop\n" {
		t.Errorf("it says %q", said)
	}
	n.cut(droppedPort)
	kinds := make(map[string]map[string]bool) // which connections had each
	cookies := n.ss(droppedPort)
	for len(kinds["death"]) < len(conns) {
		e := trace.next(cookies)
		if e == nil {
			break
		}
		c := e.of()
		if e.Death != nil && (e.Death.Cause != "keepalive_timeout" || e.Death.ZombieSeconds == nil) {
			t.Errorf("%s died of %s", c.Cookie, e.Death.Cause)
		}
		had := func(kind string) {
			if kinds[kind] == nil {
				kinds[kind] = make(map[string]bool)
			}
			kinds[kind][c.Cookie] = true
		}
		had(e.Event + e.To)
		switch { // an event does not wait for ever until its owner is found
		case c.Process == nil:
		case c.Process.PID != os.Getpid():
			t.Errorf("%s of %s has the owner %+v", e.Event, c.Cookie, c.Process)
		default:
			had("owner")
		}
	}
	for _, kind := range []string{"solicitation", "verdictzombie", "death", "owner"} {
		if len(kinds[kind]) != len(conns) {
			t.Errorf("%d of %d connections had: %s", len(kinds[kind]), len(conns), kind)
		}
	}
	trace.interrupt()
}

func TestTraceSaysThatItsAgentHasEnded(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	a := r.agent()
	cmd := exec.Command(binary, "trace")
	trace := startTrace(t, cmd, func() error { return r.do(cmd.Start) })
	a.stop()
	err := cmd.Wait()
	if said := trace.stderr.String(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said, "the stream has ended") || !strings.Contains(said, "--url=none") {
		t.Errorf("%v: %s", err, said)
	}
}

func TestTopOfTheAgentOfTheMachine(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	n.serve(servedPort, echo)
	n.greet(n.dial(servedPort, 2))
	r := newMountNamespace(t)
	a := r.agent()
	m := newTerminal(t, 100, 24)
	m.types(fmt.Sprintf("nsenter -t %d -m -- %s top --netns %d", a.cmd.Process.Pid, binary, n.Client.Inode()))
	m.presses("Enter")
	m.shows("the connections", "halfopen top  "+machineSocket, n.server(servedPort).String(), "2 connections")
	m.types("q")
	m.shows("the shell", prompt)
}

func TestASecondAgentRunsWithoutTheSocket(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	first := r.agent()
	second := r.agent()
	if second.warnings() != 1 || !strings.Contains(second.log.String(), "another agent listens there") || first.warnings() != 0 {
		t.Errorf("the first said\n%s\nthe second\n%s", first.log, second.log)
	}
	if code := second.stop(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	r.works(as(nobody, halfopenGroup, "list"))
}

func TestSocketOfAKilledAgentIsReplaced(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	for range 3 {
		a := r.agent()
		r.works(as(nobody, halfopenGroup, "list"))
		if a.warnings() != 0 {
			t.Errorf("the agent warns:\n%s", a.log)
		}
		_ = a.cmd.Process.Kill()
		<-a.done
		r.must(func() error { _, err := os.Lstat(machineSocket); return err })
		r.works(exec.Command(binary, "list")) // by itself
	}
}

func TestSocketWhereItCannotBeMade(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func() error{
		"read-only": func() error { return unix.Mount("", "/run", "", unix.MS_REMOUNT|unix.MS_RDONLY, "") },
		"a directory of another user": func() error {
			return errors.Join(os.Mkdir("/run/halfopen", 0o755), os.Chown("/run/halfopen", nobody, nobody))
		},
		"a symbolic link": func() error {
			return errors.Join(os.Mkdir("/run/elsewhere", 0o755), os.Symlink("elsewhere", "/run/halfopen"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newMountNamespace(t)
			r.must(prepare)
			a := r.agent()
			if a.warnings() != 1 || !strings.Contains(a.log.String(), "Running without a socket") {
				t.Errorf("it said\n%s", a.log)
			}
			if err := r.do(func() error { _, err := os.Stat(machineSocket); return err }); err == nil {
				t.Error("the socket was made")
			}
			if code := a.stop(); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// A user who has got hold of the directory may not tell root what connections there are.
func TestSocketOfAnotherUserIsNotBelieved(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	r.must(func() error {
		return errors.Join(os.Mkdir("/run/halfopen", 0o777), os.Chmod("/run/halfopen", 0o777))
	})
	var l net.Listener
	r.must(func() (err error) {
		// By this thread alone, which ends.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), nobody, ^uintptr(0)); errno != 0 {
			return errno
		}
		l, err = net.Listen("unix", machineSocket)
		return err
	})
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	list := func() *exec.Cmd { return exec.Command(binary, "list") }
	r.fails(list(), "/run/halfopen can be written to by others than root", "--url=none")
	r.must(func() error { return os.Chown("/run/halfopen", nobody, nobody) })
	r.fails(list(), "/run/halfopen does not belong to root", "--url=none")
	r.must(func() error { return errors.Join(os.Chown("/run/halfopen", 0, 0), os.Chmod("/run/halfopen", 0o755)) })
	r.fails(list(), "is listened on by user 65534", "--url=none")
	r.works(exec.Command(binary, "list", "--url=none"))
}

func TestAgentOfTheMachineThatHangs(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	a := r.agent()
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.cmd.Process.Signal(syscall.SIGCONT) }()
	r.fails(exec.Command(binary, "list"), "has not answered on "+machineSocket, "--url=none")
	r.works(exec.Command(binary, "list", "--url=none"))
}

// socketUnit listens on the machine's socket, as systemd does for a socket unit.
func (r *mountNamespace) socketUnit() *net.UnixListener {
	r.t.Helper()
	var l *net.UnixListener
	r.must(func() (err error) {
		if err := os.Mkdir("/run/halfopen", 0o755); err != nil {
			return err
		}
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: machineSocket}); err != nil {
			return err
		}
		return errors.Join(os.Chown(machineSocket, 0, halfopenGroup), os.Chmod(machineSocket, 0o660))
	})
	l.SetUnlinkOnClose(false)
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestSocketThatSystemdPasses(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	addr := freeAddr(t)
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	l := r.socketUnit()
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{l, tcp.(*net.TCPListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// A password, which the socket does not ask for.
	config := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(config, []byte("basic_auth_users:\n  me: $2a$04$y927JXmOaBp0qsUa5VQsAO9OGZySGiPt6Spxe5Z44eQyidQ6xtiPO\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `export LISTEN_FDS=2 LISTEN_PID=$$; exec "$@"`, "sh", binary, "agent", "--web.systemd-socket", "--web.config.file="+config)
	cmd.ExtraFiles = files
	a := launch(t, addr, cmd, func() error { return r.do(cmd.Start) })
	defer a.stop()
	member := func() *exec.Cmd { return as(nobody, halfopenGroup, "list", "--cause=refused") }
	eventually(t, "the agent answers on the socket", func() error {
		if _, stderr, status := r.run(member()); status != 0 {
			return errors.New(stderr)
		}
		return nil
	})
	r.fails(as(nobody, 0, "list", "--url", a.url), "it wants a user and a password", "--web.client-config")
	if code := a.stop(); code != 0 || a.warnings() != 0 {
		t.Errorf("exit status %d:\n%s", code, a.log)
	}
	r.must(func() error { _, err := os.Lstat(machineSocket); return err }) // it is systemd's
}

// The agent of a socket unit that has the Unix socket alone listens on no TCP port, and the
// commands work.
func TestAgentWithTheUnixSocketAlone(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	f, err := r.socketUnit().File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", `export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"`, "sh", binary, "agent", "--web.systemd-socket")
	cmd.ExtraFiles = []*os.File{f}
	a := launch(t, "none", cmd, func() error { return r.do(cmd.Start) })
	defer a.stop()
	for _, args := range [][]string{{"list", "--limit=5"}, {"list", "--by=verdict"}, {"list", "--cause=refused"}} {
		eventually(t, "the agent answers "+strings.Join(args, " "), func() error {
			if _, stderr, status := r.run(as(nobody, halfopenGroup, args...)); status != 0 {
				return errors.New(stderr)
			}
			return nil
		})
	}
	r.fails(as(nobody, 0, "list"), "permission denied")
	m := newTerminal(t, 100, 24)
	m.types(fmt.Sprintf("nsenter -t %d -m -- %s top", a.cmd.Process.Pid, binary))
	m.presses("Enter")
	m.shows("top", "halfopen top  "+machineSocket)
	m.types("q")
	m.shows("the shell", prompt)
	if listeners := listenersOf(t, a.cmd.Process.Pid); len(listeners) > 0 {
		t.Errorf("it listens on TCP: %v", listeners)
	}
	own, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if len(listenersOf(t, os.Getpid())) == 0 {
		t.Error("ss does not show who listens")
	}
	if code := a.stop(); code != 0 || a.warnings() != 0 {
		t.Errorf("exit status %d:\n%s", code, a.log)
	}
}

// listenersOf returns the TCP sockets on which a process listens, as ss shows them.
func listenersOf(t *testing.T, pid int) (listeners []string) {
	t.Helper()
	out, err := exec.Command("ss", "-Htlnp").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, fmt.Sprintf("pid=%d,", pid)) {
			listeners = append(listeners, line)
		}
	}
	return listeners
}
