// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

type forecast struct {
	At              time.Time `json:"at"`
	InSeconds       float64   `json:"in_seconds"`
	LatestInSeconds float64   `json:"latest_in_seconds"`
	By              string    `json:"by"`
}

type setting struct {
	Option string `json:"option"`
	Sysctl string `json:"sysctl"`
	Value  int    `json:"value"`
	Unit   string `json:"unit"`
	Source string `json:"source"`
}

type advice struct {
	Text    string    `json:"text"`
	How     []string  `json:"how"`
	GivesUp *forecast `json:"gives_up"`
}

type explained struct {
	connection
	GivesUp     *forecast `json:"gives_up"`
	Explanation struct {
		At     time.Time `json:"at"`
		Doing  []string  `json:"doing"`
		Timers []struct {
			Name  string    `json:"name"`
			Fires *forecast `json:"fires"`
			Then  string    `json:"then"`
		} `json:"timers"`
		Settings   []setting `json:"settings"`
		Next       []string  `json:"next"`
		Assessment string    `json:"assessment"`
		Advice     []advice  `json:"advice"`
	} `json:"explanation"`
}

// explainOf has a connection explained as JSON.
func explainOf(t *testing.T, target string, flags ...string) (e explained) {
	t.Helper()
	stdout, stderr, status := run(t, exec.Command(binary, append([]string{"explain", "-o", "json", target}, withoutAgent(flags)...)...))
	if status != 0 {
		t.Fatalf("explain %s: exit status %d: %s", target, status, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &e); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	return e
}

func cookieOf(t *testing.T, c syscall.Conn) string {
	t.Helper()
	cookie, err := lab.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(cookie, 16)
}

// The levels and options that an explanation speaks of.
var sockopts = map[string][2]int{
	"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	"TCP_KEEPIDLE":     {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
	"TCP_KEEPINTVL":    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
	"TCP_KEEPCNT":      {unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
	"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	"TCP_SYNCNT":       {unix.IPPROTO_TCP, unix.TCP_SYNCNT},
	"TCP_LINGER2":      {unix.IPPROTO_TCP, unix.TCP_LINGER2},
}

// control runs f on the descriptor of c.
func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ferr error
	if err := errors.Join(raw.Control(func(fd uintptr) { ferr = f(int(fd)) }), ferr); err != nil {
		t.Fatal(err)
	}
}

func (n *network) sysctl(name string) int {
	n.t.Helper()
	out, err := n.Client.Output("cat", "/proc/sys/"+strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		n.t.Fatal(err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

// checkSettings holds each setting of a socket against what the kernel says of it
// to getsockopt and in the namespace's sysctls, and its source against own, the
// options that were set.
func (n *network) checkSettings(t *testing.T, fd int, settings []setting, defaults map[string]int, own ...string) {
	t.Helper()
	seen := make(map[string]bool)
	for _, s := range settings {
		seen[s.Option+s.Sysctl] = true
		if s.Option != "" {
			o, known := sockopts[s.Option]
			if !known {
				t.Errorf("nobody has set %+v", s)
				continue
			}
			if v, err := unix.GetsockoptInt(fd, o[0], o[1]); err != nil || v != s.Value {
				t.Errorf("%+v, but getsockopt says %d, %v", s, v, err)
			}
		}
		want := "default"
		for _, name := range own {
			if name == s.Option {
				want = "socket"
			}
		}
		if s.Sysctl != "" && want != "socket" {
			now := n.sysctl(s.Sysctl)
			if now != s.Value {
				t.Errorf("%+v, but the sysctl is %d", s, now)
			}
			if now != defaults[s.Sysctl] {
				want = "sysctl"
			}
		}
		if s.Source != want {
			t.Errorf("%+v: the source is %s", s, want)
		}
	}
	for _, name := range own {
		found := false
		for _, s := range settings {
			found = found || s.Option == name
		}
		if !found {
			t.Errorf("%s is set, and there is no word of it in %+v", name, settings)
		}
	}
}

func TestExplainTellsSettingsAndWhereFrom(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(servedPort, echo)
		conns := n.dial(servedPort, 4)
		n.greet(conns)
		n.keepalive(conns[1:2], 0, 0, 0)
		n.keepalive(conns[2:3], 61*time.Second, 0, 5)
		n.keepalive(conns[3:4], 2*time.Hour, 13*time.Second, 9) // two of them as by default
		for _, c := range conns[2:] {
			if err := lab.SetUserTimeout(c, 91*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		own := [][]string{
			nil, {"SO_KEEPALIVE"}, {"SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"},
			{"SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"},
		}
		defaults := make(map[string]int) // the namespace is as the kernel made it
		changed := map[string]string{
			"net.ipv4.tcp_keepalive_time": "77", "net.ipv4.tcp_keepalive_intvl": "11", "net.ipv4.tcp_keepalive_probes": "4",
			"net.ipv4.tcp_retries2": "7", "net.ipv4.tcp_syn_retries": "3",
		}
		if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(synLinear, ".", "/")); err == nil {
			changed[synLinear] = "2"
		}
		for name := range changed {
			defaults[name] = n.sysctl(name)
		}
		connecting := n.connecting(t, 7011)
		check := func() {
			for i, c := range conns {
				for _, flags := range [][]string{nil, {"--url", a.url}} {
					e := explainOf(t, cookieOf(t, c), flags...)
					if e.Cookie != cookieOf(t, c) || e.Netns != n.Client.Inode() {
						t.Fatalf("explained %+v, not %s", e.connection, cookieOf(t, c))
					}
					control(t, c, func(fd int) error {
						n.checkSettings(t, fd, e.Explanation.Settings, defaults, own[i]...)
						return nil
					})
				}
			}
			n.checkSettings(t, connecting, explainOf(t, socketCookie(t, connecting)).Explanation.Settings, defaults, "TCP_SYNCNT")
		}
		if err := unix.SetsockoptInt(connecting, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 60); err != nil {
			t.Fatal(err)
		}
		check()
		for name, value := range changed {
			if err := n.Client.Sysctl(name, value); err != nil {
				t.Fatal(err)
			}
		}
		check()
	})
}

// connecting returns a socket whose SYN is not answered.
func (n *network) connecting(t *testing.T, port int) (fd int) {
	t.Helper()
	n.cut(port)
	to := n.server(port)
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: port})
	if to.Addr().Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: to.Addr().As16()}
	} else {
		addr.(*unix.SockaddrInet4).Addr = to.Addr().As4()
	}
	err := n.Client.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err = unix.Connect(fd, addr); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func socketCookie(t *testing.T, fd int) string {
	t.Helper()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(cookie, 16)
}

var durations = regexp.MustCompile(`[0-9.]+(ms|s|m|h)([0-9]+(s|m))?\b`)

// An agent and a look of our own say the same, but for the time between them, and for what
// only an agent knows: the other connections to the address of a zombie.
func TestExplainIsTheSameFromAnAgent(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(servedPort, echo)
		n.serve(droppedPort, echo)
		conns, victims := n.dial(servedPort, 2), n.dial(droppedPort, 1)
		n.greet(conns)
		n.greet(victims)
		n.keepalive(conns[1:], time.Minute, 10*time.Second, 3)
		n.keepalive(victims, 2*time.Second, time.Second, 100)
		n.cut(droppedPort)
		eventually(t, "a zombie", func() error { return all(a.connections(n, droppedPort, ""), 1, "zombie") })
		probes := regexp.MustCompile(`[0-9]+ (keepalive )?probes (in|are)|[Pp]robe [0-9]+`)
		others := regexp.MustCompile(` At the last census, none of [^"]*, either\.`)
		for _, c := range append(conns, victims...) {
			timeless := func(e explained) any {
				x := e.Explanation
				x.At = time.Time{}
				for i := range x.Timers {
					x.Timers[i].Fires = nil
				}
				for i := range x.Advice {
					x.Advice[i].GivesUp = nil
				}
				body, err := json.Marshal(x)
				if err != nil {
					t.Fatal(err)
				}
				said := others.ReplaceAllString(string(body), "")
				return probes.ReplaceAllString(durations.ReplaceAllString(said, "DURATION"), "PROBES")
			}
			ours, theirs := explainOf(t, cookieOf(t, c)), explainOf(t, cookieOf(t, c), "--url", a.url)
			if diff := cmp.Diff(timeless(ours), timeless(theirs)); diff != "" {
				t.Errorf("(-alone +agent)\n%s", diff)
			}
			for i := range ours.Explanation.Timers {
				mine, its := ours.Explanation.Timers[i].Fires, theirs.Explanation.Timers[i].Fires
				if (mine == nil) != (its == nil) || mine != nil && c != victims[0] && math.Abs(mine.At.Sub(its.At).Seconds()) > 0.1 {
					t.Errorf("timer %d fires %+v, and %+v", i, mine, its)
				}
			}
			stdout, _, status := run(t, exec.Command(binary, "explain", "--url=none", cookieOf(t, c)))
			for l := range strings.Lines(stdout) {
				if utf8.RuneCountInString(strings.TrimSuffix(l, "\n")) > 80 && !strings.HasPrefix(l, "       nsenter ") {
					t.Errorf("more than 80 columns: %s", l)
				}
			}
			for _, word := range []string{c.LocalAddr().String(), "WHAT HAPPENS NEXT", fmt.Sprintf("[%d]", syscall.Getpid())} {
				if status != 0 || !strings.Contains(stdout, word) {
					t.Errorf("exit status %d, and no %s in\n%s", status, word, stdout)
				}
			}
		}
	})
}

var setsockopt = regexp.MustCompile(`^setsockopt\(fd, \w+, (\w+), (\d+)\)$`)

// paste runs a command of an explanation as it is, outside of the lab: it has to
// find its way in.
func paste(t *testing.T, command string) {
	t.Helper()
	if !strings.HasPrefix(command, "nsenter --net=/proc/") {
		t.Fatalf("%s: it would act on this machine", command)
	}
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// follow does what an explanation advises.
func follow(t *testing.T, fd int, how []string) {
	t.Helper()
	for _, h := range how {
		if strings.Contains(h, "sysctl -w ") {
			paste(t, h)
			continue
		}
		m := setsockopt.FindStringSubmatch(h)
		if m == nil {
			t.Fatalf("how is one to do %q?", h)
		}
		o := sockopts[m[1]]
		value, _ := strconv.Atoi(m[2])
		if err := unix.SetsockoptInt(fd, o[0], o[1], value); err != nil {
			t.Fatalf("%s: %v", h, err)
		}
	}
}

// punctual checks that something happened when it was forecast. On a busy machine a timer
// may be armed so late that the kernel puts it into the next bucket of its timer wheel,
// which is up to a seventh of the wait later (kernel/time/timer.c).
func punctual(t *testing.T, died time.Time, f *forecast) {
	t.Helper()
	latest := f.At.Add(time.Duration((f.LatestInSeconds - f.InSeconds) * float64(time.Second)))
	spare := time.Second
	if !alone {
		spare += time.Duration(f.LatestInSeconds / 7 * float64(time.Second))
	}
	if died.Before(f.At.Add(-50*time.Millisecond)) || died.After(latest.Add(spare)) {
		t.Errorf("it died %v after the earliest and %v after the latest of the forecast", died.Sub(f.At), died.Sub(latest))
	}
}

// Following the advice ends the connection to the dead peer when the explanation says.
func TestExplainAdviceWorks(t *testing.T) {
	// So that quick keepalive is advised; and it answers at once, while the
	// connections live.
	url := startAgent(t, "--middlebox-timeout=4s").url
	for name, test := range map[string]struct {
		prepare func(t *testing.T, n *network, c *net.TCPConn)
		how     string // how the first line of the advice to follow ends
		before  string // by what it would end before, "" never
		by      string
	}{
		"unguarded": {
			func(*testing.T, *network, *net.TCPConn) {}, "setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1)", "", "keepalive_timeout",
		},
		"slow keepalive": {
			func(_ *testing.T, n *network, c *net.TCPConn) { n.keepalive([]*net.TCPConn{c}, 0, 0, 0) },
			"setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2)", "keepalive_timeout", "keepalive_timeout",
		},
		"slow keepalive, by the namespace's sysctls": {
			func(t *testing.T, n *network, c *net.TCPConn) {
				if err := n.Client.Sysctl("net.ipv4.tcp_keepalive_time", "6"); err != nil {
					t.Fatal(err)
				}
				n.keepalive([]*net.TCPConn{c}, 0, 0, 0)
			},
			"sysctl -w net.ipv4.tcp_keepalive_time=2", "keepalive_timeout", "keepalive_timeout",
		},
		"keepalive that sysctls have made quick since its timer was set": {
			func(t *testing.T, n *network, c *net.TCPConn) {
				n.keepalive([]*net.TCPConn{c}, 0, 0, 0)
				for key, value := range map[string]string{"time": "2", "intvl": "3", "probes": "3"} {
					if err := n.Client.Sysctl("net.ipv4.tcp_keepalive_"+key, value); err != nil {
						t.Fatal(err)
					}
				}
				e := explainOf(t, cookieOf(t, c), "--url", url)
				if e.GivesUp.InSeconds < 7000 || !strings.Contains(e.Explanation.Assessment, "But the keepalive timer that is running fires only in ") {
					t.Errorf("it gives up %+v: %s", e.GivesUp, e.Explanation.Assessment)
				}
			},
			"setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 2)", "keepalive_timeout", "keepalive_timeout",
		},
		"data in flight, and keepalive": {
			func(t *testing.T, n *network, c *net.TCPConn) {
				n.keepalive([]*net.TCPConn{c}, time.Second, 3*time.Second, 3)
				n.write(c)
				await(t, n.Client, "TcpRetransSegs", 2)
			},
			"setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 10000)", "retransmit_timeout", "user_timeout",
		},
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T, n *network) {
				n.serve(droppedPort, echo)
				c := n.dial(droppedPort, 1)[0]
				n.greet([]*net.TCPConn{c})
				n.cut(droppedPort)
				test.prepare(t, n, c)
				e := explainOf(t, cookieOf(t, c), "--url", url)
				if by := e.GivesUp; (by == nil) != (test.before == "") || by != nil && by.By != test.before {
					t.Errorf("before: it gives up %+v", by)
				}
				i := slices.IndexFunc(e.Explanation.Advice, func(a advice) bool { return strings.HasSuffix(a.How[0], test.how) })
				if i < 0 {
					t.Fatalf("advice: %+v", e.Explanation.Advice)
				}
				promised := e.Explanation.Advice[i].GivesUp
				if promised == nil || promised.By != test.by || promised.InSeconds > 30 {
					t.Fatalf("promised: %+v", promised)
				}
				control(t, c, func(fd int) error {
					follow(t, fd, e.Explanation.Advice[i].How)
					return nil
				})
				after := explainOf(t, cookieOf(t, c), "--url", url).GivesUp
				if after == nil || after.By != test.by {
					t.Fatalf("after: it gives up %+v", after)
				}
				checkErrno(t, syscall.ETIMEDOUT, c)
				punctual(t, time.Now(), after)
				// A timer that is set anew counts from when it was, and as the wheel has it.
				if late := time.Since(promised.At); late < -100*time.Millisecond || late > 4*time.Second {
					t.Errorf("it died %v after what was promised", late)
				}
			})
		})
	}
}

// Of a sysctl, and what acts on sockets that exist.
func TestExplainAdviceForTheNamespaceWorks(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, echo)
		c := n.dial(droppedPort, 1)[0]
		n.greet([]*net.TCPConn{c})
		n.cut(droppedPort)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		orphan := cookieOf(t, c)
		c.Close()
		connecting := n.connecting(t, 7011)
		await(t, n.Client, "TcpRetransSegs", 1) // the orphan's first; its limit is 3 s
		for _, test := range []struct{ cookie, how, by string }{
			{orphan, "sysctl -w net.ipv4.tcp_orphan_retries=3", "orphan_timeout"},
			{socketCookie(t, connecting), "sysctl -w net.ipv4.tcp_syn_retries=3", "connect_timeout"},
		} {
			advice := explainOf(t, test.cookie, "--url", a.url).Explanation.Advice
			for _, adv := range advice {
				if strings.HasSuffix(adv.How[0], test.how) {
					follow(t, 0, adv.How)
				}
			}
			after := explainOf(t, test.cookie, "--url", a.url).GivesUp
			if after == nil || after.By != test.by || after.InSeconds > 30 {
				t.Fatalf("after %+v: it gives up %+v", advice, after)
			}
			var died *death
			eventually(t, test.by, func() error {
				for _, port := range []int{droppedPort, 7011} {
					for _, d := range a.deaths(n, port) {
						if d.Cookie == test.cookie {
							died = &d
							return nil
						}
					}
				}
				return errors.New("it lives")
			})
			if died.Cause != test.by {
				t.Errorf("it died of %s", died.Cause)
			}
			punctual(t, died.At, after)
		}
	})
}

// explainZombie explains a connection once it is a zombie.
func explainZombie(t *testing.T, c *net.TCPConn, flags ...string) (e explained) {
	t.Helper()
	eventually(t, "a zombie", func() error {
		if e = explainOf(t, cookieOf(t, c), flags...); e.Verdict != "zombie" {
			return errors.New(e.Verdict)
		}
		return nil
	})
	return e
}

func TestExplainHowToEndAZombie(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		n.serve(droppedPort, echo)
		c := n.dial(droppedPort, 1)[0]
		n.greet([]*net.TCPConn{c})
		n.keepalive([]*net.TCPConn{c}, time.Second, time.Second, 120)
		n.cut(droppedPort)
		e := explainZombie(t, c, "--zombie-silence=3s")
		paste(t, e.Explanation.Advice[len(e.Explanation.Advice)-1].How[0])
		checkErrno(t, syscall.ECONNABORTED, c)
	})
}

// A peer that closed its window and then vanished is not one that answers, and
// nothing is advised that ends it no sooner.
func TestExplainAZombieBehindAClosedWindow(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		if err := n.Client.Sysctl("net.ipv4.tcp_retries2", "5"); err != nil {
			t.Fatal(err)
		}
		n.serve(droppedPort, paused(t))
		c := n.dial(droppedPort, 1)[0]
		fill(c)
		n.cut(droppedPort)
		e := explainZombie(t, c, "--zombie-silence=2s")
		x := &e.Explanation
		if says := strings.Join(x.Next, " ") + x.Assessment; strings.Contains(says, "peer answers") || !strings.Contains(says, "No setting needs changing: the kernel gives up in ") {
			t.Errorf("it gives up %+v: %s", e.GivesUp, says)
		}
		if len(x.Advice) != 1 || !strings.Contains(x.Advice[0].How[0], "ss -K ") {
			t.Errorf("advice: %+v", x.Advice)
		}
	})
}

func TestExplainByAddress(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		const crowded, deserted = 7012, 7013 // ports that no other test has, since the addresses are the same
		n.serve(crowded, echo)
		n.serve(deserted, echo)
		conns := n.dial(crowded, 5)
		n.greet(conns)
		for _, flags := range [][]string{nil, {"--url", a.url}} {
			explain := func(target string) (stdout, stderr string, status int) {
				return run(t, exec.Command(binary, append([]string{"explain", target}, withoutAgent(flags)...)...))
			}
			for target, word := range map[string]string{
				n.server(crowded).String():                             "5 connections have the local address " + n.server(crowded).String(),
				n.server(deserted).String():                            "is a listener",
				"ffffffffffff":                                         "ffffffffffff",
				fmt.Sprintf(":%d", 7014):                               "no connection has the local port 7014",
				netip.AddrPortFrom(n.Client.Addr4(), crowded).String(): "no connection has the local address",
			} {
				stdout, stderr, status := explain(target)
				if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, word) {
					t.Errorf("%s: exit status %d, stdout %q, stderr %q", target, status, stdout, stderr)
				}
			}
			local := conns[0].LocalAddr().String()
			stdout, stderr, status := explain(local)
			switch {
			case status == 1 && strings.Contains(stderr, "connections have the local address "+local): // in another test's network
			case status != 0 || !strings.Contains(stdout, "cookie "+cookieOf(t, conns[0])+","):
				t.Errorf("%s: exit status %d: %s\n%s", local, status, stderr, stdout)
			}
		}
	})
}
