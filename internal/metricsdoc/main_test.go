// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/deploy"
)

// The names are those of the golden scrape, so that a metric which the example
// leaves out shows.
func TestEachMetricHasAnEntryThatParses(t *testing.T) {
	golden, err := os.ReadFile("../../exporter/testdata/metrics.golden")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{"halfopen_build_info": true}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllSubmatch(golden, -1) {
		names[string(m[1])] = true
	}
	entries := strings.Split(string(doc), "\n## ")[1:]
	if len(entries) != len(names) {
		t.Errorf("%d entries of %d metrics", len(entries), len(names))
	}
	query := regexp.MustCompile("(?s)```promql\n(.+?)\n```")
	var promql []string
	for _, e := range entries {
		name, _, _ := strings.Cut(e, "\n")
		q := query.FindStringSubmatch(e)
		if !names[name] || q == nil {
			t.Errorf("%s: no such metric, or no query", name)
			continue
		}
		delete(names, name)
		promql = append(promql, q[1])
		if !slices.ContainsFunc(deploy.Metrics(q[1]), func(m string) bool { return strings.HasPrefix(m, name) }) {
			t.Errorf("the query of %s is about something else: %s", name, q[1])
		}
	}
	if len(names) > 0 {
		t.Errorf("no entry of %v", names)
	}
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("needs promtool (Debian: prometheus)")
	}
	if err := deploy.Check(promql...); err != nil {
		t.Error(err)
	}
}

func TestNothingIsLeftOut(t *testing.T) {
	families, err := registered()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := reference(families)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(doc, whole) {
		t.Error("docs/metrics.md is not up to date: run make generate")
	}
	defer func(q map[string]query, v map[string][]meaning) { queries, values = q, v }(queries, values)
	queries, values = maps.Clone(queries), maps.Clone(values)
	delete(queries, "halfopen_watched_sockets")
	queries["halfopen_tcp_ghosts"] = query{}
	values["halfopen_tcp_deaths_total cause"] = causes[1:]
	_, err = reference(families)
	for _, want := range []string{"no query for halfopen_watched_sockets", "halfopen_tcp_ghosts", `label cause of halfopen_tcp_deaths_total has the values`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing is said of %s: %v", want, err)
		}
	}
}
