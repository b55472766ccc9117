// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

var sample = table{
	columns: []column{
		{title: "VERDICT", paint: paintVerdict},
		{title: "N", right: true},
		{title: "NAME"},
		{title: "OWNER"},
	},
	rows: [][]string{
		{"zombie", "3", "日本", "a[1]"},
		{"unguarded", "12345", "données", "-"},
		{"", "-", "", ""},
	},
}

func TestTableAlignsByColumnsOfTheTerminal(t *testing.T) {
	const want = "" +
		"VERDICT        N  NAME     OWNER\n" +
		"zombie         3  日本     a[1]\n" +
		"unguarded  12345  données  -\n" +
		"               -           \n"
	var b bytes.Buffer
	if err := sample.write(&b, false); err != nil || b.String() != want {
		t.Errorf("error %v, table\n%s\nwant\n%s", err, b.String(), want)
	}
}

func TestColourChangesNothingButColour(t *testing.T) {
	var without, with bytes.Buffer
	sample.write(&without, false)
	sample.write(&with, true)
	if !strings.Contains(with.String(), "\x1b[1;31mzombie\x1b[0m   ") {
		t.Errorf("the zombie is not red:\n%q", with.String())
	}
	stripped := with.String()
	for _, s := range []style{bold, faint, red, green, yellow, purple, orange, "0"} {
		stripped = strings.ReplaceAll(stripped, "\x1b["+string(s)+"m", "")
	}
	if stripped != without.String() {
		t.Errorf("with colours taken out\n%s\nwant\n%s", stripped, without.String())
	}
}

func TestOnlyATerminalIsPainted(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	if paletteFor(new(bytes.Buffer)) {
		t.Error("a buffer is painted")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if paletteFor(null) {
		t.Error("a file is painted")
	}
}
