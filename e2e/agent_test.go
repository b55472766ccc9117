// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/halfopen/halfopen/bpf"
)

// binary is the halfopen to try: $HALFOPEN_BIN, or built here. publicBinary is a
// copy where everybody may run it.
var binary, publicBinary string

// prepare makes both. It does so before any test forks: a child that inherits a
// file open for writing keeps it from being run.
func prepare() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "halfopen-e2e-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	publicBinary = filepath.Join(dir, "halfopen")
	if binary = os.Getenv("HALFOPEN_BIN"); binary == "" {
		binary = publicBinary
		if out, err := exec.Command("go", "build", "-o", binary, "../cmd/halfopen").CombinedOutput(); err != nil {
			return dir, fmt.Errorf("%w\n%s", err, out)
		}
		return dir, nil
	}
	body, err := os.ReadFile(binary)
	if err != nil {
		return dir, err
	}
	return dir, os.WriteFile(publicBinary, body, 0o755)
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if part := os.Getenv(bulkEnv); part != "" {
			return runBulkClients(part)
		}
		if path := os.Getenv(helperEnv); path != "" {
			return runHelper(path)
		}
		if how := os.Getenv(sandboxEnv); how != "" {
			return runSandboxed(how)
		}
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "the end-to-end tests need root: sudo make e2e")
			return 1
		}
		dir, err := prepare()
		defer os.RemoveAll(dir)
		if err == nil && !lockedDown() {
			deathTracer, err = newTracer(tcpDeaths, labAddress)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		status := m.Run()
		stopChromium()
		if a := shared.agent; a != nil {
			if code := a.stop(); code != 0 {
				fmt.Fprintf(os.Stderr, "the agent's exit status is %d: %s\n", code, a.log)
				status = 1
			}
		}
		if err := deathTracer.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return status
	}())
}

// The contract's objects, as a client would write them down.
type connection struct {
	Cookie string `json:"cookie"`
	Family string `json:"family"`
	Local  struct {
		IP   string `json:"ip"`
		Port int    `json:"port"`
	} `json:"local"`
	Remote struct {
		IP   string `json:"ip"`
		Port int    `json:"port"`
	} `json:"remote"`
	Netns    uint32     `json:"netns"`
	State    string     `json:"state"`
	Verdict  string     `json:"verdict"`
	Since    *time.Time `json:"since"`
	Evidence string     `json:"evidence"`
	Reason   *struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
	} `json:"reason"`
	Unanswered    int     `json:"unanswered"`
	Attempts      int     `json:"attempts"`
	IdleSeconds   float64 `json:"idle_seconds"`
	SilentSeconds float64 `json:"silent_seconds"`
	SegmentsIn    int     `json:"segments_in"`
	Keepalive     struct {
		Enabled         bool    `json:"enabled"`
		TimeSeconds     float64 `json:"time_seconds"`
		IntervalSeconds float64 `json:"interval_seconds"`
		Probes          int     `json:"probes"`
		ProbesOut       int     `json:"probes_out"`
		PerSocket       bool    `json:"per_socket"`
	} `json:"keepalive"`
	UserTimeoutSeconds float64 `json:"user_timeout_seconds"`
	Retransmits        struct {
		Unanswered int `json:"unanswered"`
		Total      int `json:"total"`
	} `json:"retransmits"`
	UnackedSegments int      `json:"unacked_segments"`
	SendQueueBytes  int      `json:"send_queue_bytes"`
	ReceiveQueue    int      `json:"receive_queue_bytes"`
	SendWindowBytes int      `json:"send_window_bytes"`
	Risks           []string `json:"risks"`
	Also            []string `json:"also"`
	Process         *struct {
		PID  int    `json:"pid"`
		Comm string `json:"comm"`
		FD   int    `json:"fd"`
	} `json:"process"`
	UID         *int    `json:"uid"`
	Accepted    *bool   `json:"accepted"`
	Cgroup      *string `json:"cgroup"`
	Namespace   *string `json:"namespace"`
	Pod         *string `json:"pod"`
	Container   *string `json:"container"`
	ContainerID *string `json:"container_id"`
	PodUID      *string `json:"pod_uid"`
	Unit        *string `json:"unit"`
}

type death struct {
	connection
	At            time.Time `json:"at"`
	Cause         string    `json:"cause"`
	During        string    `json:"during"`
	Errno         string    `json:"errno"`
	ZombieSeconds *float64  `json:"zombie_seconds"`

	ForecastErrorSeconds *float64 `json:"forecast_error_seconds"`

	Similar      int        `json:"similar"`
	SimilarSince *time.Time `json:"similar_since"`
}

type event struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"`
	Evidence   string    `json:"evidence"`
	Unanswered int       `json:"unanswered"`
	From       string    `json:"from"`
	To         string    `json:"to"`
}

// agent is a running `halfopen agent`.
type agent struct {
	t    testing.TB
	cmd  *exec.Cmd
	url  string
	log  *buffer
	done chan struct{}
	err  error // of its exit; after done
	late bool  // it had to be killed
}

// buffer holds what a child process has printed so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startAgent runs an agent until the test ends, and returns once it is ready.
func startAgent(t testing.TB, flags ...string) *agent {
	t.Helper()
	return stopAtCleanup(t, launchAgent(t, flags...))
}

// stopAtCleanup waits until an agent is ready, and ends it when the test does.
func stopAtCleanup(t testing.TB, a *agent) *agent {
	t.Helper()
	t.Cleanup(func() {
		if a.stop(); a.late {
			t.Error("the agent did not end after SIGTERM")
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", a.log)
		}
	})
	a.ready()
	return a
}

// shared is the agent of the tests that any agent with the defaults will do for,
// whatever it has seen before: to start one for each takes longer than they do.
var shared struct {
	sync.Mutex
	agent *agent
}

// sharedAgent is that one. It ends with the last test.
func sharedAgent(t testing.TB) *agent {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.agent == nil {
		shared.agent = launchAgent(t)
	}
	a := shared.agent.of(t)
	said := len(a.log.String())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent said:\n%s", a.log.String()[said:])
		}
	})
	a.ready()
	return a
}

// withoutAgents ends that one, until the next test that wants it: an agent gives every
// socket a cookie. Only for tests that are not parallel.
func withoutAgents(t testing.TB) {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if a := shared.agent; a != nil {
		if code := a.stop(); code != 0 {
			t.Errorf("the agent's exit status is %d: %s", code, a.log)
		}
		shared.agent = nil
	}
}

// launchAgent starts an agent, which is not ready yet.
func launchAgent(t testing.TB, flags ...string) *agent {
	t.Helper()
	return launchAgentAt(t, freeAddr(t), flags...)
}

func launchAgentAt(t testing.TB, addr string, flags ...string) *agent {
	t.Helper()
	// The machine's own socket may be another agent's, and the tests have many.
	if !slices.ContainsFunc(flags, func(f string) bool { return strings.HasPrefix(f, "--web.socket") }) {
		flags = append(flags[:len(flags):len(flags)], "--web.socket=none")
	}
	// Many tests ask at once, and often.
	return launchCommand(t, addr, exec.Command(binary, append([]string{"agent", "--web.listen-address=" + addr, "--web.lookup-cpu=100%"}, flags...)...))
}

// launchCommand starts an agent that listens on that address, as cmd makes it.
func launchCommand(t testing.TB, addr string, cmd *exec.Cmd) *agent {
	t.Helper()
	return launch(t, addr, cmd, cmd.Start)
}

// launch starts an agent that listens on that address, by start.
func launch(t testing.TB, addr string, cmd *exec.Cmd, start func() error) *agent {
	t.Helper()
	a := &agent{t: t, url: "http://" + addr, cmd: cmd, log: &buffer{}, done: make(chan struct{})}
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	if err := start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
	}()
	return a
}

// ready waits until it is.
func (a *agent) ready() {
	a.t.Helper()
	eventually(a.t, "the agent is ready", func() error {
		select {
		case <-a.done:
			a.t.Fatalf("the agent ended: %v\n%s", a.err, a.log)
		default:
		}
		resp, err := http.Get(a.url + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ready: %s", resp.Status)
		}
		return nil
	})
}

// stop ends the agent in order and returns its exit status.
func (a *agent) stop() int {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.done:
	case <-time.After(generous):
		a.late = true
		_ = a.cmd.Process.Signal(syscall.SIGQUIT) // it logs what each goroutine does
		select {
		case <-a.done:
		case <-time.After(10 * time.Second):
			_ = a.cmd.Process.Kill()
			<-a.done
		}
	}
	return a.cmd.ProcessState.ExitCode()
}

// freeAddr is a loopback address that nothing listens on. Its port is none that the kernel
// gives to connections, which others may make before it is used.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+nextPort.Add(1)%20000)
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		return addr
	}
	t.Fatal("no port is free")
	return ""
}

// nextPort counts the ports, from where no other process of these tests does.
var nextPort atomic.Uint32

func init() { nextPort.Store(uint32(os.Getpid()) * 257) }

// get reads a JSON document of the API. If the agent is busy, it asks again when the agent
// says.
func (a *agent) get(path string, into any) error {
	for ends := time.Now().Add(generous); ; {
		resp, err := http.Get(a.url + path)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			return json.Unmarshal(body, into)
		}
		wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || time.Now().After(ends) {
			return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
		}
		time.Sleep(time.Duration(wait) * time.Second)
	}
}

// connections asks for the connections of a network's client to a port; query
// may select further. The agent sees the whole node, other tests included.
func (a *agent) connections(n *network, port int, query string) []connection {
	a.t.Helper()
	var list struct {
		GeneratedAt time.Time    `json:"generated_at"`
		Total       int          `json:"total"`
		Connections []connection `json:"connections"`
	}
	path := fmt.Sprintf("/api/v1/connections?limit=100000&port=%d&%s", port, query)
	if err := a.get(strings.TrimSuffix(path, "&"), &list); err != nil {
		a.t.Fatal(err)
	}
	if list.Total != len(list.Connections) {
		a.t.Fatalf("total is %d, with %d connections", list.Total, len(list.Connections))
	}
	var conns []connection
	for _, c := range list.Connections {
		if c.Remote.Port == port && c.Netns == n.Client.Inode() {
			conns = append(conns, c)
		}
	}
	return conns
}

// story asks for one connection's recent events.
func (a *agent) story(cookie string) []event {
	a.t.Helper()
	var c struct {
		Events []event `json:"events"`
	}
	if err := a.get("/api/v1/connections/"+url.PathEscape(cookie), &c); err != nil {
		a.t.Fatal(err)
	}
	return c.Events
}

// deaths asks for the deaths of the connections of a network's client to a port.
func (a *agent) deaths(n *network, port int) []death {
	a.t.Helper()
	var list struct {
		Total  int     `json:"total"`
		Deaths []death `json:"deaths"`
	}
	if err := a.get("/api/v1/deaths?limit=100000", &list); err != nil {
		a.t.Fatal(err)
	}
	var deaths []death
	for _, d := range list.Deaths {
		if d.Remote.Port == port && d.Netns == n.Client.Inode() && d.At.After(n.made) {
			deaths = append(deaths, d)
		}
	}
	return deaths
}

// metrics scrapes and parses /metrics.
func (a *agent) metrics() metrics {
	a.t.Helper()
	resp, err := http.Get(a.url + "/metrics")
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		a.t.Fatalf("parse metrics: %v", err)
	}
	return metrics{a.t, families}
}

type metrics struct {
	t        testing.TB
	families map[string]*dto.MetricFamily
}

// value is that of one series (of a histogram, its count): name, then label
// names and values in turn. The series must exist.
func (m metrics) value(name string, labels ...string) float64 {
	m.t.Helper()
	f := m.families[name]
	if f == nil {
		m.t.Fatalf("no metric %s", name)
	}
series:
	for _, s := range f.Metric {
		have := make(map[string]string)
		for _, l := range s.Label {
			have[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(labels); i += 2 {
			if v, ok := have[labels[i]]; !ok || v != labels[i+1] {
				continue series
			}
		}
		switch {
		case s.Gauge != nil:
			return s.Gauge.GetValue()
		case s.Counter != nil:
			return s.Counter.GetValue()
		case s.Histogram != nil:
			return float64(s.Histogram.GetSampleCount())
		}
	}
	m.t.Fatalf("no series %s%v", name, labels)
	return 0
}

// patience is how many times longer than on a usual machine things may take:
// $HALFOPEN_PATIENCE, or 1.
var patience = time.Duration(factor("HALFOPEN_PATIENCE"))

func factor(variable string) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv(variable), "1"))
	if err != nil || n < 1 {
		panic(variable + " is no whole number of 1 or more")
	}
	return n
}

// scale is how many times smaller than on a usual machine loads are:
// $HALFOPEN_SCALE, or 1.
var scale = factor("HALFOPEN_SCALE")

// scaled is the size of a load.
func scaled(n int) int { return max(n/scale, 1) }

// alone says that nothing else uses this machine: $HALFOPEN_ALONE, which is set in the
// virtual machines. There what the agent counts of the whole node is exactly the test's;
// elsewhere others come and go, and it is at least that.
var alone = os.Getenv("HALFOPEN_ALONE") != ""

// leftOut logs that this kernel cannot do a test, given by its name, or a part of one: the
// test's name, "/" and the part's. In the virtual machines, what scripts/vm/left-out does
// not name fails.
func leftOut(t testing.TB, what, why string) {
	t.Helper()
	t.Logf("left out: %s: %s", strings.ReplaceAll(what, " ", "_"), why)
}

// fullReceiversAnswer reports whether a receiver with a full buffer answers.
func fullReceiversAnswer(t testing.TB) bool {
	t.Helper()
	answers, err := bpf.FullReceiversAnswer()
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

// generous bounds what takes seconds: only a failure, or a machine with much else to do,
// takes longer.
var generous = 2 * patience * time.Minute

// eventually waits until f returns nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	within(t, generous, what, f)
}

// within waits until f returns nil. It is for tests that are about the time this takes.
func within(t testing.TB, timeout time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	if !poll(50*time.Millisecond, timeout, func() bool {
		err = f()
		return err == nil
	}) {
		t.Fatalf("not within %v: %s: %v", timeout, what, err)
	}
}

// seldom is the longest time between two questions of poll.
var seldom = 250 * patience * time.Millisecond

// poll waits until ok returns true, and returns false if it does not within a time. The longer
// it has waited, the less often it asks: the questions of all tests together take much of the
// processors' time.
func poll(every, timeout time.Duration, ok func() bool) bool {
	for began := time.Now(); !ok(); {
		waited := time.Since(began)
		if waited > timeout {
			return false
		}
		time.Sleep(max(every, min(waited/16, seldom)))
	}
	return true
}

// throughout calls f again and again for a time, five times a second.
func throughout(ctx context.Context, d time.Duration, f func()) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for ctx.Err() == nil {
		f()
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
