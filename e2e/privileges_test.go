// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/internal/lab"
)

// A privilege is a row of the matrix: how an agent and a doctor are started that may not
// do everything, and what becomes of that.
type privilege struct {
	name    string
	command func(args ...string) *exec.Cmd
	refused string   // on which line the doctor fails; "" if the agent starts
	reasons []string // that hold
	ready   bool
	note    string // how the doctor's line on the capability begins; "" if there is none
	// What an agent sees of olderSockets.
	older, processes, unit bool
}

// withCapabilities runs halfopen as a user who has nothing but these capabilities.
func withCapabilities(bits ...int) func(args ...string) *exec.Cmd {
	return func(args ...string) *exec.Cmd {
		cmd := exec.Command(publicBinary, args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		for _, bit := range bits {
			cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(bit))
		}
		return cmd
	}
}

// inPIDNamespace runs halfopen as the first process of a pid namespace.
func inPIDNamespace(args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", `mount -t proc proc /proc && exec "$0" "$@"`, binary}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// littleLocked has a command lock little memory, as users may, and not what the tests may.
func littleLocked(command func(args ...string) *exec.Cmd) func(args ...string) *exec.Cmd {
	return func(args ...string) *exec.Cmd {
		cmd := command(args...)
		limited := exec.Command("sh", append([]string{"-c", `ulimit -l 64 && exec "$0" "$@"`}, cmd.Args...)...)
		limited.Dir, limited.SysProcAttr = cmd.Dir, cmd.SysProcAttr
		return limited
	}
}

// olderThan returns whether this kernel is older than a version.
func olderThan(t testing.TB, major, minor uint32) bool {
	t.Helper()
	code, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	return code < major<<16|minor<<8
}

// besideAnotherAgent changes what is expected where others run an agent, too: it gives
// every socket its cookie, for which this one need not enter any namespace.
func (r *privilege) besideAnotherAgent() {
	r.older = true
	r.reasons = slices.DeleteFunc(r.reasons, func(reason string) bool {
		return reason == "cookies_missing" || strings.HasPrefix(reason, "namespaces_")
	})
	r.ready = !slices.Contains(r.reasons, "processes_hidden")
}

// privileges returns the matrix; others says whether others run an agent.
func privileges(t testing.TB, others bool) []privilege {
	t.Helper()
	// without leaves some out of those that the agent needs on this kernel.
	without := func(missing ...int) func(args ...string) *exec.Cmd {
		var bits []int
		for i := range bpf.Capabilities {
			if c := &bpf.Capabilities[i]; c.Bit != unix.CAP_NET_ADMIN && c.Needed() && !slices.Contains(missing, c.Bit) {
				bits = append(bits, c.Bit)
			}
		}
		return withCapabilities(bits...)
	}
	rows := []privilege{
		{name: "root", command: func(args ...string) *exec.Cmd { return exec.Command(binary, args...) }, ready: true, older: true, processes: true, unit: true},
		{name: "all capabilities", command: without(), ready: true, older: true, processes: true, unit: true},
		{
			name: "without CAP_BPF", command: without(unix.CAP_BPF), ready: true, older: true, processes: true, unit: true,
			note: "ok    CAP_BPF                            to load programs; CAP_SYS_ADMIN includes it\n",
		},
		{
			name: "without CAP_PERFMON", command: without(unix.CAP_PERFMON), ready: true, older: true, processes: true, unit: true,
			note: "ok    CAP_PERFMON                        to attach programs that read the kernel's memory; CAP_SYS_ADMIN includes it\n",
		},
		{
			name: "without CAP_SYS_ADMIN", command: without(unix.CAP_SYS_ADMIN), reasons: []string{"namespaces_refused"}, processes: true, unit: true,
			note: "--    CAP_SYS_ADMIN                      missing: ",
		},
		{name: "without CAP_SYS_ADMIN and CAP_BPF", command: without(unix.CAP_SYS_ADMIN, unix.CAP_BPF), refused: "CAP_BPF"},
		{name: "without CAP_SYS_ADMIN and CAP_PERFMON", command: without(unix.CAP_SYS_ADMIN, unix.CAP_PERFMON), refused: "CAP_PERFMON"},
		{
			name: "without CAP_SYS_PTRACE", command: without(unix.CAP_SYS_PTRACE), reasons: []string{"descriptors_refused", "namespaces_refused"}, processes: true, unit: true,
			note: "--    CAP_SYS_PTRACE                     missing: ",
		},
		{
			name: "without CAP_DAC_READ_SEARCH", command: without(unix.CAP_DAC_READ_SEARCH), reasons: []string{"cgroups_refused"}, ready: true, older: true, processes: true,
			note: "--    CAP_DAC_READ_SEARCH                missing: ",
		},
		{
			name: "without CAP_SYS_RESOURCE", command: littleLocked(without(unix.CAP_SYS_RESOURCE)), ready: true, older: true, processes: true, unit: true,
			note: "ok    CAP_SYS_RESOURCE                   missing, and not needed since Linux 5.11\n",
		},
		{name: "no capabilities", command: withCapabilities(), refused: "CAP_BPF"},
		{name: "a pid namespace of its own", command: inPIDNamespace, reasons: []string{"namespaces_hidden", "processes_hidden"}, unit: true},
	}
	for i := range rows {
		switch r := &rows[i]; {
		case r.name == "without CAP_SYS_ADMIN" && olderThan(t, 5, 12):
			r.reasons = append([]string{"cookies_missing"}, r.reasons...)
		case r.name == "without CAP_SYS_RESOURCE" && olderThan(t, 5, 11):
			r.refused = "programs"
		}
		if others {
			rows[i].besideAnotherAgent()
		}
	}
	return rows
}

// olderSockets are what there is to see before any agent: connections that nobody has
// accepted, and that have no cookie unless others run an agent, in more network
// namespaces than there are besides; and one in ours that was accepted by another process than its listener's.
type olderSockets struct {
	namespaces []*lab.Namespace
	sockets    []io.Closer
	own        int    // the port of one in our namespace, not accepted either
	cookie     string // of the one in our namespace that was
	worker     *helperProcess
}

const olderPort = 7003

func newOlderSockets(t *testing.T) *olderSockets {
	t.Helper()
	s := &olderSockets{}
	t.Cleanup(func() { s.close(t) })
	others := make(map[string]bool)
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil { // else its process has ended
			others[ns] = true
		}
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), olderPort)
	for range len(others) + 25 { // some more of others may come meanwhile
		n, err := lab.NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		s.namespaces = append(s.namespaces, n)
		l, err := n.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.sockets = append(s.sockets, l)
		c, err := n.Dial(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		s.sockets = append(s.sockets, c)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.sockets = append(s.sockets, l)
	s.own = l.Addr().(*net.TCPAddr).Port
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.sockets = append(s.sockets, c)

	h, v2 := newController(t), hierarchy(t, "")
	top := fmt.Sprintf("halfopen-e2e-privileges-%d.slice", os.Getpid())
	web, job := group(t, v2, top+"/web.service"), group(t, v2, top+"/job.service")
	at := netip.MustParseAddrPort(freeAddr(t))
	server, client := h.start("web", ""), h.start("client", "")
	server.joins(web)
	listener := server.must(command{Do: "listen", Addr: at}).FD
	server.must(command{Do: "fork", FD: listener})
	s.worker = h.accept()
	s.worker.joins(job)
	client.must(command{Do: "connect", Addr: at})
	s.cookie = s.worker.must(command{Do: "accept", FD: 3}).Cookie
	return s
}

// noAgent returns an error if any agent has programs attached.
func noAgent() error {
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it has gone
		}
		info, err := p.Info()
		p.Close()
		if err == nil && strings.HasPrefix(info.Name, "inet_sock_set_s") { // 15 characters are kept
			return fmt.Errorf("program %d is %s", id, info.Name)
		}
	}
}

// close ends what is in other namespaces, and these, which a socket would keep.
func (s *olderSockets) close(t *testing.T) {
	t.Helper()
	for _, c := range s.sockets {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, n := range s.namespaces {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	s.sockets, s.namespaces = nil, nil
}

// seen checks what an agent sees of them.
func (s *olderSockets) seen(t *testing.T, a *agent, r *privilege) {
	t.Helper()
	older := func(port int, query string) (count int) {
		var list struct{ Connections []socketObject }
		if err := a.get(fmt.Sprintf("/api/v1/connections?all=true&limit=100000&port=%d%s", port, query), &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Connections {
			if c.State == "established" && c.Local.Port == port {
				count++
			}
		}
		return count
	}
	for _, n := range s.namespaces {
		if got := older(olderPort, fmt.Sprintf("&netns=%d", n.Inode())); (got == 1) != r.older {
			t.Errorf("%d connections in network namespace %d that nobody has accepted", got, n.Inode())
		}
	}
	if got := older(s.own, ""); got != 1 { // no privilege is needed to be there
		t.Errorf("%d connections in our own network namespace that nobody has accepted", got)
	}
	var c connection
	if err := a.get("/api/v1/connections/"+s.cookie, &c); err != nil {
		t.Fatal(err)
	}
	switch {
	case !r.processes && c.Process != nil:
		t.Errorf("it is of %+v, which is not in the agent's pid namespace", c.Process)
	case r.processes && (c.Process == nil || c.Process.PID != s.worker.PID):
		t.Errorf("it is of %+v, expected %d", c.Process, s.worker.PID)
	}
	want := "web.service" // the listener's
	if !r.unit {
		want = "job.service"
	}
	if c.Unit == nil || *c.Unit != want {
		t.Errorf("it is of unit %v in %v, expected %s", deref(c.Unit), deref(c.Cgroup), want)
	}
}

func deref(s *string) string {
	if s == nil {
		return "none"
	}
	return *s
}

// degraded returns the reasons that hold, sorted.
func (a *agent) degraded() (reasons []string) {
	a.t.Helper()
	f := a.metrics().families["halfopen_degraded"]
	if f == nil {
		a.t.Fatal("no metric halfopen_degraded")
	}
	for _, s := range f.Metric {
		if s.GetGauge().GetValue() != 0 {
			reasons = append(reasons, s.Label[0].GetValue())
		}
	}
	slices.Sort(reasons)
	return reasons
}

// health asks whether the agent is "healthy" or "ready".
func (a *agent) health(what string) (status int, body string, err error) {
	return a.text("/-/" + what)
}

// text gets a path as it is.
func (a *agent) text(path string) (status int, body string, err error) {
	resp, err := http.Get(a.url + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

const (
	logBegins = `msg="Not everything is seen"`
	logEnds   = `msg="What was not seen is seen again"`
)

// examine checks that the doctor says what the agent will.
func (r *privilege) examine(t *testing.T) {
	t.Helper()
	stdout, stderr, status := run(t, r.command("doctor"))
	if r.refused != "" {
		if status != 1 || !strings.Contains(stdout, "\nFAIL  "+r.refused+" ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("doctor: exit status %d, stderr %q; expected a line that fails for %s\n%s", status, stderr, r.refused, stdout)
		}
		return
	}
	if status != 0 || stderr != "" || strings.Contains(stdout, "FAIL") {
		t.Errorf("doctor: exit status %d, stderr %q\n%s", status, stderr, stdout)
	}
	if !strings.Contains(stdout, "\n"+r.note) {
		t.Errorf("the doctor has no line %q\n%s", r.note, stdout)
	}
	for _, reason := range r.reasons {
		if strings.Count(stdout, "\n--    "+reason+" ") != 1 {
			t.Errorf("the doctor has no line for %s\n%s", reason, stdout)
		}
	}
	ends := "The agent can run here: sudo halfopen agent\n"
	switch {
	case !r.ready:
		ends = "The agent can run here, but would not see most of this node, and not be ready: "
	case len(r.reasons) > 0:
		ends = "The agent can run here, but would not see everything: " + strings.Join(r.reasons, ", ") + "\n"
	}
	if last := stdout[strings.LastIndex(strings.TrimSuffix(stdout, "\n"), "\n")+1:]; !strings.HasPrefix(last, ends) {
		t.Errorf("the doctor ends with %q, expected %q", last, ends)
	}
	if all := strings.Contains(stdout, "\nok    what is seen "); all != (len(r.reasons) == 0) {
		t.Errorf("the doctor says that all is seen: %v\n%s", all, stdout)
	}
}

// What is lost without a capability, or in a pid namespace, of what was there before,
// and where it is said: by the doctor, in the log (once), in the metric and by /-/ready.
// Not parallel, since another agent would give the sockets cookies.
func TestPrivileges(t *testing.T) {
	withoutAgents(t)
	// One of the test before may have just ended.
	others := !poll(50*time.Millisecond, 10*patience*time.Second, func() bool { return noAgent() == nil })
	if others {
		t.Logf("others run an agent (%v), which gives every socket a cookie: nothing is missed for want of one", noAgent())
	}
	for _, r := range privileges(t, others) {
		t.Run(r.name, func(t *testing.T) {
			withoutAgents(t)
			if r.refused != "" {
				r.examine(t)
				stdout, stderr, status := run(t, r.command("agent", "--web.listen-address="+freeAddr(t), "--web.socket=none"))
				if status != 1 || stdout != "" || stderr != "halfopen: "+bpf.ErrPrivileges.Error()+"\n" {
					t.Errorf("exit status %d, stdout %q, stderr %q", status, stdout, stderr)
				}
				return
			}
			s := newOlderSockets(t)
			r.examine(t)
			addr := freeAddr(t)
			cmd := r.command("agent", "--web.listen-address="+addr, "--web.socket=none", "--census-interval=100ms", "--census-cpu=100%")
			a := launch(t, addr, cmd, cmd.Start)
			t.Cleanup(func() {
				if a.stop(); a.late {
					t.Error("the agent did not end after SIGTERM")
				}
				if t.Failed() {
					t.Logf("the agent said:\n%s", a.log)
				}
			})
			r.observe(t, a)
			s.seen(t, a, &r)
			if !slices.Contains(r.reasons, "namespaces_refused") {
				return
			}

			// What it missed has ended, so it misses nothing.
			s.close(t)
			eventually(t, "the reason ends", func() error {
				status, body, err := a.health("ready")
				switch {
				case err != nil:
					return err
				case status != http.StatusOK || slices.Contains(a.degraded(), "namespaces_refused"):
					return fmt.Errorf("%v hold, ready: %d %q", a.degraded(), status, body)
				case strings.Count(a.log.String(), logEnds) != 1:
					return errors.New("the log does not say so")
				}
				return nil
			})
		})
	}
}

// observe waits for the agent to find out what it does not see, and checks that it says
// so once.
func (r *privilege) observe(t *testing.T, a *agent) {
	t.Helper()
	eventually(t, fmt.Sprintf("the reasons are %v", r.reasons), func() error {
		select {
		case <-a.done:
			t.Fatalf("the agent ended: %v\n%s", a.err, a.log)
		default:
		}
		status, body, err := a.health("ready")
		switch {
		case err != nil:
			return err
		case strings.Contains(body, "first census"):
			return errors.New("no census yet")
		case !slices.Equal(a.degraded(), r.reasons):
			return fmt.Errorf("they are %v; ready: %d %q", a.degraded(), status, body)
		case (status == http.StatusOK) != r.ready:
			return fmt.Errorf("ready: %d %q", status, body)
		case !r.ready && (status != http.StatusServiceUnavailable || strings.Count(body, "\n") != 1 || !slices.ContainsFunc(r.reasons, func(reason string) bool { return strings.Contains(body, reason) })):
			t.Fatalf("ready: %d %q, expected one line with the reason", status, body)
		}
		return nil
	})
	for range 3 {
		a.nextCensus()
	}
	if got := a.degraded(); !slices.Equal(got, r.reasons) {
		t.Errorf("%v hold, and no longer %v", got, r.reasons)
	}
	log := a.log.String()
	if n := strings.Count(log, "level=WARN"); n != len(r.reasons) {
		t.Errorf("%d warnings of %d reasons", n, len(r.reasons))
	}
	for _, reason := range r.reasons {
		if n := strings.Count(log, logBegins+" reason="+reason+" "); n != 1 {
			t.Errorf("%d warnings of %s", n, reason)
		}
	}
	if status, body, err := a.health("healthy"); err != nil || status != http.StatusOK {
		t.Errorf("healthy: %d %q, %v", status, body, err)
	}
}
