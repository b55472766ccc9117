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
	"golang.org/x/time/rate"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// watchSpacing is the least time between a watch pass and an additional one, in
	// durations of the pass.
	watchSpacing = 10
	// ownersSpacing is the least time between two searches for owners, ownersShare the
	// most that they take of one core.
	ownersSpacing = 500 * time.Millisecond
	ownersShare   = 0.02
	// ownersSpacingMost is the most time between two searches, also after one that hung.
	ownersSpacingMost = 5 * time.Minute
	// awaitedSpacing and awaitedShare apply while a subscriber waits for owners.
	awaitedSpacing = 250 * time.Millisecond
	awaitedShare   = 0.05
	// ownTablesShare is the most that a census spends on the own hash tables of network
	// namespaces, as a part of Options.CensusCPU, in addition to it. Any user can make
	// such a table large, and that must not delay the census of the others.
	ownTablesShare = 0.25
	// flushTimeout is the longest wait for the event reader to catch up.
	flushTimeout = time.Second
)

// Options are the settings of a [Collector]. The zero value of a field means its default.
type Options struct {
	// IdleAfter is the time without data after which a connection is idle or unguarded
	// (default 5m). The kernel programs count these connections: give bpf.Options the
	// same value.
	IdleAfter time.Duration
	// StalledAfter is the time with a closed window after which a connection is stalled
	// (default 10s).
	StalledAfter time.Duration
	// ZombieUnanswered unanswered solicitations in a row and a silence of ZombieSilence
	// make a connection a zombie (default 3 and 10s).
	ZombieUnanswered int
	ZombieSilence    time.Duration
	// Middleboxes are how long NATs and load balancers remember a silent flow (default
	// [conn.DefaultMiddleboxTimeout]). The kernel programs find the connections at risk: give
	// bpf.Options the same values.
	Middleboxes conn.Middleboxes
	// ExcludeOwners are the owners whose connections the shipped alerts leave out: they have
	// series of their own.
	ExcludeOwners conn.OwnerGlobs
	// UnreadAfter is how long an application may leave received data before the connection is
	// unread (default 30s). The kernel programs find these: give bpf.Options the same value.
	UnreadAfter time.Duration
	// CensusInterval is the time between two censuses (default 15s).
	CensusInterval time.Duration
	// CensusCPU is the share of one core for the censuses and all else that the agent does
	// (default 0.01). Half of it is always for the censuses. Their interval grows as needed.
	CensusCPU float64
	// Record, if not nil, is called with every fact, in the order in which the tracker
	// gets them. It must not wait, and must copy Event and Conn if it keeps them.
	Record func(*conn.Fact)
	// Privileged, if not nil, does what this process has no privileges for.
	Privileged Privileged
	Logger     *slog.Logger
}

func (o *Options) setDefaults() {
	o.IdleAfter = cmp.Or(o.IdleAfter, 5*time.Minute)
	o.StalledAfter = cmp.Or(o.StalledAfter, 10*time.Second)
	o.ZombieUnanswered = cmp.Or(o.ZombieUnanswered, 3)
	o.ZombieSilence = cmp.Or(o.ZombieSilence, 10*time.Second)
	o.Middleboxes.Default = cmp.Or(o.Middleboxes.Default, conn.DefaultMiddleboxTimeout)
	o.UnreadAfter = cmp.Or(o.UnreadAfter, 30*time.Second)
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
		Middleboxes:      o.Middleboxes,
		UnreadAfter:      o.UnreadAfter,
		HZ:               hz,
	}
}

// Collector follows every connection in trouble or with unread data, and reads all others when it is asked. It
// is safe for concurrent use.
type Collector struct {
	kernel  Kernel
	cgroups *cgroups
	// detailPaths leaves half of the questions about paths to obstaclesLoop, however many
	// connections are asked for.
	detailPaths *rate.Limiter
	lookedOnce  bool // by LookOnce
	opts        Options
	rules       conn.Rules
	log         *slog.Logger
	ready       atomic.Bool
	// processCPU returns the CPU time that this process has used.
	processCPU func() time.Duration
	drops      listenDrops // of takeCensus

	recheck         chan time.Duration // the time after which a watch pass is useful
	ownersWanted    chan struct{}      // a search for owners is useful
	obstaclesWanted chan struct{}      // a look at the paths of connections in trouble is useful
	censusWanted    chan struct{}      // a census is due now: the first one with rows
	rowsChanged     chan struct{}      // see RowsChanged

	mu      sync.Mutex // of the fields below, up to rowsTried
	tracker *conn.Tracker
	census  CensusStats
	budget  budget
	counts  abi.CensusCounts
	// atRiskByOwner is what riskOwners returned last. It is replaced, never changed.
	atRiskByOwner map[conn.OwnerLabel]int
	subs          map[*Subscription]struct{}
	// awaiting are the notices that wait for their owners, oldest first.
	awaiting      []awaiting
	awaitingEnded bool // Run has ended: no search for owners will follow
	awaitingTimed bool // a timer will deliver the first one
	rowsFollowed  bool // rows are wanted: the next census has them
	rowsTried     bool // a census that should have had rows has ended, even if it failed

	reader struct { // the state of readEvents
		sync.Mutex
		running   bool
		wanted    uint64     // how often awaitEvents was called
		caughtUp  uint64     // the last of these calls that it has served
		caughtUpC *sync.Cond // signals that caughtUp has changed, or that the reader has ended
	}
	undecodable atomic.Uint64
	failed      atomic.Uint64 // number of failed passes
	unwalked    atomic.Int64  // see Unwalked
	degraded    degradation
}

// New returns a collector for a kernel. Run makes it collect. Without Run, Connections reads
// the sockets once (and bpf.Options.Observe is not needed).
func New(k Kernel, opts Options) *Collector {
	opts.setDefaults()
	c := &Collector{kernel: k, cgroups: newCgroups(opts.Privileged), opts: opts, log: opts.Logger, subs: make(map[*Subscription]struct{})}
	c.detailPaths = rate.NewLimiter(flowPathsPerSecond/2, flowPathsAtOnce/2)
	c.recheck, c.ownersWanted, c.obstaclesWanted = make(chan time.Duration, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	c.censusWanted, c.rowsChanged = make(chan struct{}, 1), make(chan struct{}, 1)
	c.reader.caughtUpC = sync.NewCond(&c.reader)
	c.degraded.log = c.log
	c.rules = opts.Rules(k.HZ())
	c.tracker = conn.NewTracker(c.rules, c.publish)
	c.tracker.ExcludeOwners(opts.ExcludeOwners)
	c.census.Interval = opts.CensusInterval
	c.budget.share, c.processCPU = opts.CensusCPU, processCPU
	return c
}

// Run collects until the context ends, and then returns nil, or until reading from the
// kernel fails.
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
	g.Go(func() error { return c.obstaclesLoop(ctx) })
	g.Go(func() error { return c.dropsLoop(ctx) })
	g.Go(func() error { return c.censusLoop(ctx) })
	err := g.Wait()
	c.endAwaiting()
	if parent.Err() != nil {
		return nil
	}
	return err
}

// apply records a fact if Options.Record is set, and applies it to the tracker. It returns
// what [conn.Tracker.Apply] returns. The caller holds c.mu.
func (c *Collector) apply(f *conn.Fact) (recheckAfter time.Duration) {
	if c.opts.Record != nil {
		recorded := *f // or every fact would be allocated
		c.opts.Record(&recorded)
	}
	recheckAfter = c.tracker.Apply(f)
	if f.Kind == conn.FactEvent || f.Kind == conn.FactCensus {
		wake(c.obstaclesWanted)
	}
	if c.tracker.RowsChanged() {
		wake(c.rowsChanged)
	}
	return recheckAfter
}

// Options returns the options of the collector, with defaults filled in.
func (c *Collector) Options() Options { return c.opts }

// Ready reports whether the first census has ended.
func (c *Collector) Ready() bool { return c.ready.Load() }
