// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// What ReadEvent returns besides events.
var (
	ErrFlushed     = ringbuf.ErrFlushed // Flush was called (maybe several times), and nothing is left
	ErrUndecodable = errors.New("event of an unexpected size")
)

// What [Load] can fail with for a reason the user can mend, besides [ErrPrivileges].
var (
	ErrLockdown = errors.New("this kernel is locked down, and lets no BPF program read its memory: boot without lockdown=confidentiality (lockdown=integrity will do)")
	ErrNoBTF    = errors.New("this kernel has no BTF (/sys/kernel/btf/vmlinux): Linux 5.10 or newer is needed, built with CONFIG_DEBUG_INFO_BTF=y")
)

// Options say what to load. The zero value of a field is its default.
type Options struct {
	// Observe attaches the tracepoints. Without it the kernel only answers
	// questions (Census, Owners).
	Observe bool
	// IdleAfter is how long a connection without data is active (default 5m).
	IdleAfter time.Duration
	// MiddleboxTimeout is how long a NAT or load balancer remembers a silent
	// flow (default 350s).
	MiddleboxTimeout time.Duration
	// EventsFrom is from how many unanswered solicitations in a row on each is
	// an event (default 2: the first are nearly always answered).
	EventsFrom uint32
	// IdleBounds are the upper bounds of the idle-time counts, ascending; at
	// most IdleBuckets.
	IdleBounds []time.Duration
	// EventsBytes is the size of the ring buffer, a power of two and of whole
	// pages (default 4 MiB). Only tests have a reason to change it.
	EventsBytes uint32
	// noCookieHelper is for tests: as before 5.12 (cookie.go).
	noCookieHelper bool
	// object is for tests, too: another than the one that is embedded.
	object []byte
}

func (o *Options) setDefaults() error {
	if o.IdleAfter == 0 {
		o.IdleAfter = 5 * time.Minute
	}
	if o.MiddleboxTimeout == 0 {
		o.MiddleboxTimeout = 350 * time.Second
	}
	if o.EventsFrom == 0 {
		o.EventsFrom = 2
	}
	if len(o.IdleBounds) > IdleBuckets {
		return fmt.Errorf("%d bounds of idle time, at most %d are possible", len(o.IdleBounds), IdleBuckets)
	}
	return nil
}

// Kernel is the loaded programs. It is safe for concurrent use; ReadEvent has
// one reader.
type Kernel struct {
	// Referenced until Close: the garbage collector would detach them.
	objs   halfopenObjects
	links  map[string][]link.Link // by tracepoint
	iters  map[string]*link.Iter
	events *ringbuf.Reader
	record ringbuf.Record
	hz     uint32
	census sync.Mutex // one census at a time: it counts in one place
	// Of the last census; under census.
	ownTables map[uint32]*ownTable // by inode number
	listed    *abi.NetnsList       // what a run of the list of namespaces wrote
	cookies   cookieSearch
	netns     sync.Mutex // of the search for ways into namespaces, which follows
	search    uint32
	hidden    []Holder // of those that nothing but a file descriptor holds
	hiddenDue time.Time

	walked         *abi.WalkBatch // what a run of the walk wrote; under census
	batching       sync.Mutex     // of batch: what is to be looked after, and how it is
	batch          *abi.Batch
	noCookieHelper bool       // our programs cannot give cookies (cookies)
	cookiesErr     error      // why new connections get none
	owners         sync.Mutex // one search at a time, for the map of wanted cookies
	// What was told last of what is a difference of two counters.
	closed  ceiling
	missed  map[string]*ceiling // by tracepoint
	closing sync.Once
	ctx     context.Context // of what runs by itself; ends with Close
	cancel  context.CancelFunc
}

// Load loads the programs into the kernel and, with Observe, attaches them.
// A verifier's refusal is an *ebpf.VerifierError.
func Load(opts Options) (_ *Kernel, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	kernel, err := kernelTypes()
	if err != nil {
		return nil, err
	}
	spec, err := readObject(opts.object)
	if err != nil {
		return nil, err
	}
	noCookieHelper := opts.noCookieHelper || !cookies.isFirst(kernel)
	if noCookieHelper {
		stub(spec.Programs["cookies_pass"])
	}
	if err := checkNeeds(spec, kernel); err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count CPUs: %w", err)
	}
	sizeLRU(spec, cpus)
	for _, d := range differences {
		if d.first != "" {
			first := d.isFirst(kernel) && (d != cookies || !opts.noCookieHelper)
			if err := spec.Variables[d.first].Set(first); err != nil {
				return nil, fmt.Errorf("set up BPF object: %w", err)
			}
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("raise memlock limit: %w", err)
	}

	if !opts.Observe {
		stubTracepoints(spec)
	}
	if opts.EventsBytes != 0 {
		spec.Maps["events"].MaxEntries = opts.EventsBytes
	}

	k := &Kernel{
		noCookieHelper: noCookieHelper,
		links:          make(map[string][]link.Link), missed: make(map[string]*ceiling), iters: make(map[string]*link.Iter),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	if err := spec.LoadAndAssign(&k.objs, nil); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("%w (%w)", ErrPrivileges, err)
		}
		if lockedDown() {
			return nil, ErrLockdown
		}
		return nil, fmt.Errorf("load BPF programs: %w", err)
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
			k.missed[name] = new(ceiling)
		}
		if err := k.Attach(); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// readObject reads the object, the embedded one if there is no other.
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

// stubTracepoints has the programs of tracepoints do nothing, where nobody attaches them: to
// verify them is half of what loading takes.
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

// lruLocal is how many free entries of an LRU map each CPU takes for itself
// (kernel/bpf/bpf_lru_list.c LOCAL_FREE_TARGET). Where the map has few more than all of
// them, entries are evicted that are still new (until 6.17).
const lruLocal = 128

// sizeLRU makes the LRU maps large enough for so many CPUs.
func sizeLRU(spec *ebpf.CollectionSpec, cpus int) {
	for _, m := range spec.Maps {
		if m.Type == ebpf.LRUHash {
			m.MaxEntries = max(m.MaxEntries, uint32(4*lruLocal*cpus))
		}
	}
}

// lockedDown tells whether no program may read the kernel's memory: bpf_tracing_func_proto()
// then hides the helpers for it (bpf_probe_read_kernel as well, but the loader would put
// bpf_probe_read in its place). Unlike /sys/kernel/security, that shows in a container, too.
func lockedDown() bool {
	return errors.Is(features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnProbeRead), ebpf.ErrNotSupported)
}

func (k *Kernel) openIterators() error {
	for name, opts := range map[string]link.IterOptions{
		"owners":     {Program: k.objs.OwnersPass},
		"cookies":    {Program: k.objs.CookiesPass},
		"netns_task": {Program: k.objs.NetnsTaskPass},
		"netns_file": {Program: k.objs.NetnsFilePass},
		"learn":      {Program: k.objs.LearnPass},
	} {
		it, err := link.AttachIter(opts)
		if err != nil {
			return fmt.Errorf("attach iterator %s: %w", name, err)
		}
		k.iters[name] = it
	}
	return nil
}

// learnSeconds is the TCP_KEEPIDLE by which a socket of ours tells how many
// jiffies make a second.
const learnSeconds = 1000

func (k *Kernel) learn() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	}
	if err != nil {
		return fmt.Errorf("open TCP socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, learnSeconds); err != nil {
		return fmt.Errorf("set TCP_KEEPIDLE: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("get SO_COOKIE: %w", err)
	}
	if err := k.objs.LearnCookie.Set(cookie); err != nil {
		return err
	}
	if err := k.pass("learn", nil, nil); err != nil {
		return err
	}
	var keepalive, write uint64
	var jiffies uint32
	if err := errors.Join(k.objs.KeepaliveTimerFn.Get(&keepalive), k.objs.WriteTimerFn.Get(&write),
		k.objs.LearnKeepaliveTime.Get(&jiffies)); err != nil {
		return err
	}
	if keepalive == 0 || write == 0 || keepalive == write {
		return errors.New("our own socket shows no timer functions; please report this kernel")
	}
	if err := k.openRuns(); err != nil {
		return err
	}
	k.hz = jiffies / learnSeconds
	if k.hz == 0 || jiffies%learnSeconds != 0 {
		return fmt.Errorf("a TCP_KEEPIDLE of %d s is %d jiffies; please report this kernel", learnSeconds, jiffies)
	}
	return nil
}

// openRuns maps what programs that are run by us write, and checks that learn() has
// found what they walk through.
func (k *Kernel) openRuns() error {
	var connections, listeners uint32
	var first uint64
	if err := errors.Join(k.objs.EhashChains.Get(&connections), k.objs.LhashChains.Get(&listeners), k.objs.FirstNet.Get(&first)); err != nil {
		return err
	}
	if connections == 0 || listeners == 0 || first == 0 {
		return errors.New("no hash tables of TCP sockets are to be found; please report this kernel")
	}
	var err error
	if k.listed, err = mapped[abi.NetnsList](k.objs.NetnsList); err != nil {
		return err
	}
	if k.walked, err = mapped[abi.WalkBatch](k.objs.WalkBatch); err != nil {
		return err
	}
	k.batch, err = mapped[abi.Batch](k.objs.Batch)
	return err
}

func (k *Kernel) configure(opts Options) error {
	var bounds [IdleBuckets + 1]uint32
	for i := range bounds {
		bounds[i] = AgeNone
		if i < len(opts.IdleBounds) {
			bounds[i] = k.jiffies(opts.IdleBounds[i])
		}
	}
	return errors.Join(
		k.objs.IdleAfter.Set(k.jiffies(opts.IdleAfter)),
		k.objs.MiddleboxTimeout.Set(k.jiffies(opts.MiddleboxTimeout)),
		k.objs.EventsFrom.Set(opts.EventsFrom),
		k.objs.IdleBounds.Set(bounds),
		k.objs.Hz.Set(k.hz),
	)
}

// Tracepoints are those that Load attaches to, whether or not this kernel has
// them.
func Tracepoints() ([]string, error) {
	spec, err := readObject(nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, prog := range spec.Programs {
		if prog.AttachType == ebpf.AttachTraceRawTp {
			names = append(names, prog.AttachTo)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// observer is the two programs on a tracepoint: the primary, and the fallback for
// events at which the kernel skips the primary because it is running already. Timers
// need no fallback: they only run in softirq, which does not nest.
type observer struct {
	primary, fallback *ebpf.Program
	hook              int // index of Counters.Fallbacks
}

// observers are by tracepoint.
func (k *Kernel) observers() map[string]observer {
	return map[string]observer{
		"inet_sock_set_state":   {k.objs.InetSockSetState, k.objs.InetSockSetState2, abi.HookSetState},
		"tcp_retransmit_skb":    {k.objs.TcpRetransmitSkb, k.objs.TcpRetransmitSkb2, abi.HookRetransmitSkb},
		"tcp_retransmit_synack": {k.objs.TcpRetransmitSynack, k.objs.TcpRetransmitSynack2, abi.HookRetransmitSynack},
		"tcp_receive_reset":     {k.objs.TcpReceiveReset, k.objs.TcpReceiveReset2, abi.HookReceiveReset},
		"tcp_send_reset":        {k.objs.TcpSendReset, k.objs.TcpSendReset2, abi.HookSendReset},
		"timer_expire_entry":    {primary: k.objs.TimerExpireEntry},
		"timer_expire_exit":     {primary: k.objs.TimerExpireExit},
	}
}

// Attach undoes Detach. Not to be called while something else is.
func (k *Kernel) Attach() error {
	if k.noCookieHelper {
		var l link.Link
		if l, k.cookiesErr = giveCookies(); k.cookiesErr == nil {
			k.links["cookies"] = append(k.links["cookies"], l)
		}
	}
	for name, o := range k.observers() {
		for _, prog := range []*ebpf.Program{o.primary, o.fallback} {
			if prog == nil {
				continue
			}
			l, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: ebpf.AttachTraceRawTp})
			if err != nil {
				return fmt.Errorf("attach to tracepoint %s: %w", name, err)
			}
			k.links[name] = append(k.links[name], l)
		}
	}
	return nil
}

// Detach lets go of the tracepoints: nothing is seen until Attach. It is there to
// measure what seeing costs. Not to be called while something else is.
func (k *Kernel) Detach() error {
	var errs []error
	for _, links := range k.links {
		for _, l := range links {
			errs = append(errs, l.Close())
		}
	}
	clear(k.links)
	return errors.Join(errs...)
}

// Close detaches and unloads everything. ReadEvent returns.
func (k *Kernel) Close() error {
	var errs []error
	k.closing.Do(func() {
		k.cancel()
		k.cookies.Lock()
		running := k.cookies.running
		k.cookies.Unlock()
		if running != nil { // it may hang, and finds everything closed then
			select {
			case <-running:
			case <-time.After(time.Second):
			}
		}
		if k.events != nil {
			errs = append(errs, k.events.Close())
		}
		errs = append(errs, k.Detach())
		for _, it := range k.iters {
			errs = append(errs, it.Close())
		}
		// Nothing reads them once nothing runs.
		k.census.Lock()
		k.batching.Lock()
		errs = append(errs, unmap(k.listed), unmap(k.walked), unmap(k.batch), k.objs.Close())
		k.listed, k.walked, k.batch = nil, nil, nil
		k.batching.Unlock()
		k.census.Unlock()
	})
	return errors.Join(errs...)
}

// Duration translates an age or interval of the kernel.
func (k *Kernel) Duration(jiffies uint32) time.Duration {
	return time.Duration(jiffies) * time.Second / time.Duration(k.hz)
}

// jiffies is the reverse of Duration: at least one, at most what an age can be.
func (k *Kernel) jiffies(d time.Duration) uint32 {
	return uint32(min(max(d.Seconds()*float64(k.hz), 1), float64(AgeNone-1)))
}

// HZ is how many jiffies the kernel counts in a second.
func (k *Kernel) HZ() int { return int(k.hz) }

// Attached tells for each tracepoint whether its programs are attached.
func (k *Kernel) Attached() map[string]bool {
	attached := make(map[string]bool)
	for name := range k.observers() {
		attached[name] = len(k.links[name]) > 0
	}
	return attached
}

// SetEventsFrom changes [Options].EventsFrom.
func (k *Kernel) SetEventsFrom(n uint32) error { return k.objs.EventsFrom.Set(n) }

// ReadEvent waits for the next event and stores it. After Close it returns
// os.ErrClosed.
func (k *Kernel) ReadEvent(e *Event) error {
	if k.events == nil {
		return os.ErrClosed
	}
	if err := k.events.ReadInto(&k.record); err != nil {
		return err
	}
	if len(k.record.RawSample) < int(unsafe.Sizeof(*e)) {
		return ErrUndecodable
	}
	*e = *(*Event)(unsafe.Pointer(unsafe.SliceData(k.record.RawSample)))
	return nil
}

// Flush makes ReadEvent return what is there now and then [ErrFlushed].
func (k *Kernel) Flush() error {
	if k.events == nil {
		return nil
	}
	return k.events.Flush()
}

// finality is within what time the kernel counts a death as closed and then,
// now and then, thinks better of it.
const finality = 2 * time.Millisecond

// Counters tells what was counted until now, but for the deaths of the last
// 50 ms of which the cause is not certain yet. They only ever grow.
func (k *Kernel) Counters() (Counters, error) {
	if err := k.resolvePending(); err != nil {
		return Counters{}, err
	}
	before, err := k.counters()
	if err != nil {
		return before, err
	}
	time.Sleep(finality)
	sum, err := k.counters()
	if err != nil {
		return sum, err
	}
	// What was counted as closed before is certain by now.
	sum.Deaths[abi.CauseClosed] = k.closed.raise(before.Deaths[abi.CauseClosed], sum.NotClosed)
	return sum, nil
}

// A ceiling is a counter that is the difference of two, of which the second was
// read later: it may come out too low, and is never let fall.
type ceiling struct{ atomic.Uint64 }

func (c *ceiling) raise(first, second uint64) uint64 {
	for {
		last := c.Load()
		if first < second || first-second <= last {
			return last
		}
		if c.CompareAndSwap(last, first-second) {
			return first - second
		}
	}
}

func (k *Kernel) counters() (Counters, error) {
	var perCPU []Counters
	var sum Counters
	if err := k.objs.Counts.Lookup(uint32(0), &perCPU); err != nil {
		return sum, fmt.Errorf("read counters: %w", err)
	}
	into := words(&sum)
	for i := range perCPU {
		for j, v := range words(&perCPU[i]) {
			into[j] += v
		}
	}
	return sum, nil
}

// words sees the counters as what they are: nothing but uint64.
func words[T Counters | CensusCounts](c *T) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(c)), unsafe.Sizeof(*c)/8)
}

// Missed tells by tracepoint how often no program ran: the first was already
// running on that CPU (kernel/trace/bpf_trace.c), and the other did not stand in
// for it. Zero before 6.1, which skips none.
func (k *Kernel) Missed() (map[string]uint64, error) {
	missed := make(map[string]uint64)
	observers := k.observers()
	for name, o := range observers {
		stats, err := o.primary.Stats()
		if err != nil {
			return nil, fmt.Errorf("read statistics of %s: %w", name, err)
		}
		missed[name] = stats.RecursionMisses
	}
	sum, err := k.counters()
	if err != nil {
		return nil, err
	}
	for name, last := range k.missed {
		var ranFallback uint64
		if observers[name].fallback != nil {
			ranFallback = sum.Fallbacks[observers[name].hook]
		}
		missed[name] = last.raise(missed[name], ranFallback)
	}
	return missed, nil
}

// Owners finds who holds the sockets of the given cookies: every descriptor of
// every process. A socket nobody holds is not in the result.
func (k *Kernel) Owners(cookies []uint64) (map[uint64][]Owner, error) {
	k.owners.Lock()
	defer k.owners.Unlock()
	found := make(map[uint64][]Owner)
	room := int(k.objs.Wanted.MaxEntries())
	for chunk := range slices.Chunk(cookies, room) {
		for _, c := range chunk {
			if err := k.objs.Wanted.Put(c, uint8(1)); err != nil {
				return nil, fmt.Errorf("ask for owners: %w", err)
			}
		}
		var o Owner
		err := k.pass("owners", bytesOf(&o), func() { found[o.Cookie] = append(found[o.Cookie], o) })
		for _, c := range chunk {
			if derr := k.objs.Wanted.Delete(c); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
				err = errors.Join(err, derr)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("find owners: %w", err)
		}
	}
	return found, nil
}

// Watch calls visit for each watched socket, as it is now. A record with ConnAnswered
// or ConnGone is the last of its socket.
func (k *Kernel) Watch(visit func(*Conn)) error {
	if err := k.resolvePending(); err != nil {
		return err
	}
	if err := runBatches[abi.Watch](k, k.objs.Watched, k.objs.WatchRun, visit); err != nil {
		return fmt.Errorf("look after watched sockets: %w", err)
	}
	return nil
}

// resolvePending has those deaths counted that nothing more will explain.
func (k *Kernel) resolvePending() error {
	if err := runBatches[abi.Undecided](k, k.objs.Undecided, k.objs.ResolvePendingRun, nil); err != nil {
		return fmt.Errorf("resolve pending deaths: %w", err)
	}
	return nil
}

func bytesOf[T Conn | Owner | Holder](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// pass runs an iterator once in the caller's network namespace, and calls visit
// for each record, which it has put into record.
func (k *Kernel) pass(name string, record []byte, visit func()) error {
	r, err := k.iters[name].Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return readRecords(r, record, visit)
}

// seqSpace is what is asked for at a time. The kernel's own buffer is 8 pages,
// and a record that does not fit is made once more at the next read: asking for
// less than it holds keeps it from that (kernel/bpf/bpf_iter.c bpf_seq_read).
const seqSpace = 16 << 10

// readRecords reads records of one size up to the end. The kernel returns
// EAGAIN after a million objects that it had nothing to say about, which only
// means: go on.
func readRecords(r io.Reader, record []byte, visit func()) error {
	buf := make([]byte, seqSpace)
	have := 0
	for {
		n, err := r.Read(buf[have:])
		have += max(n, 0)
		used := 0
		for len(record) > 0 && have-used >= len(record) {
			used += copy(record, buf[used:have])
			visit()
		}
		have = copy(buf, buf[used:have])
		switch {
		case errors.Is(err, io.EOF):
			if have > 0 {
				return fmt.Errorf("iterator ended in the middle of a record: %w", io.ErrUnexpectedEOF)
			}
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		}
	}
}
