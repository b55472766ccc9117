// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	memoryLimit = 64 << 20 // of the agent's control group
	// The sockets of the test: that many pairs in each of several processes. They are too
	// many to be sorted.
	memoryPairs     = 5500
	memoryProcesses = 2
	soakProcesses   = 10 // 110,000 sockets
)

// memoryGroup is a control group with a memory limit, of cgroup v2 if that has the memory
// controller, else of v1.
type memoryGroup struct {
	t    testing.TB
	path string
	v2   bool
}

func newMemoryGroup(t testing.TB, limit int64) *memoryGroup {
	t.Helper()
	point := t.TempDir()
	mount := func(fstype, options string) {
		if err := unix.Mount("none", point, fstype, 0, options); err != nil {
			t.Fatalf("mount %s: %v", fstype, err)
		}
	}
	g := &memoryGroup{t: t, path: filepath.Join(point, fmt.Sprintf("halfopen-%d", os.Getpid()))}
	mount("cgroup2", "")
	controllers, err := os.ReadFile(filepath.Join(point, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	if g.v2 = slices.Contains(strings.Fields(string(controllers)), "memory"); !g.v2 {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		mount("cgroup", "memory")
	}
	t.Cleanup(func() {
		eventually(t, "the control group is removed", func() error { return os.Remove(g.path) })
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	files := map[string]string{"memory.max": strconv.FormatInt(limit, 10), "memory.swap.max": "0"}
	if !g.v2 {
		files = map[string]string{"memory.limit_in_bytes": strconv.FormatInt(limit, 10)}
	} else if err := os.WriteFile(filepath.Join(point, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, value := range files {
		if err := os.WriteFile(filepath.Join(g.path, name), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return g
}

// command returns a command that runs in the group.
func (g *memoryGroup) command(argv ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, g.path}, argv...)...)
}

// kills returns how many processes the kernel has killed for want of memory.
func (g *memoryGroup) kills() int {
	g.t.Helper()
	return g.number(map[bool]string{true: "memory.events", false: "memory.oom_control"}[g.v2], "oom_kill ")
}

// peak returns the most memory in bytes that the group has had.
func (g *memoryGroup) peak() int {
	g.t.Helper()
	if !g.v2 {
		return g.number("memory.max_usage_in_bytes", "")
	}
	if _, err := os.Stat(filepath.Join(g.path, "memory.peak")); err != nil {
		return 0 // before 5.19
	}
	return g.number("memory.peak", "")
}

// number returns the number after a prefix of a line of a file.
func (g *memoryGroup) number(file, prefix string) int {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(g.path, file))
	if err != nil {
		g.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(rest)); err == nil {
				return n
			}
		}
	}
	g.t.Fatalf("%s has no %q: %s", file, prefix, text)
	return 0
}

// ssCookies returns the cookies of the connections of the namespaces, as ss prints them.
func ssCookies(t testing.TB, nets []*network) map[string]bool {
	t.Helper()
	cookies := make(map[string]bool)
	for _, n := range nets {
		for _, ns := range []string{n.Client.Path(), n.Server.Path()} {
			out, err := exec.Command("nsenter", "--net="+ns, "ss", "-Htnae", "state", "connected").Output()
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(out)) {
				_, rest, ok := strings.Cut(line, " sk:")
				if !ok {
					t.Fatalf("ss says %q", line)
				}
				cookies[strings.Fields(rest)[0]] = true
			}
		}
	}
	return cookies
}

// requestOf asks for a path. It returns an error unless the answer is whole, and is what was
// asked for or a refusal that says why and when to ask again.
func (a *agent) requestOf(path string) (status int, body []byte, err error) {
	resp, err := (&http.Client{Timeout: generous}).Get(a.url + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil, fmt.Errorf("%s: %s after %d bytes: %w", path, resp.Status, len(body), err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		var why struct{ Error string }
		if err := json.Unmarshal(body, &why); err != nil || why.Error == "" || resp.Header.Get("Retry-After") == "" {
			return 0, nil, fmt.Errorf("%s: %s without a reason or a time: %q", path, resp.Status, body)
		}
	default:
		return 0, nil, fmt.Errorf("%s: %s: %.200s", path, resp.Status, body)
	}
	return resp.StatusCode, body, nil
}

// streamFor follows the stream for a while.
func (a *agent) streamFor(d time.Duration) error {
	resp, err := (&http.Client{Timeout: d}).Get(a.url + "/api/v1/stream?event=rows&event=verdict&event=summary&event=history")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the stream: %s", resp.Status)
	}
	if n, err := io.Copy(io.Discard, resp.Body); n == 0 {
		return fmt.Errorf("the stream has sent nothing: %w", err)
	}
	return nil
}

// readSlowly asks for all connections, and reads a byte of the answer now and then for a
// while.
func (a *agent) readSlowly(d time.Duration) error {
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /api/v1/connections?limit=1000000 HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	for ends := time.Now().Add(d); time.Now().Before(ends); time.Sleep(100 * time.Millisecond) {
		if err := conn.SetReadDeadline(ends); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return nil
}

// requests are those that several clients make in turn: each path once, and all of them again
// and again until a time.
type requests struct {
	agent                   *agent
	paths                   []string
	ends                    time.Time // zero: each path once, until it is answered
	next, answered, refused atomic.Int64
}

// run makes one client's share of them.
func (r *requests) run() error {
	for {
		i := int(r.next.Add(1)) - 1
		if i >= len(r.paths) && time.Now().After(r.ends) {
			return nil
		}
		if err := r.make(r.paths[i%len(r.paths)]); err != nil {
			return err
		}
	}
}

// make makes one request. An agent that is busy refuses it: then make asks again, unless the
// requests go round anyway.
func (r *requests) make(path string) error {
	for late := time.Now().Add(generous); ; {
		status, _, err := r.agent.requestOf(path)
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			r.answered.Add(1)
			return nil
		}
		r.refused.Add(1)
		time.Sleep(time.Second) // less than it was told to
		switch {
		case !r.ends.IsZero():
			return nil
		case time.Now().After(late):
			return fmt.Errorf("%s is refused again and again", path)
		}
	}
}

// An agent with a memory limit answers or refuses each request, however many connections
// the node has, and is not killed.
func TestAgentKeepsToItsMemory(t *testing.T) { // not parallel: it is about the number of connections
	processes, lasting := memoryProcesses, time.Duration(0) // each request once
	if os.Getenv("HALFOPEN_SOAK") != "" {
		processes, lasting = soakProcesses, soakTime(t)
	}
	var crowd []*bulkProcess
	var nets []*network
	var filter strings.Builder
	for i := range processes {
		g := startBulkClients(t, "close", scaled(memoryPairs), 7610+i)
		crowd, nets = append(crowd, g), append(nets, g.network)
		fmt.Fprintf(&filter, "&netns=%d&netns=%d", g.Client.Inode(), g.Server.Inode())
	}
	for _, g := range crowd {
		g.ready()
	}
	group, addr := newMemoryGroup(t, memoryLimit), freeAddr(t)
	a := stopAtCleanup(t, launchCommand(t, addr, group.command(binary, "agent", "--web.listen-address="+addr, "--web.socket=none", "--web.lookup-cpu=100%")))
	a.ready()
	pid := a.cmd.Process.Pid
	alive := func() {
		t.Helper()
		select {
		case <-a.done:
			t.Fatalf("the agent has ended: %v, %d were killed for want of memory\n%s", a.err, group.kills(), a.log)
		default:
		}
	}
	all := ssCookies(t, nets)
	if want := 2 * processes * scaled(memoryPairs); len(all) != want {
		t.Fatalf("ss shows %d connections, expected %d", len(all), want)
	}
	whole := "/api/v1/connections?limit=1000000" + filter.String()
	complete := func() {
		t.Helper()
		eventually(t, "an answer with all connections", func() error {
			status, body, err := a.requestOf(whole)
			alive()
			if err != nil || status != http.StatusOK {
				return fmt.Errorf("status %d, error %v", status, err)
			}
			return sameCookies(body, all)
		})
	}
	complete()
	t.Logf("%d sockets: the group had %.1f MB, after all were listed", len(all), float64(group.peak())/1e6)

	paths := []string{
		"/api/v1/connections?limit=1000000", "/api/v1/connections?limit=1000000&all=true", whole, "/api/v1/connections",
		"/api/v1/connections?limit=20000", "/api/v1/connections?limit=20001&owner=e2e.test", "/api/v1/connections?pid=1",
		"/api/v1/groups?by=owner&limit=1000000", "/api/v1/groups?by=remote&limit=1000000", "/api/v1/groups?by=verdict", "/api/v1/groups?by=remote&all=true",
		"/api/v1/deaths?limit=1000000", "/api/v1/status", "/metrics", "/-/ready", "/",
	}
	r := &requests{agent: a, paths: paths}
	if lasting > 0 {
		r.ends = time.Now().Add(lasting)
	}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			if err := r.run(); err != nil {
				t.Error(err)
			}
		})
	}
	for _, slowly := range []func(time.Duration) error{a.streamFor, a.readSlowly} {
		clients.Go(func() {
			for once := true; once || time.Now().Before(r.ends); once = false {
				if err := slowly(5 * patience * time.Second); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
	alive()
	complete()
	t.Logf("%d requests were answered, %d refused; the group had %.1f MB", r.answered.Load(), r.refused.Load(), float64(group.peak())/1e6)
	if n := group.kills(); n > 0 || a.cmd.Process.Pid != pid {
		t.Errorf("%d processes were killed for want of memory", n)
	}
	if !strings.Contains(a.log.String(), `control_group="64 MiB"`) {
		t.Errorf("the agent has not found its limit:\n%s", a.log)
	}
}

// sameCookies compares the cookies of an answer with those that ss shows.
func sameCookies(body []byte, want map[string]bool) error {
	var doc struct {
		Total       int
		Order       string
		Connections []struct{ Cookie, Verdict string }
	}
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&doc); err != nil {
		return err
	}
	if sorted := doc.Order == ""; sorted != (doc.Total <= 20000) {
		return fmt.Errorf("the order of %d is %q", doc.Total, doc.Order)
	}
	got := make(map[string]bool, len(doc.Connections))
	for _, c := range doc.Connections {
		if got[c.Cookie] {
			return fmt.Errorf("%s comes twice", c.Cookie)
		}
		got[c.Cookie] = true
		if !want[c.Cookie] {
			return fmt.Errorf("%s is not shown by ss", c.Cookie)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d connections, ss shows %d", len(got), len(want))
	}
	return nil
}
