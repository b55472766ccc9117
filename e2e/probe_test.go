// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// probed is a line of `halfopen probe -o json`, as a client would write it down.
type probed struct {
	Cookie string `json:"cookie"`
	Local  struct {
		IP   string `json:"ip"`
		Port int    `json:"port"`
	} `json:"local"`
	Remote struct {
		IP   string `json:"ip"`
		Port int    `json:"port"`
	} `json:"remote"`
	Netns            uint32   `json:"netns"`
	Result           string   `json:"result"`
	Probes           int      `json:"probes"`
	RoundTripSeconds *float64 `json:"round_trip_seconds"`
	Why              *string  `json:"why"`
}

// probe runs `halfopen probe` in JSON, by itself unless args have a URL.
func probe(t *testing.T, args ...string) (byCookie map[string]probed, status int) {
	t.Helper()
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--url") }) {
		args = append(args, "--url=none")
	}
	stdout, stderr, status := run(t, exec.Command(binary, append([]string{"probe", "-o", "json"}, args...)...))
	byCookie = make(map[string]probed)
	for line := range strings.Lines(stdout) {
		var p probed
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if _, twice := byCookie[p.Cookie]; twice {
			t.Errorf("%s is printed twice", p.Cookie)
		}
		byCookie[p.Cookie] = p
	}
	t.Logf("probe %v: exit status %d: %s", args, status, stderr)
	return byCookie, status
}

// volatileOptions have values that change by themselves, or with being read.
var volatileOptions = map[[2]int]bool{
	{unix.SOL_SOCKET, unix.SO_ERROR}: true, {unix.SOL_SOCKET, unix.SO_INCOMING_CPU}: true, {unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID}: true,
	{unix.SOL_SOCKET, unix.SO_MEMINFO}: true, {unix.SOL_SOCKET, unix.SO_PEERPIDFD}: true,
	{unix.IPPROTO_TCP, unix.TCP_INFO}: true, {unix.IPPROTO_TCP, unix.TCP_CC_INFO}: true, {unix.IPPROTO_TCP, unix.TCP_TIMESTAMP}: true,
	{unix.IPPROTO_TCP, unix.TCP_ZEROCOPY_RECEIVE}: true, {unix.IPPROTO_TCP, unix.TCP_QUICKACK}: true,
	{unix.IPPROTO_IP, unix.IP_MTU}: true, {unix.IPPROTO_IPV6, unix.IPV6_MTU}: true, // of a route that is dropped
}

// optionsOf returns the values of all options of a socket, or their errors.
func optionsOf(fd int) map[[2]int]string {
	values := make(map[[2]int]string)
	for _, level := range []int{unix.SOL_SOCKET, unix.IPPROTO_TCP, unix.IPPROTO_IP, unix.IPPROTO_IPV6} {
		for name := 1; name < 100; name++ {
			if o := [2]int{level, name}; !volatileOptions[o] {
				v, err := unix.GetsockoptInt(fd, level, name)
				values[o] = fmt.Sprint(v, err)
			}
		}
	}
	return values
}

// asked is a connection that is asked: a duplicate of its socket, and what it was before.
type asked struct {
	kind, cookie string
	fd           int
	options      map[[2]int]string
	sent         uint32 // segments
	result       string
	probes       int
}

// askedOf takes down what a connection is before it is asked, and the expected result.
func askedOf(t *testing.T, kind string, fd int, result string, probes int) *asked {
	t.Helper()
	duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(duplicate) })
	cookie, err := cookieAt(duplicate)
	if err != nil {
		t.Fatal(err)
	}
	info, err := unix.GetsockoptTCPInfo(duplicate, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return &asked{kind, cookie, duplicate, optionsOf(duplicate), info.Segs_out, result, probes}
}

// check compares what the command says with what the socket says.
func (a *asked) check(t *testing.T, p probed, printed bool) {
	t.Helper()
	if !printed || p.Result != a.result || p.Probes != a.probes || (p.Why != nil) != (a.result == "not_asked") ||
		(p.RoundTripSeconds != nil) != (a.result == "answered") || p.RoundTripSeconds != nil && !(*p.RoundTripSeconds > 0 && *p.RoundTripSeconds < 10) {
		why := ""
		if p.Why != nil {
			why = *p.Why
		}
		t.Errorf("%s: %+v (%s), expected %s after %d probes", a.kind, p, why, a.result, a.probes)
	}
	info, err := unix.GetsockoptTCPInfo(a.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	if sent := int(info.Segs_out - a.sent); sent != a.probes && a.result != "not_asked" {
		t.Errorf("%s: the socket has sent %d segments, expected %d probes", a.kind, sent, a.probes)
	}
	if a.result == "reset" {
		return
	}
	now := optionsOf(a.fd)
	for o, before := range a.options {
		if now[o] != before {
			t.Errorf("%s: option %v is %s, it was %s", a.kind, o, now[o], before)
		}
	}
}

// fdOf returns the descriptor of a connection.
func fdOf(t *testing.T, c syscall.Conn) (fd int) {
	t.Helper()
	if err := onFD(c, func(n int) error {
		fd = n
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// hold reads what comes, and keeps the connection open after its end.
func hold(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

// taken returns a duplicate of a descriptor of another process.
func taken(t *testing.T, pid, fd int) int {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	duplicate, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(duplicate) })
	return duplicate
}

const (
	halfPort, stoppedPort, forgetfulPort, unreadPort = 7002, 7003, 7004, 7005
)

// kinds makes connections of all kinds.
type kinds struct {
	*network
	t       *testing.T
	made    []*asked // without what they are before
	stopped []*helperProcess
}

// add adds a connection, with the expected answer.
func (k *kinds) add(kind string, c syscall.Conn, result string, probes int) {
	k.t.Helper()
	k.made = append(k.made, &asked{kind: kind, fd: fdOf(k.t, c), result: result, probes: probes})
}

func (k *kinds) must(errs ...error) {
	k.t.Helper()
	if err := errors.Join(errs...); err != nil {
		k.t.Fatal(err)
	}
}

func setRepair(c syscall.Conn, value int) error {
	return onFD(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, value) })
}

// live makes connections whose peers are there.
func (k *kinds) live() {
	k.serve(servedPort, hold)
	k.serve(halfPort, func(c *net.TCPConn) {
		_ = c.CloseWrite()
		hold(c)
	})
	conns := k.dial(servedPort, 7)
	k.must(lab.SetUserTimeout(conns[0], 1500*time.Millisecond))
	k.add("alive, with TCP_USER_TIMEOUT", conns[0], "answered", 1)
	k.must(lab.SetKeepalive(conns[1], time.Minute, 10*time.Second, 6))
	k.add("alive, with keepalive", conns[1], "answered", 1)
	k.must(conns[2].CloseWrite())
	k.add("fin_wait2", conns[2], "answered", 1)
	k.must(setRepair(conns[3], 1))
	k.t.Cleanup(func() { _ = setRepair(conns[3], 0) })
	k.add("repaired", conns[3], "not_asked", 0)
	for _, c := range conns[4:] {
		k.add("alive", c, "answered", 1)
	}
	k.add("close_wait", k.dial(halfPort, 1)[0], "answered", 1)
}

// processes makes connections that other processes hold, at either end.
func (k *kinds) processes() {
	in := newController(k.t)
	peer := in.start("peer", k.Server.Path())
	listener := peer.must(command{Do: "listen", Addr: k.server(stoppedPort)}).FD
	for _, c := range k.dial(stoppedPort, 2) {
		peer.must(command{Do: "accept", FD: listener})
		k.add("peer stopped", c, "answered", 1)
	}
	k.stopped = append(k.stopped, peer)
	for _, name := range []string{"runs", "stops"} {
		h := in.start(name, k.Client.Path())
		for range 2 {
			fd := taken(k.t, h.PID, h.must(command{Do: "connect", Addr: k.server(servedPort)}).FD)
			k.made = append(k.made, &asked{kind: "of a process that " + name, fd: fd, result: "answered", probes: 1})
		}
		if name == "stops" {
			k.stopped = append(k.stopped, h)
		}
	}
}

// unread makes a connection whose window is closed.
func (k *kinds) unread() {
	k.serve(unreadPort, func(*net.TCPConn) {})
	c := k.dial(unreadPort, 1)[0]
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	for {
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	k.add("window closed", c, "not_asked", 0)
}

// gone makes connections whose peers are gone, or cannot be reached.
func (k *kinds) gone() {
	forgotten := make(chan error, 2)
	k.serve(forgetfulPort, func(c *net.TCPConn) { forgotten <- errors.Join(setRepair(c, 1), c.Close()) })
	for _, c := range k.dial(forgetfulPort, 2) {
		k.must(<-forgotten)
		k.add("peer rebooted", c, "reset", 1)
	}
	k.serve(droppedPort, hold)
	conns := k.dial(droppedPort, 6)
	k.must(lab.SetUserTimeout(conns[0], 1500*time.Millisecond))
	k.add("cut, with TCP_USER_TIMEOUT", conns[0], "silent", 3)
	k.must(lab.SetKeepalive(conns[1], time.Minute, 10*time.Second, 6))
	k.add("cut, with keepalive", conns[1], "silent", 3)
	k.must(lab.SetKeepalive(conns[2], time.Minute, 10*time.Second, 6), lab.SetUserTimeout(conns[2], 80*time.Second))
	k.add("cut, with keepalive and TCP_USER_TIMEOUT", conns[2], "silent", 3)
	k.cut(droppedPort)
	k.write(conns[3])
	k.add("cut, data in flight", conns[3], "not_asked", 0)
	for _, c := range conns[4:] {
		k.add("cut", c, "silent", 3)
	}
}

// askEveryKind makes connections of all kinds, and takes down what they are before they are asked.
func askEveryKind(t *testing.T, n *network) (all []*asked) {
	t.Helper()
	k := &kinds{network: n, t: t}
	k.live()
	k.processes()
	k.unread()
	k.gone()
	for _, p := range k.stopped { // which holds up nothing
		k.must(syscall.Kill(p.PID, syscall.SIGSTOP))
	}
	for _, c := range k.made {
		all = append(all, askedOf(t, c.kind, c.fd, c.result, c.probes))
	}
	return all
}

func TestProbeIsRightForEveryPeer(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		all := askEveryKind(t, n)
		before, err := n.Client.Netstat()
		if err != nil {
			t.Fatal(err)
		}
		netns := strconv.FormatUint(uint64(n.Client.Inode()), 10)
		answers, status := probe(t, "--netns", netns)
		if status != 3 {
			t.Errorf("exit status %d, although not all have answered", status)
		}
		after, err := n.Client.Netstat()
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for _, a := range all {
			p, printed := answers[a.cookie]
			a.check(t, p, printed)
			sent += a.probes
		}
		if len(answers) != len(all) {
			t.Errorf("%d connections were asked, expected %d", len(answers), len(all))
		}
		// The kernel's own count of keepalive probes.
		if got := after["TcpExtTCPKeepAlive"] - before["TcpExtTCPKeepAlive"]; got != sent {
			t.Errorf("the kernel has sent %d keepalive probes, expected %d", got, sent)
		}

		// Those that were silent are zombies, as the next look shows.
		zombies := make(map[string]bool)
		for _, c := range list(t, "--netns", netns, "--verdict", "zombie") {
			zombies[c.Cookie] = true
		}
		for _, a := range all {
			if a.kind == "cut" && !zombies[a.cookie] {
				t.Errorf("%s: %s is no zombie for a list", a.kind, a.cookie)
			}
		}

		// The others work as before.
		for _, a := range all {
			if a.kind != "alive" {
				continue
			}
			if _, err := unix.Write(a.fd, []byte("still there?")); err != nil {
				t.Errorf("%s: %v", a.kind, err)
			}
			eventually(t, "the peer has acknowledged it", func() error {
				if waiting, err := unix.IoctlGetInt(a.fd, unix.SIOCOUTQ); err != nil || waiting > 0 {
					return fmt.Errorf("%d bytes are not, %v", waiting, err)
				}
				return nil
			})
		}
		// Named ones, as text.
		c := n.dial(servedPort, 1)[0]
		stdout, stderr, status := run(t, exec.Command(binary, "probe", "--url=none", all[5].cookie, c.LocalAddr().String()))
		if status != 0 || strings.Count(stdout, "  answered in ") != 2 || !strings.Contains(stdout, c.LocalAddr().String()+" → ") || !strings.Contains(stderr, "2 connections: 2 answered") {
			t.Errorf("exit status %d:\n%s%s", status, stdout, stderr)
		}
	})
}

// An agent sees the probes as any others. What was asked and is silent is a zombie until it is
// heard.
func TestProbeMakesZombiesForTheAgent(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		n.serve(droppedPort, hold)
		n.dial(droppedPort, many)
		restore := n.cut(droppedPort)
		netns := strconv.FormatUint(uint64(n.Client.Inode()), 10)
		answers, status := probe(t, "--netns", netns, "--url", a.url)
		if status != 3 || len(answers) != many {
			t.Fatalf("exit status %d, %d answers", status, len(answers))
		}
		for _, p := range answers {
			if p.Result != "silent" || p.Probes != 3 || p.Netns != n.Client.Inode() || p.Remote.Port != droppedPort {
				t.Errorf("%+v", p)
			}
		}
		check := func() {
			t.Helper()
			conns := a.connections(n, droppedPort, "")
			if err := all(conns, many, "zombie"); err != nil {
				t.Error(err)
			}
			for _, c := range conns {
				if c.Evidence != "keepalive" || c.Unanswered != 3 || c.Keepalive.Enabled {
					t.Errorf("%+v", c)
				}
			}
		}
		check()
		throughout(t.Context(), 20*time.Second, check) // longer than a census takes to come
		for _, c := range a.connections(n, droppedPort, "") {
			for _, e := range a.story(c.Cookie) {
				if e.Kind == "verdict" && !slices.Contains([]string{"suspect", "zombie"}, e.To) {
					t.Errorf("%s became %s", c.Cookie, e.To)
				}
			}
		}
		restore()
		answers, status = probe(t, "--netns", netns, "--verdict", "zombie", "--url", a.url)
		if status != 0 || len(answers) != many {
			t.Errorf("exit status %d, %d answers", status, len(answers))
		}
		eventually(t, "none is a zombie", func() error { return all(a.connections(n, droppedPort, ""), many, "active") })
	})
}

// A host that cannot send says so, and does not blame the peer.
func TestProbeOfAHostThatCannotSend(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		n.serve(servedPort, hold)
		n.dial(servedPort, 3)
		if _, err := n.Client.Output("ip", "link", "set", "dev", linkOf(t, n.Client), "down"); err != nil {
			t.Fatal(err)
		}
		answers, status := probe(t, "--netns", strconv.FormatUint(uint64(n.Client.Inode()), 10))
		if status != 3 || len(answers) != 3 {
			t.Errorf("exit status %d, %d answers", status, len(answers))
		}
		for _, p := range answers {
			if p.Result != "not_asked" || p.Why == nil || !strings.HasPrefix(*p.Why, "nothing leaves this host: ") {
				t.Errorf("%+v", p)
			}
		}
	})
}

// linkOf returns the device of a namespace that is not the loopback device.
func linkOf(t *testing.T, n *lab.Namespace) string {
	t.Helper()
	out, err := n.Output("ip", "-o", "link")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSuffix(strings.Fields(line)[1], ":"); name != "lo" {
			name, _, _ = strings.Cut(name, "@")
			return name
		}
	}
	t.Fatal("there is none")
	return ""
}

// A process that sleeps with its socket locked holds up neither other askings nor the end of the
// command. The socket has its settings when it is free again.
func TestProbeOfALockedSocket(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	n.serve(servedPort, hold)
	conns := n.dial(servedPort, 3)
	locked := askedOf(t, "locked", fdOf(t, conns[0]), "not_asked", 0)
	release, err := lab.LockSocket(conns[0])
	if err != nil {
		t.Fatal(err)
	}
	answers, status := probe(t, "--netns", strconv.FormatUint(uint64(n.Client.Inode()), 10))
	if err := release(); err != nil {
		t.Error(err)
	}
	if status != 3 || len(answers) != len(conns) {
		t.Errorf("exit status %d, %d answers", status, len(answers))
	}
	for cookie, p := range answers {
		if want := map[bool]string{true: "not_asked", false: "answered"}[cookie == locked.cookie]; p.Result != want {
			t.Errorf("%+v, expected %s", p, want)
		}
	}
	eventually(t, "the settings are as they were", func() error {
		if now := optionsOf(locked.fd); !maps.Equal(now, locked.options) {
			return fmt.Errorf("%v, they were %v", now, locked.options)
		}
		return nil
	})
}

// leaveJournal changes the settings of a connection as a probe does that is killed in the midst of
// it, and leaves its journal.
func leaveJournal(t *testing.T, r *mountNamespace, c *net.TCPConn, descriptor int) {
	t.Helper()
	if err := onFD(c, func(fd int) error {
		for _, o := range [][3]int{
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 127}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 32767},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
		} {
			if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	cookie, err := lab.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	dir := "/run/halfopen/probe"
	r.must(func() error {
		return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprintf("%x", cookie)), fmt.Appendf(nil,
			`{"boot":%q,"cookie":%d,"netns":1,"pid":%d,"fd":%d,"prober":1,"were":{"keepalive":0,"idle":7200,"interval":75,"count":9,"user_timeout":30000}}`,
			strings.TrimSpace(string(boot)), cookie, os.Getpid(), descriptor), 0o600))
	})
}

// What a probe has left that was killed, the next probe and the next agent put back.
func TestWhatAKilledProbeLeftIsPutBack(t *testing.T) {
	t.Parallel()
	r := newMountNamespace(t)
	n := newNetwork(t, "ipv4")
	n.serve(servedPort, hold)
	for what, put := range map[string]func(c *net.TCPConn){
		"a probe": func(c *net.TCPConn) {
			stdout, stderr, status := r.run(exec.Command(binary, "probe", "--url=none", c.LocalAddr().String()))
			if status != 0 || !strings.Contains(stderr, "put back the settings of 1 connection, ") || !strings.Contains(stdout, "answered") {
				t.Errorf("exit status %d: %s%s", status, stdout, stderr)
			}
		},
		"an agent": func(*net.TCPConn) {
			a := r.agent("--web.socket=none")
			defer a.stop()
			if !strings.Contains(a.log.String(), "put back the settings of 1 connection, ") {
				t.Errorf("the agent said:\n%s", a.log)
			}
		},
	} {
		c := n.dial(servedPort, 1)[0]
		if err := lab.SetUserTimeout(c, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		before := askedOf(t, what, fdOf(t, c), "", 0)
		descriptor := fdOf(t, c)
		if what == "a probe" {
			descriptor = 0 // it has moved since
		}
		leaveJournal(t, r, c, descriptor)
		if maps.Equal(optionsOf(before.fd), before.options) {
			t.Fatal("nothing was changed")
		}
		put(c)
		now := optionsOf(before.fd)
		for o, was := range before.options {
			if now[o] != was {
				t.Errorf("%s: option %v is %s, it was %s", what, o, now[o], was)
			}
		}
		r.must(func() error {
			left, err := os.ReadDir("/run/halfopen/probe")
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("%s: %v is left", what, left)
			}
			return err
		})
	}
}

func TestProbeWithoutPrivileges(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	a := sharedAgent(t)
	n.serve(servedPort, hold)
	c := n.dial(servedPort, 1)[0]
	stdout, stderr, status := run(t, as(nobody, 0, "probe", "--url", a.url, c.LocalAddr().String()))
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "/run/halfopen") {
		t.Errorf("exit status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}
