// SPDX-License-Identifier: Apache-2.0

// Package deploy reads what is deployed beside the agent, for the tests that hold
// it against the agent and a real Prometheus.
package deploy

import (
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v2"
)

//go:embed prometheus/*.yml grafana/*.json
var files embed.FS

// RulesFile is the name of the file of rules, in Prometheus.
const RulesFile = "halfopen.rules.yml"

// Prometheus returns a file of deploy/prometheus.
func Prometheus(name string) ([]byte, error) { return files.ReadFile(path.Join("prometheus", name)) }

// A Rule records (Record) or alerts (Alert).
type Rule struct {
	Record      string            `yaml:"record"`
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Rules returns the rules in their order.
func Rules() ([]Rule, error) {
	text, err := Prometheus(RulesFile)
	if err != nil {
		return nil, err
	}
	var file struct {
		Groups []struct {
			Rules []Rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", RulesFile, err)
	}
	var rules []Rule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules, nil
}

// A Dashboard is what concerns the tests of one of Grafana's.
type Dashboard struct {
	File   string `json:"-"`
	UID    string `json:"uid"`
	Panels []Panel
	// Templating has the variables.
	Templating struct{ List []Variable }
	// Annotations are queries whose results are drawn into every panel.
	Annotations struct{ List []struct{ Name, Expr string } }
}

// A Panel is a row where it has no Targets.
type Panel struct {
	ID          int
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ RefID, Expr string }
}

// A Variable of the type "query" has one.
type Variable struct {
	Name, Type string
	Query      any
}

// Dashboards returns those of deploy/grafana.
func Dashboards() ([]Dashboard, error) {
	entries, err := files.ReadDir("grafana")
	if err != nil {
		return nil, err
	}
	var all []Dashboard
	for _, e := range entries {
		d := Dashboard{File: e.Name()}
		text, err := files.ReadFile(path.Join("grafana", e.Name()))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &d); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		all = append(all, d)
	}
	return all, nil
}

// A Query of a dashboard, and what it is of.
type Query struct{ Of, Expr string }

// Queries are those of all panels and annotations.
func (d *Dashboard) Queries() []Query {
	var all []Query
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			all = append(all, Query{p.Title, q.Expr})
		}
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" { // Grafana's own have none
			all = append(all, Query{a.Name, a.Expr})
		}
	}
	return all
}

// Variables gives Grafana's variables values, in a query.
func Variables(query string, values map[string]string) string {
	return variable.ReplaceAllStringFunc(query, func(v string) string {
		if value, ok := values[v[1:]]; ok {
			return value
		}
		return v
	})
}

var (
	variable = regexp.MustCompile(`\$[a-z_]+`)
	metric   = regexp.MustCompile(`\b(halfopen_\w+|process_\w+|go_\w+|up|ALERTS|\w+:\w+:\w+)\b`)
	quoted   = regexp.MustCompile(`"(\\.|[^"\\])*"`)
)

// Check has promtool parse queries; the error is what it says.
func Check(queries ...string) error {
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for i, q := range queries {
		rules = append(rules, rule{fmt.Sprintf("query_%d", i), q})
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "queries", "rules": rules}}}) // JSON is YAML too
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "queries-*.yml")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err = file.Write(text); err == nil {
		err = file.Close()
	}
	if err != nil {
		return err
	}
	if out, err := exec.Command("promtool", "check", "rules", file.Name()).CombinedOutput(); err != nil {
		return fmt.Errorf("promtool (Debian: prometheus): %w\n%s", err, out)
	}
	return nil
}

// Metrics are the names of the metrics that a query is about, sorted.
func Metrics(query string) []string {
	names := metric.FindAllString(quoted.ReplaceAllString(query, `""`), -1)
	slices.Sort(names)
	return slices.Compact(names)
}
