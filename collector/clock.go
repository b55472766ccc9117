// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sameMoment returns one moment on both clocks: as a time of Go, and as a reading of
// CLOCK_MONOTONIC. Go's times have a monotonic reading too, but Go does not show it. To
// read the clock for each event would cost as much as the event itself.
var sameMoment = sync.OnceValues(func() (then time.Time, mono time.Duration) {
	least := time.Duration(math.MaxInt64)
	for range 10 { // to find a try that was not interrupted between the readings
		var ts unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic(err) // this clock always exists
		}
		if took := time.Since(before); took < least {
			least, then, mono = took, before.Add(took/2), time.Duration(ts.Nano())
		}
	}
	return then, mono
})

// MonotonicZero returns the wall-clock time at which the kernel's clock (CLOCK_MONOTONIC)
// was 0, by the present difference of the two clocks.
func MonotonicZero() time.Time { return wall(0) }

// wall returns a reading of the kernel's clock (CLOCK_MONOTONIC, ns) as wall-clock time, by
// the present difference of the two clocks.
func wall(mono uint64) time.Time {
	then, monoThen := sameMoment()
	now := time.Now()
	return now.Add(time.Duration(mono) - monoThen - now.Sub(then))
}
