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
			t.Errorf("what was %s ago is said to be %s off", ago, got.Sub(before))
		}
	}
}
