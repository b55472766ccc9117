// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// wheelLevels is the number of levels of the kernel's timer wheel where HZ > 100
// (LVL_DEPTH). wheelMost is the longest time, in jiffies, that a timer in the wheel can
// wait (WHEEL_TIMEOUT_CUTOFF).
const (
	wheelLevels = 9
	wheelMost   = 63 << (3 * (wheelLevels - 1))
)

// FiresAt returns the jiffy in which a timer fires that is already in the wheel.
// expires is the jiffy that the timer is set for, level its level in the wheel.
func (t *Timers) FiresAt(expires uint64, level uint8) uint64 {
	t.slack += granularity(int(level))
	expires = min(expires, t.C.Jiffies+wheelMost)
	return max(bucket(expires, int(level)), t.C.Jiffies) + t.Late
}

// arm arms a timer in the jiffy now, to expire wait jiffies later. It returns the jiffy
// in which the timer fires.
func (t *Timers) arm(now, wait uint64) uint64 {
	t.slack += granularity(WheelLevel(now, now+wait))
	return fires(now, now+wait) + t.Late
}

// fires returns the jiffy in which a timer fires that is armed in the jiffy now to
// expire in the jiffy expires (kernel/time/timer.c calc_wheel_index).
func fires(now, expires uint64) uint64 { return bucket(expires, WheelLevel(now, expires)) }

// WheelLevel returns the level of the wheel for a timer that is armed in the jiffy now
// to expire in the jiffy expires.
func WheelLevel(now, expires uint64) int {
	level := 0
	for level < wheelLevels-1 && expires-now >= 63<<(3*level) { // LVL_START(level + 1)
		level++
	}
	return level
}

// granularity returns the granularity of a level of the wheel, in jiffies: 8^level
// (LVL_GRAN). A record that was read while its timer changed may have a level that does
// not exist; it counts as the highest one.
func granularity(level int) uint64 { return 1 << (3 * min(level, wheelLevels-1)) }

// FiresWithin returns the longest time after which a timer fires that is armed now to
// expire after wait.
func (r *Rules) FiresWithin(wait time.Duration) time.Duration {
	jiffies := uint64(wait.Seconds() * float64(r.HZ))
	return wait + r.Duration64(granularity(WheelLevel(0, jiffies)))
}

// bucket rounds a jiffy up to the granularity of a level of the wheel (calc_index).
func bucket(expires uint64, level int) uint64 {
	return (expires/granularity(level) + 1) * granularity(level)
}
