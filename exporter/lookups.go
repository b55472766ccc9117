// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

const (
	// savedCPU is the time in which the unused share of a CPU adds up, at most.
	savedCPU = 10 * time.Second
	// tcpPart is the part of the share that one client of TCP may take.
	tcpPart = 0.5
	// maxLookupWait is how long a request waits for its look-up to begin.
	maxLookupWait = 10 * time.Second
	// At most maxWaiting requests wait for a look-up, and maxClientWaiting of one client.
	maxWaiting       = 128
	maxClientWaiting = maxWaiting / 4
)

// Lookups bounds the CPU time of look-ups: the requests that read connections, groups or
// deaths. Clients of TCP have a share of one core, and clients of Unix sockets as much
// again, so that the commands work on a machine whose agent others keep busy. A client is an
// address (see clientOf), which may take half the share, or a user of a Unix socket.
//
// A look-up begins while there is CPU time left, and what it takes beyond that is missing
// to the next ones. It is the turn of the client that has most time left. For each share,
// one look-up runs at a time, and one more whose answer is large: it may write the answer
// meanwhile. Requests wait for a short time, and are refused then. Equal requests that wait
// for a look-up share it: no answer is older than its request.
//
// It is a prometheus.Collector of the look-ups, and safe for concurrent use.
type Lookups struct {
	tcp, unix lookupGroup
	metrics   lookupMetrics
}

type lookupMetrics struct {
	cpu     prometheus.Counter
	refused *prometheus.CounterVec
	cut     prometheus.Counter
}

// NewLookups makes Lookups with a share of one core.
func NewLookups(share float64) *Lookups {
	l := &Lookups{metrics: lookupMetrics{
		cpu: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "halfopen_http_lookups_cpu_seconds_total",
			Help: "CPU time of the look-ups of HTTP clients: connections, groups and deaths.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "halfopen_http_lookups_refused_total",
			Help: "Look-ups refused because their share of the CPU was used up, by one client or by all.",
		}, []string{"reason"}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "halfopen_http_answers_cut_total",
			Help: "Answers cut off because their client read too slowly while others waited.",
		}),
	}}
	for _, reason := range []string{refusedClient.reason, refusedAll.reason} {
		l.metrics.refused.WithLabelValues(reason)
	}
	l.tcp.part, l.unix.part = tcpPart, 1
	for _, g := range []*lookupGroup{&l.tcp, &l.unix} {
		g.share, g.metrics = share, &l.metrics
		g.all = cpuAccount{g.most(), time.Now()}
		g.clients, g.shared, g.requests = make(map[lookupClient]*cpuAccount), make(map[string]*lookup), make(map[*lookupRequest]*lookup)
		g.timer = time.AfterFunc(time.Hour, g.wake)
	}
	return l
}

// Describe implements prometheus.Collector.
func (l *Lookups) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(l, ch) }

// Collect implements prometheus.Collector.
func (l *Lookups) Collect(ch chan<- prometheus.Metric) {
	l.metrics.cpu.Collect(ch)
	l.metrics.refused.Collect(ch)
	l.metrics.cut.Collect(ch)
}

// of returns the share that a request uses, and the client that it is of.
func (l *Lookups) of(r *http.Request) (*lookupGroup, lookupClient) {
	if p, ok := RequestPeer(r.Context()); ok {
		return &l.unix, lookupClient{user: p.UID}
	}
	return &l.tcp, lookupClient{address: clientOf(r.RemoteAddr)}
}

// lookupClient is a client as its look-ups are counted.
type lookupClient struct {
	address netip.Prefix
	user    uint32 // of a Unix socket
}

// cpuAccount is the CPU time that may still be used, negative if too much was.
type cpuAccount struct {
	balance time.Duration
	at      time.Time // when balance was right
}

// settle adds the share of a core of the time since, up to most.
func (a *cpuAccount) settle(now time.Time, share float64, most time.Duration) {
	a.balance = min(most, a.balance+time.Duration(share*float64(now.Sub(a.at))))
	a.at = now
}

// wait returns how long it takes until CPU time is left.
func (a *cpuAccount) wait(share float64) time.Duration {
	if a.balance > 0 {
		return 0
	}
	return time.Duration(float64(-a.balance)/share) + time.Millisecond
}

// lookupGroup is the look-ups that use one share.
type lookupGroup struct {
	share   float64 // of one core
	part    float64 // of the share: what one client may take
	metrics *lookupMetrics

	mu       sync.Mutex
	all      cpuAccount
	clients  map[lookupClient]*cpuAccount // those that have less than they may save
	waiting  []*lookup                    // oldest first
	requests map[*lookupRequest]*lookup   // of those
	shared   map[string]*lookup           // those of them that further requests may share
	running  [2]*lookup                   // and one with a large answer
	timer    *time.Timer                  // for the next that may begin
}

// lookup is a look-up that one request has asked for, or several equal ones.
type lookup struct {
	key      string // equal for equal requests, "" if no other request may share it
	lane     int    // laneSmall or laneLarge
	requests map[*lookupRequest]bool
	payer    lookupClient
	begun    bool
	ended    bool
	ctx      context.Context // ends when no request is left
	cancel   context.CancelFunc
	run      func(*lookup) // called in a goroutine of its own when it begins
	ready    chan struct{} // closed by run, when the requests may go on
	answer   *answer       // set before ready is closed; nil in laneLarge
	out      *answerWriter // in laneLarge: what writes the answer
}

const (
	laneSmall = iota
	laneLarge
)

// lookupRequest is a request that waits.
type lookupRequest struct {
	client  lookupClient
	refused chan *refusal // gets the reason if the request has to give way
}

// most returns how much CPU time can be saved.
func (g *lookupGroup) most() time.Duration { return time.Duration(g.share * float64(savedCPU)) }

// account returns the account of a client, as it is now.
func (g *lookupGroup) account(c lookupClient, now time.Time) *cpuAccount {
	most := time.Duration(g.part * float64(g.most()))
	a := g.clients[c]
	if a == nil {
		return &cpuAccount{balance: most, at: now}
	}
	a.settle(now, g.share*g.part, most)
	return a
}

// wait returns how long a client has to wait for CPU time, and why.
func (g *lookupGroup) wait(c lookupClient, now time.Time) (time.Duration, *refusal) {
	g.all.settle(now, g.share, g.most())
	client := g.account(c, now).wait(g.share * g.part)
	if all := g.all.wait(g.share); all > client {
		return all, lookupsBusy
	}
	return client, lookupsOfClient
}

// charge takes CPU time that a look-up has used from its share, and from its client.
func (g *lookupGroup) charge(l *lookup, cpu time.Duration) {
	g.metrics.cpu.Add(cpu.Seconds())
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.all.settle(now, g.share, g.most())
	g.all.balance -= cpu
	a := g.account(l.payer, now)
	a.balance -= cpu
	g.clients[l.payer] = a
	most := time.Duration(g.part * float64(g.most()))
	for c, a := range g.clients {
		if a.settle(now, g.share*g.part, most); a.balance == most {
			delete(g.clients, c)
		}
	}
}

var (
	lookupsOfClient = &refusal{refusedClient.reason, http.StatusTooManyRequests, errors.New("this client has used up its share of the CPU for look-ups")}
	lookupsBusy     = &refusal{refusedAll.reason, http.StatusServiceUnavailable, errors.New("the share of the CPU for look-ups is used up")}
)

// join has a look-up for a request of a client: one that waits already for equal requests,
// or the new one l. It returns when the look-up is ready, or a refusal and the time after
// which to ask again, or none of these if the request has ended.
func (g *lookupGroup) join(ctx context.Context, client lookupClient, l *lookup) (*lookup, *refusal, time.Duration) {
	q := &lookupRequest{client: client, refused: make(chan *refusal, 1)}
	g.mu.Lock()
	wait, why := g.wait(client, time.Now())
	if wait <= maxLookupWait {
		why = g.makeRoom(client)
	}
	if why != nil {
		g.mu.Unlock()
		return nil, g.refuse(why), wait
	}
	if equal := g.shared[l.key]; equal != nil {
		l = equal
	} else {
		l.requests, l.ready = make(map[*lookupRequest]bool), make(chan struct{})
		l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
		g.waiting = append(g.waiting, l)
		if l.key != "" {
			g.shared[l.key] = l
		}
	}
	l.requests[q], g.requests[q] = true, l
	g.next()
	g.mu.Unlock()

	patience := time.NewTimer(maxLookupWait)
	defer patience.Stop()
	for {
		select {
		case <-l.ready:
			return l, nil, 0
		case <-ctx.Done():
			g.leave(l, q)
			return nil, nil, 0
		case why := <-q.refused:
			return nil, g.refuse(why), time.Second
		case <-patience.C:
			if wait, why := g.giveUp(l, q); why != nil {
				return nil, g.refuse(why), wait
			}
		}
	}
}

func (g *lookupGroup) refuse(why *refusal) *refusal {
	g.metrics.refused.WithLabelValues(why.reason).Inc()
	return why
}

// makeRoom returns why no more requests of a client may wait, nil if one more may. If very
// many wait, a request of the client with most gives way to a client with fewer.
func (g *lookupGroup) makeRoom(client lookupClient) *refusal {
	count := make(map[lookupClient]int)
	for q := range g.requests {
		count[q.client]++
	}
	switch {
	case count[client] >= maxClientWaiting:
		return lookupsOfClient
	case len(g.requests) < maxWaiting:
		return nil
	}
	var most *lookupRequest
	for q := range g.requests {
		if most == nil || count[q.client] > count[most.client] {
			most = q
		}
	}
	if count[most.client] <= count[client]+1 {
		return lookupsBusy
	}
	g.remove(g.requests[most], most)
	most.refused <- lookupsOfClient
	return nil
}

// giveUp ends the wait of a request, unless its look-up has begun. It returns why it had to
// wait so long, and when to ask again.
func (g *lookupGroup) giveUp(l *lookup, q *lookupRequest) (time.Duration, *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.begun || g.requests[q] == nil { // or refused is about to be read
		return 0, nil
	}
	g.remove(l, q)
	wait, why := g.wait(q.client, time.Now())
	if wait == 0 {
		why = lookupsBusy // with the look-up that runs
	}
	return wait, why
}

// leave ends the part that a request has in a look-up.
func (g *lookupGroup) leave(l *lookup, q *lookupRequest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(l, q)
}

// remove removes a request from a look-up, which ends with its last request.
func (g *lookupGroup) remove(l *lookup, q *lookupRequest) {
	delete(g.requests, q)
	delete(l.requests, q)
	if len(l.requests) > 0 {
		return
	}
	l.cancel()
	switch {
	case !l.begun:
		g.take(l)
	case l.lane == laneLarge: // it was for this request to run and end it
		g.endOne(l)
	}
}

// take removes a look-up from those that wait.
func (g *lookupGroup) take(l *lookup) {
	g.waiting = slices.DeleteFunc(g.waiting, func(o *lookup) bool { return o == l })
	if g.shared[l.key] == l {
		delete(g.shared, l.key)
	}
}

func (g *lookupGroup) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next()
}

// next begins the look-ups that may begin now, and sets the timer for the next.
func (g *lookupGroup) next() {
	now := time.Now()
	soonest := time.Hour
	for lane := range g.running {
		l, payer, wait := g.choose(lane, now)
		switch held := g.running[lane]; {
		case l == nil:
		case held != nil && lane == laneLarge:
			soonest = min(soonest, held.out.giveWay(held.payer != payer))
		case held != nil:
		case wait == 0:
			g.begin(l, payer)
		default:
			soonest = min(soonest, wait)
		}
	}
	g.timer.Reset(soonest)
}

// choose returns the look-up whose turn is next in a lane, the client that pays for it, and
// how long it has to wait for CPU time.
func (g *lookupGroup) choose(lane int, now time.Time) (chosen *lookup, payer lookupClient, wait time.Duration) {
	var most time.Duration
	for _, l := range g.waiting {
		if l.lane != lane {
			continue
		}
		for q := range l.requests {
			if balance := g.account(q.client, now).balance; chosen == nil || balance > most {
				chosen, payer, most = l, q.client, balance
			}
		}
	}
	if chosen != nil {
		wait, _ = g.wait(payer, now)
	}
	return chosen, payer, wait
}

func (g *lookupGroup) begin(l *lookup, payer lookupClient) {
	g.take(l)
	for q := range l.requests {
		delete(g.requests, q)
	}
	l.begun, l.payer = true, payer
	g.running[l.lane] = l
	go l.run(l)
}

// end ends a look-up that has begun, so that the next one can begin.
func (g *lookupGroup) end(l *lookup) {
	l.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endOne(l)
}

func (g *lookupGroup) endOne(l *lookup) {
	if !l.ended {
		l.ended = true
		g.running[l.lane] = nil
		g.next()
	}
}

// A cpuMeter measures the CPU time of the calling thread, to which it binds the goroutine.
type cpuMeter struct {
	group  *lookupGroup
	lookup *lookup
	last   time.Duration
}

func (g *lookupGroup) measure(l *lookup) *cpuMeter {
	runtime.LockOSThread()
	return &cpuMeter{g, l, threadCPU()}
}

// charge charges the CPU time since the last charge.
func (m *cpuMeter) charge() {
	now := threadCPU()
	m.group.charge(m.lookup, now-m.last)
	m.last = now
}

// end charges the rest.
func (m *cpuMeter) end() {
	m.charge()
	runtime.UnlockOSThread()
}

// threadCPU returns the CPU time that the calling thread has used.
func threadCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
