// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// fakeKernel is a [Kernel] that a test drives: it sends events by emit, and sets what
// passes find. A pass for which there is a function calls it instead, outside of the
// lock: it may wait, fail, or change what the kernel has. For use in a synctest bubble.
type fakeKernel struct {
	mu      sync.Mutex
	changed *sync.Cond
	queue   []any // events and errors that ReadEvent returns next
	flushed bool  // ReadEvent has to return ErrFlushed once the queue is empty
	deaf    bool  // Flush does nothing
	closed  bool

	watched []abi.Conn // what the watch pass finds, as it is when it does
	again   []abi.Conn // what ReadAgain finds, once
	sockets []abi.Conn // what a census finds, as it is when it does
	result  bpf.CensusResult
	held    map[uint64][]abi.FDHolder
	stats   bpf.Stats
	sysctls map[uint32]abi.NetnsSysctls
	cookies struct {
		err   error
		hangs time.Time
	}

	drops struct {
		watched  bool
		rate     float64 // a second, while they are watched
		since    time.Time
		err      error // of WatchDrops
		attached int   // how often
	}

	onFlushed func()        // before ReadEvent returns ErrFlushed
	slow      time.Duration // how long ReadEvent takes to return an event
	onWatch   func() error
	onCensus  func(context.Context) error
	onVisit   func(*abi.Conn) // after the census of a query has visited a socket
	onOwners  func(cookies []uint64) error
	onStats   func() error

	// When each pass began.
	watches, censuses, searches []time.Time
	searched                    []int             // for how many sockets, 0 for all
	ownTables                   time.Duration     // of the last periodic census
	hosts                       []abi.PeerHostKey // likewise
	flushes                     int
}

func newFakeKernel() *fakeKernel {
	k := &fakeKernel{held: make(map[uint64][]abi.FDHolder)}
	k.changed = sync.NewCond(&k.mu)
	return k
}

// set changes the kernel.
func (k *fakeKernel) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
	k.changed.Broadcast()
}

// passes returns how many passes of each kind have begun.
func (k *fakeKernel) passes() (watches, censuses, searches int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.watches), len(k.censuses), len(k.searches)
}

// emit has ReadEvent return these events and errors.
func (k *fakeKernel) emit(what ...any) { k.set(func() { k.queue = append(k.queue, what...) }) }

func (k *fakeKernel) HZ() int { return conntest.HZ }

func (k *fakeKernel) ReadEvent(e *abi.Event) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		switch {
		case k.closed:
			return os.ErrClosed
		case len(k.queue) > 0:
			next := k.queue[0]
			k.queue = k.queue[1:]
			if k.slow > 0 {
				k.mu.Unlock()
				time.Sleep(k.slow)
				k.mu.Lock()
			}
			if err, ok := next.(error); ok {
				return err
			}
			*e = next.(abi.Event)
			return nil
		case k.flushed:
			k.flushed = false
			if hook := k.onFlushed; hook != nil {
				k.mu.Unlock()
				hook()
				k.mu.Lock()
			}
			return bpf.ErrFlushed
		}
		k.changed.Wait()
	}
}

func (k *fakeKernel) Flush() error {
	k.set(func() {
		k.flushes++
		k.flushed = k.flushed || !k.deaf
	})
	return nil
}

// read returns a copy of what f returns, at the time of a pass.
func read[T any](k *fakeKernel, hook func() error, f func() T) (T, error) {
	var err error
	if hook != nil {
		err = hook()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return f(), err
}

func (k *fakeKernel) WatchDrops(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if on && k.drops.err != nil {
		return k.drops.err
	}
	if on && !k.drops.watched {
		k.drops.attached++
		k.drops.since = time.Now()
	}
	k.drops.watched = on
	return nil
}

func (k *fakeKernel) Drops() (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return uint64(k.drops.rate * time.Since(k.drops.since).Seconds()), nil
}

func (k *fakeKernel) Watch(visit func(*abi.Conn)) error {
	k.set(func() { k.watches = append(k.watches, time.Now()) })
	watched, err := read(k, k.onWatch, func() []abi.Conn { return slices.Clone(k.watched) })
	if err != nil {
		return err
	}
	for i := range watched {
		watched[i].At = monotonic(time.Now())
		visit(&watched[i])
	}
	return nil
}

func (k *fakeKernel) ReadAgain(visit func(*abi.Conn)) error {
	again, _ := read(k, nil, func() []abi.Conn {
		again := k.again
		k.again = nil
		return again
	})
	for i := range again {
		again[i].At = monotonic(time.Now())
		visit(&again[i])
	}
	return nil
}

func (k *fakeKernel) PeriodicCensus(ctx context.Context, selection *bpf.Selection, hosts []abi.PeerHostKey, ownTables time.Duration, visit func(*abi.Conn)) (bpf.CensusResult, error) {
	k.set(func() { k.censuses, k.ownTables, k.hosts = append(k.censuses, time.Now()), ownTables, hosts })
	return k.census(ctx, func(c *abi.Conn) {
		if selects(selection, c) {
			visit(c)
		}
	})
}

func (k *fakeKernel) Census(ctx context.Context, selection *bpf.Selection, visit func(*abi.Conn)) (bpf.CensusResult, error) {
	return k.census(ctx, func(c *abi.Conn) {
		if selects(selection, c) {
			visit(c)
			if k.onVisit != nil {
				k.onVisit(c)
			}
		}
	})
}

func (k *fakeKernel) Find(ctx context.Context, cookie uint64, visit func(*abi.Conn)) (bpf.CensusResult, error) {
	return k.census(ctx, func(c *abi.Conn) {
		if c.Cookie == cookie {
			visit(c)
		}
	})
}

// selects reports whether a census writes a socket out.
func selects(s *bpf.Selection, c *abi.Conn) bool {
	class := writtenAs(c)
	if c.State == abi.StateListen && c.ListenDrops() > 0 && s.Classes&bpf.ClassesOf(abi.ClassOverflowed) != 0 {
		return true
	}
	return s.Classes&bpf.ClassesOf(class) != 0 && (class == abi.ClassTrouble || time.Duration(c.Idle)*time.Second/conntest.HZ >= s.Idle[class])
}

// writtenAs is the class that decides whether a census writes a socket out.
func writtenAs(c *abi.Conn) uint8 {
	switch {
	case c.Flags&abi.ConnTrouble != 0:
		return abi.ClassTrouble
	case c.Flags&abi.ConnUnread != 0:
		return abi.ClassUnread
	}
	return c.Class
}

func (k *fakeKernel) census(ctx context.Context, visit func(*abi.Conn)) (bpf.CensusResult, error) {
	var hook func() error
	if k.onCensus != nil {
		hook = func() error { return k.onCensus(ctx) }
	}
	var res bpf.CensusResult
	sockets, err := read(k, hook, func() []abi.Conn {
		res = k.result
		return slices.Clone(k.sockets)
	})
	if err != nil {
		return res, err
	}
	for i := range sockets {
		res.Counts.Sockets[sockets[i].State][writtenAs(&sockets[i])]++
	}
	for i := range sockets {
		sockets[i].At = monotonic(time.Now())
		visit(&sockets[i])
	}
	return res, nil
}

func (k *fakeKernel) Sysctls(context.Context) (map[uint32]abi.NetnsSysctls, error) {
	return read(k, nil, func() map[uint32]abi.NetnsSysctls { return maps.Clone(k.sysctls) })
}

func (k *fakeKernel) FDHolders(cookies []uint64, visit func(*abi.FDHolder)) error {
	k.set(func() {
		k.searches = append(k.searches, time.Now())
		k.searched = append(k.searched, len(cookies))
	})
	var hook func() error
	if k.onOwners != nil {
		hook = func() error { return k.onOwners(cookies) }
	}
	held, err := read(k, hook, func() map[uint64][]abi.FDHolder { return maps.Clone(k.held) })
	if err != nil {
		return err
	}
	for cookie, descriptors := range held {
		if cookies == nil || slices.Contains(cookies, cookie) {
			for _, d := range descriptors {
				d.Cookie = cookie
				visit(&d)
			}
		}
	}
	return nil
}

func (k *fakeKernel) FindNetns(inode uint32) (bpf.NetnsRef, bool) {
	return bpf.NetnsRef{Inode: inode}, true
}

func (k *fakeKernel) Stats() (bpf.Stats, error) {
	return read(k, k.onStats, func() bpf.Stats { return k.stats })
}

func (k *fakeKernel) CookieStatus() (hangsSince time.Time, err error) {
	return k.cookies.hangs, k.cookies.err
}

// monotonic returns what the kernel's clock is at a time.
func monotonic(at time.Time) uint64 {
	then, monoThen := sameMoment()
	return uint64(monoThen + at.Sub(then))
}

// now returns a record as it is read now.
func now(c *abi.Conn, cookie uint64) abi.Conn {
	read := *c
	read.Cookie, read.At = cookie, monotonic(time.Now())
	return read
}

// zombie returns the record of a zombie, read now.
func zombie(cookie uint64) abi.Conn { return now(conntest.KeepaliveZombie(), cookie) }

// suspect returns the record of a connection with so many unanswered solicitations, the
// last of them now.
func suspect(cookie uint64, unanswered uint16) abi.Conn {
	c := now(conntest.Silent(abi.EvidenceKeepalive, unanswered, 4*time.Second), cookie)
	c.Solicited = 0
	return c
}

// healthy returns the record of a healthy connection, read now.
func healthy(cookie uint64) abi.Conn { return now(conntest.Idle(func(*abi.Conn) {}), cookie) }

func solicitation(c abi.Conn) abi.Event { return abi.Event{Type: abi.EventSolicitation, Conn: c} }

func death(cookie uint64, cause uint8) abi.Event {
	return abi.Event{Type: abi.EventDeath, Cause: cause, Conn: zombie(cookie)}
}

func heldBy(pid uint32, comm string) abi.FDHolder {
	o := abi.FDHolder{PID: pid, FD: 3}
	copy(o.Comm[:], comm)
	return o
}

// collect runs a collector of a kernel until the test ends, by when all its goroutines
// have ended. The process uses no CPU time.
func collect(t *testing.T, k *fakeKernel, opts Options) *Collector {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	c := New(k, opts)
	c.processCPU = func() time.Duration { return 0 }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	synctest.Wait() // until it has begun
	return c
}

// reasonsOf returns the reasons that hold and that the fake kernel decides: not those
// that are about this process.
func reasonsOf(c *Collector) (codes []string) {
	for _, f := range c.Degraded() {
		switch f.Reason {
		case ReasonProcessesHidden, ReasonDescriptorsRefused, ReasonCgroupsRefused:
		default:
			codes = append(codes, f.Reason.String())
		}
	}
	return codes
}

// verdicts counts the connections that are followed, by verdict.
func verdicts(t *testing.T, c *Collector) (counts [conn.Verdicts]uint64) {
	t.Helper()
	s, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for state := range s.Connections {
		for v, n := range s.Connections[state] {
			counts[v] += n
		}
	}
	return counts
}
