// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// A witness tells which events no BPF program can have seen, because the kernel
// of this machine runs none in the context of some tasks (docs/kernel.md). It
// takes note of the same event in two ways: with a program of its own, which does
// nothing but count by the task that was running, and with tracefs. A task that
// is in the one and never in the other is hidden.
//
// On a kernel that runs every program it finds nothing, and nothing is excused;
// with HALFOPEN_HIDES=nothing it is an error if it does.
type witness struct {
	trace string    // the tracefs instance
	tasks *ebpf.Map // pid to how many events
	undo  []func() error

	mu   sync.Mutex
	pipe int                // trace_pipe, which gives each line once
	rest []byte             // the beginning of a line
	name []byte             // the beginning of a name, of a line that it breaks
	seen map[uint32][]trace // by pid
}

// An occasion is what a witness takes note of.
type occasion struct {
	group, event string // of tracefs; the event is a tracepoint as well
	filter       string // "": all
	// only is what the program checks of ctx, in R1, before it counts: it jumps to
	// "out".
	only asm.Instructions
}

const tcpClose = 7 // include/net/tcp_states.h

var (
	someDeath = occasion{
		"sock", "inet_sock_set_state", fmt.Sprintf("newstate == %d && protocol == %d", tcpClose, unix.IPPROTO_TCP),
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 16, asm.DWord), // newstate
			asm.JNE.Imm32(asm.R1, tcpClose, "out"),
		},
	}
	someRetransmission = occasion{group: "tcp", event: "tcp_retransmit_skb"}
)

const tracefs = "/sys/kernel/tracing"

// deaths sees all deaths while the tests run; none where the kernel is locked down.
var deaths = new(witness)

// startWitness begins to take note, until the test ends.
func startWitness(t *testing.T, o occasion) *witness {
	t.Helper()
	w, err := newWitness(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func newWitness(o occasion) (_ *witness, err error) {
	w := &witness{seen: make(map[uint32][]trace), trace: filepath.Join(tracefs, "instances", fmt.Sprintf("halfopen-e2e-%d-%s", os.Getpid(), o.event))}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if _, err := os.Stat(filepath.Join(tracefs, "instances")); errors.Is(err, os.ErrNotExist) {
		if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil {
			return nil, fmt.Errorf("mount tracefs: %w", err)
		}
	}
	if err := os.Mkdir(w.trace, 0o700); err != nil {
		return nil, err
	}
	w.undo = append(w.undo, func() error { return os.Remove(w.trace) })
	if err := rlimit.RemoveMemlock(); err != nil { // before 5.11
		return nil, err
	}
	if w.tasks, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 65536}); err != nil {
		return nil, err
	}
	w.undo = append(w.undo, w.tasks.Close)
	spec := &ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: o.event, License: "GPL",
		Instructions: slices.Concat(o.only, asm.Instructions{
			asm.FnGetCurrentPidTgid.Call(),
			asm.StoreMem(asm.R10, -4, asm.R0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, w.tasks.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "first"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
			asm.Ja.Label("out"),
			asm.Mov.Imm(asm.R1, 1).WithSymbol("first"),
			asm.StoreMem(asm.R10, -16, asm.R1, asm.DWord),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.Mov.Reg(asm.R3, asm.R10),
			asm.Add.Imm(asm.R3, -16),
			asm.Mov.Imm(asm.R4, 0), // BPF_ANY
			asm.LoadMapPtr(asm.R1, w.tasks.FD()),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		}),
	}
	// Two, of which the kernel skips one that is interrupted while it runs.
	for range 2 {
		program, err := ebpf.NewProgram(spec)
		if err != nil {
			return nil, err
		}
		w.undo = append(w.undo, program.Close)
		l, err := link.AttachTracing(link.TracingOptions{Program: program, AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return nil, err
		}
		w.undo = append(w.undo, l.Close)
	}
	event := filepath.Join("events", o.group, o.event)
	for _, set := range [][2]string{
		{"buffer_size_kb", "65536"},
		{"trace_clock", "mono"},
		{filepath.Join(event, "filter"), cmp.Or(o.filter, "0")}, // 0 clears it
		{filepath.Join(event, "enable"), "1"},
	} {
		if err := os.WriteFile(filepath.Join(w.trace, set[0]), []byte(set[1]), 0); err != nil {
			return nil, err
		}
	}
	if w.pipe, err = unix.Open(filepath.Join(w.trace, "trace_pipe"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	w.undo = append(w.undo, func() error { return unix.Close(w.pipe) })
	return w, nil
}

func (w *witness) close() error {
	var errs []error
	for _, f := range slices.Backward(w.undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// "  comm-1234  [001] .Ns2. 14560.906096: inet_sock_set_state: family=AF_INET …"
// nameColumn is how wide the column is that a line begins with: a blank, and the
// process's name (kernel/trace/trace_output.c).
const nameColumn = 17

var traceLine = regexp.MustCompile(`^ *(.*)-(\d+) +\[\d+\] \S+ +(\d+\.\d+): \w+: (.*)$`)

// A trace is one line of tracefs.
type trace struct {
	at   time.Time
	says string
}

// hidden are the events so far that no program saw.
func (w *witness) hidden(t *testing.T) []trace {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.drain(); err != nil {
		t.Fatal(err)
	}
	w.complete(t)
	var found []trace
	for pid, events := range w.seen {
		var n uint64
		err := w.tasks.Lookup(pid, &n)
		if err == nil {
			continue
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		found = append(found, events...)
	}
	if len(found) > 0 && os.Getenv("HALFOPEN_HIDES") == "nothing" {
		t.Errorf("%d events were seen by no program, such as: %s", len(found), found[0].says)
	}
	return found
}

// drain takes in what tracefs has seen since.
func (w *witness) drain() error {
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return err
	}
	boot := time.Now().Add(-time.Duration(mono.Nano()))
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(w.pipe, buf)
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		w.rest = append(w.rest, buf[:n]...)
		for {
			line, rest, whole := bytes.Cut(w.rest, []byte("\n"))
			if !whole {
				break
			}
			w.rest = rest
			line = append(w.name, line...)
			w.name = nil
			m := traceLine.FindSubmatch(line)
			if m == nil && len(line) <= nameColumn { // a process may have a line break in its name
				w.name = append(bytes.Clone(line), ' ')
				continue
			}
			if m == nil {
				return fmt.Errorf("trace says %q", line)
			}
			pid, _ := strconv.ParseUint(string(m[2]), 10, 32)
			seconds, _ := strconv.ParseFloat(string(m[3]), 64)
			w.seen[uint32(pid)] = append(w.seen[uint32(pid)], trace{boot.Add(time.Duration(seconds * float64(time.Second))), string(m[4])})
		}
	}
}

// A hiddenDeath is one that no program saw.
type hiddenDeath struct {
	at            time.Time
	local, remote netip.AddrPort
}

var deathLine = regexp.MustCompile(`^family=(\w+) .*sport=(\d+) dport=(\d+) saddr=(\S+) daddr=(\S+) saddrv6=(\S+) daddrv6=(\S+) `)

// hiddenDeaths are the deaths so far that no program saw.
func (w *witness) hiddenDeaths(t *testing.T) []hiddenDeath {
	t.Helper()
	var deaths []hiddenDeath
	for _, line := range w.hidden(t) {
		m := deathLine.FindStringSubmatch(line.says)
		if m == nil {
			t.Fatalf("trace says %q", line.says)
		}
		saddr, daddr := m[4], m[5]
		if m[1] == "AF_INET6" {
			saddr, daddr = m[6], m[7]
		}
		d := hiddenDeath{at: line.at}
		for _, end := range []struct {
			into       *netip.AddrPort
			addr, port string
		}{{&d.local, saddr, m[2]}, {&d.remote, daddr, m[3]}} {
			addr, err := netip.ParseAddr(end.addr)
			if err != nil {
				t.Fatal(err)
			}
			port, _ := strconv.ParseUint(end.port, 10, 16)
			*end.into = netip.AddrPortFrom(addr.Unmap(), uint16(port))
		}
		deaths = append(deaths, d)
	}
	return deaths
}

// hiddenFor is how much later than its end one may hear of a socket's at the
// latest, on a machine that stalls.
const hiddenFor = 5 * time.Second

// is tells whether it is the end that is known from outside, of a socket that was
// opened after began.
func (d *hiddenDeath) is(f *fate, began time.Time) bool {
	if d.local != f.local || d.remote != f.remote {
		return false
	}
	if !f.dead.IsZero() {
		return d.at.After(f.alive.Add(-hiddenFor)) && d.at.Before(f.dead.Add(latency))
	}
	return d.at.After(began)
}

// complete checks that the trace has lost nothing.
func (w *witness) complete(t *testing.T) {
	t.Helper()
	cpus, err := filepath.Glob(filepath.Join(w.trace, "per_cpu/cpu*/stats"))
	if err != nil || len(cpus) == 0 {
		t.Fatalf("no statistics of the trace: %v", err)
	}
	for _, file := range cpus {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"overrun", "dropped events"} {
			if !strings.Contains(string(body), name+": 0\n") {
				t.Fatalf("%s: the trace is not complete:\n%s", file, body)
			}
		}
	}
}

// hidden tells whether it is a death that no program saw: its cause is unknown.
func (d *death) hidden(t *testing.T) bool {
	t.Helper()
	return d.Cause == "unknown" && slices.ContainsFunc(deaths.hiddenDeaths(t), func(h hiddenDeath) bool {
		return h.local.String() == net.JoinHostPort(d.Local.IP, strconv.Itoa(d.Local.Port)) &&
			h.remote.String() == net.JoinHostPort(d.Remote.IP, strconv.Itoa(d.Remote.Port)) &&
			d.At.Sub(h.at).Abs() < 2*time.Second
	})
}
