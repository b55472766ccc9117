// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/sandbox"
)

func doctorFlags(*kingpin.CmdClause) action {
	return func(ctx context.Context, stdout, _ io.Writer) error {
		r := &report{w: stdout, palette: paletteFor(stdout)}
		err := r.examine(ctx)
		switch {
		case r.err != nil:
			return r.err
		case errors.As(err, new(*ebpf.VerifierError)):
			return fmt.Errorf("the agent cannot run here: %w", err) // with the whole verifier log
		case r.failed:
			return errors.New("the agent cannot run here: mend what the lines with FAIL say")
		}
		_, err = fmt.Fprintln(stdout, r.verdict())
		return err
	}
}

// report prints findings, one line each.
type report struct {
	w       io.Writer
	palette palette
	failed  bool
	err     error // of printing

	degraded []string // why the agent would not see everything
	notReady bool     // and would not be ready
}

func (r *report) line(mark string, s style, what, format string, args ...any) {
	found := escape.Text(fmt.Sprintf(format, args...))
	if _, err := fmt.Fprintf(r.w, "%s%*s  %-33s  %s\n", r.palette.paint(s, mark), 4-len(mark), "", what, found); err != nil && r.err == nil {
		r.err = err
	}
}

// verdict returns the last line, if the agent can run.
func (r *report) verdict() string {
	const can = "The agent can run here"
	switch {
	case r.notReady:
		return can + ", but would not see most of this node, and not be ready: " + strings.Join(r.degraded, ", ")
	case len(r.degraded) > 0:
		return can + ", but would not see everything: " + strings.Join(r.degraded, ", ")
	}
	return can + ": sudo halfopen agent"
}

// ok prints a good finding, note one that is unknown or worth knowing, and fail one
// that keeps the agent from running.
func (r *report) ok(what, format string, args ...any)   { r.line("ok", green, what, format, args...) }
func (r *report) note(what, format string, args ...any) { r.line("--", yellow, what, format, args...) }
func (r *report) fail(what, format string, args ...any) {
	r.failed = true
	r.line("FAIL", red, what, format, args...)
}

// examine checks everything that the agent needs. It returns why the programs cannot be
// loaded.
func (r *report) examine(ctx context.Context) error {
	r.kernel()
	r.privileges()
	var at unix.Statfs_t
	mounted := unix.Statfs(securityfs, &at) == nil && at.Type == unix.SECURITYFS_MAGIC
	text, err := os.ReadFile(securityfs + "/lockdown")
	r.lockdown(text, err, mounted)
	r.btf()
	if all, err := bpf.Differences(); err == nil { // without BTF there is an error, and a line about it
		r.differences(all)
	}

	began := time.Now()
	k, err := loadPrograms(bpf.Options{Observe: true, IdleBounds: collector.IdleBounds})
	if err != nil {
		r.fail("programs", "%s", oneLine(err))
		for _, what := range []string{"timers", "census", "owners"} {
			r.note(what, "not tried, since the programs are not loaded")
		}
		return err
	}
	defer k.Close()
	took := time.Since(began)
	attached := k.Attached()
	missing := slices.DeleteFunc(slices.Sorted(maps.Keys(attached)), func(name string) bool { return attached[name] })
	if len(missing) > 0 {
		r.fail("programs", "not attached: %s; please report this kernel", strings.Join(missing, ", "))
	} else {
		r.ok("programs", "loaded, and %d attached, in %s", len(attached), moment(took))
	}
	if err := k.CookiesErr(); err != nil {
		r.note("cookies of new connections", "new connections get none until a census, so their earlier solicitations are not seen: %s", err)
	}
	r.ok("timers", "learned from a socket of our own; %d jiffies a second", k.HZ())
	r.look(ctx, k)
	return nil
}

func (r *report) kernel() {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		r.note("kernel", "not known: %s", err)
		return
	}
	release, machine := unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:])
	switch runtime.GOARCH {
	case "amd64", "arm64", "riscv64":
		r.ok("kernel", "Linux %s on %s", release, machine)
	default:
		r.note("kernel", "Linux %s on %s, on which halfopen is untested", release, machine)
	}
}

func (r *report) privileges() {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		r.note("privileges", "not known: %s", reason(err))
		return
	}
	effective, err := effectiveCaps(string(status))
	if err != nil {
		r.note("privileges", "not known: %s", err)
		return
	}
	if uid := os.Geteuid(); uid == 0 {
		r.ok("user", "root")
	} else {
		r.note("user", "uid %d: what counts are the capabilities", uid)
	}
	r.capabilities(effective)
	if err := sandbox.Missing(); err != nil {
		r.note("sandbox", "the agent will keep more than it needs, since it cannot %s", oneLine(err))
	} else {
		r.ok("sandbox", "once its programs are loaded, the agent drops what it does not need (--privileges)")
	}
}

// capabilities prints a line for each capability. Only a capability without which no
// program can be loaded is a failure: later checks show whether the agent runs without
// the others, and what it sees.
func (r *report) capabilities(effective uint64) {
	has := func(bit int) bool { return effective>>bit&1 == 1 }
	for i := range bpf.Capabilities {
		switch c := &bpf.Capabilities[i]; {
		case has(c.Bit):
			r.ok(c.Name, "%s", c.For)
		case c.Included && has(unix.CAP_SYS_ADMIN):
			r.ok(c.Name, "%s; CAP_SYS_ADMIN includes it", c.For)
		case !c.Needed():
			r.ok(c.Name, "missing, and not needed %s", c.NotNeeded())
		case c.NotNeeded() != "":
			r.note(c.Name, "missing, but needed %s", c.For)
		case c.Lost != "":
			r.note(c.Name, "missing: %s", c.Lost)
		default:
			r.fail(c.Name, "missing, but needed %s: run as root", c.For)
		}
	}
}

// effectiveCaps returns the effective capabilities in a /proc/PID/status, a bit each.
func effectiveCaps(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no line CapEff")
}

const securityfs = "/sys/kernel/security"

// lockdown parses text such as "none [integrity] confidentiality": the mode is in
// brackets. The file is missing on a kernel that cannot be locked down, and where
// securityfs is not mounted, as in most containers.
func (r *report) lockdown(text []byte, err error, mounted bool) {
	_, rest, _ := strings.Cut(string(text), "[")
	mode, _, ok := strings.Cut(rest, "]")
	switch {
	case errors.Is(err, fs.ErrNotExist) && mounted:
		r.ok("lockdown", "none: this kernel cannot be locked down")
	case errors.Is(err, fs.ErrNotExist):
		r.note("lockdown", "not known, since securityfs is not mounted on %s", securityfs)
	case err != nil:
		r.note("lockdown", "not known, since it cannot be read: %s", reason(err))
	case !ok:
		r.note("lockdown", "not known, since its file says %q", strings.TrimSpace(string(text)))
	case mode == "confidentiality":
		r.fail("lockdown", "confidentiality, which forbids to read the kernel's memory: boot with lockdown=integrity")
	default:
		r.ok("lockdown", "%s", mode)
	}
}

const btfFile = "/sys/kernel/btf/vmlinux"

func (r *report) btf() {
	if _, err := os.Stat(btfFile); err != nil {
		r.fail("BTF", "%s: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y", err)
		return
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		r.fail("BTF", "%s is not understood: %s", btfFile, err)
		return
	}
	r.ok("BTF", "%s", btfFile)
	tracepoints, err := bpf.Tracepoints()
	if err != nil {
		r.fail("tracepoints", "%s", err)
		return
	}
	for _, name := range tracepoints {
		var def *btf.Typedef
		if err := spec.TypeByName("btf_trace_"+name, &def); err != nil {
			r.fail("tracepoint "+name, "this kernel does not have it: %s", err)
		} else {
			r.ok("tracepoint "+name, "present")
		}
	}
}

// differences prints how this kernel differs from others, and what is lost by it.
func (r *report) differences(all []bpf.Difference) {
	for _, d := range all {
		switch {
		case d.Lost == "":
			r.ok(d.Name, "%s", d.Here)
		case d.Here == "":
			r.note(d.Name, "%s", d.Lost)
		default:
			r.note(d.Name, "%s: %s", d.Here, d.Lost)
		}
	}
}

// look makes a connection to this process, and checks whether the census finds it.
func (r *report) look(ctx context.Context, k *bpf.Kernel) {
	cookie, closeBoth, err := connectToSelf()
	if err != nil {
		r.note("census", "not tried, since this process cannot connect to itself: %s", err)
		r.note("owners", "not tried, for the same reason")
		return
	}
	defer closeBoth()

	found := false
	began := time.Now()
	res, err := k.Census(ctx, bpf.Select(abi.ClassActive, abi.ClassTrouble, abi.ClassUnread, abi.ClassIdle, abi.ClassUnguarded), func(c *abi.Conn) {
		found = found || c.Cookie == cookie
	})
	took := time.Since(began)
	var again bpf.CensusResult
	if err == nil { // the first census gave older sockets their cookies, so the second misses only what stays missed
		again, err = k.Census(ctx, bpf.Select(), nil)
	}
	switch {
	case err != nil:
		r.fail("census", "%s", err)
	case res.Namespaces == 0 && res.Err != nil:
		r.fail("census", "it sees nothing: %s", res.Err)
	case !found:
		r.fail("census", "a connection of our own is not among the sockets found; please report this kernel")
	default:
		r.ok("census", "%s in %s, in %s", plural(int(res.Counts.Total()), "socket"), plural(res.Namespaces, "network namespace"), moment(took))
		r.ownTables(res.OwnTables)
	}
	if err == nil {
		r.seen(collector.Assess(k, &res, &again))
	}

	began = time.Now()
	var h *abi.FDHolder
	err = k.FDHolders([]uint64{cookie}, func(found *abi.FDHolder) { h = new(*found) })
	switch took = time.Since(began); {
	case err != nil:
		r.fail("owners", "%s", err)
	case h == nil:
		r.fail("owners", "a connection of our own is not found to be ours; please report this kernel")
	default:
		r.ok("owners", "found ourselves as %s[%d], in %s", unix.ByteSliceToString(h.Comm[:]), h.PID, moment(took))
	}
}

// seen prints a line for each reason why the agent would not see everything, named as
// in the metric halfopen_degraded.
func (r *report) seen(findings []collector.Finding) {
	for _, f := range findings {
		r.note(f.Reason.String(), "%s. Lost: %s. To do: %s", f.Detail, f.Reason.Lost(), f.Reason.Mend())
		r.degraded = append(r.degraded, f.Reason.String())
		r.notReady = r.notReady || f.Most
	}
	if len(findings) == 0 {
		r.ok("what is seen", "all of this node")
	}
}

// connectToSelf makes a connection over the loopback device, and returns the cookie of
// one end.
func connectToSelf() (cookie uint64, closeBoth func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return 0, nil, err
	}
	s, err := ln.Accept()
	if err != nil {
		c.Close()
		return 0, nil, err
	}
	closeBoth = func() {
		c.Close()
		s.Close()
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		closeBoth()
		return 0, nil, err
	}
	return cookie, closeBoth, nil
}

// reason returns an error without the path in it.
func reason(err error) string {
	var perr *os.PathError
	if errors.As(err, &perr) {
		return perr.Err.Error()
	}
	return err.Error()
}

// ownTables prints the network namespaces that have a hash table of their own. Any user
// can make such namespaces, and hold a socket's lock in one.
func (r *report) ownTables(netns []uint32) {
	const most = 10
	if len(netns) == 0 {
		return
	}
	var names []string
	for _, ino := range netns[:min(len(netns), most)] {
		names = append(names, strconv.FormatUint(uint64(ino), 10))
	}
	if more := len(netns) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	r.note("hash tables", "%s with one of its own (net.ipv4.tcp_child_ehash_entries): %s", plural(len(netns), "network namespace"), strings.Join(names, ", "))
}
