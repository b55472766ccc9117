// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// watchSpacing is how many times its own duration a watch pass waits at
	// least, when it is taken out of turn.
	watchSpacing = 10
	// Owners are searched for at most this often, and within this share of a core.
	ownersSpacing = 500 * time.Millisecond
	ownersShare   = 0.02
	// A search that hung is no reason to wait for hours until the next one.
	ownersSpacingMost = 5 * time.Minute
	// So they are while a subscriber waits for them.
	awaitedSpacing = 250 * time.Millisecond
	awaitedShare   = 0.05
	// ownTablesShare is the part of what censuses may take of a core that hash tables
	// of namespaces' own may take besides: any user can make large ones, which are to
	// put off no census of the others.
	ownTablesShare = 0.25
	// flushTimeout bounds the wait for the event reader to catch up.
	flushTimeout = time.Second
)

// Options are what the user can set. The zero value of a field is its default.
type Options struct {
	// IdleAfter without data a connection is idle or unguarded (default 5m).
	// It is counted in the kernel: give bpf.Options the same value.
	IdleAfter time.Duration
	// StalledAfter with a closed window a connection is stalled (default 10s).
	StalledAfter time.Duration
	// ZombieUnanswered solicitations in a row, and ZombieSilence, make a zombie
	// (default 3 and 10s).
	ZombieUnanswered int
	ZombieSilence    time.Duration
	// MiddleboxTimeout is how long a NAT or load balancer remembers a silent
	// flow (default 350s). The kernel finds those at risk: give bpf.Options the
	// same value.
	MiddleboxTimeout time.Duration
	// CensusInterval between two censuses (default 15s).
	CensusInterval time.Duration
	// CensusCPU is the share of one core that censuses may take, together with
	// whatever else the agent does, which leaves at least half of it to them: the
	// interval stretches accordingly (default 0.01).
	CensusCPU float64
	// Record, if not nil, is called with every fact, in the order in which the tracker
	// gets them. It must not wait, and must copy Event and Conn if it keeps them.
	Record func(*conn.Fact)
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	o.IdleAfter = cmp.Or(o.IdleAfter, 5*time.Minute)
	o.StalledAfter = cmp.Or(o.StalledAfter, 10*time.Second)
	o.ZombieUnanswered = cmp.Or(o.ZombieUnanswered, 3)
	o.ZombieSilence = cmp.Or(o.ZombieSilence, 10*time.Second)
	o.MiddleboxTimeout = cmp.Or(o.MiddleboxTimeout, 350*time.Second)
	o.CensusInterval = cmp.Or(o.CensusInterval, 15*time.Second)
	o.CensusCPU = cmp.Or(o.CensusCPU, 0.01)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Rules returns the rules that follow from the options, on a kernel that counts so many
// jiffies a second.
func (o Options) Rules(hz int) conn.Rules {
	o.setDefaults()
	return conn.Rules{
		IdleAfter:        o.IdleAfter,
		StalledAfter:     o.StalledAfter,
		ZombieUnanswered: o.ZombieUnanswered,
		ZombieSilence:    o.ZombieSilence,
		MiddleboxTimeout: o.MiddleboxTimeout,
		HZ:               hz,
	}
}

// Collector correlates what the kernel tells: it knows every connection in
// trouble, and can look at all others. Safe for concurrent use.
type Collector struct {
	kernel  Kernel
	cgroups *cgroups
	opts    Options
	rules   conn.Rules
	log     *slog.Logger
	ready   atomic.Bool
	// processCPU returns the CPU time that this process has used.
	processCPU func() time.Duration

	recheck      chan time.Duration // a watch pass is worth while by then
	ownersWanted chan struct{}      // a search for owners is worth while
	censusWanted chan struct{}      // a census is due now: the first that has rows
	rowsChanged  chan struct{}      // see RowsChanged

	mu      sync.Mutex // of all below
	tracker *conn.Tracker
	census  CensusStats
	budget  budget
	counts  abi.CensusCounts
	subs    map[*Subscription]struct{}
	// awaiting are the notices that wait for their owners, oldest first.
	awaiting      []awaiting
	awaitingEnded bool // nobody searches for owners any more
	awaitingTimed bool // a timer delivers the first in time
	rowsFollowed  bool // the next census has rows
	rowsTried     bool // one that should have had rows has ended

	reader struct { // the reading of events
		sync.Mutex
		running   bool
		wanted    uint64     // how often somebody wanted it to catch up
		caughtUp  uint64     // the last of these that it did
		caughtUpC *sync.Cond // it did, or the reading ended
	}
	undecodable atomic.Uint64
	failed      atomic.Uint64 // passes
	unwalked    atomic.Int64  // see Unwalked
	degraded    degradation
}

// New makes a collector of a kernel. Run makes it collect; without Run,
// Connections looks once by itself (bpf.Options.Observe is not needed then).
func New(k Kernel, opts Options) *Collector {
	opts.setDefaults()
	c := &Collector{kernel: k, cgroups: newCgroups(), opts: opts, log: opts.Logger, subs: make(map[*Subscription]struct{})}
	c.recheck, c.ownersWanted = make(chan time.Duration, 1), make(chan struct{}, 1)
	c.censusWanted, c.rowsChanged = make(chan struct{}, 1), make(chan struct{}, 1)
	c.reader.caughtUpC = sync.NewCond(&c.reader)
	c.degraded.log = c.log
	c.rules = opts.Rules(k.HZ())
	c.tracker = conn.NewTracker(c.rules, c.publish)
	c.census.Interval = opts.CensusInterval
	c.budget.share, c.processCPU = opts.CensusCPU, processCPU
	return c
}

// Run collects until the context ends (nil) or the kernel side fails.
func (c *Collector) Run(parent context.Context) error {
	g, ctx := errgroup.WithContext(parent)
	c.reader.Lock()
	c.reader.running = true
	c.reader.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.kernel.Flush() })
	defer stop()
	c.checkEnvironment()
	g.Go(func() error { return c.degraded.watch(ctx) })
	g.Go(func() error { return c.readEvents(ctx) })
	g.Go(func() error { return c.watchLoop(ctx) })
	g.Go(func() error { return c.ownersLoop(ctx) })
	g.Go(func() error { return c.censusLoop(ctx) })
	err := g.Wait()
	c.endAwaiting()
	if parent.Err() != nil {
		return nil
	}
	return err
}

// apply records a fact, if facts are recorded, and has the tracker take it in. It
// returns what [conn.Tracker.Apply] does. The caller holds c.mu.
func (c *Collector) apply(f *conn.Fact) (recheckAfter time.Duration) {
	if c.opts.Record != nil {
		recorded := *f // or every fact would be allocated
		c.opts.Record(&recorded)
	}
	recheckAfter = c.tracker.Apply(f)
	if c.tracker.RowsChanged() {
		wake(c.rowsChanged)
	}
	return recheckAfter
}

// Options are those that the collector was made with, and the defaults.
func (c *Collector) Options() Options { return c.opts }

// Ready tells whether the first census is done.
func (c *Collector) Ready() bool { return c.ready.Load() }
