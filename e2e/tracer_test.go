// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
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

	"github.com/halfopen/halfopen/internal/lab"
)

// A referenceTracer records events of the kernel independently of the agent. Tests ask
// it two things:
//
//   - Which of their events could no BPF program see? The kernel of this machine may run
//     none in the context of some tasks (docs/kernel.md), and the agent cannot count
//     what happens while such a task is interrupted.
//   - How many events were not the tests' own? The agent counts those of the whole
//     machine.
//
// It records through tracefs, which does see every task. Programs of its own mark every
// task that they run in, at the same events and at each context switch. An event is
// hidden only if its task was never marked: a task that any program has ever run in is
// not one of those, whatever the agent may have missed there.
//
// A kernel that runs every program hides nothing, and nothing is excused; with
// HALFOPEN_HIDES=nothing it is an error if it does.
type referenceTracer struct {
	trace string    // the tracefs instance
	ran   *ebpf.Map // by pid: 1 if a program has run in that task
	undo  []func() error

	mu      sync.Mutex
	pipe    int                      // trace_pipe, which returns each line once
	rest    []byte                   // the beginning of a line
	name    []byte                   // the beginning of a process's name that has a line break
	unseen  map[uint32][]tracedEvent // by pid, of tasks that are not marked
	own     *regexp.Regexp           // matches an event of the tests
	ours    int                      // how many of those there were
	foreign int                      // and of others
	err     error                    // of reading in the background
	ends    tracedEnds               // see traceEnds
}

// A tracepoint is what a tracer records.
type tracepoint struct {
	group, event string
	filter       string // of tracefs; "": all
}

const tcpClose = 7 // include/net/tcp_states.h

var (
	tcpDeaths                = tracepoint{"sock", "inet_sock_set_state", fmt.Sprintf("newstate == %d && protocol == %d", tcpClose, unix.IPPROTO_TCP)}
	tcpRetransmissions       = tracepoint{group: "tcp", event: "tcp_retransmit_skb"}
	tcpSynackRetransmissions = tracepoint{group: "tcp", event: "tcp_retransmit_synack"}
)

const tracefs = "/sys/kernel/tracing"

// deathTracer records all deaths while the tests run; none where the kernel is locked down.
var deathTracer = new(referenceTracer)

// startTracer records until the test ends. own matches the events that are the test's.
func startTracer(t *testing.T, p tracepoint, own *regexp.Regexp) *referenceTracer {
	t.Helper()
	r, err := newTracer(p, own)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func newTracer(p tracepoint, own *regexp.Regexp) (_ *referenceTracer, err error) {
	w := &referenceTracer{own: own, unseen: make(map[uint32][]tracedEvent), trace: filepath.Join(tracefs, "instances", fmt.Sprintf("halfopen-e2e-%d-%s", os.Getpid(), p.event))}
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
	pids, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return nil, err
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(pids)), 10, 32)
	if err != nil {
		return nil, err
	}
	if w.ran, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1, MaxEntries: uint32(most)}); err != nil {
		return nil, err
	}
	w.undo = append(w.undo, w.ran.Close)
	// Two on the event's own tracepoint: the kernel skips one that is interrupted while
	// it runs.
	for _, at := range []string{p.event, p.event, "sched_switch"} {
		undo, err := markTasks(at, w.ran)
		w.undo = append(w.undo, undo...)
		if err != nil {
			return nil, err
		}
	}
	event := filepath.Join("events", p.group, p.event)
	for _, set := range [][2]string{
		{"buffer_size_kb", "65536"},
		{"trace_clock", "mono"},
		{filepath.Join(event, "filter"), cmp.Or(p.filter, "0")}, // 0 clears it
		{filepath.Join(event, "enable"), "1"},
	} {
		if err := os.WriteFile(filepath.Join(w.trace, set[0]), []byte(set[1]), 0); err != nil {
			return nil, err
		}
	}
	if w.pipe, err = unix.Open(filepath.Join(w.trace, "trace_pipe"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	w.undo = append(w.undo, func() error { return unix.Close(w.pipe) }, w.drainInBackground())
	return w, nil
}

// markTasks attaches a program to a tracepoint that sets the entry of the task that is
// running.
func markTasks(tracepoint string, ran *ebpf.Map) (undo []func() error, err error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: tracepoint, License: "GPL",
		Instructions: asm.Instructions{
			asm.FnGetCurrentPidTgid.Call(),
			asm.StoreMem(asm.R10, -4, asm.R0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, ran.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.StoreImm(asm.R0, 0, 1, asm.Byte),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, err
	}
	undo = append(undo, program.Close)
	l, err := link.AttachTracing(link.TracingOptions{Program: program, AttachType: ebpf.AttachTraceRawTp})
	if err == nil {
		undo = append(undo, l.Close)
	}
	return undo, err
}

// drainInBackground keeps the trace's buffer from running full. It returns what ends it.
func (w *referenceTracer) drainInBackground() (stop func() error) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Second):
				w.mu.Lock()
				w.err = errors.Join(w.err, w.drain())
				w.mu.Unlock()
			}
		}
	}()
	return func() error {
		close(quit)
		<-done
		return w.err
	}
}

func (w *referenceTracer) close() error {
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

// A tracedEvent is one line of tracefs.
type tracedEvent struct {
	at   time.Time
	says string
}

// subnet is the number of the subnets of the test networks, by which events of this
// process's are told from those of others that use package lab.
var subnet = uint8(1 + os.Getpid()%255)

// labAddress matches an event that has an address of a test network.
var labAddress = func() *regexp.Regexp {
	ipv4, ipv6 := lab.Subnets(subnet)
	begins := func(p netip.Prefix, last string) string {
		return regexp.QuoteMeta(strings.TrimSuffix(p.Addr().String(), last))
	}
	return regexp.MustCompile(`\b[sd]addr(=` + begins(ipv4, "0") + `|v6=` + begins(ipv6, ":") + `)`)
}()

// read takes in all events so far. It locks the tracer, and returns what unlocks it.
func (w *referenceTracer) read(t *testing.T) (unlock func()) {
	t.Helper()
	w.mu.Lock()
	if err := errors.Join(w.err, w.drain()); err != nil {
		w.mu.Unlock()
		t.Fatal(err)
	}
	w.complete(t)
	return w.mu.Unlock
}

// counts are the events so far: those of the tests, and those of others.
func (w *referenceTracer) counts(t *testing.T) (ours, foreign int) {
	t.Helper()
	defer w.read(t)()
	return w.ours, w.foreign
}

// countOthers counts the events of others from now on.
func (w *referenceTracer) countOthers(t *testing.T) (so func() int) {
	t.Helper()
	_, before := w.counts(t)
	return func() int {
		t.Helper()
		_, now := w.counts(t)
		return now - before
	}
}

// hidden are the events of the tests so far that no program can have seen.
func (w *referenceTracer) hidden(t *testing.T) (hidden []tracedEvent) {
	t.Helper()
	defer w.read(t)()
	for pid, events := range w.unseen {
		marked, err := w.isMarked(pid)
		if err != nil {
			t.Fatal(err)
		}
		if marked {
			delete(w.unseen, pid)
			continue
		}
		if os.Getenv("HALFOPEN_HIDES") == "nothing" {
			t.Errorf("%d events of task %d were seen by no program, such as: %s", len(events), pid, events[0].says)
		}
		for _, e := range events {
			if w.own.MatchString(e.says) {
				hidden = append(hidden, e)
			}
		}
	}
	return hidden
}

// isMarked returns whether a program has run in a task.
func (w *referenceTracer) isMarked(pid uint32) (bool, error) {
	var mark [1]byte
	err := w.ran.Lookup(pid, &mark)
	return mark[0] != 0, err
}

// bootTime is when CLOCK_MONOTONIC was 0, by the time of day: of some readings the one in
// which the least time passed between the two clocks.
func bootTime() (boot time.Time, err error) {
	least := time.Duration(math.MaxInt64)
	for range 5 {
		var before, after unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &before); err != nil {
			return boot, err
		}
		now := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &after); err != nil {
			return boot, err
		}
		if took := time.Duration(after.Nano() - before.Nano()); took < least {
			least, boot = took, now.Add(-time.Duration(before.Nano())-took/2)
		}
	}
	return boot, nil
}

// drain takes in what tracefs has seen since.
func (w *referenceTracer) drain() error {
	boot, err := bootTime()
	if err != nil {
		return err
	}
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
			if w.own.Match(m[4]) {
				w.ours++
			} else {
				w.foreign++
			}
			seconds, _ := strconv.ParseFloat(string(m[3]), 64)
			event := tracedEvent{boot.Add(time.Duration(seconds * float64(time.Second))), string(m[4])}
			if w.ends != nil && w.own.Match(m[4]) {
				if err := w.ends.add(event); err != nil {
					return err
				}
			}
			pid, _ := strconv.ParseUint(string(m[2]), 10, 32)
			if marked, err := w.isMarked(uint32(pid)); err != nil || marked {
				if err != nil {
					return err
				}
				continue
			}
			w.unseen[uint32(pid)] = append(w.unseen[uint32(pid)], event)
		}
	}
}

// A hiddenDeath is a death that no BPF program saw.
type hiddenDeath struct {
	at            time.Time
	local, remote netip.AddrPort
}

var deathLine = regexp.MustCompile(`^family=(\w+) .*sport=(\d+) dport=(\d+) saddr=(\S+) daddr=(\S+) saddrv6=(\S+) daddrv6=(\S+) `)

// parseDeath returns both ends of the socket of an event of tcpDeaths.
func parseDeath(e tracedEvent) (d hiddenDeath, err error) {
	m := deathLine.FindStringSubmatch(e.says)
	if m == nil {
		return d, fmt.Errorf("trace says %q", e.says)
	}
	saddr, daddr := m[4], m[5]
	if m[1] == "AF_INET6" {
		saddr, daddr = m[6], m[7]
	}
	d.at = e.at
	for _, end := range []struct {
		into       *netip.AddrPort
		addr, port string
	}{{&d.local, saddr, m[2]}, {&d.remote, daddr, m[3]}} {
		addr, err := netip.ParseAddr(end.addr)
		if err != nil {
			return d, err
		}
		port, _ := strconv.ParseUint(end.port, 10, 16)
		*end.into = netip.AddrPortFrom(addr.Unmap(), uint16(port))
	}
	return d, nil
}

// hiddenDeaths are the deaths so far that no program saw.
func (w *referenceTracer) hiddenDeaths(t *testing.T) []hiddenDeath {
	t.Helper()
	var deaths []hiddenDeath
	for _, e := range w.hidden(t) {
		d, err := parseDeath(e)
		if err != nil {
			t.Fatal(err)
		}
		deaths = append(deaths, d)
	}
	return deaths
}

// tracedEnds are the times at which sockets ended, by both ends.
type tracedEnds map[[2]netip.AddrPort][]time.Time

func (ends tracedEnds) add(e tracedEvent) error {
	d, err := parseDeath(e)
	if err != nil {
		return err
	}
	pair := [2]netip.AddrPort{d.local, d.remote}
	ends[pair] = append(ends[pair], d.at)
	return nil
}

// sharpen puts the time that the kernel traced in place of the bounds that are known
// from outside, which are as wide as the machine is busy. The trace does not name the network
// namespace, and a socket of another one may have had the same addresses and ports: then
// the bounds stay.
func (ends tracedEnds) sharpen(f *expectedEnd) {
	var at []time.Time
	for _, end := range ends[[2]netip.AddrPort{f.local, f.remote}] {
		if end.After(f.alive.Add(-hiddenFor)) && end.Before(f.dead.Add(latency)) {
			at = append(at, end)
		}
	}
	if len(at) != 1 {
		return
	}
	f.alive, f.dead = at[0].Add(-2*time.Millisecond), at[0].Add(time.Millisecond)
	if strings.Contains(f.scenario, "ICMP") { // a message that came since may have put its timer off
		f.alive = at[0].Add(-latency)
	}
}

// traceEnds records, until the test is over, when sockets of the tests end. The result may
// be read after the next call of counts, when none of them ends any more.
func (w *referenceTracer) traceEnds(t *testing.T) tracedEnds {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends = make(tracedEnds)
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ends = nil
	})
	return w.ends
}

// hiddenFor bounds how long after a socket's end a test may hear of it, on a machine that
// stalls.
const hiddenFor = 5 * time.Second

// is returns whether this is the expected end f, of a socket that was opened after began.
func (d *hiddenDeath) is(f *expectedEnd, began time.Time) bool {
	if d.local != f.local || d.remote != f.remote {
		return false
	}
	if !f.dead.IsZero() {
		return d.at.After(f.alive.Add(-hiddenFor)) && d.at.Before(f.dead.Add(latency))
	}
	return d.at.After(began)
}

// complete checks that the trace has lost nothing.
func (w *referenceTracer) complete(t *testing.T) {
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

// hidden returns whether no program saw this death: its cause is unknown then.
func (d *death) hidden(t *testing.T) bool {
	t.Helper()
	return d.Cause == "unknown" && slices.ContainsFunc(deathTracer.hiddenDeaths(t), func(h hiddenDeath) bool {
		return h.local.String() == net.JoinHostPort(d.Local.IP, strconv.Itoa(d.Local.Port)) &&
			h.remote.String() == net.JoinHostPort(d.Remote.IP, strconv.Itoa(d.Remote.Port)) &&
			d.At.Sub(h.at).Abs() < 2*time.Second
	})
}
