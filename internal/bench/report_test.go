// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"
)

func TestSample(t *testing.T) {
	for _, tt := range []struct {
		name           string
		s              sample
		text           string
		atLeast, under string // of 1
	}{
		{"all above the bar", sample{1.2, 1.1, 1.3, 1.15, 1.25}, "1.200 (1.100 to 1.300)", yes, no},
		{"all below the bar", sample{0.5, 0.7, 0.6}, "0.600 (0.500 to 0.700)", no, yes},
		{"samples on both sides of the bar", sample{0.8, 1.3, 1.1, 0.9}, "1.000 (0.800 to 1.300)", unclear, unclear},
		{"many samples, one beyond the bar", sample{1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 0.5}, "1.400 (1.100 to 1.700)", yes, no},
		{"too few samples for a confidence interval", sample{0.9, 1.3}, "1.100", yes, no},
	} {
		if got := tt.s.String(); got != tt.text {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.text)
		}
		if got := tt.s.atLeast(1); got != tt.atLeast {
			t.Errorf("%s: at least 1 is %s, want %s", tt.name, got, tt.atLeast)
		}
		if got := tt.s.atMost(1); got != tt.under {
			t.Errorf("%s: at most 1 is %s, want %s", tt.name, got, tt.under)
		}
	}
}

// A run shows what the run before it has measured, of each row.
func TestPageShowsTheLastFigures(t *testing.T) {
	b := &bench{rows: []row{{what: "speed", measured: "1 s"}, {what: "…, of something", measured: "2 s"}, {what: "…, of something", measured: "3 s"}}}
	first := string(b.page(time.Now()))
	for key, want := range map[rowKey]string{{"speed", 0}: "1 s", {"…, of something", 0}: "2 s", {"…, of something", 1}: "3 s", {"speed", 1}: ""} {
		if got := measuredIn(first)[key]; got != want {
			t.Errorf("%v was %q, want %q", key, got, want)
		}
	}
}
