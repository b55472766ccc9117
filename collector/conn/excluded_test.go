// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"strings"
	"testing"
)

func TestOwnerGlobs(t *testing.T) {
	for _, tt := range []struct {
		globs, name string
		want        bool
	}{
		{"chaos", "chaos", true}, {"chaos", "chaos.service", true}, {"chaos.service", "chaos.service", true}, {"chaos", "session-1.scope", false},
		{"session-*", "session-1.scope", true}, {"chaos", "chaos2", false}, {"chaos*", "chaos2", true}, {"*", "x", true}, {"*", "", false},
		{"shop/*", "shop/checkout-xhnvf", true}, {"*", "shop/checkout-xhnvf", false}, {"*/checkout-?????", "shop/checkout-xhnvf", true},
		{"user@1000.service/*", "user@1000.service/app.service", true}, {"a b", "b", true}, {"a b", "c", false},
		{`we[ab]`, "wea", true}, {`we[ab]`, "we[ab]", true}, {`we\[ab]`, "we[ab]", true}, {"x", "\xff\x1b[2J", false}, {"*", "\xff\x1b[2J", true},
	} {
		if got := OwnerGlobs(strings.Fields(tt.globs)).Match(tt.name); got != tt.want {
			t.Errorf("%s of %q: %v", tt.globs, tt.name, got)
		}
	}
	for s, want := range map[string]string{
		"": "the name is empty", "a[": `"a[" is not a pattern of names such as chaos-*: write \ before a [ or a \ of the name itself`,
	} {
		if _, err := ParseOwnerGlob(s); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", s, err, want)
		}
	}
	if s, err := ParseOwnerGlob("chaos-*"); s != "chaos-*" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
}
