// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/halfopen/halfopen/deploy"
)

const (
	pooled = 7950 // connections to it are cut and come back
	doomed = 7951 // connections to it are cut and given up
)

// stuckPort is the port of the connection of TestZombieAlerts that is stuck.
const stuckPort = 7398

// TestZombieAlerts has a real Prometheus scrape a real agent: the alerts that are
// shipped stay silent while all is well, real zombies make them fire in a real
// Alertmanager, and recovery resolves them. Meanwhile every query of the dashboards
// and of docs/metrics.md is asked, and every command of the runbooks given.
//
// Rules and configurations are the shipped files, but for addresses and for time:
// scraped and evaluated each second, with a second's wait instead of minutes before an
// alert on zombies fires (`for`), and before Alertmanager tells of it.
//
// The alert on the zombies of the node is judged only where others have none; the one on
// those of an owner always.
func TestZombieAlerts(t *testing.T) { // not parallel: other tests have zombies
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--census-interval=2s")
	n.serve(pooled, echo)
	n.serve(doomed, echo)
	n.serve(servedPort, echo)
	victims, dying, neighbours := n.dial(pooled, many), n.dial(doomed, 5), n.dial(servedPort, many)
	n.greet(slices.Concat(victims, dying, neighbours))
	n.keepalive(slices.Concat(victims, neighbours), 2*time.Second, 2*time.Second, 120)
	n.keepalive(dying, 2*time.Second, time.Second, 13)
	// Others may have zombies here, for which the alert on the node fires, too.
	ofOthers := func() bool { return a.metrics().zombiesOfOthers(pooled, doomed) > 0 }
	others := !poll(time.Second, time.Minute, func() bool { return !ofOthers() }) // those of earlier tests go

	told := newPager(t)
	am := startAlertmanager(t, told.url)
	p := startPrometheus(t, a, am)
	eventually(t, "the agent is scraped, and its rules evaluated", func() error {
		return p.answers(`up{job="halfopen"} == 1 and instance:halfopen_tcp_zombies:sum unless on () ALERTS{alertname="HalfopenAgentDown"}`)
	})
	throughout(t.Context(), 5*time.Second, func() {
		alerts := p.alerts()
		if others = others || ofOthers(); others {
			alerts = slices.DeleteFunc(alerts, func(name string) bool { return strings.HasPrefix(name, "HalfopenZombies") })
		}
		if len(alerts) > 0 {
			t.Errorf("on a healthy node: %v", alerts)
		}
	})

	stuck := stuckCases["all segments are lost, the peer's probes not"]
	_, mend := stuck.begin(t, n, stuckPort)
	restore := n.cut(pooled)
	n.cut(doomed)
	ofOwner := map[string]string{"alertname": "HalfopenZombiesOfOneOwner", "severity": "warning", "remote_port": strconv.Itoa(pooled)}
	ofNode := map[string]string{"alertname": "HalfopenZombies", "severity": "warning"}
	eventually(t, "the alerts fire in Alertmanager", func() error {
		return errors.Join(am.has(ofOwner, "active"), am.has(ofNode, "active"),
			am.has(map[string]string{"alertname": "HalfopenZombies", "severity": "info"}, "suppressed"))
	})
	eventually(t, "somebody is told", func() error {
		return errors.Join(told.of("firing", ofOwner), told.of("firing", ofNode))
	})
	eventually(t, "some are given up", func() error {
		return p.answers(`increase(halfopen_tcp_deaths_total{cause="keepalive_timeout"}[1m]) > 0`)
	})

	eventually(t, "one is stuck", func() error {
		if c := a.ofPort(n, stuckPort); c.Verdict != "stuck" {
			return fmt.Errorf("it is %s", c.Verdict)
		}
		return nil
	})

	t.Run("dashboards", func(t *testing.T) { checkDashboards(t, a, p, told.label(ofOwner, "owner")) })
	t.Run("reference", func(t *testing.T) { checkReference(t, a, p) })
	t.Run("runbooks", func(t *testing.T) {
		checkRunbooks(t, a, a.connections(n, pooled, "verdict=zombie")[0].Cookie, told.label(ofOwner, "owner"))
	})

	mend()
	restore()
	eventually(t, "recovery resolves them", func() error {
		if others = others || ofOthers(); others {
			if am.has(ofOwner, "active") == nil {
				return errors.New("still active in Alertmanager")
			}
			return told.of("resolved", ofOwner)
		}
		if am.has(ofOwner, "active") == nil || am.has(ofNode, "active") == nil {
			return errors.New("still active in Alertmanager")
		}
		return errors.Join(told.of("resolved", ofOwner), told.of("resolved", ofNode))
	})
	for _, name := range told.names() {
		if name != "HalfopenZombies" && name != "HalfopenZombiesOfOneOwner" && name != "HalfopenStuck" {
			t.Errorf("%s fired too", name)
		}
	}
}

// zombiesOfOthers are those of the node that no port of the test's has.
func (m metrics) zombiesOfOthers(own ...int) (n int) {
	m.t.Helper()
	for _, series := range m.families["halfopen_tcp_connections"].GetMetric() {
		for _, l := range series.GetLabel() {
			if l.GetValue() == "zombie" {
				n += int(series.GetGauge().GetValue())
			}
		}
	}
	for _, port := range own {
		n -= m.zombies(port)
	}
	return n
}

// edited writes a file of deploy/prometheus with changes, each of which must change
// something.
func edited(t *testing.T, file string, changes ...[2]string) string {
	t.Helper()
	body, err := deploy.Prometheus(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(body)
	for _, c := range changes {
		changed := regexp.MustCompile(c[0]).ReplaceAllString(text, c[1])
		if changed == text {
			t.Fatalf("%s has no %q", file, c[0])
		}
		text = changed
	}
	return text
}

// place writes a file and returns its path.
func place(t *testing.T, dir, file, text string) string {
	t.Helper()
	path := filepath.Join(dir, file)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// serveDebian runs a server of Prometheus's until the test ends, and returns once it is
// ready.
func serveDebian(t *testing.T, addr, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed (Debian has it): %v", name, err)
	}
	cmd, out := exec.Command(path, args...), &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out)
		}
	})
	eventually(t, name+" is ready", func() error {
		select {
		case <-done:
			t.Fatalf("%s has ended", name)
		default:
		}
		resp, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// getJSON asks a server of Prometheus's.
func getJSON(t *testing.T, u string, into any) {
	t.Helper()
	resp, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", u, err)
	}
}

type alertmanager struct {
	t    *testing.T
	addr string
}

func startAlertmanager(t *testing.T, webhook string) *alertmanager {
	am := &alertmanager{t, freeAddr(t)}
	dir := t.TempDir()
	config := edited(t, "alertmanager.example.yml",
		[2]string{`group_wait: 30s`, `group_wait: 1s`}, [2]string{`group_interval: 5m`, `group_interval: 1s`},
		[2]string{`(- name: (working-hours|pager))\n`, "$1\n    webhook_configs: [{url: '" + webhook + "'}]\n"})
	serveDebian(t, am.addr, "prometheus-alertmanager", "--config.file="+place(t, dir, "alertmanager.yml", config),
		"--storage.path="+dir, "--web.listen-address="+am.addr, "--cluster.listen-address=", "--log.level=warn")
	return am
}

// has returns nil if there is an alert with these labels, in a state.
func (am *alertmanager) has(labels map[string]string, state string) error {
	am.t.Helper()
	var alerts []struct {
		Labels map[string]string
		Status struct{ State string }
	}
	getJSON(am.t, "http://"+am.addr+"/api/v2/alerts", &alerts)
	for _, a := range alerts {
		if includes(a.Labels, labels) && a.Status.State == state {
			return nil
		}
	}
	return fmt.Errorf("no %s alert %v among %v", state, labels, alerts)
}

func includes(all, some map[string]string) bool {
	for name, value := range some {
		if all[name] != value {
			return false
		}
	}
	return true
}

// pager receives Alertmanager's notifications.
type pager struct {
	url  string
	mu   sync.Mutex
	told []notification
}

type notification struct {
	Status string
	Labels map[string]string
}

func newPager(t *testing.T) *pager {
	p := &pager{}
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var message struct{ Alerts []notification }
		if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
			t.Error(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.told = append(p.told, message.Alerts...)
	}))
	t.Cleanup(s.Close)
	p.url = s.URL
	return p
}

func (p *pager) find(status string, labels map[string]string) *notification {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, n := range p.told {
		if n.Status == status && includes(n.Labels, labels) {
			return &p.told[i]
		}
	}
	return nil
}

func (p *pager) of(status string, labels map[string]string) error {
	if p.find(status, labels) == nil {
		return fmt.Errorf("nobody was told that %v is %s", labels, status)
	}
	return nil
}

// label is a label of an alert that Alertmanager has sent.
func (p *pager) label(labels map[string]string, name string) string {
	return p.find("firing", labels).Labels[name]
}

func (p *pager) names() (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.told {
		names = append(names, n.Labels["alertname"])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

type prometheus struct {
	t        *testing.T
	addr     string
	instance string // the agent's
}

func startPrometheus(t *testing.T, a *agent, am *alertmanager) *prometheus {
	p := &prometheus{t, freeAddr(t), strings.TrimPrefix(a.url, "http://")}
	dir := t.TempDir()
	config := edited(t, "prometheus.example.yml",
		[2]string{`(scrape|evaluation)_interval: 15s`, `${1}_interval: 1s`},
		[2]string{`localhost:9839`, p.instance}, [2]string{`localhost:9093`, am.addr})
	rules := edited(t, deploy.RulesFile)
	zombies := regexp.MustCompile(`(- alert: HalfopenZombies\w*\n(?s:.*?)for:) \d+m`)
	if n := len(zombies.FindAllString(rules, -1)); n != 4 {
		t.Fatalf("%d rules alert on zombies, expected 4", n)
	}
	place(t, dir, deploy.RulesFile, zombies.ReplaceAllString(rules, "$1 1s"))
	serveDebian(t, p.addr, "prometheus", "--config.file="+place(t, dir, "prometheus.yml", config),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.addr, "--log.level=warn")
	return p
}

// A sample is a series with its value now.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

// number returns a number, or NaN if there is none.
func (s sample) number() float64 {
	text, _ := s.Value[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return v
}

// query asks for a vector.
func (p *prometheus) query(promql string) []sample {
	p.t.Helper()
	var answer struct {
		Data struct {
			ResultType string
			Result     []sample
		}
	}
	getJSON(p.t, "http://"+p.addr+"/api/v1/query?query="+url.QueryEscape(promql), &answer)
	if answer.Data.ResultType != "vector" {
		p.t.Fatalf("%s is a %s", promql, answer.Data.ResultType)
	}
	return answer.Data.Result
}

// answers returns nil if a query returns data.
func (p *prometheus) answers(promql string) error {
	p.t.Helper()
	result := p.query(promql)
	if slices.ContainsFunc(result, func(s sample) bool { return !math.IsNaN(s.number()) }) {
		return nil
	}
	return fmt.Errorf("%s: no number in %v", promql, result)
}

// alerts are the names of those that fire, or would if it lasted.
func (p *prometheus) alerts() (names []string) {
	p.t.Helper()
	for _, s := range p.query("ALERTS") {
		names = append(names, s.Metric["alertname"])
	}
	return names
}

// family is the metric that a series is of, in the agent's text.
var suffix = regexp.MustCompile(`_(bucket|count|sum)$`)

func (m metrics) named(name string) bool {
	return m.families[name] != nil || m.families[suffix.ReplaceAllString(name, "")] != nil
}

func checkDashboards(t *testing.T, a *agent, p *prometheus, owner string) {
	dashboards, err := deploy.Dashboards()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := deploy.Rules()
	if err != nil {
		t.Fatal(err)
	}
	agents := a.metrics()
	exists := func(where, query string) {
		for _, name := range deploy.Metrics(query) {
			own := strings.HasPrefix(name, "halfopen_") || strings.HasPrefix(name, "process_")
			if own && !agents.named(name) || !own && len(p.query(name)) == 0 {
				t.Errorf("%s: there is no %s", where, name)
			}
		}
	}
	for _, r := range rules {
		exists(r.Alert+r.Record, r.Expr)
	}
	one := func(value string) string { // as Grafana writes it into a string
		return strings.ReplaceAll(regexp.QuoteMeta(value), `\`, `\\`)
	}
	chosen := map[string]string{"cluster": "example", "node": one(p.instance), "owner": one(owner), "__rate_interval": "10s"}
	everything := map[string]string{"cluster": ".*", "node": ".*", "owner": ".*", "__rate_interval": "10s"}
	labelValues := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	asked := 0
	for _, d := range dashboards {
		for _, q := range d.Queries() {
			exists(d.File+": "+q.Of, q.Expr)
			asked++
			eventually(t, d.File+": "+q.Of, func() error {
				return errors.Join(p.answers(deploy.Variables(q.Expr, chosen)), p.answers(deploy.Variables(q.Expr, everything)))
			})
		}
		for _, v := range d.Templating.List {
			if v.Type != "query" {
				continue
			}
			query, _ := v.Query.(string)
			m := labelValues.FindStringSubmatch(query)
			if m == nil {
				t.Fatalf("%s: what is %q?", d.File, query)
			}
			exists(d.File+": "+v.Name, m[1])
			var answer struct{ Data []string }
			getJSON(t, "http://"+p.addr+"/api/v1/label/"+m[2]+"/values?match[]="+url.QueryEscape(deploy.Variables(m[1], chosen)), &answer)
			if len(answer.Data) == 0 {
				t.Errorf("%s: nothing to choose from for %s", d.File, v.Name)
			}
		}
	}
	t.Logf("%d queries of dashboards return data", asked)
}

// checkReference holds docs/metrics.md against what the agent exports.
func checkReference(t *testing.T, a *agent, p *prometheus) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	for _, e := range strings.Split(string(text), "\n## ")[1:] {
		name, body, _ := strings.Cut(e, "\n")
		entries[name] = body
		q := regexp.MustCompile("(?s)```promql\n(.+?)\n```").FindStringSubmatch(body)
		if q == nil {
			t.Fatalf("%s has no query", name)
		}
		p.query(q[1])
	}
	for name, f := range a.metrics().families {
		if !strings.HasPrefix(name, "halfopen_") {
			continue
		}
		entry, ok := entries[name]
		if !ok {
			t.Errorf("no entry of %s", name)
		}
		delete(entries, name)
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				switch l.GetName() {
				case "state", "verdict", "risk", "cause", "type":
					if value := l.GetValue(); value != "" && !strings.Contains(entry, "| `"+value+"` |") {
						t.Errorf("%s: no %s %q", name, l.GetName(), value)
					}
				default:
					if !strings.Contains(entry, "`"+l.GetName()+"`") {
						t.Errorf("%s: no label %s", name, l.GetName())
					}
				}
			}
		}
	}
	for name := range entries {
		t.Errorf("the agent has no %s", name)
	}
}

// checkRunbooks gives every command of halfopen and curl in the code blocks of the runbooks:
// each must succeed, and print something.
func checkRunbooks(t *testing.T, a *agent, cookie, owner string) {
	pages, err := filepath.Glob("../docs/runbooks/*.md")
	if err != nil || len(pages) < 2 {
		t.Fatal(err, pages)
	}
	fill := strings.NewReplacer("COOKIE", cookie, "OWNER", owner, "http://127.0.0.1:9839", a.url)
	given := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?ms)^ *```$(.+?)^ *```$").FindAllStringSubmatch(string(text), -1) {
			for line := range strings.Lines(block[1]) {
				line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
				if line == "" {
					continue
				}
				args := strings.Fields(line)
				for i := range args {
					args[i] = fill.Replace(args[i])
				}
				if i := slices.Index(args, "--duration"); i >= 0 {
					args[i+1] = "1s" // rather than a minute
				}
				given++
				switch args[0] {
				case "halfopen":
					// Which asks the agent of the machine, and that is here another.
					if slices.Contains([]string{"list", "explain", "top", "trace"}, args[1]) && !strings.Contains(line, "--url") {
						args = append(args, "--url="+a.url)
					}
					stdout, stderr, status := run(t, exec.Command(binary, args[1:]...))
					if status != 0 || stdout+stderr == "" {
						t.Errorf("%s: %s: exit status %d, %q", filepath.Base(page), line, status, stderr)
					}
				case "curl":
					resp, err := http.Get(args[len(args)-1])
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						t.Errorf("%s: %s: %s", filepath.Base(page), line, resp.Status)
					}
				case "bpftool", "cat", "gdb", "ip", "ls", "nft", "nstat", "sh", "ss", "sysctl", "tc", "tcpdump", "tracepath":
					given-- // of other programs, about a host that is not this one
				default:
					t.Errorf("%s: what is %s?", filepath.Base(page), line)
				}
			}
		}
	}
	t.Logf("%d commands of runbooks work", given)
}
