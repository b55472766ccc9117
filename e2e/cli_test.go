// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
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
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// start runs the binary and ends it with the test.
func start(t *testing.T, args ...string) (*exec.Cmd, *buffer) {
	t.Helper()
	cmd, out := exec.Command(binary, args...), &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, out
}

// run runs a command to its end.
func run(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	timer := time.AfterFunc(generous, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// tracing is a running `halfopen trace`.
type tracing struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout io.Reader
	lines  *bufio.Scanner // of stdout
	stderr *buffer
}

// startTrace starts one, by start, and waits until it watches. A timer kills it if it does
// not end.
func startTrace(t *testing.T, cmd *exec.Cmd, start func() error) *tracing {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r := &tracing{t: t, cmd: cmd, stdout: stdout, lines: bufio.NewScanner(stdout), stderr: &buffer{}}
	cmd.Stderr = r.stderr
	if err := start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() }
	timer := time.AfterFunc(2*generous, kill)
	t.Cleanup(func() {
		timer.Stop()
		kill()
	})
	eventually(t, "trace watches", func() error {
		if said := r.stderr.String(); !strings.HasSuffix(said, "\n") {
			return fmt.Errorf("it says %q", said)
		}
		return nil
	})
	return r
}

// A traceEvent is what `halfopen trace -o json` prints of a connection.
type traceEvent struct {
	Event      string
	To         string
	Connection *connection
	Death      *death
}

// of returns the connection that an event is of.
func (e *traceEvent) of() *connection {
	if e.Death != nil {
		return &e.Death.connection
	}
	return e.Connection
}

// next waits for the next event of some connections, given by cookie. It returns nil at the
// end of the output.
func (r *tracing) next(cookies map[string]socket) *traceEvent {
	r.t.Helper()
	for r.lines.Scan() {
		e := &traceEvent{}
		if err := json.Unmarshal(r.lines.Bytes(), e); err != nil {
			r.t.Fatalf("%s: %v", r.lines.Bytes(), err)
		}
		if c := e.of(); c != nil {
			if _, ours := cookies[c.Cookie]; ours {
				return e
			}
		}
	}
	return nil
}

// interrupt ends it as Ctrl-C does.
func (r *tracing) interrupt() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		r.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, r.stdout)
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("interrupted trace: %v\n%s", err, r.stderr)
	}
}

// asNobody runs the binary without privileges.
func asNobody(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(publicBinary, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

func TestOneClearLine(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(config, []byte("tls_server_config: [nonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	free := "--web.listen-address=" + freeAddr(t)
	withoutBTF := func(args ...string) *exec.Cmd {
		script := `mount -t tmpfs none /sys/kernel/btf && exec "$0" "$@"`
		return exec.Command("unshare", append([]string{"-m", "sh", "-c", script, binary}, args...)...)
	}
	for name, test := range map[string]struct {
		cmd    *exec.Cmd
		status int
		says   []string
	}{
		"agent without root":              {asNobody(t, "agent", free), 1, []string{"root"}},
		"list without root":               {asNobody(t, "list", "--url=none"), 1, []string{"root"}},
		"explain without root":            {asNobody(t, "explain", "1a2b", "--url=none"), 1, []string{"root"}},
		"trace without root":              {asNobody(t, "trace", "--url=none"), 1, []string{"root"}},
		"top without a terminal":          {exec.Command(binary, "top"), 1, []string{"terminal", "halfopen list"}},
		"demo without root":               {asNobody(t, "demo"), 1, []string{"root"}},
		"agent without BTF":               {withoutBTF("agent", free), 1, []string{"BTF", "CONFIG_DEBUG_INFO_BTF"}},
		"list without BTF":                {withoutBTF("list", "--url=none"), 1, []string{"BTF"}},
		"a port already taken":            {exec.Command(binary, "agent", "--web.listen-address="+taken.Addr().String()), 1, []string{taken.Addr().String(), "in use", "--web.listen-address"}},
		"a broken web config":             {exec.Command(binary, "agent", free, "--web.config.file="+config), 1, []string{config}},
		"a web config that is not there":  {exec.Command(binary, "agent", free, "--web.config.file=/nowhere.yml"), 1, []string{"/nowhere.yml"}},
		"an unknown flag":                 {exec.Command(binary, "agent", "--no-such-flag"), 2, []string{"--no-such-flag", "--help"}},
		"an unknown command":              {exec.Command(binary, "frobnicate"), 2, []string{"frobnicate"}},
		"an allowed host with a scheme":   {exec.Command(binary, "agent", "--web.allowed-host=http://node"), 2, []string{"--web.allowed-host", "http://node", "node.example.com"}},
		"no command":                      {exec.Command(binary), 2, []string{"--help"}},
		"a duration that is none":         {exec.Command(binary, "agent", "--idle-after=soon"), 2, []string{"idle-after", "soon"}},
		"a negative duration":             {exec.Command(binary, "agent", "--zombie-silence=-1s"), 2, []string{"zombie-silence"}},
		"no unanswered solicitation":      {exec.Command(binary, "agent", "--zombie-unanswered=0"), 2, []string{"zombie-unanswered"}},
		"an unknown verdict":              {exec.Command(binary, "list", "--verdict=undead"), 2, []string{"undead"}},
		"an agent that is not there":      {exec.Command(binary, "list", "--url=http://"+freeAddr(t)), 1, []string{"refused"}},
		"an explanation of nothing":       {exec.Command(binary, "explain"), 2, []string{"connection", "explain --help"}},
		"a cookie that nobody has":        {exec.Command(binary, "explain", "ffffffffffffff", "--url=none"), 1, []string{"ffffffffffffff", "halfopen list"}},
		"a broken agent URL":              {exec.Command(binary, "list", "--url=::"), 2, []string{"--url"}},
		"deaths without an agent to tell": {exec.Command(binary, "list", "--cause=refused", "--url=none"), 1, []string{"--url"}},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, status := run(t, test.cmd)
			if status != test.status {
				t.Errorf("exit status %d, expected %d", status, test.status)
			}
			if stdout != "" {
				t.Errorf("on stdout: %q", stdout)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "halfopen: ") {
				t.Errorf("not one line: %q", stderr)
			}
			for _, word := range test.says {
				if !strings.Contains(stderr, word) {
					t.Errorf("%q does not say %q", stderr, word)
				}
			}
		})
	}
}

func TestHelpAndVersionNeedNothing(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--help"}, {"agent", "--help"}, {"list", "--help"}, {"explain", "--help"}, {"top", "--help"}, {"trace", "--help"}, {"demo", "--help"},
		{"doctor", "--help"}, {"version", "--help"}, {"version"}, {"version", "--licenses"},
	} {
		stdout, stderr, status := run(t, asNobody(t, args...))
		if status != 0 || stdout == "" || stderr != "" {
			t.Errorf("%v: exit status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	stdout, stderr, status := run(t, exec.Command(binary, "doctor"))
	if status != 0 || stderr != "" {
		t.Errorf("exit status %d, stderr %q\n%s", status, stderr, stdout)
	}
	for _, word := range []string{"BTF", "inet_sock_set_state", "tcp_retransmit_skb", "timer_expire_entry"} {
		if !strings.Contains(stdout, word) {
			t.Errorf("no word of %s:\n%s", word, stdout)
		}
	}
	if stdout, _, status := run(t, asNobody(t, "doctor")); status != 1 || !strings.Contains(stdout, "FAIL") {
		t.Errorf("without root: exit status %d\n%s", status, stdout)
	}
}

func TestListAndTraceWithoutAnAgent(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, 7)
	n.greet(conns)
	n.keepalive(conns, time.Second, time.Second, 5)

	port := fmt.Sprint(droppedPort)
	cmd := exec.Command(binary, "trace", "--url=none", "-o", "json", "--port", port)
	trace := startTrace(t, cmd, cmd.Start)
	n.cut(droppedPort)

	// By default a solicitation is told of from the second in a row on. Those of all
	// connections come at once, and it may be at a moment that the kernel of this
	// machine hides (docs/kernel.md): so what counts is what each is known to wait
	// for, not how often that was said.
	kinds := make(map[string]int)
	unanswered := make(map[string]int)
	cookies := n.ss(droppedPort)
	for kinds["death"] < len(conns) {
		e := trace.next(cookies)
		if e == nil {
			break
		}
		kinds[e.Event]++
		cookie := e.of().Cookie
		if e.Connection != nil {
			unanswered[cookie] = max(unanswered[cookie], e.Connection.Unanswered)
		}
		if e.Death != nil && e.Death.Cause != "keepalive_timeout" {
			t.Errorf("%s died of %s", cookie, e.Death.Cause)
		}
		if kinds["death"] == 0 && kinds["solicitation"] == len(conns) {
			var list struct{ Total int }
			listInto(t, &list, "--port", port, "--pid", fmt.Sprint(os.Getpid()))
			if list.Total < len(conns) {
				t.Errorf("list: %d connections, expected %d", list.Total, len(conns))
			}
		}
	}
	if kinds["death"] != len(conns) || kinds["verdict"] < len(conns) || kinds["solicitation"] < len(conns) {
		t.Errorf("events: %v", kinds)
	}
	for cookie := range cookies {
		if unanswered[cookie] < 4 {
			t.Errorf("%s had %d unanswered", cookie, unanswered[cookie])
		}
	}
	trace.interrupt()
}

func TestListFromAnAgent(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv6")
	a := startAgent(t)
	n.serve(servedPort, echo)
	conns := n.dial(servedPort, 5)
	n.greet(conns)
	stdout, stderr, status := run(t, exec.Command(binary, "list", "--url", a.url, "--port", fmt.Sprint(servedPort)))
	if status != 0 {
		t.Fatalf("exit status %d: %s", status, stderr)
	}
	for _, c := range conns {
		if !strings.Contains(stdout, c.LocalAddr().String()) {
			t.Errorf("no %s in:\n%s", c.LocalAddr(), stdout)
		}
	}
	if strings.Contains(stdout, "\x1b") {
		t.Errorf("colour, and no terminal: %q", stdout)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	began := time.Now()
	stdout, stderr, status := run(t, exec.Command(binary, "demo"))
	if status != 0 || time.Since(began) > time.Minute {
		t.Errorf("exit status %d after %v: %s", status, time.Since(began), stderr)
	}
	for _, word := range []string{"zombie", "keepalive_timeout"} {
		if !strings.Contains(stdout, word) {
			t.Errorf("no word of %s:\n%s", word, stdout)
		}
	}
}

// doesSomething reports whether a character does something to a terminal or to the text
// around it, other than to end a line.
func doesSomething(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf) && r != '\n' }

// harmless returns an error unless a text is UTF-8, does nothing to a terminal, and has a
// word in it so many times at least.
func harmless(text, word string, least int) error {
	if !utf8.ValidString(text) {
		return errors.New("not UTF-8")
	}
	if strings.ContainsFunc(text, doesSomething) {
		return errors.New("it does something to a terminal")
	}
	if n := strings.Count(text, word); n < least {
		return fmt.Errorf("%q is in it %d times, expected %d", word, n, least)
	}
	return nil
}

// rename gives this process another name until the test ends. Only for tests that are not
// parallel: all tests share the name.
func rename(t *testing.T, name string) {
	t.Helper()
	const comm = "/proc/self/comm"
	usual, err := os.ReadFile(comm)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(comm, []byte(name), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(comm, bytes.TrimSpace(usual), 0) })
}

// zombiesOfOwner is how many an owner has, as a metric says.
func (m metrics) zombiesOfOwner(owner string) (n int) {
	m.t.Helper()
	for _, s := range m.families["halfopen_tcp_zombies_by_owner"].GetMetric() {
		for _, l := range s.Label {
			if l.GetName() == "owner" && l.GetValue() == owner {
				n += int(s.Gauge.GetValue())
			}
		}
	}
	return n
}

func TestHostileProcessName(t *testing.T) {
	const (
		hostile = "h0x<\"\n\x1b[m\u009b\u202e\xff" // markup, ESC, the CSI of C1, right to left, not UTF-8
		label   = `h0x<"\n\x1b[m\u009b\u202e\xff`  // in a metric, as in a table
		zombies = 3
	)
	rename(t, hostile)
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--zombie-silence=1s", "--zombie-unanswered=2")
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, zombies)
	n.greet(conns)
	n.keepalive(conns, time.Second, time.Second, 120)
	n.cut(droppedPort)
	// What cannot be said in UTF-8 is replaced.
	said := strings.ToValidUTF8(hostile, "\uFFFD")
	eventually(t, "zombies of that owner", func() error {
		for _, c := range a.connections(n, droppedPort, "verdict=zombie") {
			if c.Process == nil || c.Process.Comm != said {
				return fmt.Errorf("owner is %+v", c.Process)
			}
		}
		if m := a.metrics(); m.zombiesOfOwner(label) < zombies {
			return fmt.Errorf("by owner: %v", m.families["halfopen_tcp_zombies_by_owner"])
		}
		return nil
	})

	port, cookie := fmt.Sprint(droppedPort), cookieOf(t, conns[0])
	for _, path := range []string{"/metrics", "/api/v1/connections?port=" + port, "/api/v1/connections/" + cookie} {
		status, body, err := a.text(path)
		if err == nil {
			err = harmless(body, "h0x", 1)
		}
		if err != nil || status != http.StatusOK {
			t.Errorf("%s: status %d, %v: %q", path, status, err, body)
		}
	}
	list, explain := []string{"list", "--port", port}, []string{"explain", cookie}
	for _, test := range []struct {
		command, flags []string
		rows           int
	}{
		{list, []string{"--url=none"}, zombies},
		{list, []string{"--url=none", "-o", "wide"}, zombies},
		{list, []string{"--url", a.url}, zombies},
		{list, []string{"--url=none", "-o", "json"}, zombies},
		{explain, []string{"--url=none"}, 1},
		{explain, []string{"--url=none", "-o", "json"}, 1},
		{explain, []string{"--url", a.url}, 1},
	} {
		args := slices.Concat(test.command, test.flags)
		stdout, stderr, status := run(t, exec.Command(binary, args...))
		if err := harmless(stdout, "h0x", test.rows); err != nil || status != 0 {
			t.Errorf("%v: %v, exit status %d: %s\n%q", args, err, status, stderr, stdout)
		}
	}
}

func TestScrapeWhileTheyDie(t *testing.T) {
	const dying = 200
	const port = 7962 // which no other test uses
	// Not parallel: the counter of deaths is of the whole node.
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--zombie-silence=2s")
	a.waitForLeftovers()
	n.serve(port, echo)
	conns := n.dial(port, dying)
	n.greet(conns)
	// A little apart, so that there are scrapes between them: the timer wheel
	// makes a few dozen batches of it.
	for i := range conns {
		n.keepalive(conns[i:i+1], time.Second, time.Second, 5)
		time.Sleep(2 * time.Millisecond)
	}
	zombies := func(m metrics) float64 { return float64(m.zombies(port)) }
	others := deathTracer.countOthers(t)
	before, hiddenBefore := a.metrics(), len(deathTracer.hiddenDeaths(t))
	died := func(m metrics) float64 {
		return m.value("halfopen_tcp_deaths_total", "cause", "keepalive_timeout") -
			before.value("halfopen_tcp_deaths_total", "cause", "keepalive_timeout")
	}
	n.cut(port)
	var last, most float64
	scrapes, between, hidden := 0, 0, 0
	for began := time.Now(); int(last)+hidden < dying; scrapes++ {
		if time.Since(began) > generous {
			t.Fatalf("%v died, and %d that no program can have seen", last, hidden)
		}
		m := a.metrics()
		dead, undead := died(m), zombies(m)
		if dead < last {
			t.Errorf("%v deaths after %v", dead, last)
		}
		if dead+undead > dying && dead+undead > dying+float64(others()) {
			t.Errorf("%v dead and %v zombies are more than %d", dead, undead, dying)
		}
		if dead > 0 && dead < dying {
			between++
		}
		last, most = dead, max(most, undead)
		if undead == 0 {
			hidden = len(deathTracer.hiddenDeaths(t)) - hiddenBefore
		}
	}
	if most != dying {
		t.Errorf("%v zombies at the most, expected %d", most, dying)
	}
	t.Logf("%d scrapes, %d of them in the midst of the dying", scrapes, between)
	if between < 3 {
		t.Errorf("only %d scrapes in the midst of the dying", between)
	}
	m := a.metrics()
	if dead, undead := died(m), zombies(m); dead > dying+float64(others()) || int(dead)+len(deathTracer.hiddenDeaths(t))-hiddenBefore < dying || undead != 0 {
		t.Errorf("%v dead and %v zombies at the end", dead, undead)
	}
	if seconds := m.value("halfopen_tcp_zombie_seconds") - before.value("halfopen_tcp_zombie_seconds"); seconds < dying {
		t.Errorf("%v observations of halfopen_tcp_zombie_seconds", seconds)
	}
	if got := len(a.deaths(n, port)); got != dying {
		t.Errorf("%d deaths in the API", got)
	}
}

func TestPromtoolFindsNothing(t *testing.T) {
	t.Parallel()
	a := startAgent(t)
	scrape := func(accept string) string {
		req, err := http.NewRequest(http.MethodGet, a.url+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v", resp.Status, err)
		}
		return string(body)
	}
	if text := scrape("application/openmetrics-text; version=1.0.0"); !strings.HasSuffix(text, "# EOF\n") {
		t.Errorf("not OpenMetrics:\n%s", text)
	}
	promtool := exec.Command("promtool", "check", "metrics")
	promtool.Stdin = strings.NewReader(scrape("text/plain"))
	if stdout, stderr, status := run(t, promtool); status != 0 || stdout+stderr != "" {
		t.Errorf("promtool: exit status %d\n%s%s", status, stdout, stderr)
	}
}
