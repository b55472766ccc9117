// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/internal/sandbox"
)

// sandboxEnv makes the test binary try forbidden system calls, instead of running the tests.
// Its value is "agent" for the agent's sandbox, or "none" for no sandbox. With "attach", the
// binary loads programs, enters the agent's sandbox, and attaches them there.
const sandboxEnv = "HALFOPEN_E2E_SANDBOX"

// attempt is a system call that the sandbox must refuse.
type attempt struct {
	name      string
	number    uintptr
	arguments [6]uintptr
}

// attempts prepares the attempts of a process. file is the file to open, process the process
// to trace, and address the address to connect to.
func attempts(file, process, address string) ([]attempt, error) {
	namespace, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	server := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4(), Port: to.Port()<<8 | to.Port()>>8}
	traced, err := strconv.Atoi(process)
	if err != nil {
		return nil, err
	}
	path, err := unix.BytePtrFromString(file)
	if err != nil {
		return nil, err
	}
	// A BPF program that returns 0.
	program := []uint64{0x00000000000000b7, 0x0000000000000095}
	license := []byte("GPL\x00")
	load := &struct { // union bpf_attr, of BPF_PROG_LOAD
		kind, count           uint32
		instructions, license uintptr
		level, size           uint32
		log                   uint64
		version, flags        uint32
	}{kind: 1 /* of a socket */, count: 2, instructions: uintptr(unsafe.Pointer(&program[0])), license: uintptr(unsafe.Pointer(&license[0]))}
	pinned.Pin(server)
	pinned.Pin(path)
	pinned.Pin(&program[0])
	pinned.Pin(&license[0])
	pinned.Pin(load)
	self, err := unix.BytePtrFromString("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	argv, envv := []*byte{self, nil}, []*byte{nil}
	executed, err := unix.BytePtrFromString(sandboxEnv + "=executed")
	if err != nil {
		return nil, err
	}
	envv = append([]*byte{executed}, envv...)
	for _, p := range []*byte{self, executed} {
		pinned.Pin(p)
	}
	pinned.Pin(&argv[0])
	pinned.Pin(&envv[0])
	at := unix.AT_FDCWD
	pointer := func(p unsafe.Pointer) uintptr { return uintptr(p) }
	return []attempt{
		{"setns", unix.SYS_SETNS, [6]uintptr{uintptr(namespace), unix.CLONE_NEWNET}},
		{"open of a 0600 root file", unix.SYS_OPENAT, [6]uintptr{uintptr(at), pointer(unsafe.Pointer(path)), unix.O_RDONLY}},
		{"BPF_PROG_LOAD", unix.SYS_BPF, [6]uintptr{unix.BPF_PROG_LOAD, pointer(unsafe.Pointer(load)), unsafe.Sizeof(*load)}},
		{"ptrace", unix.SYS_PTRACE, [6]uintptr{unix.PTRACE_SEIZE, uintptr(traced)}},
		{"connect", unix.SYS_CONNECT, [6]uintptr{uintptr(socket), pointer(unsafe.Pointer(server)), unsafe.Sizeof(*server)}},
		{"execve", unix.SYS_EXECVE, [6]uintptr{pointer(unsafe.Pointer(self)), pointer(unsafe.Pointer(&argv[0])), pointer(unsafe.Pointer(&envv[0]))}},
	}, nil
}

var pinned runtime.Pinner

// lockedThreads are threads that make system calls on request.
type lockedThreads []chan func()

// start starts count more threads.
func (l *lockedThreads) start(count int) {
	for range count {
		c := make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range c {
				f()
			}
		}()
		*l = append(*l, c)
	}
}

// try makes a system call on all threads of the process, and returns their result. It makes
// the call on the locked threads and then, unless this binary contains C, once more on all
// threads by the runtime, which panics if the results differ.
func (l lockedThreads) try(a *attempt) string {
	said := make(map[string]int)
	say := func(errno syscall.Errno) {
		if errno == 0 {
			said["success"]++
		} else {
			said[unix.ErrnoName(errno)]++
		}
	}
	arguments := a.arguments
	for _, thread := range l {
		done := make(chan syscall.Errno)
		thread <- func() {
			_, _, errno := unix.RawSyscall6(a.number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5])
			done <- errno
		}
		say(<-done)
	}
	_, _, errno := syscall.AllThreadsSyscall6(a.number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5])
	if errno != syscall.ENOTSUP {
		say(errno)
	}
	if len(said) == 1 {
		for one := range said {
			return one
		}
	}
	return fmt.Sprint(said)
}

// runSandboxed is the main function of the process that makes the attempts. It prints the
// error of each.
func runSandboxed(how string) int {
	switch how {
	case "executed":
		fmt.Println("execve: success")
		return 0
	case "attach":
		if err := attachInSandbox(); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	tried, err := attempts(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var threads lockedThreads
	if how == "agent" {
		threads.start(8)
		if err := sandbox.Enter(sandbox.Agent()); err != nil {
			fmt.Println("not possible:", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		threads.start(8)
	}
	for i := range tried {
		a := &tried[i]
		said := ""
		if how == "agent" {
			said = threads.try(a)
		} else {
			_, _, errno := unix.Syscall6(a.number, a.arguments[0], a.arguments[1], a.arguments[2], a.arguments[3], a.arguments[4], a.arguments[5])
			said = "success"
			if errno != 0 {
				said = unix.ErrnoName(errno)
			}
		}
		fmt.Printf("%s: %s\n", a.name, said)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	fmt.Printf("threads: %d %v\n", len(tasks), err)
	return 0
}

// attachInSandbox attaches programs in the sandbox, and waits until they count a death.
func attachInSandbox() error {
	k, err := bpf.Load(bpf.Options{Observe: true})
	if err != nil {
		return err
	}
	defer k.Close()
	if err := sandbox.Enter(sandbox.Agent()); err != nil {
		fmt.Println("not possible:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if err := k.Detach(); err != nil {
		return err
	}
	before, err := k.Counters()
	if err != nil {
		return err
	}
	if err := errors.Join(k.Attach(), k.CookiesErr()); err != nil {
		return err
	}
	for deadline := time.Now().Add(generous); time.Now().Before(deadline); {
		now, err := k.Counters()
		if err != nil {
			return err
		}
		if count := now.Deaths[abi.CauseClosed] - before.Deaths[abi.CauseClosed]; count > 0 {
			fmt.Println("attached: counted")
			return nil
		}
	}
	return errors.New("no death was counted")
}

// Programs that a process has loaded before it drops its privileges can be attached
// afterwards, and work.
func TestSandboxAttachesWhatWasLoadedBefore(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sandboxEnv+"=attach")
	said := &buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for { // make deaths until the process has counted one
		select {
		case err := <-done:
			if err != nil || !strings.Contains(said.String(), "attached: counted\n") {
				t.Errorf("%v\n%s", err, said)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Close(), accepted.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// The agent's sandbox refuses each attempt on every thread. Without it, the same attempts
// succeed.
func TestSandboxRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	traced := newController(t).start("traced", "")
	outcome := func(how string) map[string]string {
		cmd := exec.Command(os.Args[0], file, strconv.Itoa(traced.PID), l.Addr().String())
		cmd.Env = append(os.Environ(), sandboxEnv+"="+how)
		output, err := cmd.CombinedOutput()
		t.Logf("%s:\n%s", how, output)
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		said := make(map[string]string)
		for line := range strings.Lines(string(output)) {
			what, result, _ := strings.Cut(strings.TrimSpace(line), ": ")
			said[what] = result
		}
		return said
	}
	free, bound := outcome("none"), outcome("agent")
	for _, what := range []string{"setns", "open of a 0600 root file", "BPF_PROG_LOAD", "ptrace", "connect", "execve"} {
		if free[what] != "success" {
			t.Errorf("%s: %q without the sandbox, so the attempt proves nothing", what, free[what])
		}
		if bound[what] != "EPERM" && bound[what] != "EACCES" {
			t.Errorf("%s: the result in the sandbox is %q", what, bound[what])
		}
	}
	if threads, _, _ := strings.Cut(bound["threads"], " "); len(threads) < 2 { // 16 threads, and those of the runtime
		t.Errorf("%s threads made the attempts, want at least the 16 locked ones", bound["threads"])
	}
}

// documented is a line of the table in docs/security.md.
type documented struct {
	process, linux                   string
	uid, capEff, noNewPrivs, seccomp string // in the form of /proc/PID/status
}

// documentedPrivileges parses the table in docs/security.md.
func documentedPrivileges(t *testing.T) (lines []documented) {
	t.Helper()
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	bits := make(map[string]int)
	for _, c := range bpf.Capabilities {
		bits[c.Name] = c.Bit
	}
	_, table, _ := strings.Cut(string(text), "\n| process | Linux | Uid | CapEff | NoNewPrivs | Seccomp |\n|---|---|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
		if len(cells) != 6 {
			t.Fatalf("a line of the table has %d cells: %q", len(cells), line)
		}
		var set uint64
		for name := range strings.SplitSeq(cells[3], ", ") {
			bit, ok := bits[name]
			if name != "none" && !ok {
				t.Fatalf("unknown capability %q", name)
			}
			if ok {
				set |= 1 << bit
			}
		}
		lines = append(lines, documented{cells[0], cells[1], cells[2], fmt.Sprintf("%016x", set), cells[4], cells[5]})
	}
	return lines
}

// statusOf returns the values of a status file in /proc, of a process or a thread, by name.
func statusOf(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	status := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		status[name] = value
	}
	return status, nil
}

// helperOf returns the process id of an agent's helper, the only child of the agent.
func helperOf(t *testing.T, a *agent) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, path := range all {
		status, err := statusOf(path)
		if err == nil && status["PPid"] == strconv.Itoa(a.cmd.Process.Pid) {
			pid, err := strconv.Atoi(status["Pid"])
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, pid)
		}
	}
	if len(children) != 1 {
		t.Fatalf("the agent has the children %v, expected its helper", children)
	}
	return children[0]
}

// If the agent is killed, its helper ends. If the helper is killed, the agent ends with a line
// that gives the reason.
func TestHelperAndAgentEndTogether(t *testing.T) {
	t.Parallel()
	a := launchAgent(t)
	defer a.stop()
	a.ready()
	helper, err := unix.PidfdOpen(helperOf(t, a), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(helper)
	if err := unix.PidfdSendSignal(helper, 0, nil, 0); err != nil {
		t.Fatalf("the helper of a running agent: %v", err)
	}
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-a.done
	eventually(t, "the helper of a killed agent has ended", func() error {
		poll := []unix.PollFd{{Fd: int32(helper), Events: unix.POLLIN}} // readable once it has ended
		if n, err := unix.Poll(poll, 0); err != nil || n != 1 {
			return fmt.Errorf("poll: %d, %v", n, err)
		}
		return nil
	})

	b := launchAgent(t)
	defer b.stop()
	b.ready()
	if err := unix.Kill(helperOf(t, b), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent without its helper has ended", func() error {
		select {
		case <-b.done:
			return nil
		default:
			return errors.New("it runs")
		}
	})
	if code := b.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit status %d", code)
	}
	if log := b.log.String(); !strings.Contains(log, "the helper process has ended (signal: killed): start the agent again") || strings.Contains(log, "goroutine ") {
		t.Errorf("the agent logged:\n%s", log)
	}
}

// Every thread of the agent and of its helper keeps exactly the privileges listed in docs/security.md.
func TestPrivilegesAreThoseOfTheDocument(t *testing.T) {
	t.Parallel()
	a := launchAgent(t)
	defer a.stop()
	a.ready()
	processes := map[string][]int{"agent": {a.cmd.Process.Pid}, "helper": {helperOf(t, a)}}
	age := "5.19 and newer"
	if olderThan(t, 5, 19) {
		age = "before 5.19"
	}
	compared := 0
	for _, d := range documentedPrivileges(t) {
		if d.linux != "all" && d.linux != age {
			continue
		}
		for _, pid := range processes[d.process] {
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
			if err != nil || len(tasks) < 2 {
				t.Fatalf("threads %v, %v", tasks, err)
			}
			// A thread may have ended meanwhile. The helper may not have dropped its privileges yet.
			eventually(t, d.process+" has dropped its privileges", func() error {
				for _, path := range tasks {
					status, err := statusOf(path)
					if os.IsNotExist(err) || errors.Is(err, unix.ESRCH) {
						continue
					}
					if err != nil {
						return err
					}
					uid, _, _ := strings.Cut(status["Uid"], "\t")
					if status["Uid"] != strings.Join([]string{uid, uid, uid, uid}, "\t") {
						return fmt.Errorf("%s has the uids %s", path, status["Uid"])
					}
					got := documented{d.process, d.linux, uid, status["CapEff"], status["NoNewPrivs"], status["Seccomp"]}
					if got != d || status["CapPrm"] != d.capEff || strings.Trim(status["CapInh"]+status["CapAmb"]+status["CapBnd"], "0") != "" {
						return fmt.Errorf("%s: %+v (permitted %s, inheritable %s, ambient %s, bounding %s), but the document has %+v",
							path, got, status["CapPrm"], status["CapInh"], status["CapAmb"], status["CapBnd"], d)
					}
				}
				return nil
			})
			t.Logf("%s: %d threads have uid %s, CapEff %s, NoNewPrivs %s, Seccomp %s", d.process, len(tasks), d.uid, d.capEff, d.noNewPrivs, d.seccomp)
			compared++
		}
	}
	if compared != 2 {
		t.Errorf("compared the privileges of %d processes, expected the agent and its helper", compared)
	}
}
