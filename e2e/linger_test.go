// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A closing is a close(2) of a connection whose peer acknowledges nothing.
type closing struct {
	linger    int    // SO_LINGER, in seconds; -1: off
	retries   string // tcp_orphan_retries; 0: 8, and none once a wait is the longest, which is a second
	state     string
	older     bool          // the agent starts after close(2)
	interrupt time.Duration // a signal comes so long after close(2); 0: none
}

var closings = map[string]closing{
	"without SO_LINGER":              {linger: -1, retries: "3", state: "fin_wait1"},
	"without, by default":            {linger: -1, retries: "0", state: "fin_wait1"},
	"with SO_LINGER":                 {linger: 4, retries: "3", state: "fin_wait1"},
	"with SO_LINGER, by default":     {linger: 4, retries: "0", state: "fin_wait1"},
	"with SO_LINGER, last":           {linger: 4, retries: "3", state: "last_ack"},
	"with SO_LINGER, interrupted":    {linger: 50, retries: "3", state: "fin_wait1", interrupt: 4 * time.Second},
	"with SO_LINGER, before we look": {linger: 8, retries: "3", state: "fin_wait1", older: true},
}

// While close(2) waits (SO_LINGER), tcp_retries2 applies, and then the rules for orphans do: the
// first forecast of the connection in trouble holds the end.
func TestForecastOfAClosedConnection(t *testing.T) {
	for name, c := range closings {
		t.Run(name, func(t *testing.T) {
			if c.retries == "0" && !hasRTOMax(t) {
				leftOut(t, t.Name(), "the timeout takes minutes without TCP_RTO_MAX_MS")
				return
			}
			families(t, func(t *testing.T, n *network) { c.check(t, n) })
		})
	}
}

func (c *closing) check(t *testing.T, n *network) {
	var a *agent
	if !c.older {
		a = sharedAgent(t)
	}
	conn := c.connect(t, n)
	cookie := cookieOf(t, conn)
	n.cut(droppedPort)
	n.write(conn)
	began := time.Now()
	thread, closed := closeOnThread(conn)
	if c.older {
		a = startAgent(t)
	}
	first := a.forecastOfOrphan(cookie)
	if c.linger > 0 {
		says := fmt.Sprintf("close(2) waits until the peer has acknowledged everything, for up to %ds", c.linger)
		if x := explainOf(t, cookie, "--url", a.url); !strings.Contains(strings.Join(x.Explanation.Doing, " "), says) {
			t.Errorf("%q does not say %q", x.Explanation.Doing, says)
		}
	}
	if c.interrupt > 0 {
		time.Sleep(time.Until(began.Add(c.interrupt)))
		if err := unix.Tgkill(os.Getpid(), thread, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
	}
	waited := (<-closed).Sub(began)
	switch {
	case c.interrupt > 0 && waited > time.Duration(c.linger)*time.Second/2, waited < c.interrupt,
		c.interrupt == 0 && waited < time.Duration(c.linger)*time.Second, c.linger < 0 && waited > time.Second:
		t.Fatalf("close(2) has waited for %v: %+v", waited, c)
	case c.interrupt > 0: // the signal has changed what is to come
		first = a.forecastOfOrphan(cookie)
	}
	c.checkEnd(t, a, n, first)
}

// connect makes a connection whose end the forecast must hold.
func (c *closing) connect(t *testing.T, n *network) *net.TCPConn {
	sysctls(t, n.Client, map[string]string{"net.ipv4.tcp_orphan_retries": c.retries})
	served := echo
	if c.state == "last_ack" {
		served = func(c *net.TCPConn) {
			_ = c.CloseWrite()
			echo(c)
		}
	}
	n.serve(droppedPort, served)
	conns := n.dial(droppedPort, 1)
	if c.state == "last_ack" {
		if n, err := conns[0].Read(make([]byte, 1)); n > 0 || err == nil {
			t.Fatalf("expected the peer's FIN: %d bytes, %v", n, err)
		}
	} else {
		n.greet(conns)
	}
	if err := conns[0].SetLinger(c.linger); err != nil {
		t.Fatal(err)
	}
	if c.retries == "0" {
		if err := onFD(conns[0], func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, 1000)
		}); err != nil {
			t.Fatal(err)
		}
	}
	return conns[0]
}

// closeOnThread closes a connection on a thread of its own, and sends when close(2) has returned.
func closeOnThread(c *net.TCPConn) (thread int, closed chan time.Time) {
	closed = make(chan time.Time, 1)
	threads := make(chan int)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		threads <- unix.Gettid()
		awaitForks()
		c.Close()
		closed <- time.Now()
	}()
	return <-threads, closed
}

// forecastOfOrphan waits until the agent says when the kernel gives up the orphan that a connection
// is, or will be, and of which something is unanswered.
func (a *agent) forecastOfOrphan(cookie string) (f forecast) {
	a.t.Helper()
	eventually(a.t, "a forecast as an orphan", func() error {
		var c blockedForecast
		if err := a.get("/api/v1/connections/"+cookie, &c); err != nil {
			return err
		}
		if c.Unanswered == 0 || c.GivesUp == nil || c.GivesUp.By != "orphan_timeout" {
			return fmt.Errorf("%s, %d unanswered, %+v", c.State, c.Unanswered, c.GivesUp)
		}
		f = *c.GivesUp
		return nil
	})
	return f
}

// checkEnd compares a forecast with the end as ss sees it, and with the agent's own.
func (c *closing) checkEnd(t *testing.T, a *agent, n *network, f forecast) {
	alive := time.Now()
	for {
		asked := time.Now()
		if len(n.ss(droppedPort)) == 0 {
			break
		}
		if alive = asked; time.Since(f.At) > generous {
			t.Fatalf("it is still there, forecast for %v", f.At)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// Each retransmission that a busy machine sends late puts off all that follow. One more or one
	// less of them makes a difference of a second.
	const busy = 500 * time.Millisecond
	latest := f.At.Add(time.Duration((f.LatestInSeconds - f.InSeconds) * float64(time.Second)))
	if gone := time.Now(); f.At.After(gone.Add(busy)) || latest.Before(alive.Add(-busy)) {
		t.Errorf("ss saw it until %v, and not at %v: the forecast was %v to %v", alive, gone, f.At, latest)
	}
	d := checkDeaths(t, a, n, droppedPort, 1, "orphan_timeout", "", "ETIMEDOUT")[0]
	if d.hidden(t) {
		return
	}
	if d.State != c.state {
		t.Errorf("it died in %s", d.State)
	}
	if missed := d.ForecastErrorSeconds; missed == nil {
		t.Error("its death has no forecast")
	} else if math.Abs(*missed) > busy.Seconds() {
		t.Errorf("it missed the forecast by %.3f s", *missed)
	}
}
