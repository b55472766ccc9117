// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

// ofGrafana has a value for each variable of the dashboards.
var ofGrafana = map[string]string{
	"cluster": ".*", "node": ".*", "owner": ".*", "__rate_interval": "1m", "__range": "1h", "datasource": "d",
}

func rules(t *testing.T) []Rule {
	t.Helper()
	all, err := Rules()
	if err != nil || len(all) == 0 {
		t.Fatal(err, len(all))
	}
	return all
}

func dashboards(t *testing.T) []Dashboard {
	t.Helper()
	all, err := Dashboards()
	if err != nil || len(all) != 2 {
		t.Fatal(err, len(all))
	}
	return all
}

func needPromtool(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("needs promtool (Debian: prometheus)")
	}
}

func TestPromtoolPassesTheRules(t *testing.T) {
	needPromtool(t)
	for _, args := range [][]string{
		{"check", "rules", RulesFile},
		{"check", "config", "prometheus.example.yml"},
		{"test", "rules", "rules_test.yml", "growth_test.yml"},
	} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The tests of the rules must have each alert with each severity, and also a case in
// which it must not fire.
func TestEachAlertIsTestedBothWays(t *testing.T) {
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, name := range []string{"rules_test.yml", "growth_test.yml"} {
		text, err := Prometheus(name)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Tests []struct {
				Alerts []struct {
					Name     string `yaml:"alertname"`
					Expected []struct {
						Labels map[string]string `yaml:"exp_labels"`
					} `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			} `yaml:"tests"`
		}
		if err := yaml.Unmarshal(text, &file); err != nil {
			t.Fatal(err)
		}
		for _, test := range file.Tests {
			for _, alert := range test.Alerts {
				for _, e := range alert.Expected {
					fires[alert.Name+" "+e.Labels["severity"]] = true
				}
				if len(alert.Expected) == 0 {
					silent[alert.Name] = true
				}
			}
		}
	}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		if what := r.Alert + " " + r.Labels["severity"]; !fires[what] {
			t.Errorf("no test makes %s fire", what)
		}
		if !silent[r.Alert] {
			t.Errorf("no test has %s not fire", r.Alert)
		}
	}
}

func TestEachAlertHasARunbook(t *testing.T) {
	const base, dir = "https://github.com/halfopen/halfopen/blob/main/docs/runbooks/", "../docs/runbooks"
	pages := map[string]bool{"README.md": true}
	index, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s does not say what it is about", r.Alert)
		}
		page := r.Alert + ".md"
		pages[page] = true
		if url := r.Annotations["runbook_url"]; url != base+page {
			t.Errorf("the runbook of %s is %s", r.Alert, url)
		}
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []string{"# " + r.Alert + "\n", "\n## What to do\n", "\n## When it fires\n", "```\n"} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("%s has no %q", page, want)
			}
		}
		if !bytes.Contains(index, []byte("("+page+")")) {
			t.Errorf("the list of runbooks leaves %s out", page)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !pages[f.Name()] {
			t.Errorf("%s is of no alert", f.Name())
		}
	}
}

// exported returns the names of the metrics in the exporter's golden scrape, and those
// that every Go program, Prometheus and the recording rules add.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	golden, err := os.ReadFile("../exporter/testdata/metrics.golden")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{
		"up": true, "ALERTS": true, "halfopen_build_info": true,
		"process_cpu_seconds_total": true, "process_resident_memory_bytes": true,
	}
	for _, m := range regexp.MustCompile(`(?m)^(halfopen_\w+)`).FindAllSubmatch(golden, -1) {
		names[string(m[1])] = true
	}
	for _, r := range rules(t) {
		if r.Record != "" {
			names[r.Record] = true
		}
	}
	return names
}

func TestWhatRulesAndDashboardsNameExists(t *testing.T) {
	names := exported(t)
	check := func(where, query string) {
		metrics := Metrics(query)
		if len(metrics) == 0 {
			t.Errorf("%s asks for nothing: %s", where, query)
		}
		for _, m := range metrics {
			if !names[m] {
				t.Errorf("%s: there is no %s", where, m)
			}
		}
	}
	for _, r := range rules(t) {
		check(r.Alert+r.Record, r.Expr)
	}
	for _, d := range dashboards(t) {
		for _, q := range d.Queries() {
			check(d.File+": "+q.Of, q.Expr)
		}
		for _, v := range d.Templating.List {
			if query, ok := v.Query.(string); ok && v.Type == "query" {
				check(d.File+": "+v.Name, query)
			}
		}
	}
}

func TestQueriesOfDashboardsParse(t *testing.T) {
	needPromtool(t)
	for _, d := range dashboards(t) {
		var queries []string
		for _, q := range d.Queries() {
			expr := Variables(q.Expr, ofGrafana)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: %s: a variable that nobody knows: %s", d.File, q.Of, expr)
			}
			queries = append(queries, expr)
		}
		if err := Check(queries...); err != nil {
			t.Errorf("%s: %v", d.File, err)
		}
	}
	if Check("sum(") == nil {
		t.Error("promtool takes anything")
	}
}

func TestPanelsHaveTheirPlaces(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range dashboards(t) {
		if d.UID == "" || uids[d.UID] {
			t.Errorf("%s: UID %q", d.File, d.UID)
		}
		uids[d.UID] = true
		var names []string
		for _, v := range d.Templating.List {
			names = append(names, v.Name)
		}
		if !slices.Equal(names, []string{"datasource", "cluster", "node", "owner"}) {
			t.Errorf("%s: variables %v", d.File, names)
		}
		ids, taken := map[int]bool{}, map[[2]int]string{}
		for _, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: %s has the id of another", d.File, p.Title)
			}
			ids[p.ID] = true
			refs := map[string]bool{}
			for _, q := range p.Targets {
				if refs[q.RefID] || q.RefID == "" {
					t.Errorf("%s: %s: query %q", d.File, p.Title, q.RefID)
				}
				refs[q.RefID] = true
			}
			if p.Type != "row" && len(refs) == 0 {
				t.Errorf("%s: %s shows nothing", d.File, p.Title)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if over := taken[[2]int{x, y}]; over != "" || x >= 24 {
						t.Fatalf("%s: %s lies over %s, or outside", d.File, p.Title, over)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
		}
	}
}
