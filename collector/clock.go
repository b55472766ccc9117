// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sameMoment is one moment on both clocks. Go's own is CLOCK_MONOTONIC as well,
// but does not tell its reading; and to ask the kernel for each event would cost as
// much as the event does.
var sameMoment = sync.OnceValues(func() (then time.Time, mono time.Duration) {
	least := time.Duration(math.MaxInt64)
	for range 10 { // not to be interrupted between the two
		var ts unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic(err) // this clock is always there
		}
		if took := time.Since(before); took < least {
			least, then, mono = took, before.Add(took/2), time.Duration(ts.Nano())
		}
	}
	return then, mono
})

// MonotonicZero returns when the kernel's clock (CLOCK_MONOTONIC) was 0, as of now.
func MonotonicZero() time.Time { return wall(0) }

// wall translates the kernel's clock (CLOCK_MONOTONIC, ns), as of now.
func wall(mono uint64) time.Time {
	then, monoThen := sameMoment()
	now := time.Now()
	return now.Add(time.Duration(mono) - monoThen - now.Sub(then))
}
