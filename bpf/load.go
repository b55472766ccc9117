// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Errors of [Load] that the user can do something about, besides [ErrPrivileges].
var (
	ErrLockdown = errors.New("this kernel is locked down, and lets no BPF program read its memory: boot without lockdown=confidentiality (lockdown=integrity will do)")
	ErrNoBTF    = errors.New("this kernel has no BTF (/sys/kernel/btf/vmlinux): Linux 5.10 or newer is needed, built with CONFIG_DEBUG_INFO_BTF=y")
)

// Options are the options of [Load]. The zero value of a field is its default.
type Options struct {
	// Observe attaches the tracepoints. Without it the kernel only answers
	// requests (Census, FDHolders).
	Observe bool
	// IdleAfter is how long a connection without data stays active (default 5m).
	IdleAfter time.Duration
	// MiddleboxTimeout is how long a NAT or load balancer remembers a silent
	// flow (default 350s). MiddleboxTimeouts are exceptions by destination, at most
	// [MostMiddleboxes]: the longest prefix of a remote address counts.
	MiddleboxTimeout  time.Duration
	MiddleboxTimeouts map[netip.Prefix]time.Duration
	// UnreadAfter is how long an application may leave received data before the
	// connection is unread (default 30s).
	UnreadAfter time.Duration
	// EventsFrom is the number of unanswered solicitations in a row from which each
	// of them is an event (default 2: nearly always the first is answered).
	EventsFrom uint32
	// IdleBounds are the upper bounds of the idle-time counts, ascending; at
	// most [abi.IdleBuckets].
	IdleBounds []time.Duration
	// EventsBytes is the size of the ring buffer, a power of two and of whole
	// pages (default 4 MiB). Only tests have a reason to change it.
	EventsBytes uint32
	// GiveCookies is called instead of [GiveCookies] if it is not nil, by a process that
	// has not the privileges for it.
	GiveCookies func(context.Context, []CookieTarget) ([]error, time.Duration, error)
	// noCookieHelper makes Load do without the cookie helper, as before Linux 5.12
	// (cookie.go). For tests.
	noCookieHelper bool
	// object replaces the embedded object. For tests.
	object []byte
}

func (o *Options) setDefaults() error {
	if o.IdleAfter == 0 {
		o.IdleAfter = 5 * time.Minute
	}
	if o.MiddleboxTimeout == 0 {
		o.MiddleboxTimeout = 350 * time.Second
	}
	if o.UnreadAfter == 0 {
		o.UnreadAfter = 30 * time.Second
	}
	if o.EventsFrom == 0 {
		o.EventsFrom = 2
	}
	if o.GiveCookies == nil {
		o.GiveCookies = GiveCookies
	}
	if len(o.MiddleboxTimeouts) > MostMiddleboxes {
		return fmt.Errorf("%d middlebox timeouts, at most %d are possible", len(o.MiddleboxTimeouts), MostMiddleboxes)
	}
	if len(o.IdleBounds) > abi.IdleBuckets {
		return fmt.Errorf("%d bounds of idle time, at most %d are possible", len(o.IdleBounds), abi.IdleBuckets)
	}
	return nil
}

// Load loads the programs into the kernel and, with Observe, attaches them. If the
// verifier refuses a program, the error is an *ebpf.VerifierError.
func Load(opts Options) (_ *Kernel, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	k := &Kernel{
		giveCookies: opts.GiveCookies,
		links:       make(map[string][]link.Link),
		missed:      make(map[string]*monotonic),
		iters:       make(map[string]*link.Iter),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	if err := k.loadObject(&opts); err != nil {
		return nil, err
	}
	if err := k.openIterators(); err != nil {
		return nil, err
	}
	if err := k.learn(); err != nil {
		return nil, fmt.Errorf("learn the kernel's TCP timers: %w", err)
	}
	if err := k.configure(opts); err != nil {
		return nil, fmt.Errorf("set up BPF programs: %w", err)
	}
	if opts.Observe {
		if k.events, err = ringbuf.NewReader(k.objs.Events); err != nil {
			return nil, fmt.Errorf("open ring buffer: %w", err)
		}
		for name := range k.observers() {
			k.missed[name] = new(monotonic)
		}
		if k.noCookieHelper {
			k.cookieGiver, k.cookiesErr = newCookieGiver()
		}
		if err := k.Attach(); err != nil {
			return nil, err
		}
	}
	if err := k.probe(); err != nil {
		return nil, err
	}
	return k, nil
}

// loadObject loads the maps and programs. Much of that is work of this process, so that it does
// at once what it can.
func (k *Kernel) loadObject(opts *Options) error {
	var (
		g      errgroup.Group
		cache  = btf.NewCache()
		kernel *btf.Spec
		spec   *ebpf.CollectionSpec
	)
	g.Go(func() (err error) {
		kernel, err = kernelTypes(cache)
		return err
	})
	g.Go(func() (err error) {
		spec, err = readObject(opts.object)
		return err
	})
	err := g.Wait()
	if err != nil {
		return err
	}
	if k.noCookieHelper, err = prepare(opts, spec, kernel); err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("raise memlock limit: %w", err)
	}
	g.Go(func() error { return checkNeeds(spec, kernel) })
	// Otherwise the library reads the kernel's types once more, and those of all modules.
	types := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{KernelTypes: kernel}, Cache: cache}
	objs, err := loadMaps(spec, types)
	if objs != nil {
		defer objs.Close() // what k does not take
	}
	if lacking := g.Wait(); lacking != nil {
		return lacking
	}
	if !opts.Observe {
		stubTracepoints(spec)
	} else if privateStacks.isFirst(kernel) {
		copyContinuations(spec)
	}
	if err == nil {
		err = loadPrograms(spec, types, objs)
	}
	if err == nil {
		err = insertContinuations(objs)
	}
	if err == nil {
		err = objs.Assign(&k.objs)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (%w)", ErrPrivileges, err)
	case lockedDown():
		return ErrLockdown
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

// continuations has the programs with which those of a tracepoint go on, by their maps (fallback.h).
var continuations = map[string]string{
	"on_death":          "connection_died",
	"on_retransmission": "segment_retransmitted",
	"on_reset":          "reset_answered",
}

// forFallback ends the name of the copy of a continuation.
const forFallback = "_2"

// copyContinuations gives the fallbacks continuations of their own.
func copyContinuations(spec *ebpf.CollectionSpec) {
	for _, name := range continuations {
		program := spec.Programs[name].Copy()
		program.Name += forFallback
		spec.Programs[program.Name] = program
	}
}

// insertContinuations lets the programs of the tracepoints go on. The maps keep the programs.
func insertContinuations(objs *ebpf.Collection) error {
	for place, name := range continuations {
		primary, fallback := objs.Programs[name], objs.Programs[name+forFallback]
		if fallback == nil {
			fallback = primary
		}
		const ofPrimary, ofFallback = uint32(0), uint32(1)
		if err := errors.Join(objs.Maps[place].Put(ofPrimary, primary), objs.Maps[place].Put(ofFallback, fallback)); err != nil {
			return fmt.Errorf("insert program %s: %w", name, err)
		}
	}
	return nil
}

// loadMaps loads the maps of an object and its variables.
func loadMaps(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) (*ebpf.Collection, error) {
	part := *spec
	part.Programs = nil
	return ebpf.NewCollectionWithOptions(&part, opts)
}

// loaders is the most CPUs that load programs at once. The largest program takes about a quarter
// of the time, and each loader needs descriptors of all maps.
const loaders = 4

// loadPrograms loads the programs of an object on several CPUs at once, since it takes the kernel
// long to verify them, and adds them to objs, which has the maps.
func loadPrograms(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions, objs *ebpf.Collection) error {
	opts.MapReplacements = objs.Maps
	parts := divide(spec.Programs, min(runtime.GOMAXPROCS(0), loaders))
	loaded := make([]*ebpf.Collection, len(parts))
	var g errgroup.Group
	for i := range parts {
		g.Go(func() (err error) {
			part := *spec
			part.Programs, part.Variables = parts[i], nil
			loaded[i], err = ebpf.NewCollectionWithOptions(&part, opts)
			return err
		})
	}
	err := g.Wait()
	objs.Programs = make(map[string]*ebpf.Program)
	for _, c := range loaded {
		if c != nil {
			maps.Copy(objs.Programs, c.Programs)
			c.Programs = nil
			c.Close() // its references to the maps
		}
	}
	return err
}

// divide divides programs into n parts that are about equally large.
func divide(programs map[string]*ebpf.ProgramSpec, n int) []map[string]*ebpf.ProgramSpec {
	parts := make([]map[string]*ebpf.ProgramSpec, n)
	sizes := make([]int, n)
	for i := range parts {
		parts[i] = make(map[string]*ebpf.ProgramSpec)
	}
	names := slices.SortedFunc(maps.Keys(programs), func(a, b string) int {
		return cmp.Or(len(programs[b].Instructions)-len(programs[a].Instructions), strings.Compare(a, b))
	})
	for _, name := range names {
		least := slices.Index(sizes, slices.Min(sizes))
		parts[least][name] = programs[name]
		sizes[least] += len(programs[name].Instructions)
	}
	return parts
}

// probe reads a map and runs a program. The library finds out how the kernel does that
// when it is needed first, by loading programs and making maps of its own. Later this
// process may not be allowed to.
func (k *Kernel) probe() error {
	if err := k.Watch(func(*abi.Conn) {}); err != nil {
		return err
	}
	k.census.Lock()
	defer k.census.Unlock()
	if _, err := k.listNetns(k.ctx, nil); err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	return nil
}

// prepare adapts the object to the options and the running kernel, but for stubTracepoints.
// noCookieHelper reports whether our programs cannot give a socket its cookie.
func prepare(opts *Options, spec *ebpf.CollectionSpec, kernel *btf.Spec) (noCookieHelper bool, err error) {
	noCookieHelper = opts.noCookieHelper || !cookies.isFirst(kernel)
	if noCookieHelper {
		stub(spec.Programs["cookies_pass"])
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return false, fmt.Errorf("count CPUs: %w", err)
	}
	sizeLRU(spec, cpus)
	for _, d := range differences {
		if d.first == "" {
			continue
		}
		first := d.isFirst(kernel) && (d != cookies || !opts.noCookieHelper)
		if err := spec.Variables[d.first].Set(first); err != nil {
			return false, fmt.Errorf("set up BPF object: %w", err)
		}
	}
	if opts.EventsBytes != 0 {
		spec.Maps["events"].MaxEntries = opts.EventsBytes
	}
	return noCookieHelper, nil
}

// readObject reads an object, or the embedded one if object is nil.
func readObject(object []byte) (*ebpf.CollectionSpec, error) {
	if object == nil {
		object = _HalfopenBytes
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read BPF object: %w", err)
	}
	return spec, nil
}

// stubTracepoints makes the programs of tracepoints do nothing. They will not be
// attached, and half of the time that loading takes goes into verifying them.
func stubTracepoints(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		if p.AttachType == ebpf.AttachTraceRawTp {
			stub(p)
		}
	}
}

// stub makes a program do nothing.
func stub(p *ebpf.ProgramSpec) {
	p.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
}

// lruLocal is the number of free entries of an LRU map that each CPU takes for itself
// (kernel/bpf/bpf_lru_list.c LOCAL_FREE_TARGET). Until Linux 6.17 the kernel evicts new
// entries of a map that has little more room than that.
const lruLocal = 128

// sizeLRU makes the LRU maps large enough for that number of CPUs.
func sizeLRU(spec *ebpf.CollectionSpec, cpus int) {
	for _, m := range spec.Maps {
		if m.Type == ebpf.LRUHash {
			m.MaxEntries = max(m.MaxEntries, uint32(4*lruLocal*cpus))
		}
	}
}

// lockedDown reports whether no program may read the kernel's memory. In that case
// bpf_tracing_func_proto() hides the helpers that do. We ask for bpf_probe_read, since
// the loader puts it in the place of bpf_probe_read_kernel where that is missing. Unlike
// /sys/kernel/security, this works in a container.
func lockedDown() bool {
	return errors.Is(features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnProbeRead), ebpf.ErrNotSupported)
}

// configure sets the variables of the programs that follow from the options.
func (k *Kernel) configure(opts Options) error {
	var bounds [abi.IdleBuckets + 1]uint32
	for i := range bounds {
		bounds[i] = abi.AgeNone
		if i < len(opts.IdleBounds) {
			bounds[i] = k.jiffies(opts.IdleBounds[i])
		}
	}
	return errors.Join(
		k.objs.IdleAfter.Set(k.jiffies(opts.IdleAfter)),
		k.setMiddleboxes(&opts),
		k.objs.UnreadAfter.Set(k.jiffies(opts.UnreadAfter)),
		k.objs.EventsFrom.Set(opts.EventsFrom),
		k.objs.IdleBounds.Set(bounds),
		k.objs.Hz.Set(k.hz),
	)
}

// MostMiddleboxes is the most entries of Options.MiddleboxTimeouts (bpf/config.h).
const MostMiddleboxes = 1024

// setMiddleboxes tells the programs how long middleboxes remember a silent flow.
func (k *Kernel) setMiddleboxes(opts *Options) error {
	timeouts := map[netip.Prefix]time.Duration{ // the default, for each family
		netip.MustParsePrefix("0.0.0.0/0"): opts.MiddleboxTimeout,
		netip.MustParsePrefix("::/0"):      opts.MiddleboxTimeout,
	}
	maps.Copy(timeouts, opts.MiddleboxTimeouts)
	least, most := k.jiffies(opts.MiddleboxTimeout), k.jiffies(opts.MiddleboxTimeout)
	for prefix, timeout := range timeouts {
		jiffies := k.jiffies(timeout)
		least, most = min(least, jiffies), max(most, jiffies)
		to := abi.Destination{Bits: uint32(prefix.Bits() + 128 - prefix.Addr().BitLen())}
		for i, b := range prefix.Addr().As16() {
			to.Address[i/4] |= uint32(b) << (i % 4 * 8) // network byte order in memory
		}
		if err := k.objs.Middleboxes.Put(&to, jiffies); err != nil {
			return fmt.Errorf("set the middlebox timeout of %v: %w", prefix, err)
		}
	}
	return errors.Join(k.objs.MiddleboxLeast.Set(least), k.objs.MiddleboxMost.Set(most))
}
