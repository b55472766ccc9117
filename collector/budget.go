// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"time"

	"golang.org/x/sys/unix"
)

// budget keeps what the censuses take of a core, and all else that the process
// does, within a share.
type budget struct {
	share float64
	at    time.Time     // when the last census ended; zero: there was none
	spent time.Duration // by the process by then
}

// spacing is how long one census has to be from the next, of which the last took
// cpu and ended at a time, by when the process had spent that much.
func (b *budget) spacing(cpu time.Duration, at time.Time, spent time.Duration) time.Duration {
	left := b.share
	if !b.at.IsZero() {
		left -= float64(spent-b.spent-cpu) / float64(at.Sub(b.at))
	}
	b.at, b.spent = at, spent
	return time.Duration(float64(cpu) / max(left, b.share/2))
}

// processCPU is the time that this process has had of the cores.
func processCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
