// SPDX-License-Identifier: Apache-2.0

// Package deploy reads the rules and dashboards that are deployed beside the agent. Tests
// use it to check them against the agent and a real Prometheus.
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

// RulesFile is the name of the file with the rules in deploy/prometheus.
const RulesFile = "halfopen.rules.yml"

// Prometheus returns the contents of a file of deploy/prometheus.
func Prometheus(name string) ([]byte, error) { return files.ReadFile(path.Join("prometheus", name)) }

// A Rule is a recording rule, which has Record, or an alert, which has Alert.
type Rule struct {
	Record      string            `yaml:"record"`
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Rules returns all rules in the order of the file.
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

// A Dashboard has the parts of a Grafana dashboard that the tests use.
type Dashboard struct {
	File   string `json:"-"`
	UID    string `json:"uid"`
	Panels []Panel
	// Templating holds the variables.
	Templating struct{ List []Variable }
	// Annotations holds queries whose results Grafana draws into every panel.
	Annotations struct{ List []struct{ Name, Expr string } }
}

// A Panel of a dashboard. Without Targets it is a row, that is, a heading.
type Panel struct {
	ID          int
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ RefID, Expr string }
}

// A Variable of a dashboard. If its type is "query", it has a Query.
type Variable struct {
	Name, Type string
	Query      any
}

// Dashboards returns the dashboards of deploy/grafana.
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

// A Query is a query of a dashboard, with the name of its panel or annotation.
type Query struct{ Of, Expr string }

// Queries returns the queries of all panels and annotations.
func (d *Dashboard) Queries() []Query {
	var all []Query
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			all = append(all, Query{p.Title, q.Expr})
		}
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" { // Grafana's own annotations have no query
			all = append(all, Query{a.Name, a.Expr})
		}
	}
	return all
}

// Variables replaces Grafana's variables in a query by values.
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

// Check has promtool parse the queries. The error contains promtool's output.
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

// Metrics returns the names of the metrics in a query, sorted.
func Metrics(query string) []string {
	names := metric.FindAllString(quoted.ReplaceAllString(query, `""`), -1)
	slices.Sort(names)
	return slices.Compact(names)
}
