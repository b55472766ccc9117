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

// Who asks for more values than a filter takes learns which filter, and how many it takes.
func TestAFilterTakesSoManyValues(t *testing.T) {
	values := map[string]string{
		"verdict": "zombie", "state": "established", "port": "443", "pid": "812", "owner": "nginx", "remote": "10.0.0.0/8",
		"namespace": "shop", "pod": "checkout-xhnvf",
		"risk": "no_keepalive", "netns": "4026531840", "cause": "closed",
	}
	check := func(name string, parse func(string) error) {
		if values[name] == "" {
			t.Errorf("add a value of the filter %s to the table of this test", name)
			return
		}
		one := "&" + name + "=" + values[name]
		if err := parse(strings.Repeat(one, MaxValues)[1:]); err != nil {
			t.Errorf("%d values of %s: %v", MaxValues, name, err)
		}
		want := name + ": a filter takes at most 64 values"
		if err := parse(strings.Repeat(one, MaxValues+1)[1:]); err == nil || err.Error() != want {
			t.Errorf("%d values of %s: %v, want %s", MaxValues+1, name, err, want)
		}
	}
	for i := range Filters {
		if f := &Filters[i]; !f.Switch {
			check(f.Name, func(s string) error { _, err := ParseConnectionQuery(s); return err })
			check(f.Name, func(s string) error { _, _, err := ParseGroupQuery("by=owner&" + s); return err })
		}
	}
	for i := range DeathFilters {
		check(DeathFilters[i].Name, func(s string) error { _, err := ParseDeathQuery(s); return err })
	}
}

// Each filter is described in the documents in which users look for it.
func TestFiltersAreDocumented(t *testing.T) {
	for path, in := range map[string]struct{ section, pattern string }{
		"docs/api.md": {"Queries", "(?m)^\\| .*`%s(=true)?`.* \\|"},
		"README.md":   {"Listing and counting", "`?--%s\\b"},
	} {
		text, err := os.ReadFile("../../" + path)
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
			if !regexp.MustCompile(strings.Replace(in.pattern, "%s", name, 1)).Match(text) {
				t.Errorf("%s does not have the filter %s: add it to its section %q", path, name, in.section)
			}
		}
	}
}
