// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// An expectedEnd is how one socket ended, as known from outside the agent.
type expectedEnd struct {
	scenario string // and family
	cookie   string
	cause    string
	during   string
	errno    string // "*" is any: no application was left to get it
	state    string
	orderly  bool // an orderly end: it is counted, and told only if there was trouble before

	local, remote netip.AddrPort

	// It ended between these moments; zero: some time in the run.
	alive, dead time.Time

	hidden     bool // from every program, see referenceTracer
	maybe      bool // or it was an orderly end
	unforeseen bool // something else kept the kernel from ending it in time, or made it
}

// The classes that the packets of a socket may have, and what becomes of them.
const (
	passes = 4 * iota
	vanishes
	netUnreachable
	hostUnreachable
	portUnreachable
	adminProhibited
	hostProhibited
	sourceProhibited
)

var refusals = map[uint8]lab.Unreachable{
	netUnreachable: lab.NetUnreachable, hostUnreachable: lab.HostUnreachable,
	portUnreachable: lab.PortUnreachable, adminProhibited: lab.AdminProhibited,
	hostProhibited: lab.HostProhibited, sourceProhibited: lab.SourceProhibited,
}

// errnoOf is what the application gets to know of a refusal
// (icmp_err_convert, icmpv6_err_convert).
func errnoOf(class uint8, family string) string {
	v6 := family == "ipv6"
	switch class {
	case netUnreachable:
		return "ENETUNREACH"
	case portUnreachable:
		return "ECONNREFUSED"
	case sourceProhibited:
		if v6 {
			return "EACCES"
		}
		return "ENETUNREACH"
	case adminProhibited:
		if v6 {
			return "EACCES"
		}
	}
	return "EHOSTUNREACH"
}

// quickSysctls are the kernel's settings in all namespaces of the scenarios: they keep
// timeouts short.
var quickSysctls = map[string]string{
	"net.ipv4.tcp_retries2":                       "3",
	"net.ipv4.tcp_orphan_retries":                 "2",
	synLinear:                                     "0",
	"net.ipv4.tcp_synack_retries":                 "0",
	"net.ipv4.tcp_fastopen":                       "3",
	"net.ipv4.tcp_fastopen_blackhole_timeout_sec": "0",
	"net.ipv4.tcp_fin_timeout":                    "30",
	"net.ipv4.tcp_no_metrics_save":                "1", // a slow round trip is not remembered for the next
}

// fixture is a lab in which scenarios are played: its sockets can be told apart by
// class, and what became of each is written down.
type fixture struct {
	*lab.Lab
	t              testing.TB
	began          time.Time
	client, server *lab.Diag
	open, narrow   map[string]*acceptor // by family

	mu       sync.Mutex
	expected []expectedEnd
	failed   []string
	// The connections of runs that failed, and how many ends of connections those are.
	abandoned     map[[2]netip.AddrPort]bool
	abandonedEnds int
	// What became of the comparison.
	wrong, unknown int
}

// acceptor is a listener, with the connections it has accepted that no scenario has taken
// yet.
type acceptor struct {
	addr netip.AddrPort
	mu   sync.Mutex
	in   map[int]chan *net.TCPConn // by the client's port
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	l, err := lab.NewIn(subnet)
	if err != nil {
		t.Fatal(err)
	}
	s := &fixture{Lab: l, t: t, began: time.Now(), abandoned: map[[2]netip.AddrPort]bool{}, open: map[string]*acceptor{}, narrow: map[string]*acceptor{}}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, n := range []*lab.Namespace{l.Client, l.Server} {
		sysctls(t, n, quickSysctls)
	}
	// An orphan of the server's in fin_wait2 stays a full socket for a while.
	if err := l.Server.Sysctl("net.ipv4.tcp_fin_timeout", "90"); err != nil {
		t.Fatal(err)
	}
	for n, d := range map[*lab.Namespace]**lab.Diag{l.Client: &s.client, l.Server: &s.server} {
		diag, err := n.Diag()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(diag.Close)
		*d = diag
	}
	if _, err := l.Client.Drop(lab.Rule{Class: vanishes, Percent: 100}); err != nil {
		t.Fatal(err)
	}
	for class, why := range refusals {
		if _, err := l.Client.Reject(lab.Rule{Class: class, Direction: lab.Out, Percent: 100}, why); err != nil {
			t.Fatal(err)
		}
	}
	for family, addr := range map[string]netip.Addr{"ipv4": l.Server.Addr4(), "ipv6": l.Server.Addr6()} {
		s.open[family] = s.receive(netip.AddrPortFrom(addr, 7000), 0)
		s.narrow[family] = s.receive(netip.AddrPortFrom(addr, 7001), 4096)
	}
	return s
}

// receive opens an acceptor; buffer is the receive buffer of its sockets, if not 0.
func (s *fixture) receive(addr netip.AddrPort, buffer int) *acceptor {
	s.t.Helper()
	l, err := s.Server.Listen("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	if buffer > 0 {
		if err := onFD(l, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
		}); err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Cleanup(func() { l.Close() })
	in := &acceptor{addr: addr, in: map[int]chan *net.TCPConn{}}
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			in.of(c.RemoteAddr().(*net.TCPAddr).Port) <- c
		}
	}()
	return in
}

// of is where the connection from a port is handed over.
func (l *acceptor) of(port int) chan *net.TCPConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.in[port]
	if c == nil {
		c = make(chan *net.TCPConn, 1)
		l.in[port] = c
	}
	return c
}

func (l *acceptor) forget(port int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.in, port)
}

// onFD runs f on a socket's descriptor.
func onFD(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// A scenarioRun is one scenario being played. Its methods end it when something is not
// as it must be.
type scenarioRun struct {
	*fixture
	name   string
	family string
	rng    *rand.Rand
	undo   []func()
	// The addresses of sockets that were to be connected, by cookie.
	attempts map[string][2]netip.AddrPort

	pairs   [][2]netip.AddrPort // of its connections
	ends    []expectedEnd
	failure string
}

// play runs a scenario to its end; f runs in a goroutine of its own. On a machine that is
// too busy a scenario may be late for what it wants to do, and its sockets end otherwise
// than it says: it finds that out itself, without the agent, and is played again.
func (s *fixture) play(name, family string, rng *rand.Rand, f func(*scenarioRun)) {
	var failures []string
	for range 5 {
		failure := s.playOnce(name, family, rng, f)
		if failure == "" {
			return
		}
		failures = append(failures, failure)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, failures...)
}

// playOnce runs a scenario once, and returns why it failed.
func (s *fixture) playOnce(name, family string, rng *rand.Rand, f func(*scenarioRun)) (failure string) {
	t := &scenarioRun{fixture: s, name: name + " over " + family, family: family, rng: rng, attempts: map[string][2]netip.AddrPort{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range t.undo {
				f()
			}
		}()
		f(t)
	}()
	<-done
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.failure == "" {
		s.expected = append(s.expected, t.ends...)
		return ""
	}
	for _, pair := range t.pairs {
		if !s.abandoned[pair] {
			s.abandonedEnds += 2
		}
		s.abandoned[pair], s.abandoned[[2]netip.AddrPort{pair[1], pair[0]}] = true, true
	}
	return t.failure
}

// mustPlayOnce runs a scenario that cannot be played again.
func (s *fixture) mustPlayOnce(name, family string, rng *rand.Rand, f func(*scenarioRun)) {
	if failure := s.playOnce(name, family, rng, f); failure != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed = append(s.failed, failure)
	}
}

// fail ends the run.
func (t *scenarioRun) fail(format string, args ...any) {
	t.failure = fmt.Sprintf("%s: %s", t.name, fmt.Sprintf(format, args...))
	runtime.Goexit()
}

func (t *scenarioRun) must(err error) {
	if err != nil {
		t.fail("%v (%s)", err, caller())
	}
}

// caller is where the scenario is.
func caller() string {
	var pcs [10]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		if !more || strings.HasSuffix(frame.File, "scenario_test.go") {
			return fmt.Sprintf("line %d", frame.Line)
		}
	}
}

// scenarioTimeout bounds every wait: the longest-lived socket lives for some seconds.
const scenarioTimeout = 2 * time.Minute

// until waits for a condition.
func (t *scenarioRun) until(what string, ok func() bool) {
	if !poll(10*time.Millisecond, scenarioTimeout, ok) {
		t.fail("never: %s (%s)", what, caller())
	}
}

// between is a random duration.
func (t *scenarioRun) between(from, to time.Duration) time.Duration {
	return from + time.Duration(t.rng.Int64N(int64(to-from)))
}

func (t *scenarioRun) expect(f expectedEnd) {
	f.scenario = t.name
	if a, ok := t.attempts[f.cookie]; ok {
		f.local, f.remote = a[0], a[1]
	}
	t.ends = append(t.ends, f)
}

// An endpoint is one end of a connection.
type endpoint struct {
	*net.TCPConn
	t             *scenarioRun
	diag          *lab.Diag
	cookie        uint64
	local, remote netip.AddrPort
	unforeseen    bool
	maybeClosed   bool
}

// Close closes the socket, with which no child that is just being made is left.
func (e *endpoint) Close() error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return e.TCPConn.Close()
}

// awaitForks waits until no child that is just being made has the descriptors of this process. A
// close(2) that may wait for seconds must not hold the lock, as Close does.
func awaitForks() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
}

func (t *scenarioRun) endpoint(c *net.TCPConn, d *lab.Diag) *endpoint {
	t.undo = append(t.undo, func() { c.Close() })
	cookie, err := lab.Cookie(c)
	t.must(err)
	local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	t.pairs = append(t.pairs, [2]netip.AddrPort{local, remote})
	return &endpoint{TCPConn: c, t: t, diag: d, cookie: cookie, local: local, remote: remote}
}

// pair connects the client to the server.
func (t *scenarioRun) pair() (client, server *endpoint) { return t.pairAt(t.open[t.family]) }

func (t *scenarioRun) pairAt(l *acceptor) (client, server *endpoint) {
	ctx, cancel := context.WithTimeout(context.Background(), scenarioTimeout)
	defer cancel()
	c, err := t.Client.Dial(ctx, l.addr)
	t.must(err)
	client = t.endpoint(c, t.client)
	port := int(client.local.Port())
	defer l.forget(port)
	select {
	case c = <-l.of(port):
		return client, t.endpoint(c, t.server)
	case <-ctx.Done():
		t.fail("nobody accepted")
		return nil, nil
	}
}

// class sets what happens to the packets that the endpoint sends from now on.
func (e *endpoint) class(class uint8) { e.t.must(lab.SetClass(e, class)) }

func (e *endpoint) write(n int) {
	_, err := e.Write(make([]byte, n))
	e.t.must(err)
}

func (e *endpoint) info() *unix.TCPInfo {
	info, err := lab.Info(e)
	e.t.must(err)
	return info
}

// The kernel's numbers of states.
const (
	stateEstablished = 1
	stateSynRecv     = 3
	stateFinWait2    = 5
	stateClose       = 7
)

// timerTimeWait is how sock_diag shows that a time_wait socket has taken over.
const timerTimeWait = 3

// eof reads to the peer's FIN.
func (e *endpoint) eof() {
	_ = e.SetReadDeadline(time.Now().Add(scenarioTimeout))
	if _, err := io.Copy(io.Discard, e.TCPConn); err != nil {
		e.t.fail("want the peer's FIN: %v", err)
	}
}

// wait waits, asleep, until ok is true of the socket; what changes it must be
// something that wakes a reader.
func (e *endpoint) wait(what string, ok func(fd int) bool) {
	raw, err := e.SyscallConn()
	e.t.must(err)
	_ = e.SetReadDeadline(time.Now().Add(scenarioTimeout))
	if err := raw.Read(func(fd uintptr) bool { return ok(int(fd)) }); err != nil {
		e.t.fail("never: %s: %v (%s)", what, err, caller())
	}
}

func stateOf(fd int) uint8 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return info.State
}

// dies waits for the socket's end, and checks the error that its application
// gets.
func (e *endpoint) dies(cause, during, errno, state string) {
	var dead time.Time
	e.wait("its end", func(fd int) bool {
		dead = time.Now()
		return stateOf(fd) == stateClose
	})
	var got int
	e.t.must(onFD(e, func(fd int) (err error) {
		got, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	}))
	if name := unix.ErrnoName(syscall.Errno(got)); name != errno {
		e.t.fail("the application got %q, expected %q: the scenario is not what it should be (%s)", name, errno, caller())
	}
	e.t.expect(expectedEnd{
		cookie: fmt.Sprintf("%x", e.cookie), local: e.local, remote: e.remote, cause: cause, during: during, errno: errno, state: state,
		alive: dead.Add(-latency), dead: dead, unforeseen: e.unforeseen,
	})
	e.Close()
}

// latency bounds how late a test usually hears of the end of a socket.
const latency = 250 * time.Millisecond

// disappears waits until an orphan is not to be seen any more.
func (e *endpoint) disappears(cause, during, errno, state string) {
	alive := time.Now()
	e.t.until("gone", func() bool {
		_, err := e.diag.Find(e.local, e.remote, e.cookie)
		if err == nil {
			alive = time.Now()
		}
		return err != nil
	})
	e.t.expect(expectedEnd{
		cookie: fmt.Sprintf("%x", e.cookie), local: e.local, remote: e.remote, cause: cause, during: during, errno: errno, state: state,
		alive: alive.Add(-latency), dead: time.Now(), unforeseen: e.unforeseen, maybe: e.maybeClosed,
	})
}

// reaches waits until the socket has a state, as seen from outside.
func (e *endpoint) reaches(state uint8) {
	e.t.until(fmt.Sprintf("state %d", state), func() bool {
		now, err := e.diag.Find(e.local, e.remote, e.cookie)
		return err == nil && now.State == state
	})
}

// abort closes with SO_LINGER 0.
func (e *endpoint) abort(state string) {
	e.t.must(e.SetLinger(0))
	before := time.Now()
	e.Close()
	e.t.expect(expectedEnd{
		cookie: fmt.Sprintf("%x", e.cookie), local: e.local, remote: e.remote, cause: "aborted", state: state, alive: before, dead: time.Now(),
	})
}

// closes is an orderly end that is over once the socket is gone, or lives on in
// time_wait.
func (e *endpoint) closes(state string) {
	e.t.until("closed", func() bool {
		now, err := e.diag.Find(e.local, e.remote, e.cookie)
		return err != nil || now.Timer == timerTimeWait
	})
	e.t.expect(expectedEnd{cookie: fmt.Sprintf("%x", e.cookie), local: e.local, remote: e.remote, cause: "closed", state: state, orderly: true})
}

// poller asks the agent for all deaths and forecasts, again and again.
type poller struct {
	a      *agent
	client http.Client

	mu        sync.Mutex
	deaths    map[string]death
	again     []death // told twice
	forecasts map[string][]polledForecast
	errs      []error
}

// polledForecast is the `gives_up` of a connection, and when it was asked for.
type polledForecast struct {
	asked    time.Time
	answered time.Time
	of       json.RawMessage // the connection
	At       time.Time       `json:"at"`
	In       float64         `json:"in_seconds"`
	LatestIn float64         `json:"latest_in_seconds"`
	By       string          `json:"by"`
}

func (f *polledForecast) latest() time.Time {
	return f.At.Add(time.Duration((f.LatestIn - f.In) * float64(time.Second)))
}

func startPoller(ctx context.Context, a *agent) (g *poller, done chan struct{}) {
	g = &poller{a: a, deaths: map[string]death{}, forecasts: map[string][]polledForecast{}}
	done = make(chan struct{})
	var wg sync.WaitGroup
	for _, ask := range []func() error{g.askDeaths, g.askForecasts} {
		wg.Go(func() {
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				if err := ask(); err != nil {
					g.mu.Lock()
					g.errs = append(g.errs, err)
					g.mu.Unlock()
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() {
		wg.Wait()
		close(done)
	}()
	return g, done
}

// get asks over a connection that is kept, so that asking ends none.
func (g *poller) get(path string, into any) error {
	resp, err := g.client.Get(g.a.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (g *poller) askDeaths() error {
	for limit := 500; ; limit = 4096 {
		var list struct {
			Total  int     `json:"total"`
			Deaths []death `json:"deaths"`
		}
		if err := g.get(fmt.Sprintf("/api/v1/deaths?limit=%d", limit), &list); err != nil {
			return err
		}
		known := false
		g.mu.Lock()
		for _, d := range list.Deaths {
			old, ok := g.deaths[d.Cookie]
			known = known || ok
			if !ok {
				g.deaths[d.Cookie] = d
			} else if !old.At.Equal(d.At) {
				g.again = append(g.again, d)
			}
		}
		g.mu.Unlock()
		if known || len(list.Deaths) == list.Total {
			return nil
		}
		if limit == 4096 {
			return errors.New("more than 4096 deaths between two questions")
		}
	}
}

func (g *poller) askForecasts() error {
	var list struct {
		Connections []json.RawMessage `json:"connections"`
	}
	asked := time.Now()
	if err := g.get("/api/v1/connections?verdict=suspect&verdict=zombie&verdict=stalled&limit=100000", &list); err != nil {
		return err
	}
	answered := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, of := range list.Connections {
		var c struct {
			Cookie  string          `json:"cookie"`
			GivesUp *polledForecast `json:"gives_up"`
		}
		if err := json.Unmarshal(of, &c); err != nil {
			return err
		}
		if c.GivesUp != nil {
			c.GivesUp.asked, c.GivesUp.answered, c.GivesUp.of = asked, answered, of
			g.forecasts[c.Cookie] = append(g.forecasts[c.Cookie], *c.GivesUp)
		}
	}
	return nil
}

// describe prints all of a death object.
func describe(d death) string {
	b, err := json.Marshal(d)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// compare compares what the agent told of the fixture's sockets with how they ended. Of
// those that were hidden from it, it may say nothing, or that it does not know.
func (s *fixture) compare(t *testing.T, g *poller) {
	s.t.Helper()
	for _, failure := range s.failed {
		s.report("%s", failure)
	}
	hidden := deathTracer.hiddenDeaths(t)
	isHidden := func(f *expectedEnd) bool {
		return slices.ContainsFunc(hidden, func(d hiddenDeath) bool { return d.is(f, s.began) })
	}
	// The last deaths may still be on their way. What is missing then is reported.
	poll(100*time.Millisecond, 10*patience*time.Second, func() bool { return s.allTold(g, isHidden) })
	g.mu.Lock()
	defer g.mu.Unlock()
	known := map[string]bool{}
	for i := range s.expected {
		f := &s.expected[i]
		known[f.cookie] = true
		s.compareEnd(g, f, isHidden(f))
	}
	s.checkOthers(g, known)
}

// report fails the test and counts what is wrong.
func (s *fixture) report(format string, args ...any) {
	s.t.Helper()
	s.wrong++
	s.t.Errorf(format, args...)
}

// allTold returns whether the agent has told of all deaths that it must tell of.
func (s *fixture) allTold(g *poller, isHidden func(*expectedEnd) bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range s.expected {
		f := &s.expected[i]
		if _, told := g.deaths[f.cookie]; !told && !f.orderly && !f.maybe && !isHidden(f) {
			return false
		}
	}
	return true
}

// compareEnd compares what the agent told of one socket with how it ended.
func (s *fixture) compareEnd(g *poller, f *expectedEnd, isHidden bool) {
	s.t.Helper()
	d, told := g.deaths[f.cookie]
	if f.maybe && !told && !isHidden {
		f.cause, f.orderly = "closed", true
	}
	f.hidden = isHidden && (!told || d.Cause == "unknown")
	switch {
	case f.hidden:
	case !told && !f.orderly:
		s.report("%s: the agent told nothing of %s, which ended by %s (%s) in %s", f.scenario, f.cookie, f.cause, f.errno, f.state)
	case told:
		if d.Cause == "unknown" {
			s.unknown++
		}
		if !f.is(&d) {
			s.report("%s: expected of %s %s, during %q, errno %q, in %s; the agent says %s, during %q, errno %q, in %s: %s",
				f.scenario, f.cookie, f.cause, f.during, f.errno, f.state, d.Cause, d.During, d.Errno, d.State, describe(d))
		}
	}
}

// is returns whether the agent told of a death as it was expected.
func (f *expectedEnd) is(d *death) bool {
	return d.Cause == f.cause && d.During == f.during && (f.state == "*" || d.State == f.state) && (f.errno == "*" || d.Errno == f.errno)
}

// checkOthers checks that the agent told of no known death twice, and of no death in the
// fixture's namespaces that is not known. known has the cookies.
func (s *fixture) checkOthers(g *poller, known map[string]bool) {
	s.t.Helper()
	for _, d := range g.again {
		if known[d.Cookie] {
			s.report("the agent told of %s twice: %s", d.Cookie, describe(d))
		}
	}
	for _, d := range g.deaths {
		// The inode of a namespace may have been that of an earlier one.
		ours := (d.Netns == s.Client.Inode() || d.Netns == s.Server.Inode()) && d.At.After(s.began)
		if ours && !known[d.Cookie] && len(s.failed) == 0 && !s.abandoned[d.pair()] {
			s.report("nobody knows of the death of %s: %s", d.Cookie, describe(d))
		}
	}
}

// pair are both ends of a connection.
func (c *connection) pair() (pair [2]netip.AddrPort) {
	for i, end := range []struct {
		IP   string
		Port int
	}{{c.Local.IP, c.Local.Port}, {c.Remote.IP, c.Remote.Port}} {
		addr, _ := netip.ParseAddr(end.IP)
		pair[i] = netip.AddrPortFrom(addr, uint16(end.Port))
	}
	return pair
}

// clockSkew is by how much the agent's clock, which turns jiffies into the time of
// day, may differ from ours.
const clockSkew = time.Millisecond

// forecastStats counts how the agent's forecasts did.
type forecastStats struct {
	deaths, asked int // that had a forecast, and one asked for a second before
	missed        int // it was not between at and latest, by our clock
	agentMissed   int // by the agent's own
	wide          int // more room than the timers' own slack
	notes         []string
	ahead         time.Duration  // a death that the agent told to be so much later than it can have been
	missedBy      map[string]int // ours and the agent's, by scenario
}

// slack is by how much the timers that are still to come before a death can be
// late altogether.
func slack(in time.Duration, hz int) time.Duration {
	// Timers that double from 200 ms, or come every second: more of the latter
	// fit, each of which is late by up to its level's granularity. The one that
	// is pending may have been armed for longer than what is left of it.
	jiffy := time.Second / time.Duration(hz)
	var sum time.Duration
	if in < time.Second {
		return granularity(hz) * jiffy
	}
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		sum += granularity(int(wait/jiffy)) * jiffy
		if in -= wait; in <= 0 {
			return sum
		}
	}
}

// granularity is that of the timer wheel, in jiffies, for a timer so far away.
func granularity(jiffies int) time.Duration {
	g := time.Duration(1)
	for limit := 63; jiffies >= limit && g < 8<<18; limit *= 8 {
		g *= 8
	}
	return g
}

// checkForecasts compares the forecasts that the agent made for the fixture's sockets with
// how they ended.
func (s *fixture) checkForecasts(g *poller, hz int, f *forecastStats, traced tracedEnds) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, end := range s.expected {
		d, ok := g.deaths[end.cookie]
		if !ok || d.Cause != end.cause || end.unforeseen || end.dead.IsZero() {
			continue
		}
		if d.ForecastErrorSeconds != nil {
			f.deaths++
			if *d.ForecastErrorSeconds != 0 {
				f.agentMissed++
				f.missedBy[end.scenario]++
				f.notes = append(f.notes, fmt.Sprintf("%s: the agent's error is %v s: %s", end.scenario, *d.ForecastErrorSeconds, describe(d)))
			}
		}
		traced.sharpen(&end)
		var last *polledForecast
		for i := range g.forecasts[end.cookie] {
			c := &g.forecasts[end.cookie][i]
			if c.By == end.cause && end.dead.Sub(c.asked) >= time.Second {
				last = c
			}
		}
		if last == nil {
			continue
		}
		f.asked++
		f.ahead = max(f.ahead, d.At.Sub(end.dead))
		if last.At.After(end.dead.Add(clockSkew)) || last.latest().Before(end.alive) {
			f.missed++
			f.missedBy[end.scenario]++
			f.notes = append(f.notes, fmt.Sprintf("%s: forecast %v before for %v to %v later, died after %v to %v, answered after %v: %s was %s", end.scenario,
				end.dead.Sub(last.asked), last.At.Sub(last.asked), last.latest().Sub(last.asked), end.alive.Sub(last.asked), end.dead.Sub(last.asked), last.answered.Sub(last.asked), describe(d), last.of))
		}
		in := time.Duration(last.In * float64(time.Second))
		// Both ends are rounded to milliseconds.
		if room := last.latest().Sub(last.At); room > slack(in, hz)+in/100+time.Millisecond {
			f.wide++
			f.notes = append(f.notes, fmt.Sprintf("%s: %v before, the forecast leaves room of %v, the timers %v", end.scenario, in, room, slack(in, hz)))
		}
	}
}

// jiffies reads how many a second has, from the kernel's own list of timers.
func jiffies(t *testing.T) int {
	read := func() (n int64, at time.Time) {
		list, err := os.ReadFile("/proc/timer_list")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(list)) {
			if _, err := fmt.Sscanf(line, "jiffies: %d", &n); err == nil {
				return n, time.Now()
			}
		}
		t.Fatal("no jiffies in /proc/timer_list")
		return 0, time.Time{}
	}
	n0, t0 := read()
	time.Sleep(500 * time.Millisecond) // long enough to tell the rates apart
	n1, t1 := read()
	measured := float64(n1-n0) / t1.Sub(t0).Seconds()
	for _, hz := range []int{100, 250, 300, 1000} {
		if measured > 0.9*float64(hz) && measured < 1.1*float64(hz) {
			return hz
		}
	}
	t.Fatalf("%v jiffies a second", measured)
	return 0
}

// seed is $HALFOPEN_SEED, or a random one; it is printed, to play the same again.
func seed(t *testing.T) uint64 {
	var base uint64
	if s := os.Getenv("HALFOPEN_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &base); err != nil {
			t.Fatalf("HALFOPEN_SEED: %v", err)
		}
	} else {
		base = rand.Uint64()
	}
	t.Logf("HALFOPEN_SEED=%d", base)
	return base
}
