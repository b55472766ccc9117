// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"time"

	"golang.org/x/sys/unix"
)

// budget keeps the CPU time of the censuses, together with that of the rest of the
// process, within a share of one core.
type budget struct {
	share float64       // of one core
	at    time.Time     // the end of the last census; zero: there was none
	spent time.Duration // CPU time of the process until then
}

// spacing returns the time to wait between two censuses. The last census took cpu of CPU
// time and ended at that time, when the process had spent that much CPU time in all.
func (b *budget) spacing(cpu time.Duration, at time.Time, spent time.Duration) time.Duration {
	left := b.share
	if !b.at.IsZero() {
		left -= float64(spent-b.spent-cpu) / float64(at.Sub(b.at))
	}
	b.at, b.spent = at, spent
	return time.Duration(float64(cpu) / max(left, b.share/2))
}

// processCPU returns the CPU time of this process, or 0 if the kernel does not say.
func processCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
