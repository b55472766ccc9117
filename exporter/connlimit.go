// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

const (
	// maxConns is the largest number of open HTTP connections, if there are enough
	// descriptors. An idle one takes about 34 KB.
	maxConns = 512
	// connShare is the share of all descriptors that HTTP connections may have. Each
	// can need three at once: its socket, the web config file, and the certificate. The
	// passes over the kernel's sockets need as many as the HTTP connections.
	connShare = 4
	// waitingAfter is how long a connection may take to send a whole request before it
	// counts as waiting.
	waitingAfter = time.Second
	// answeringAfter is how long an answer may take before it counts as long.
	answeringAfter = 2 * time.Second
	// closeTimeout bounds the wait for the descriptor of a closed connection.
	closeTimeout = 100 * time.Millisecond
	// acceptPause and maxAcceptPause bound the pause between two tries to accept a
	// connection after an error.
	acceptPause    = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// A ConnLimit bounds the HTTP connections of all listeners together. For one more, it
// closes a connection of the client that has most: the oldest that waits for the client
// (idle, or its request is not complete), else one whose answer takes long, else the
// oldest. So every new connection gets in, even if all clients have one address, that
// of a proxy. It is a prometheus.Collector of the connections, and safe for concurrent
// use.
type ConnLimit struct {
	max    int
	full   *minuteLog
	failed *minuteLog
	open   prometheus.GaugeFunc
	closed *prometheus.CounterVec

	mu      sync.Mutex
	conns   map[net.Conn]*httpConn // also those that are being closed
	clients map[netip.Prefix]int   // how many each has, without those
	count   int                    // the sum of these
}

// An httpConn is the state of a connection.
type httpConn struct {
	client  netip.Prefix
	state   http.ConnState
	since   time.Time // when the state began
	closing bool
	gone    chan struct{} // closed when the server has finished with it
}

// rank orders connections by what closing one would lose, the least first: it has
// waited for its client for a while, its answer takes long, it has just begun to wait,
// its answer is on its way.
func (c *httpConn) rank(now time.Time) int {
	active, age := c.state == http.StateActive, now.Sub(c.since)
	switch {
	case !active && age >= waitingAfter:
		return 0
	case active && age >= answeringAfter:
		return 1
	case !active:
		return 2
	}
	return 3
}

// NewConnLimit makes a limit that leaves enough descriptors of RLIMIT_NOFILE for the
// agent's own work.
func NewConnLimit(logger *slog.Logger) *ConnLimit {
	limit := maxConns
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil { // Go has raised it to the hard limit
		limit = int(min(maxConns, max(1, files.Cur/connShare)))
	}
	return newConnLimit(limit, logger)
}

func newConnLimit(limit int, logger *slog.Logger) *ConnLimit {
	l := &ConnLimit{
		max:    limit,
		full:   newMinuteLog(logger, "There are too many HTTP connections: the oldest of the client with most were closed"),
		failed: newMinuteLog(logger, "HTTP connections cannot be accepted, and have to wait"),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "halfopen_http_connections_closed_total",
			Help: "HTTP connections closed because there were too many, by what they were doing.",
		}, []string{"state"}),
		conns:   make(map[net.Conn]*httpConn),
		clients: make(map[netip.Prefix]int),
	}
	l.open = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "halfopen_http_connections",
		Help: "Open HTTP connections.",
	}, func() float64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return float64(l.count)
	})
	for _, s := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle} {
		l.closed.WithLabelValues(s.String())
	}
	return l
}

// Describe implements prometheus.Collector.
func (l *ConnLimit) Describe(ch chan<- *prometheus.Desc) {
	l.open.Describe(ch)
	l.closed.Describe(ch)
}

// Collect implements prometheus.Collector.
func (l *ConnLimit) Collect(ch chan<- prometheus.Metric) {
	l.open.Collect(ch)
	l.closed.Collect(ch)
}

// clientOf returns the client of an address with a port: an IPv4 address, an IPv6
// network of 64 bits, since a host can have all its addresses, or this host. The
// clients of Unix sockets are one client, the invalid prefix.
func clientOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 64
	switch {
	case addr.IsLoopback():
		addr, bits = netip.AddrFrom4([4]byte{127}), 8
	case addr.Is4():
		bits = 32
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// connState is the ConnState hook of every server that the limit is for. The server
// calls it before it accepts the next connection.
func (l *ConnLimit) connState(nc net.Conn, state http.ConnState) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn() // closing the TLS connection would write to the client
	}
	switch state {
	case http.StateNew:
		l.add(nc)
	case http.StateActive, http.StateIdle:
		l.mu.Lock()
		defer l.mu.Unlock()
		if c := l.conns[nc]; c != nil {
			c.state, c.since = state, time.Now()
		}
	case http.StateClosed, http.StateHijacked:
		l.remove(nc)
	}
}

func (l *ConnLimit) add(nc net.Conn) {
	c := &httpConn{client: clientOf(nc.RemoteAddr().String()), state: http.StateNew, since: time.Now(), gone: make(chan struct{})}
	l.mu.Lock()
	l.conns[nc] = c
	l.clients[c.client]++
	l.count++
	tooMany := l.count > l.max
	flooded := len(l.conns) > 2*l.max // that many handlers of closed connections still run
	l.mu.Unlock()
	if flooded {
		l.full.note(fmt.Sprintf("the limit is %d", l.max))
		nc.Close() // the server then calls connState, which removes it
		return
	}
	if tooMany && l.closeOne(c) {
		l.full.note(fmt.Sprintf("the limit is %d", l.max))
	}
}

func (l *ConnLimit) remove(nc net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conns[nc]
	if c == nil {
		return
	}
	delete(l.conns, nc)
	if !c.closing {
		l.uncount(c)
	}
	close(c.gone)
}

func (l *ConnLimit) uncount(c *httpConn) {
	l.count--
	if l.clients[c.client]--; l.clients[c.client] == 0 {
		delete(l.clients, c.client)
	}
}

// closeOne closes a connection other than the newcomer, if there is one, and waits
// until its descriptor is free.
func (l *ConnLimit) closeOne(newcomer *httpConn) bool {
	l.mu.Lock()
	nc, c := l.choose(newcomer, time.Now())
	if c == nil {
		l.mu.Unlock()
		return false
	}
	c.closing = true
	l.uncount(c)
	state := c.state
	l.mu.Unlock()
	l.closed.WithLabelValues(state.String()).Inc()
	nc.Close()
	if state == http.StateActive {
		return true // its handler may run on, but the descriptor is free
	}
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-c.gone:
	case <-timeout.C:
	}
	return true
}

// choose returns the connection to close. It is never the newcomer.
func (l *ConnLimit) choose(newcomer *httpConn, now time.Time) (chosen net.Conn, c *httpConn) {
	for nc, o := range l.conns {
		if !o.closing && o != newcomer && (c == nil || l.sooner(o, c, now)) {
			chosen, c = nc, o
		}
	}
	return chosen, c
}

// sooner reports whether to close a rather than b.
func (l *ConnLimit) sooner(a, b *httpConn, now time.Time) bool {
	if m, n := l.clients[a.client], l.clients[b.client]; m != n {
		return m > n
	}
	if v, w := a.rank(now), b.rank(now); v != w {
		return v < w
	}
	return a.since.Before(b.since)
}

// listener returns a listener whose Accept fails only after Close. If there are no
// descriptors left, it closes a connection to free one, and tries again.
func (l *ConnLimit) listener(of net.Listener) net.Listener { return &limitedListener{of, l} }

type limitedListener struct {
	net.Listener
	limit *ConnLimit
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for pause := acceptPause; ; pause = min(2*pause, maxAcceptPause) {
		c, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		l.limit.failed.note(err.Error())
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			l.limit.closeOne(nil)
		}
		time.Sleep(pause)
	}
}
