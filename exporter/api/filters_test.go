// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/collector"
)

// A filter is one entry: the queries of the API take it, and the client sends it.
func TestAFilterThatIsAddedIsUnderstood(t *testing.T) {
	if _, err := ParseConnectionQuery("via=443"); err == nil {
		t.Fatal("there is a filter via already")
	}
	defer func(before []Filter[collector.Query]) { Filters = before }(Filters)
	Filters = append(slices.Clone(Filters), repeated("via", "PORT", "Only connections by this port.",
		collector.ParsePort, decimal[uint16], func(q *collector.Query) *[]uint16 { return &q.Ports }))
	q, err := ParseConnectionQuery("via=443&via=80")
	if err != nil || !slices.Equal(q.Ports, []uint16{443, 80}) {
		t.Errorf("%v, %v", q, err)
	}
	if got := ConnectionParameters(&q); !slices.Equal(got["via"], []string{"443", "80"}) {
		t.Errorf("the client sends %q", got.Encode())
	}
	if _, err := ParseConnectionQuery("via=no"); err == nil || err.Error() != `via: "no" is not a port from 1 to 65535` {
		t.Errorf("%v", err)
	}
}

// Each filter is told of where users look for it.
func TestFiltersAreDocumented(t *testing.T) {
	for path, pattern := range map[string]string{
		"../../docs/api.md": "(?m)^\\| .*`%s(=true)?`.* \\|",
		"../../README.md":   "`?--%s\\b",
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "api.md") { // the fields of a connection have the same names
			_, rest, _ := bytes.Cut(text, []byte("\n## Queries\n"))
			text, _, _ = bytes.Cut(rest, []byte("\n## "))
		}
		for _, name := range slices.Concat(names(Filters), names(DeathFilters)) {
			if name == "cause" && strings.HasSuffix(path, "api.md") {
				continue // it has a sentence there
			}
			if !regexp.MustCompile(strings.Replace(pattern, "%s", name, 1)).Match(text) {
				t.Errorf("%s does not have the filter %s", path, name)
			}
		}
	}
}
