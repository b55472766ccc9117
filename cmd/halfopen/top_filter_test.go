// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// Whatever is typed, it is understood, or there is one line that says why not; and what
// is understood can be typed again as filterText has it.
func FuzzFilter(f *testing.F) {
	for _, text := range []string{
		"", "zombie nginx", "verdict:zombie owner:nginx port:5432", `owner:"a b" remote:10.0.0.0/8 risk:no_keepalive`,
		`owner:"\x1b[2J`, `"verdict:zombie"`, "owner:\u2028\xff netns:4026531840 pid:1 state:listen", `port:-1`, `owner:`, `owner:""`, `remote:"\q"`,
	} {
		f.Add(text)
	}
	connection := document().Connections[0]
	f.Fuzz(func(t *testing.T, text string) {
		typed, err := parseFilter(text)
		typed.matches(&connection)
		if err != nil {
			if line := oneLine(err); line == "" || strings.ContainsFunc(line, func(r rune) bool { return !escape.Visible(r) }) {
				t.Fatalf("%q is refused with %q", text, line)
			}
			return
		}
		for _, w := range typed.words {
			if w != strings.ToLower(w) {
				t.Fatalf("%q looks for %q", text, w)
			}
		}
		again, err := parseFilter(filterText(&typed.Query))
		if err != nil {
			t.Fatalf("%q is %q: %v", text, filterText(&typed.Query), err)
		}
		if diff := cmp.Diff(api.ConnectionParameters(&typed.Query), api.ConnectionParameters(&again.Query)); diff != "" || len(again.words) > 0 {
			t.Fatalf("%q is %q, with the words %q\n%s", text, filterText(&typed.Query), again.words, diff)
		}
	})
}

func TestHelpOfTopHasEveryFilter(t *testing.T) {
	for _, f := range api.Filters {
		if f.Name != "all" && !strings.Contains(helpText, " "+f.Name+":") {
			t.Errorf("helpText (top_detail.go) does not have the filter %s, as in %[1]s:VALUE", f.Name)
		}
	}
}
