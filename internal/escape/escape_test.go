// SPDX-License-Identifier: Apache-2.0

package escape

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// hostile are names that a user may choose, as [Text] and [JSON] show them.
var hostile = []struct{ name, text, json string }{
	{"nginx: worker", "nginx: worker", `"nginx: worker"`},
	{"grüße 世界 \U0001f600", "grüße 世界 \U0001f600", `"grüße 世界 ` + "\U0001f600" + `"`},
	{"<b>\"&'", "<b>\"&'", `"\u003cb\u003e\"\u0026'"`},
	{"a\tb\nc\x1b[2J\x00\x7f", `a\tb\nc\x1b[2J\x00\x7f`, `"a\tb\nc\u001b[2J\u0000\u007f"`},
	{"\u0080\u0085\u009b31m\u009f", `\u0080\u0085\u009b31m\u009f`, `"\u0080\u0085\u009b31m\u009f"`},
	{"\u202e\u2066\u200f\u061c", `\u202e\u2066\u200f\u061c`, `"\u202e\u2066\u200f\u061c"`},
	{"e\u0301\u200b\u2028\ufeff", `e\u0301\u200b\u2028\ufeff`, `"e\u0301\u200b\u2028\ufeff"`},
	{"\U000e0101\U000e0041", `\U000e0101\U000e0041`, `"\udb40\udd01\udb40\udc41"`},
	{"dev\\x2d\xff\x9b", `dev\\x2d\xff\x9b`, `"dev\\x2d\ufffd\ufffd"`},
}

func TestHostileNames(t *testing.T) {
	for _, tt := range hostile {
		if got := Text(tt.name); got != tt.text {
			t.Errorf("%q as text is %s, want %s", tt.name, got, tt.text)
		}
		plain, err := json.Marshal(tt.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(JSON(plain)); got != tt.json {
			t.Errorf("%q in JSON is %s, want %s", tt.name, got, tt.json)
		}
	}
}

// What the log prints of a name is safe too, in both of its formats.
func TestLog(t *testing.T) {
	var b bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(Writer{&b}, nil), slog.NewJSONHandler(Writer{&b}, nil)} {
		for _, tt := range hostile {
			slog.New(h).Info("message", "name", tt.name)
		}
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 2*len(hostile) {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if s := strings.Map(onlyInvisible, l); s != "" || !utf8.ValidString(l) {
			t.Errorf("%q has %q", l, s)
		}
	}
}

func onlyInvisible(r rune) rune {
	if Visible(r) {
		return -1
	}
	return r
}

func FuzzEscape(f *testing.F) {
	for _, tt := range hostile {
		f.Add(tt.name, tt.text)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		text := Text(a)
		if s := strings.Map(onlyInvisible, text); s != "" || !utf8.ValidString(text) {
			t.Errorf("%q has %q", text, s)
		}
		if a != b && text == Text(b) {
			t.Errorf("%q and %q are both %s", a, b, text)
		}
		plain, err := json.Marshal(map[string]string{"name": a, "other": b})
		if err != nil {
			t.Fatal(err)
		}
		escaped := JSON(plain)
		if s := bytes.Map(onlyInvisible, escaped); len(s) > 0 || !utf8.Valid(escaped) {
			t.Errorf("%q has %q", escaped, s)
		}
		var want, got any
		if err := json.Unmarshal(plain, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(escaped, &got); err != nil {
			t.Fatalf("%s: %v", escaped, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", escaped, diff)
		}
	})
}
