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

	trace := exec.Command(binary, "trace", "--url=none", "-o", "json", "--port", fmt.Sprint(droppedPort))
	out, err := trace.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	watching := &buffer{}
	trace.Stderr = watching
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = trace.Process.Kill() }()
	eventually(t, "trace watches", func() error {
		if watching.String() == "" {
			return errors.New("it has not said so")
		}
		return nil
	})
	n.cut(droppedPort)

	// By default a solicitation is told of from the second in a row on. Those of all
	// connections come at once, and it may be at a moment that the kernel of this
	// machine hides (docs/kernel.md): so what counts is what each is known to wait
	// for, not how often that was said.
	kinds := make(map[string]int)
	unanswered := make(map[string]int)
	cookies := n.ss(droppedPort)
	lines := bufio.NewScanner(out)
	for kinds["death"] < len(conns) && lines.Scan() {
		var e struct {
			Event      string
			Connection *connection
			Death      *death
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		cookie := ""
		switch {
		case e.Connection != nil:
			cookie = e.Connection.Cookie
		case e.Death != nil:
			cookie = e.Death.Cookie
		}
		if _, ours := cookies[cookie]; !ours {
			continue
		}
		kinds[e.Event]++
		if e.Connection != nil {
			unanswered[cookie] = max(unanswered[cookie], e.Connection.Unanswered)
		}
		if e.Death != nil && e.Death.Cause != "keepalive_timeout" {
			t.Errorf("%s died of %s", cookie, e.Death.Cause)
		}
		if kinds["death"] == 0 && kinds["solicitation"] == len(conns) {
			stdout, stderr, status := run(t, exec.Command(binary, "list", "--url=none", "-o", "json", "--port", fmt.Sprint(droppedPort), "--pid", fmt.Sprint(os.Getpid())))
			var list struct {
				Total       int
				Connections []connection
			}
			if err := json.Unmarshal([]byte(stdout), &list); err != nil || status != 0 || list.Total < len(conns) {
				t.Errorf("list: exit status %d, %d connections, %v\n%s", status, list.Total, err, stderr)
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
	if err := trace.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	if err := trace.Wait(); err != nil {
		t.Errorf("interrupted trace: %v\n%s", err, watching)
	}
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

func TestHostileProcessName(t *testing.T) {
	const (
		hostile = "h0x<\"\n\x1b[m\u009b\u202e\xff" // markup, ESC, the CSI of C1, right to left, not UTF-8
		label   = `h0x<"\n\x1b[m\u009b\u202e\xff`  // in a metric, as in a table
	)
	comm, err := os.ReadFile("/proc/self/comm") // not parallel: it is everybody's
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/comm", []byte(hostile), 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.WriteFile("/proc/self/comm", bytes.TrimSpace(comm), 0) }()

	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--zombie-silence=1s", "--zombie-unanswered=2")
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, 3)
	n.greet(conns)
	n.keepalive(conns, time.Second, time.Second, 60)
	n.cut(droppedPort)
	// What cannot be said in UTF-8 is replaced.
	said := strings.ToValidUTF8(hostile, "\uFFFD")
	eventually(t, "zombies of that owner", func() error {
		for _, c := range a.connections(n, droppedPort, "verdict=zombie") {
			if c.Process == nil || c.Process.Comm != said {
				return fmt.Errorf("owner is %+v", c.Process)
			}
		}
		f := a.metrics().families["halfopen_tcp_zombies_by_owner"]
		for _, s := range f.GetMetric() {
			for _, l := range s.Label {
				if l.GetName() == "owner" && l.GetValue() == label && s.Gauge.GetValue() >= 3 {
					return nil
				}
			}
		}
		return fmt.Errorf("by owner: %v", f)
	})
	for _, path := range []string{
		"/metrics", fmt.Sprintf("/api/v1/connections?port=%d", droppedPort), "/api/v1/connections/" + cookieOf(t, conns[0]),
	} {
		status, body, err := a.text(path)
		if err != nil || status != http.StatusOK || !strings.Contains(body, "h0x") || !utf8.ValidString(body) ||
			strings.ContainsFunc(body, doesSomething) {
			t.Errorf("%s: status %d, %v: %q", path, status, err, body)
		}
	}
	for _, args := range [][]string{{"--url=none"}, {"--url=none", "-o", "wide"}, {"--url", a.url}, {"--url=none", "-o", "json"}} {
		stdout, stderr, status := run(t, exec.Command(binary, append([]string{"list", "--port", fmt.Sprint(droppedPort)}, args...)...))
		if status != 0 {
			t.Fatalf("%v: exit status %d: %s", args, status, stderr)
		}
		if !utf8.ValidString(stdout) {
			t.Errorf("%v: not UTF-8: %q", args, stdout)
		}
		if strings.ContainsFunc(stdout, doesSomething) {
			t.Errorf("%v: %q", args, stdout)
		}
		if rows := strings.Count(stdout, "h0x"); rows < 3 {
			t.Errorf("%v: the name is in %d rows:\n%s", args, rows, stdout)
		}
	}
	for _, args := range [][]string{{"--url=none"}, {"--url=none", "-o", "json"}, {"--url", a.url}} {
		stdout, stderr, status := run(t, exec.Command(binary, append([]string{"explain", cookieOf(t, conns[0])}, args...)...))
		if status != 0 || !strings.Contains(stdout, "h0x") || !utf8.ValidString(stdout) ||
			strings.ContainsFunc(stdout, doesSomething) {
			t.Errorf("explain %v: exit status %d: %s\n%q", args, status, stderr, stdout)
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
	scrapes, between := 0, 0
	for deadline := time.Now().Add(generous); last < dying; scrapes++ {
		if time.Now().After(deadline) {
			if hidden := len(deathTracer.hiddenDeaths(t)) - hiddenBefore; int(last)+hidden < dying {
				t.Fatalf("%v died, and %d that no program can have seen", last, hidden)
			}
			break
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
