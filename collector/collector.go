// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

const (
	// watchInterval is how often the sockets under watch are looked at: an
	// answer is noticed within it, and so is a silence that got long enough.
	watchInterval = 500 * time.Millisecond
	// watchSpacing is how many times its own duration a watch pass waits at
	// least, when it is taken out of turn.
	watchSpacing = 10
	// Owners are looked for at most this often, and within this share of a core.
	ownersSpacing = 500 * time.Millisecond
	ownersShare   = 0.02
	// ownersAgain is when an owner that was not found, or may have changed, is
	// looked for again.
	ownersAgain = 30 * time.Second
	// ownTablesShare is the part of what censuses may take of a core that hash tables
	// of namespaces' own may take besides: any user can make large ones, which are to
	// put off no census of the others.
	ownTablesShare = 0.25
	// flushTimeout bounds the wait for the event reader to catch up.
	flushTimeout = time.Second
)

// IdleBounds are the upper bounds of Stats.Idle, for bpf.Options: round times,
// and among them the usual limits of middleboxes (240 s, 350 s, 10 min, 15 min,
// 20 min) and Linux's keepalive time (2 h).
var IdleBounds = []time.Duration{
	time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute,
	4 * time.Minute, 5 * time.Minute, 350 * time.Second, 10 * time.Minute, 15 * time.Minute,
	20 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 12 * time.Hour,
	24 * time.Hour, 5 * 24 * time.Hour,
}

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
	Logger    *slog.Logger
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

// Collector correlates what the kernel tells: it knows every connection in
// trouble, and can look at all others. Safe for concurrent use.
type Collector struct {
	kernel *bpf.Kernel
	groups *groups
	opts   Options
	log    *slog.Logger
	ready  atomic.Bool

	settles chan time.Duration // a watch pass is worth while by then
	news    chan struct{}      // somebody's owner is worth looking for

	mu     sync.Mutex // of all below
	table  *Table
	census CensusStats
	budget budget
	counts bpf.CensusCounts
	subs   map[*Subscription]struct{}

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

// New makes a collector of loaded programs. Run makes it collect; without Run,
// Connections looks once by itself (bpf.Options.Observe is not needed then).
func New(k *bpf.Kernel, opts Options) *Collector {
	opts.setDefaults()
	c := &Collector{kernel: k, groups: newGroups(), opts: opts, log: opts.Logger, subs: make(map[*Subscription]struct{})}
	c.settles, c.news = make(chan time.Duration, 1), make(chan struct{}, 1)
	c.reader.caughtUpC = sync.NewCond(&c.reader)
	c.degraded.log = c.log
	c.table = NewTable(Rules{
		IdleAfter:        opts.IdleAfter,
		StalledAfter:     opts.StalledAfter,
		ZombieUnanswered: opts.ZombieUnanswered,
		ZombieSilence:    opts.ZombieSilence,
		MiddleboxTimeout: opts.MiddleboxTimeout,
		HZ:               k.HZ(),
	}, c.publish)
	c.census.Interval = opts.CensusInterval
	c.budget.share = opts.CensusCPU
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
	c.lookAround()
	g.Go(func() error { return c.degraded.watch(ctx) })
	g.Go(func() error { return c.readEvents(ctx) })
	g.Go(func() error { return c.lookAfter(ctx) })
	g.Go(func() error { return c.findOwners(ctx) })
	g.Go(func() error { return c.takeCensuses(ctx) })
	err := g.Wait()
	if parent.Err() != nil {
		return nil
	}
	return err
}

// sameMoment is one moment on both clocks. Go's own is CLOCK_MONOTONIC as well,
// but does not tell its reading; and to ask the kernel for each event would cost as
// much as the event does.
var sameMoment = sync.OnceValues(func() (then time.Time, mono time.Duration) {
	least := time.Duration(math.MaxInt64)
	for range 10 { // not to be interrupted between the two
		var ts unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic(err) // this clock is always there
		}
		if took := time.Since(before); took < least {
			least, then, mono = took, before.Add(took/2), time.Duration(ts.Nano())
		}
	}
	return then, mono
})

// wall translates the kernel's clock (CLOCK_MONOTONIC, ns), as of now.
func wall(mono uint64) time.Time {
	then, monoThen := sameMoment()
	now := time.Now()
	return now.Add(time.Duration(mono) - monoThen - now.Sub(then))
}

func (c *Collector) readEvents(ctx context.Context) error {
	defer func() {
		c.reader.Lock()
		c.reader.running = false
		c.reader.caughtUpC.Broadcast()
		c.reader.Unlock()
	}()
	var e bpf.Event
	for {
		// Flushes may become one, which answers only those who wanted it before
		// we began to find the ring empty.
		c.reader.Lock()
		wanted := c.reader.wanted
		c.reader.Unlock()
		err := c.kernel.ReadEvent(&e)
		switch {
		case errors.Is(err, bpf.ErrFlushed):
			c.reader.Lock()
			c.reader.caughtUp = wanted
			c.reader.caughtUpC.Broadcast()
			again := c.reader.wanted > wanted
			c.reader.Unlock()
			if again {
				_ = c.kernel.Flush()
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, bpf.ErrUndecodable):
			c.undecodable.Add(1)
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		default:
			at := wall(e.Conn.At)
			c.mu.Lock()
			settles := c.table.Event(&e, at)
			c.mu.Unlock()
			if settles > 0 {
				select {
				case c.settles <- settles:
				default: // one is on its way already
				}
			}
		}
	}
}

// catchUp waits until every event that the kernel has sent so far is taken in.
func (c *Collector) catchUp() {
	c.reader.Lock()
	defer c.reader.Unlock()
	if !c.reader.running {
		return
	}
	c.reader.wanted++
	mine := c.reader.wanted
	if c.kernel.Flush() != nil {
		return
	}
	expired := false
	timer := time.AfterFunc(flushTimeout, func() {
		c.reader.Lock()
		expired = true
		c.reader.caughtUpC.Broadcast()
		c.reader.Unlock()
	})
	defer timer.Stop()
	for c.reader.running && c.reader.caughtUp < mine && !expired {
		c.reader.caughtUpC.Wait()
	}
}

// lookAfter takes watch passes: regularly, and when the newest of a row of
// solicitations has had the time to be answered.
func (c *Collector) lookAfter(ctx context.Context) error {
	for {
		began := time.Now()
		var settles time.Duration
		c.attempt(ctx, passWatch, func() (err error) {
			settles, err = c.takeWatch()
			return err
		})
		least := time.Since(began) * watchSpacing
		next := began.Add(watchInterval)
		if settles > 0 {
			next = earlier(next, began.Add(max(settles, least)))
		}
		timer := time.NewTimer(time.Until(next))
	wait:
		for {
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case settles := <-c.settles:
				next = earlier(next, time.Now().Add(max(settles, least)))
				timer.Reset(time.Until(next))
			case <-timer.C:
				break wait
			}
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// takeWatch takes one watch pass and tells when another is worth while.
func (c *Collector) takeWatch() (settles time.Duration, err error) {
	var conns []bpf.Conn
	if err := c.kernel.Watch(func(conn *bpf.Conn) { conns = append(conns, *conn) }); err != nil {
		return 0, err
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range conns {
		at := now
		if conns[i].At != 0 {
			at = wall(conns[i].At)
		}
		if s := c.table.Watched(&conns[i], at); s > 0 && (settles == 0 || s < settles) {
			settles = s
		}
	}
	c.table.Sweep(now)
	return settles, nil
}

func (c *Collector) takeCensuses(ctx context.Context) error {
	for {
		interval := c.opts.CensusInterval
		c.attempt(ctx, passCensus, func() error {
			next, err := c.takeCensus(ctx)
			if err == nil {
				interval = next
			}
			return err
		})
		c.lookAround()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval):
		}
	}
}

// lookAround takes in what this process may do: a profile of a security module can
// change while it runs.
func (c *Collector) lookAround() {
	s := lookAround(c.kernel, c.groups)
	c.degraded.change(time.Now(), func(f *facts) { f.surroundings = s })
}

// budget keeps what the censuses take of a core, and all else that the process
// does, within a share.
type budget struct {
	share float64
	at    time.Time     // when the last census ended; zero: there was none
	spent time.Duration // by the process by then
}

// spacing is how long one census has to be from the next, of which the last took
// cpu and ended at a time, by when the process had spent that much.
func (b *budget) spacing(cpu time.Duration, at time.Time, spent time.Duration) time.Duration {
	left := b.share
	if !b.at.IsZero() {
		left -= float64(spent-b.spent-cpu) / float64(at.Sub(b.at))
	}
	b.at, b.spent = at, spent
	return time.Duration(float64(cpu) / max(left, b.share/2))
}

// processCPU is the time that this process has had of the cores.
func processCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// takeCensus takes one census and tells when the next is due.
func (c *Collector) takeCensus(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	var troubled []Seen
	ownTables := time.Duration(ownTablesShare * c.opts.CensusCPU * float64(c.opts.CensusInterval))
	res, err := c.kernel.PeriodicCensus(ctx, []uint8{bpf.ClassTrouble}, ownTables, func(conn *bpf.Conn) {
		troubled = append(troubled, Seen{*conn, wall(conn.At)})
	})
	if err != nil {
		return 0, err
	}
	ended := time.Now()
	c.degraded.change(ended, func(f *facts) { f.census(&res) })
	took := ended.Sub(began)
	var sockets uint64
	for _, classes := range res.Counts.Sockets {
		for _, n := range classes {
			sockets += n
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.Census(&res.Counts, troubled, began, ended, res.Unwalked...)
	c.counts = res.Counts
	c.census = CensusStats{
		At:         ended,
		Duration:   took,
		Interval:   max(c.opts.CensusInterval, c.budget.spacing(res.CPU, ended, processCPU())),
		Sockets:    sockets,
		Namespaces: res.Namespaces,
		Unvisited:  res.Unvisited,
		OwnTables:  len(res.OwnTables),
	}
	if !c.ready.Swap(true) {
		c.log.Info("First census taken", "sockets", sockets, "namespaces", res.Namespaces, "duration", took)
	}
	return c.census.Interval, nil
}

// findOwners finds who holds the connections in trouble, and held those that
// have just died, whenever there is news of such.
func (c *Collector) findOwners(ctx context.Context) error {
	var since time.Time
	for {
		began := time.Now()
		c.attempt(ctx, passOwners, func() error { return c.takeOwners(began, since) })
		since = began
		spacing := max(ownersSpacing, time.Duration(float64(time.Since(began))/ownersShare))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(spacing):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.news:
		case <-time.After(ownersAgain):
		}
	}
}

func (c *Collector) takeOwners(now, since time.Time) error {
	c.mu.Lock()
	wanted := c.table.ownerless(now, since)
	c.mu.Unlock()
	if len(wanted) == 0 {
		return nil
	}
	found, err := c.kernel.Owners(slices.Collect(maps.Keys(wanted)))
	if err != nil {
		return err
	}
	owners := make(map[uint64]owner, len(wanted))
	processes := make(processGroups)
	for cookie, cgroup := range wanted {
		owners[cookie] = c.ownerOf(processOf(found[cookie], nil), cgroup, processes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.own(owners)
	return nil
}

// initScope is where systemd itself runs, and so the group of the sockets that it
// opens for others (systemd.socket(5)).
const initScope = "/init.scope"

// ownerOf completes what is known of an owner. The socket's own group tells whose
// it is even after its process has gone; where there is none to tell (cgroup v1)
// or it is that of systemd, the process's does.
func (c *Collector) ownerOf(p *Process, cgroup uint64, processes processGroups) owner {
	group := c.groups.byID(cgroup)
	if p != nil && (group.tells() == 0 || group.Path == initScope) {
		if of := processes.of(p.PID); of.tells() > 0 || group.Path == "" {
			group = of
		}
	}
	return owner{p, group}
}

// processOf picks one of the descriptors that hold a socket: of the processes
// in pids, if there are such, the oldest: not a child that has just been forked and
// will execute another program.
func processOf(owners []bpf.Owner, pids []uint32) *Process {
	if len(owners) == 0 {
		return nil
	}
	other := func(o bpf.Owner) int {
		if slices.Contains(pids, o.Pid) {
			return 0
		}
		return 1
	}
	o := slices.MinFunc(owners, func(a, b bpf.Owner) int {
		return cmp.Or(cmp.Compare(other(a), other(b)), cmp.Compare(a.Started, b.Started), cmp.Compare(a.Pid, b.Pid), cmp.Compare(a.Fd, b.Fd))
	})
	return &Process{PID: o.Pid, Comm: unix.ByteSliceToString(o.Comm[:]), FD: o.Fd}
}

// Options are those that the collector was made with, and the defaults.
func (c *Collector) Options() Options { return c.opts }

// Ready tells whether the first census is done.
func (c *Collector) Ready() bool { return c.ready.Load() }

// Connections looks at the connections now. It returns how many the query selects,
// and at most q.Limit of them, worst first, to be ranged over once. Process and Group
// are filled in, for a batch at a time: an error of that comes last, in place of a
// connection.
func (c *Collector) Connections(ctx context.Context, q Query) (total int, conns iter.Seq2[*Connection, error], err error) {
	worst := worst{limit: q.Limit}
	err = c.each(ctx, &look{Query: q}, func(k *bpf.Conn, conn *Connection) {
		total++
		worst.add(k, conn)
	})
	if err != nil {
		return 0, nil, err
	}
	rows := worst.first()
	var batch []Connection
	next := func() error {
		n := min(len(rows), ownersBatch)
		batch = slices.Grow(batch[:0], n)
		for i, r := range rows[:n] {
			batch = append(batch, r.describe(&c.table.rules))
			rows[i] = nil // to be collected, however slow the reader is
		}
		rows = rows[n:]
		if err := ctx.Err(); err != nil || q.byOwner() {
			return err // the owners that decided are known
		}
		return c.fillOwners(batch, nil)
	}
	if err := next(); err != nil {
		return 0, nil, err
	}
	return total, func(yield func(*Connection, error) bool) {
		for len(batch) > 0 {
			for i := range batch {
				if !yield(&batch[i], nil) {
					return
				}
			}
			if err := next(); err != nil {
				yield(nil, err)
				return
			}
		}
	}, nil
}

// update takes in how a connection is now, and returns what there is to say of
// it.
func (c *Collector) update(k *bpf.Conn) (Connection, []Event) {
	at := wall(k.At)
	if k.Class == bpf.ClassNone {
		return c.table.rules.Describe(k, at), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.table.observe(k, at)
	var events []Event
	if s := c.table.stories[k.Cookie]; s != nil {
		events = slices.Clone(s.events)
	}
	return c.table.view(k, at, m), events
}

// FillOwners fills in Process and Group of those connections that have none yet,
// and that somebody holds.
func (c *Collector) FillOwners(conns []Connection) error { return c.fillOwners(conns, nil) }

// fillOwners prefers, where several processes hold a socket, one of pids.
func (c *Collector) fillOwners(conns []Connection, pids []uint32) error {
	var wanted []uint64
	for i := range conns {
		if conns[i].held() && (conns[i].Process == nil || len(pids) > 0) {
			wanted = append(wanted, conns[i].Cookie)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	owners, err := c.kernel.Owners(wanted)
	if err != nil {
		return err
	}
	processes := make(processGroups)
	for i := range conns {
		conn := &conns[i]
		if found := owners[conn.Cookie]; len(found) > 0 {
			conn.Process = processOf(found, pids)
		}
		if conn.held() && conn.Group.Path == "" {
			conn.Group = c.ownerOf(conn.Process, conn.Cgroup, processes).group
		}
	}
	return nil
}

// Detail is everything that is known of one connection.
type Detail struct {
	Connection
	Events      []Event // the recent ones, oldest first
	Explanation Explanation
}

// Connection looks at one connection now; nil when there is none of that cookie.
func (c *Collector) Connection(ctx context.Context, cookie uint64) (*Detail, error) {
	if cookie == 0 {
		return nil, nil
	}
	c.catchUp()
	var d *Detail
	var found bpf.Conn
	res, err := c.kernel.Find(ctx, cookie, func(k *bpf.Conn) {
		found = *k
		d = new(Detail)
		d.Connection, d.Events = c.update(k)
	})
	if err == nil && d == nil && len(res.Unwalked) > 0 {
		c.noteUnwalked(&res)
		return nil, fmt.Errorf("no connection with the cookie %s was found, and the hash tables of %d network namespaces take too long to look at: ss -e in the namespace shows it if it is there", FormatCookie(cookie), len(res.Unwalked))
	}
	if err != nil || d == nil {
		return nil, err
	}
	d.Explanation = c.table.rules.Explain(&found, &d.Connection, c.kernel.NetnsPath(found.Netns))
	one := []Connection{d.Connection}
	err = c.FillOwners(one)
	d.Connection = one[0]
	return d, err
}

// Deaths returns the latest deaths, newest first, at most limit (0: all that
// are kept), of the given causes (none: any), and how many are kept of them.
func (c *Collector) Deaths(causes []Cause, limit int) (total int, deaths []Death) {
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.eachDeath(func(d *Death) bool {
		if !anyOf(causes, d.Cause) {
			return true
		}
		total++
		if limit <= 0 || len(deaths) < limit {
			deaths = append(deaths, *d)
		}
		return true
	})
	return total, deaths
}

// NoticeKind is the kind of a [Notice].
type NoticeKind uint8

// The kinds of notices.
const (
	NoticeSolicitation NoticeKind = iota
	NoticeVerdict
	NoticeDeath
)

// Notice is what subscribers are told, as it happens.
type Notice struct {
	Kind       NoticeKind
	At         time.Time
	Connection Connection // as it is; its Evidence is that of the solicitation
	From       Verdict    // NoticeVerdict: the verdict before
	First      bool       // NoticeVerdict: it was so already when first seen; From means nothing
	Death      *Death     // NoticeDeath
}

// WithOwner returns the notice with the owner that the connection has, such as one
// filled in by [Collector.FillOwners]. The original and its Death stay as they are.
func (n Notice) WithOwner(c *Connection) Notice {
	n.Connection.Process, n.Connection.Group = c.Process, c.Group
	if n.Death != nil {
		death := *n.Death
		death.Process, death.Group = c.Process, c.Group
		n.Death = &death
	}
	return n
}

// Subscription delivers notices on C, which is never closed. A subscriber that
// does not keep up loses notices, and Dropped counts them.
type Subscription struct {
	C       <-chan Notice
	c       chan Notice
	of      *Collector
	dropped atomic.Uint64
}

// Close ends the delivery.
func (s *Subscription) Close() {
	if s.of == nil {
		return // made by hand, of a channel
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	delete(s.of.subs, s)
}

// Dropped is how many notices did not fit the buffer.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Subscribe delivers what happens from now on, through a buffer of that size.
func (c *Collector) Subscribe(buffer int) *Subscription {
	s := &Subscription{c: make(chan Notice, buffer), of: c}
	s.C = s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = struct{}{}
	return s
}

// publish runs under the lock: it must not wait.
func (c *Collector) publish(n Notice) {
	if n.Kind != NoticeSolicitation {
		select {
		case c.news <- struct{}{}:
		default: // there is some already
		}
	}
	for s := range c.subs {
		select {
		case s.c <- n:
		default:
			s.dropped.Add(1)
		}
	}
}

// Histogram counts observations: Counts[i] those <= Bounds[i] and above the
// bound before, the last those above every bound.
type Histogram struct {
	Bounds []float64 // seconds
	Counts []uint64  // one more than Bounds
	Sum    float64   // seconds
}

// Owner is a series of Stats.ZombiesByOwner.
type Owner struct {
	Name       string // any bytes; "" where nothing holds the socket
	RemotePort string // "" where the peer is a client
}

// Stats is everything the metrics need, from one moment.
type Stats struct {
	Connections    [States][Verdicts]uint64 // of states that are Judged
	Unjudged       [States]uint64           // of the others
	ZombieOldest   time.Duration            // 0: there is none
	AtRisk         [Risks]uint64
	Idle           Histogram // of the established connections at the last census
	ZombieSeconds  Histogram // of zombies that died or recovered
	ForecastError  Histogram // of deaths that had a forecast; absolute
	ZombiesByOwner map[Owner]int
	Watched        int
	Census         CensusStats
	Kernel         bpf.Counters
	Missed         map[string]uint64 // by program: did not run, since it was running
	Attached       map[string]bool   // by program
	EventsLost     map[string]uint64 // by type, beyond Kernel.Lost
	Degraded       []Finding         // why not everything is seen
}

// CensusStats tells about the last census.
type CensusStats struct {
	At         time.Time // zero: there was none yet
	Duration   time.Duration
	Interval   time.Duration // until the next
	Sockets    uint64
	Namespaces int
	Unvisited  int // namespaces with connections that could not be given a cookie
	OwnTables  int // namespaces with a hash table of connections of their own
}

// Stats reads everything the metrics need. The kernel's counters are read
// first and their events taken in before the rest: what has been counted as a
// death is no longer among the connections.
func (c *Collector) Stats() (Stats, error) {
	counters, err := c.kernel.Counters()
	if err != nil {
		return Stats{}, err
	}
	missed, err := c.kernel.Missed()
	if err != nil {
		return Stats{}, err
	}
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	s := Stats{
		Idle:           idleHistogram(&c.counts, c.table.rules.HZ),
		ZombieSeconds:  c.table.zombieSeconds,
		ForecastError:  c.table.forecastError,
		ZombiesByOwner: make(map[Owner]int),
		Watched:        len(c.table.members),
		Census:         c.census,
		Kernel:         counters,
		Missed:         missed,
		Attached:       c.kernel.Attached(),
		Degraded:       c.Degraded(),
		EventsLost: map[string]uint64{
			"undecodable": c.undecodable.Load(),
			"pass_failed": c.failed.Load(),
			"table_full":  c.table.overflowed,
		},
	}
	s.Kernel.Deaths[CauseUnknown] += c.table.unseen
	s.ZombieSeconds.Counts = slices.Clone(s.ZombieSeconds.Counts)
	s.ForecastError.Counts = slices.Clone(s.ForecastError.Counts)
	for state := range States {
		for verdict, n := range c.table.counts[state] {
			s.Connections[state][verdict] = uint64(n)
		}
	}
	for state, classes := range c.counts.Sockets {
		if st := stateOf(uint8(state)); int(st) < States && !st.Judged() {
			for _, n := range classes {
				s.Unjudged[st] += n
			}
		}
	}
	copy(s.AtRisk[:], c.counts.Risks[:])
	for _, m := range c.table.members {
		if m.verdict != Zombie {
			continue
		}
		s.ZombieOldest = max(s.ZombieOldest, now.Sub(m.since))
		whose := Connection{Process: m.owner.process, Group: m.owner.group}
		s.ZombiesByOwner[Owner{Name: whose.Owner(), RemotePort: servicePort(m.conn.Rport)}]++
	}
	return s, nil
}

// ephemeralFrom is where Linux's default ip_local_port_range begins.
const ephemeralFrom = 32768

// servicePort is a remote port fit for a label: that of a service, "" for that
// of a client.
func servicePort(port uint16) string {
	if port >= ephemeralFrom {
		return ""
	}
	return strconv.Itoa(int(port))
}

func idleHistogram(counts *bpf.CensusCounts, hz int) Histogram {
	h := Histogram{Sum: float64(counts.IdleSum) / float64(hz)}
	for i, bound := range IdleBounds {
		h.Bounds = append(h.Bounds, bound.Seconds())
		h.Counts = append(h.Counts, counts.Idle[i])
	}
	var above uint64
	for _, n := range counts.Idle[len(IdleBounds):] {
		above += n
	}
	h.Counts = append(h.Counts, above)
	return h
}
