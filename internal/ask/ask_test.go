// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns both ends of a connection over the loopback device, and a target that leads to the
// first.
func pair(t *testing.T) (client, server *net.TCPConn, target Target) {
	t.Helper()
	// Go's listeners and dialers turn keepalive on.
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client = c.(*net.TCPConn)
	if c, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	server = c.(*net.TCPConn)
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	f := fdOf(t, client)
	cookie, err := unix.GetsockoptUint64(f, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return client, server, Target{Cookie: cookie, PID: os.Getpid(), FD: f}
}

func fdOf(t *testing.T, c syscall.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

func newJournals(t *testing.T) *journals {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournals(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	return j
}

func settingsOf(t *testing.T, fd int) Settings {
	t.Helper()
	s, err := readSettings(fd)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPeerAnswers(t *testing.T) {
	for name, before := range map[string]Settings{
		"keepalive off":                   {0, 7200, 75, 9, 0},
		"keepalive off, its values set":   {0, 30, 5, 2, 0},
		"keepalive off, and user timeout": {0, 7200, 75, 9, 1000},
		"keepalive on":                    {1, 60, 10, 6, 0},
		"keepalive on, and user timeout":  {1, 60, 10, 6, 90_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, _, target := pair(t)
			fd := fdOf(t, client)
			for o := range options {
				must(t, set(fd, o, *before.of(o)))
			}
			j := newJournals(t)
			a := &Asker{j}
			for range 2 {
				info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				must(t, err)
				answer := a.Ask(t.Context(), target)
				if answer.Result != Answered || answer.Probes != 1 || answer.RoundTrip <= 0 || answer.Why != "" || answer.Cookie != target.Cookie {
					t.Errorf("%+v", answer)
				}
				after, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				must(t, err)
				if after.Segs_out-info.Segs_out != 1 || after.Segs_in-info.Segs_in != 1 || after.Probes != 0 {
					t.Errorf("%d segments were sent and %d came, %d are unanswered", after.Segs_out-info.Segs_out, after.Segs_in-info.Segs_in, after.Probes)
				}
				if got := settingsOf(t, fd); got != before {
					t.Errorf("the settings are %+v, they were %+v", got, before)
				}
			}
			if left, _ := os.ReadDir(j.dir.Name()); len(left) > 0 {
				t.Errorf("journals are left: %v", left)
			}
		})
	}
}

func TestWhatIsNotAsked(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, client, server *net.TCPConn, target *Target)
		want   string
	}{
		"data waits": {func(t *testing.T, client, _ *net.TCPConn, _ *Target) {
			_ = client.SetWriteDeadline(time.Now().Add(time.Second))
			for {
				if _, err := client.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, "data in flight, or in the send queue, asks by itself"},
		"closed":          {func(_ *testing.T, client, _ *net.TCPConn, _ *Target) { client.Close() }, "its process "},
		"another socket":  {func(_ *testing.T, _, _ *net.TCPConn, target *Target) { target.Cookie++ }, "its process "},
		"no such process": {func(_ *testing.T, _, _ *net.TCPConn, target *Target) { target.PID = 1 << 30 }, ""},
		"reset": {func(t *testing.T, _, server *net.TCPConn, _ *Target) {
			must(t, server.SetLinger(0), server.Close())
		}, "it has ended"},
		"a listener": {func(t *testing.T, _, _ *net.TCPConn, target *Target) {
			l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			must(t, err)
			t.Cleanup(func() { l.Close() })
			target.FD = fdOf(t, l)
			target.Cookie, err = unix.GetsockoptUint64(target.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
			must(t, err)
		}, "it is a listener, and has no peer"},
		"keepalive that ends it after one probe": {func(t *testing.T, client, _ *net.TCPConn, _ *Target) {
			fd := fdOf(t, client)
			must(t, set(fd, count, 1), set(fd, keepalive, 1))
		}, "its own keepalive ends it after 1 unanswered probes, and 0 are"},
		"a short user timeout": {func(t *testing.T, client, _ *net.TCPConn, _ *Target) {
			fd := fdOf(t, client)
			must(t, set(fd, idle, 60), set(fd, userTimeout, 61_000), set(fd, keepalive, 1))
		}, "its TCP_USER_TIMEOUT is not longer than its TCP_KEEPIDLE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, server, target := pair(t)
			fd, err := unix.Dup(target.FD)
			must(t, err)
			defer unix.Close(fd)
			test.change(t, client, server, &target)
			before := settingsOf(t, fd)
			j := newJournals(t)
			answer := (&Asker{j}).Ask(t.Context(), target)
			if answer.Result != NotAsked || answer.Probes != 0 || answer.RoundTrip != 0 || !strings.HasPrefix(answer.Why, test.want) || answer.Why == "" {
				t.Errorf("%+v, expected not to be asked: %s", answer, test.want)
			}
			if after := settingsOf(t, fd); after != before {
				t.Errorf("the settings are %+v, they were %+v", after, before)
			}
		})
	}
}

// The application closes the connection while its silent peer is asked: the FIN goes out soon.
func TestClosedWhileItIsAsked(t *testing.T) {
	client, server, target := pair(t)
	// Nothing is asked before the connection has been silent for a second: it is closed before.
	time.AfterFunc(100*time.Millisecond, func() { client.Close() })
	answer := (&Asker{newJournals(t)}).Ask(t.Context(), target)
	if answer.Result != NotAsked || !strings.HasSuffix(answer.Why, "closed it meanwhile") {
		t.Errorf("%+v", answer)
	}
	must(t, server.SetReadDeadline(time.Now().Add(time.Minute)))
	if n, err := server.Read(make([]byte, 1)); n != 0 || err == nil || err.Error() != "EOF" {
		t.Errorf("the peer reads %d bytes, %v", n, err)
	}
}

func TestInterruptedAsking(t *testing.T) {
	_, _, target := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if answer := (&Asker{newJournals(t)}).Ask(ctx, target); answer.Result != NotAsked || answer.Why != "interrupted" {
		t.Errorf("%+v", answer)
	}
}

// What the application sets while it is asked stays.
func TestRestoringLeavesTheApplicationItsValues(t *testing.T) {
	for name, test := range map[string]struct {
		before Settings
		app    []step
		want   Settings
	}{
		"nothing":                     {Settings{0, 60, 10, 6, 5000}, nil, Settings{0, 60, 10, 6, 5000}},
		"the user timeout":            {Settings{0, 60, 10, 6, 5000}, []step{{userTimeout, 7000}}, Settings{0, 60, 10, 6, 7000}},
		"a first user timeout":        {Settings{0, 60, 10, 6, 0}, []step{{userTimeout, 7000}}, Settings{0, 60, 10, 6, 7000}},
		"keepalive off":               {Settings{1, 60, 10, 6, 0}, []step{{keepalive, 0}}, Settings{0, 60, 10, 6, 0}},
		"keepalive on, with its time": {Settings{0, 7200, 75, 9, 0}, []step{{keepalive, 1}, {idle, 30}}, Settings{1, 30, 75, 9, 0}},
		"keepalive on, with all":      {Settings{0, 7200, 75, 9, 0}, []step{{keepalive, 1}, {idle, 30}, {interval, 3}, {count, 4}}, Settings{1, 30, 3, 4, 0}},
		"its times":                   {Settings{1, 60, 10, 6, 0}, []step{{idle, 30}, {count, 5}}, Settings{1, 30, 10, 5, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			client, _, _ := pair(t)
			fd := fdOf(t, client)
			for o := range options {
				must(t, set(fd, o, *test.before.of(o)))
			}
			were := settingsOf(t, fd)
			must(t, were.change(fd))
			for _, s := range test.app {
				must(t, set(fd, s.option, s.value))
			}
			must(t, were.restore(fd))
			if got := settingsOf(t, fd); got != test.want {
				t.Errorf("%+v, expected %+v", got, test.want)
			}
		})
	}
}

// A sysctl can have values that no option can have.
func TestValuesThatCannotBePutBack(t *testing.T) {
	ok := Settings{0, 7200, 75, 9, 0}
	if why := ok.cannotPutBack(); why != "" {
		t.Error(why)
	}
	for _, s := range []Settings{{0, 86400, 75, 9, 0}, {0, 7200, 40000, 9, 0}, {0, 7200, 75, 200, 0}, {0, 0, 75, 9, 0}} {
		if s.cannotPutBack() == "" {
			t.Errorf("%+v could be put back", s)
		}
	}
}

// keepaliveTimer replays tcp_keepalive_timer() for two days, beginning with a timer that fires
// now. The peer was last heard a minute ago, answers nothing for half an hour, and then
// everything. It returns the seconds at which probes are sent, and whether the kernel ends the
// connection.
func keepaliveTimer(s Settings) (probes []int, ended bool) {
	const healthy = 1800
	heard, out := -60, 0
	for at := 0; at < 2*86400; {
		elapsed := at - heard
		switch {
		case elapsed < s.Idle:
			at += s.Idle - elapsed
			continue
		case s.UserTimeout != 0 && elapsed*1000 >= s.UserTimeout && out > 0, s.UserTimeout == 0 && out >= s.Count:
			return probes, true
		}
		probes = append(probes, at)
		out++
		if at >= healthy {
			heard, out = at, 0
		}
		at += s.Interval
	}
	return probes, false
}

// Wherever change or restore is interrupted, nothing ends a connection that is healthy again, and
// nothing but its own keepalive probes it more than once in two hours.
func TestEachStepIsSafe(t *testing.T) {
	for _, were := range []Settings{
		{0, 7200, 75, 9, 0}, {0, 10, 1, 1, 0}, {0, 7200, 75, 9, 1000}, {0, 1, 1, 1, 1}, {0, 32767, 32767, 127, 0},
		{1, 120, 10, 6, 0}, {1, 7200, 75, 9, 90_000}, {1, 200, 100, 20, 0},
	} {
		_, ends := keepaliveTimer(were) // its own keepalive
		for _, steps := range [][]step{were.changes(), append(were.changes(), were.restoration()...)} {
			s := were
			for n, c := range steps {
				*s.of(c.option) = c.value
				if s.Keepalive == 0 {
					continue
				}
				probes, ended := keepaliveTimer(s)
				if byItself := were.Keepalive == 1 && ends; ended && !byItself {
					t.Errorf("%+v: interrupted after step %d, %+v ends it", were, n+1, s)
				}
				for i := range probes {
					own := were.Keepalive == 1 && s.Idle == were.Idle
					if i > 0 && probes[i]-probes[i-1] < 7200 && !own {
						t.Errorf("%+v: interrupted after step %d, %+v sends probes after %d and %d s", were, n+1, s, probes[i-1], probes[i])
						break
					}
				}
			}
		}
	}
}

func TestJournals(t *testing.T) {
	j := newJournals(t)
	one := entry{Boot: j.boot, Target: Target{1, 2, 3, 4}, Prober: 5, Were: Settings{0, 7200, 75, 9, 0}}
	f, err := j.write(&one)
	must(t, err)
	if _, err := j.write(&one); err != errBusy {
		t.Errorf("a second process may change the settings at once: %v", err)
	}
	if _, entries, err := j.left(); err != nil || len(entries) > 0 {
		t.Errorf("the journal of a living process is left: %v, %v", entries, err)
	}
	f.Close() // as when it is killed
	for name, text := range map[string]string{"7": "", "8": "{", "9": `{"cookie":10}`, "b": `{"cookie":11,"boot":"another"}`} {
		must(t, os.WriteFile(filepath.Join(j.dir.Name(), name), []byte(text), 0o600))
	}
	must(t, os.Symlink("/etc/passwd", filepath.Join(j.dir.Name(), "a")))
	files, entries, err := j.left()
	if err != nil || !slices.Equal(entries, []entry{one}) {
		t.Fatalf("%+v, %v", entries, err)
	}
	if _, again, err := j.left(); err != nil || len(again) > 0 {
		t.Errorf("two processes put back at once: %v, %v", again, err)
	}
	files[0].remove()
	if left, err := os.ReadDir(j.dir.Name()); err != nil || len(left) != 1 || left[0].Name() != "a" {
		t.Errorf("%v is left, %v", left, err)
	}
	f, err = j.write(&one)
	must(t, err)
	f.remove()
}
