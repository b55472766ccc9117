// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path"
	"testing"
	"unicode/utf8"

	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/pagetest"
)

// The page shows the names of processes as the command line does, whatever is in them.
func TestPageEscapesWhatTheCommandLineDoes(t *testing.T) {
	page := pagetest.Load(t, func(name string) ([]byte, error) { return os.ReadFile(path.Join("../../exporter", name)) }, "format")
	const block = 256
	for first := rune(0); first <= utf8.MaxRune; first += block {
		if ideographs := 0x3400 <= first && first < 0xd800; (ideographs || first >= 0x20000) && first%0x1000 != 0 {
			continue // the same kind of characters as in the block before
		}
		var name []rune
		for r := first; r < first+block; r++ {
			if utf8.ValidRune(r) {
				name = append(name, r)
			}
		}
		if got, want := pagetest.Eval[string](page, "format.printable(%s)", string(name)), escape.Text(string(name)); got != want {
			t.Errorf("from U+%04X: the page shows\n%s\nthe command line\n%s", first, got, want)
		}
	}
}
