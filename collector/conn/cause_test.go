// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Each place that the comment of Cause lists has every cause.
func TestEveryCauseIsInItsPlaces(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile("../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	section := func(path, from, to string) string {
		_, after, begins := strings.Cut(read(path), from)
		before, _, ends := strings.Cut(after, to)
		if !begins || !ends {
			t.Fatalf("%s has no part from %q to %q", path, from, to)
		}
		return before
	}
	scenarios := read("e2e/scenario_test.go")
	_, unreached, _ := strings.Cut(read("docs/kernel.md"), "## What no test reaches")
	places := map[string]string{
		"docs/metrics.md (make generate)":                                       section("docs/metrics.md", "## halfopen_tcp_deaths_total", "```promql"),
		`docs/architecture/kernel.md, "The cause of a death",`:                  section("docs/architecture/kernel.md", "## The cause of a death", "\n## "),
		"the list causes of e2e/exact_test.go":                                  section("e2e/exact_test.go", "var causes =", ")"),
		"TestEverythingIsPresentAtZeroFromTheStart in exporter/metrics_test.go": section("exporter/metrics_test.go", "func TestEverythingIsPresentAtZeroFromTheStart", "\n}"),
		"the golden scrape (go test ./exporter -update)":                        read("exporter/testdata/metrics.golden"),
	}
	for c := range Cause(Causes) {
		name := c.String()
		if name == "" || c.Meaning() == "" {
			t.Errorf("cause %d of bpf/halfopen.h has the name %q in causeNames (connection.go), and the meaning %q in causeMeanings (meanings.go)", c, name, c.Meaning())
			continue
		}
		if causeKinds[c] == 0 {
			t.Errorf("%s has no kind in causeKinds (connection.go)", name)
		} else if c.IsTimeout() != strings.HasSuffix(name, "_timeout") {
			t.Errorf("the names of timeouts, and no others, end in _timeout, because queries select them by that: rename %s, or correct its kind in causeKinds (connection.go)", name)
		}
		if !strings.Contains(scenarios, `"`+name+`"`) && !strings.Contains(unreached, "`"+name+"`") {
			t.Errorf("e2e/scenario_test.go has no scenario of %s, and docs/kernel.md, \"What no test reaches\", has no line on it", name)
		}
		for place, text := range places {
			if !regexp.MustCompile(`\b` + name + `\b`).MatchString(text) {
				t.Errorf("%s does not have the cause %s", place, name)
			}
		}
	}
}

// The dashboards count orderly ends apart from all others.
func TestDashboardsLeaveOutOrderlyEnds(t *testing.T) {
	text, err := os.ReadFile("../../internal/dashboards/panels.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for c := range Cause(Causes) {
		if c.IsOrderly() {
			want = append(want, c.String())
		}
	}
	for _, operator := range []string{"=", "!="} {
		var got []string
		for _, m := range regexp.MustCompile(`cause`+operator+`"([a-z_]*)"`).FindAllStringSubmatch(string(text), -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, want) {
			t.Errorf("internal/dashboards/panels.go has queries with cause%s of %v, the orderly ends are %v: correct it, then make generate", operator, got, want)
		}
	}
}

// The alert on timeouts, its dashboard and its runbook are about the same causes. Of an
// orphan no application waits for an answer.
func TestAlertCountsEveryTimeout(t *testing.T) {
	var want []string
	for c := range Cause(Causes) {
		if c.IsTimeout() && c != CauseOrphanTimeout {
			want = append(want, c.String())
		}
	}
	slices.Sort(want)
	for path, pattern := range map[string]string{
		"deploy/prometheus/halfopen.rules.yml":    `cause=~"([a-z_|]*)"`,
		"internal/dashboards/panels.go":           `cause=~"([a-z_|]*)"`,
		"docs/runbooks/HalfopenTimeoutsRising.md": "(?m)^\\| `([a-z_]*)` \\|",
	} {
		text, err := os.ReadFile("../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			got = append(got, strings.Split(m[1], "|")...)
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s has the timeouts %v, and causeKinds has %v besides orphan_timeout: correct one of them, then make generate", path, got, want)
		}
	}
}
