// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// obstacles are what can keep a host from sending, or an answer from coming back, with the
// reasons over IPv4 and IPv6.
var obstacles = map[string]struct {
	make   func(n *network, eth0 netlink.Link) error
	v4, v6 string
}{
	"address gone": {deleteAddress, "local_address_gone", "local_address_gone"},
	"no route":     {deleteSubnet, "no_route", "no_route"},
	"blackhole":    {routeOf(unix.RTN_BLACKHOLE), "no_route", "no_route"},
	// An IPv6 address goes with the link.
	"link down": {func(_ *network, eth0 netlink.Link) error { return netlink.LinkSetDown(eth0) }, "interface_down", "local_address_gone"},
	"no carrier": {func(n *network, _ netlink.Link) error {
		return n.Server.Do(func() error {
			peer, err := netlink.LinkByName("eth0")
			return errors.Join(err, netlink.LinkSetDown(peer))
		})
	}, "interface_down", "interface_down"},
}

// deleteAddress takes the client's address away, and keeps the route to the server.
func deleteAddress(n *network, eth0 netlink.Link) error {
	own := n.subnet()
	own.IP = n.client().AsSlice()
	return errors.Join(netlink.AddrDel(eth0, &netlink.Addr{IPNet: own}), netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: n.subnet()}))
}

// A host that cannot send, or cannot be answered, is to blame and not its peer: with data
// in flight and with keepalive.
func TestBlockedHostIsToBlame(t *testing.T) { // not parallel: the agent looks at few paths a second
	a := startAgent(t, "--zombie-silence=6s")
	for name, o := range obstacles {
		for family, reason := range map[string]string{"ipv4": o.v4, "ipv6": o.v6} {
			for _, what := range []string{"retransmit", "keepalive"} {
				t.Run(name+"/"+family+"/"+what, func(t *testing.T) {
					t.Parallel()
					n := newNetwork(t, family)
					n.serve(servedPort, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
					c := n.dial(servedPort, 1)[0]
					if _, err := c.Write([]byte("hello")); err != nil {
						t.Fatal(err)
					}
					if what == "keepalive" {
						if err := lab.SetKeepalive(c, time.Second, time.Second, 127); err != nil {
							t.Fatal(err)
						}
					}
					cookie := cookieOf(t, c)
					if err := n.Client.Do(func() error {
						eth0, err := netlink.LinkByName("eth0")
						return errors.Join(err, o.make(n, eth0))
					}); err != nil {
						t.Fatal(err)
					}
					if what == "retransmit" {
						if _, err := c.Write([]byte("lost")); err != nil {
							t.Fatal(err)
						}
					}
					a := a.of(t)
					a.becomesBlocked(cookie, reason)
					for _, e := range a.story(cookie) {
						if e.To == "zombie" {
							t.Errorf("it was a zombie at %v", e.At)
						}
					}
					blockedAtOneLook(t, n, cookie, reason)
				})
			}
		}
	}
}

// blockedAtOneLook checks that commands that look once, without an agent, do not blame the peer
// either.
func blockedAtOneLook(t *testing.T, n *network, cookie, reason string) {
	t.Helper()
	stdout, stderr, status := run(t, exec.Command(binary, "list", "--url=none", "--zombie-silence=6s", "-o", "json", fmt.Sprintf("--netns=%d", n.Client.Inode())))
	var list struct{ Connections []connection }
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || status != 0 {
		t.Fatalf("list: exit status %d, %v: %s", status, err, stderr)
	}
	if !slices.ContainsFunc(list.Connections, func(c connection) bool {
		return c.Cookie == cookie && c.Verdict == "blocked" && c.Reason != nil && c.Reason.Code == reason
	}) {
		t.Errorf("list does not say that it is blocked by %s: %s", reason, stdout)
	}
	stdout, stderr, _ = run(t, exec.Command(binary, "explain", "--url=none", "--zombie-silence=6s", cookie))
	if !strings.Contains(strings.Join(strings.Fields(stdout), " "), "Verdict: blocked. ") {
		t.Errorf("explain does not say that it is blocked: %s%s", stdout, stderr)
	}
}

// becomesBlocked waits until the agent says that a connection is blocked for a reason.
func (a *agent) becomesBlocked(cookie, reason string) {
	a.t.Helper()
	eventually(a.t, "the connection is blocked", func() error {
		var c connection
		if err := a.get("/api/v1/connections/"+cookie, &c); err != nil {
			return err
		}
		if c.Verdict != "blocked" || c.Reason == nil || c.Reason.Code != reason || c.Attempts < 3 || c.Unanswered != 0 {
			return fmt.Errorf("%s, reason %+v, %d attempts, %d unanswered", c.Verdict, c.Reason, c.Attempts, c.Unanswered)
		}
		return nil
	})
}

// egress is a place at which a host can drop what TCP sends.
type egress struct {
	block           func(n *network) (remove func() error, err error)
	reason          string
	unsent, unacked string // tcp_retries2 for some six seconds: nothing is in flight; something is
	never           bool   // keepalive goes on for ever
}

var egresses = map[string]egress{
	"output filter": {func(n *network) (func() error, error) { return n.Client.BlockOutput(servedPort) }, "output_filter", "4", "3", false},
	"qdisc":         {func(n *network) (func() error, error) { return n.Client.BlockQueue() }, "egress_drop", "12", "4", true},
	"tc":            {func(n *network) (func() error, error) { return n.Client.BlockEgress() }, "egress_drop", "12", "4", true},
}

// blockedForecast is a connection with what the agent says of its end.
type blockedForecast struct {
	connection
	GivesUp *forecast `json:"gives_up"`
}

// What this host drops itself says nothing about the peer, and each way of dropping has its own
// clock: the forecast holds what the kernel does.
func TestWhatThisHostDrops(t *testing.T) { // not parallel: the agent looks at few paths a second
	a := startAgent(t, "--zombie-silence=2s")
	verdicts := a.followVerdicts()
	for name, egress := range egresses {
		for _, family := range []string{"ipv4", "ipv6"} {
			for _, what := range []string{"write", "in flight", "keepalive", "user timeout"} {
				t.Run(name+"/"+family+"/"+what, func(t *testing.T) {
					t.Parallel()
					verdicts.checkDrops(t, a.of(t), newNetwork(t, family), egress, what)
				})
			}
		}
	}
}

// checkDrops has a connection blocked by this host, and compares what the agent says of it with its
// end.
func (v *verdictStream) checkDrops(t *testing.T, a *agent, n *network, egress egress, what string) {
	t.Helper()
	c, peer, cause, during := egress.connect(t, n, what)
	restore := func() {}
	if what == "in flight" {
		restore = n.cut(servedPort)
		n.write(c)
		eventually(t, "it is in flight", func() error { return unacked(c, 1) })
	}
	remove, err := egress.block(n)
	if err != nil {
		t.Fatal(err)
	}
	restore()
	arrived := segmentsIn(t, peer)
	if what == "write" || what == "user timeout" {
		n.write(c)
	}

	blocked := v.becomesBlocked(t, cookieOf(t, c))
	v.checkReason(a, &blocked, egress.reason)
	if egress.never && what == "keepalive" {
		v.checkGoesOn(t, &blocked, remove)
		return
	}
	checkErrno(t, syscall.ETIMEDOUT, c)
	if got := segmentsIn(t, peer); got != arrived {
		t.Errorf("%d segments reached the peer", got-arrived)
	}
	d := checkDeaths(t, a, n, servedPort, 1, cause, during, "ETIMEDOUT")[0]
	if d.hidden(t) {
		return
	}
	if d.Verdict != "blocked" || d.ForecastErrorSeconds == nil || *d.ForecastErrorSeconds < -0.05 || *d.ForecastErrorSeconds > 0.05 {
		t.Errorf("it died as %s, and missed the forecast by %v", d.Verdict, d.ForecastErrorSeconds)
	}
	f := blocked.GivesUp
	latest := f.At.Add(time.Duration((f.LatestInSeconds - f.InSeconds) * float64(time.Second)))
	const busy = 50 * time.Millisecond // both CPUs may be
	if d.At.Before(f.At.Add(-busy)) || d.At.After(latest.Add(busy)) {
		t.Errorf("it died at %v, forecast when it was blocked: %v to %v", d.At, f.At, latest)
	}
}

// connect makes a connection, all of whose data is acknowledged, and sets what the timer needs that
// is to end it. It returns both ends, and of what the connection will die.
func (e egress) connect(t *testing.T, n *network, what string) (c, peer *net.TCPConn, cause, during string) {
	t.Helper()
	accepted := make(chan *net.TCPConn, 1)
	n.serve(servedPort, func(c *net.TCPConn) {
		accepted <- c
		_, _ = io.Copy(io.Discard, c)
	})
	n.dial(servedPort, 1) // the hosts find each other, which can take IPv6 a second: that is no round trip
	<-accepted
	c = n.dial(servedPort, 1)[0]
	peer = <-accepted
	retries, cause := e.unsent, "retransmit_timeout"
	switch what {
	case "in flight":
		retries = e.unacked
	case "keepalive":
		cause = "keepalive_timeout"
		n.keepalive([]*net.TCPConn{c}, time.Second, time.Second, 7)
	case "user timeout":
		cause, during = "user_timeout", "retransmit"
		if err := lab.SetUserTimeout(c, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	sysctls(t, n.Client, map[string]string{"net.ipv4.tcp_retries2": retries})
	n.write(c)
	eventually(t, "all is acknowledged", func() error { return unacked(c, 0) })
	return c, peer, cause, during
}

// checkGoesOn checks that a blocked connection never ends, and recovers once it is not blocked.
func (v *verdictStream) checkGoesOn(t *testing.T, blocked *blockedForecast, remove func() error) {
	t.Helper()
	if blocked.GivesUp != nil {
		t.Errorf("it gives up: %+v", blocked.GivesUp)
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not blocked any more", func() error {
		if now := v.of(blocked.Cookie).Verdict; slices.Contains([]string{"blocked", "suspect", "zombie"}, now) {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
}

// verdictStream has the verdicts of the agent's stream, which walks no sockets.
type verdictStream struct {
	sync.Mutex
	newest   map[string]blockedForecast // by cookie
	zombies  map[string]bool            // those that were one
	noReason bool                       // this kernel has no reasons of drops
}

// followVerdicts follows the verdicts until the test ends.
func (a *agent) followVerdicts() *verdictStream {
	a.t.Helper()
	code, err := features.LinuxVersionCode()
	if err != nil {
		a.t.Fatal(err)
	}
	v := &verdictStream{newest: make(map[string]blockedForecast), zombies: make(map[string]bool), noReason: code < 5<<16|18<<8}
	resp, err := http.Get(a.url + "/api/v1/stream?event=verdict")
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { resp.Body.Close() })
	go func() {
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e struct {
				Connection blockedForecast `json:"connection"`
			}
			data, is := strings.CutPrefix(lines.Text(), "data: ")
			if !is || json.Unmarshal([]byte(data), &e) != nil {
				continue
			}
			v.Lock()
			v.newest[e.Connection.Cookie] = e.Connection
			if e.Connection.Verdict == "zombie" {
				v.zombies[e.Connection.Cookie] = true
			}
			v.Unlock()
		}
	}()
	return v
}

// of returns the newest verdict on a connection.
func (v *verdictStream) of(cookie string) blockedForecast {
	v.Lock()
	defer v.Unlock()
	return v.newest[cookie]
}

// becomesBlocked waits until the agent says that a connection is blocked. It never was a zombie.
func (v *verdictStream) becomesBlocked(t *testing.T, cookie string) (c blockedForecast) {
	t.Helper()
	eventually(t, "the connection is blocked", func() error {
		if c = v.of(cookie); c.Verdict != "blocked" || c.Attempts < 3 || c.Unanswered != 0 {
			return fmt.Errorf("%s, %d attempts, %d unanswered", c.Verdict, c.Attempts, c.Unanswered)
		}
		return nil
	})
	v.Lock()
	defer v.Unlock()
	if v.zombies[cookie] {
		t.Error("it was a zombie")
	}
	return c
}

// checkReason checks why a connection is blocked. Before Linux 5.18, an output filter is not seen.
func (v *verdictStream) checkReason(a *agent, c *blockedForecast, reason string) {
	a.t.Helper()
	switch {
	case v.noReason && reason == "output_filter":
	case c.Reason == nil: // the program that sees drops was attached after the last attempt
		a.becomesBlocked(c.Cookie, reason)
	case c.Reason.Code != reason:
		a.t.Errorf("its reason is %+v, expected %q", c.Reason, reason)
	}
}

// unacked returns an error unless so many segments are in flight.
func unacked(c *net.TCPConn, want uint32) error {
	info, err := lab.Info(c)
	if err == nil && info.Unacked != want {
		err = fmt.Errorf("%d segments in flight, expected %d", info.Unacked, want)
	}
	return err
}

// segmentsIn returns how many segments have come in on a connection.
func segmentsIn(t *testing.T, c *net.TCPConn) uint32 {
	t.Helper()
	info, err := lab.Info(c)
	if err != nil {
		t.Fatal(err)
	}
	return info.Segs_in
}
