// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// proberEnv makes the test binary a process that asks. Its value is the directory of journals.
const proberEnv = "HALFOPEN_TEST_PROBER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(proberEnv); dir != "" {
		c, err := net.FileConn(os.NewFile(3, "questions"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		serve(c, dir)
		return
	}
	os.Exit(m.Run())
}

// noise are the system calls of Go's runtime, and those that only read: to be killed after one is the
// same as after the call before it.
var noise = []uint64{
	unix.SYS_GETSOCKOPT, unix.SYS_IOCTL, unix.SYS_READ, unix.SYS_FSTAT, unix.SYS_CLOCK_GETRES, unix.SYS_FCNTL, unix.SYS_GETPID,
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_RT_SIGACTION,
	unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_GETTID, unix.SYS_TGKILL, unix.SYS_CLONE,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL, unix.SYS_SCHED_YIELD, unix.SYS_PRCTL, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST,
}

// syscallStop is the beginning or the end of a system call, at which a thread has stopped: struct
// ptrace_syscall_info.
type syscallStop struct {
	op     uint8 // 1: the beginning, 2: the end
	_      [3]byte
	_      uint32
	_      [2]uint64
	number uint64 // at the beginning
	_      [6]uint64
}

func stopOf(t *testing.T, thread int) (s syscallStop) {
	t.Helper()
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread), unsafe.Sizeof(s), uintptr(unsafe.Pointer(&s)), 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	return s
}

// tracee is a traced process that asks. Its tracer is a thread, which all methods need.
type tracee struct {
	t      *testing.T
	pid    int
	calls  map[int]uint64 // the system call that each thread is in
	status unix.WaitStatus
}

// startTracee starts a process that asks the target, and ends when it has answered.
func startTracee(t *testing.T, dir string, target Target) *tracee {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), proberEnv+"="+dir, "GODEBUG=asyncpreemptoff=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	must(t, cmd.Start())
	theirs.Close()
	must(t, json.NewEncoder(ours).Encode(&question{Ask: &target}))
	go func() {
		var r reply
		if err := json.NewDecoder(ours).Decode(&r); err == nil && (r.Asked == nil || r.Asked.Result != Answered) {
			t.Errorf("%+v", r.Asked)
		}
		ours.Close()
	}()
	p := &tracee{t: t, pid: cmd.Process.Pid, calls: make(map[int]uint64)}
	if thread := p.wait(); thread != p.pid || !p.status.Stopped() {
		t.Fatalf("%d has stopped, status %#x", thread, p.status)
	}
	must(t, unix.PtraceSetOptions(p.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL))
	must(t, unix.PtraceSyscall(p.pid, 0))
	return p
}

// wait waits until a thread stops or ends.
func (p *tracee) wait() (thread int) {
	for {
		thread, err := unix.Wait4(-1, &p.status, unix.WALL, nil)
		if err == nil {
			return thread
		}
		if err != unix.EINTR {
			p.t.Fatal(err)
		}
	}
}

// next runs the process until a thread has made a system call that may change something. ended
// is true if the process has ended. The thread stays stopped until resume.
func (p *tracee) next() (thread int, call uint64, ended bool) {
	for {
		thread := p.wait()
		if !p.status.Stopped() {
			if thread == p.pid {
				return thread, 0, true
			}
			continue
		}
		signal := 0
		switch stop := p.status.StopSignal(); stop {
		case unix.SIGTRAP | 0x80:
			at := stopOf(p.t, thread)
			if at.op == 1 {
				p.calls[thread] = at.number
			} else if call := p.calls[thread]; !slices.Contains(noise, call) {
				return thread, call, false
			}
		case unix.SIGTRAP, unix.SIGSTOP: // a new thread
		default:
			signal = int(stop)
		}
		p.resume(thread, signal)
	}
}

func (p *tracee) resume(thread, signal int) {
	if err := unix.PtraceSyscall(thread, signal); err != nil && err != unix.ESRCH {
		p.t.Fatal(err)
	}
}

// askUntil has a new process ask the target, and kills it right after its n-th system call since
// it took the duplicate. killed is false if it has ended before.
func askUntil(t *testing.T, dir string, target Target, n int) (after string, killed bool) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := startTracee(t, dir, target)
	for counted := 0; ; {
		thread, call, ended := p.next()
		if ended {
			return "", false
		}
		if counted > 0 || call == unix.SYS_PIDFD_GETFD {
			counted++
		}
		if counted < n {
			p.resume(thread, 0)
			continue
		}
		must(t, unix.Kill(p.pid, unix.SIGKILL))
		for p.wait() != p.pid || !p.status.Signaled() { // each thread ends
		}
		return fmt.Sprintf("system call %d", call), true
	}
}

// victim is a connection that is asked by a process that is killed.
type victim struct {
	fd     int
	target Target
	sent   uint32 // segments, before
	after  string // what the process was killed
}

// killAtEach has processes ask victims, and kills each after one system call more, until one is
// not killed. It returns the victims of these processes, and how many have other settings now.
func killAtEach(t *testing.T, dir string, were Settings, victims []victim) (asked []victim, changed int) {
	t.Helper()
	for n := range victims {
		v := &victims[n]
		info, err := unix.GetsockoptTCPInfo(v.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(t, err)
		v.sent = info.Segs_out
		var killed bool
		v.after, killed = askUntil(t, dir, v.target, n+1)
		if settingsOf(t, v.fd) != were {
			changed++
		}
		if !killed {
			t.Logf("%+v: %d system calls", were, n)
			return victims[:n+1], changed
		}
	}
	t.Fatalf("%+v: more than %d system calls", were, len(victims))
	return nil, 0
}

// Processes are killed after each system call of their sequence, which asks connections of
// several kinds. What is left asks no peer again and again, ends nothing, and is put back by
// the next process.
func TestKilledAfterEachSystemCall(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to take descriptors of another process where Yama restricts that")
	}
	kinds := []Settings{
		{0, 7200, 75, 9, 0}, {0, 2, 1, 1, 1500}, {1, 600, 1, 6, 900_000}, // its own keepalive asks after the test
	}
	j := newJournals(t)
	const most = 64 // calls
	victims := make(map[Settings][]victim)
	for _, kind := range kinds {
		for range most {
			client, _, target := pair(t)
			v := victim{fd: fdOf(t, client), target: target}
			for o := range options {
				must(t, set(v.fd, o, *kind.of(o)))
			}
			victims[kind] = append(victims[kind], v)
		}
	}
	time.Sleep(leastSilence) // or each would be waited for
	changed := 0
	for _, kind := range kinds {
		asked, n := killAtEach(t, j.dir.Name(), kind, victims[kind])
		victims[kind] = asked
		changed += n
	}
	if changed < 20 {
		t.Errorf("only %d processes were killed while settings were changed", changed)
	}
	// The least times are a second: what asks again and again, or ends a connection, shows.
	time.Sleep(4 * time.Second)
	for kind, all := range victims {
		for n, v := range all {
			info, err := unix.GetsockoptTCPInfo(v.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			must(t, err)
			if info.State != unix.BPF_TCP_ESTABLISHED || info.Segs_out-v.sent > 1 {
				t.Errorf("%+v, killed after call %d (%s): state %d, %d probes were sent", kind, n+1, v.after, info.State, info.Segs_out-v.sent)
			}
		}
	}
	r := recoverAll(t, j.dir.Name())
	if r.Restored < changed || len(r.Failed) > 0 {
		t.Errorf("%+v, of %d", r, changed)
	}
	for kind, all := range victims {
		for n, v := range all {
			if now := settingsOf(t, v.fd); now != kind {
				t.Errorf("%+v, killed after call %d (%s): the settings are %+v", kind, n+1, v.after, now)
			}
		}
	}
	if left, err := os.ReadDir(j.dir.Name()); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// recoverAll has a new process put back what others have left.
func recoverAll(t *testing.T, dir string) *Recovery {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go serve(theirs, dir)
	must(t, json.NewEncoder(ours).Encode(&question{Recover: new(holders)}))
	var r reply
	must(t, json.NewDecoder(ours).Decode(&r))
	if r.Recovered.Err != "" {
		t.Fatal(r.Recovered.Err)
	}
	return r.Recovered
}

// If the descriptor of a journal is closed, or belongs to another file now, the command finds the
// socket at another descriptor, or finds that the socket is gone.
func TestRecoverWhereTheDescriptorHasMoved(t *testing.T) {
	client, _, target := pair(t)
	fd := fdOf(t, client)
	before := settingsOf(t, fd)
	j := newJournals(t)
	f, err := j.write(&entry{Target: target, Were: before})
	must(t, err)
	must(t, before.change(fd))
	f.Close()
	moved, err := unix.Dup(fd)
	must(t, err)
	defer unix.Close(moved)
	client.Close()
	dir := j.dir.Name()
	if r := recoverAll(t, dir); r.Restored != 0 || !slices.Equal(r.Failed, []uint64{target.Cookie}) {
		t.Errorf("%+v", r)
	}
	p := &prober{noJournals: errors.New("no")}
	if r := p.recover(new(holders)); r.Err != "no" {
		t.Errorf("%+v", r)
	}
	p = &prober{Asker: Asker{j}}
	target.FD = moved
	if r := p.recover(&holders{Hold: []Target{target}}); r.Restored != 1 || len(r.Failed) > 0 || settingsOf(t, moved) != before {
		t.Errorf("%+v, %+v", r, settingsOf(t, moved))
	}
	f, err = j.write(&entry{Target: target, Were: before})
	must(t, err)
	f.Close()
	if r := p.recover(&holders{Gone: []uint64{target.Cookie}}); r.Restored != 0 || len(r.Failed) > 0 {
		t.Errorf("%+v", r)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%s is left, %v", strings.TrimSpace(fmt.Sprint(left)), err)
	}
}
