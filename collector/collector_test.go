// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWall(t *testing.T) {
	for _, ago := range []time.Duration{0, time.Hour, -time.Hour} {
		var ts unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		const slack = time.Millisecond
		got := wall(uint64(ts.Nano() - int64(ago))).Add(ago)
		if got.Before(before.Add(-slack)) || got.After(after.Add(slack)) {
			t.Errorf("a time %s ago is off by %s", ago, got.Sub(before))
		}
	}
}

func TestBudget(t *testing.T) {
	b := budget{share: 0.01}
	at := time.Now()
	for _, step := range []struct {
		name                   string
		passed, others, census time.Duration // since the one before
		expected               time.Duration
	}{
		{"the first, after a start that took much", 0, 500 * time.Millisecond, 100 * time.Millisecond, 10 * time.Second},
		{"nothing else to do", 10 * time.Second, 0, 100 * time.Millisecond, 10 * time.Second},
		{"a fifth of the budget for all else", 10 * time.Second, 20 * time.Millisecond, 100 * time.Millisecond, 12500 * time.Millisecond},
		{"a storm leaves it half", 10 * time.Second, 5 * time.Second, 100 * time.Millisecond, 20 * time.Second},
	} {
		at = at.Add(step.passed)
		spent := b.spent + step.others + step.census
		if got := b.spacing(step.census, at, spent).Round(time.Millisecond); got != step.expected {
			t.Errorf("%s: the next in %v, expected %v", step.name, got, step.expected)
		}
	}
}
