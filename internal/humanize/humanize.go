// SPDX-License-Identifier: Apache-2.0

// Package humanize writes durations and numbers as a person reads them.
package humanize

import (
	"fmt"
	"strconv"
	"time"
)

const day = 24 * time.Hour

// Age is how long something has lasted, in one or two units: 450ms, 2.4s, 12s,
// 2m30s, 12m, 2h11m, 3d4h, 400d. It rounds down, so that a threshold shown as
// passed has been passed. A negative age, of something that never happened, is a dash.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d == 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d/time.Millisecond)
	case d < 10*time.Second:
		return Tenths(d/(time.Second/10)) + "s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return units(d, time.Minute, "m", time.Second, "s")
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < day:
		return units(d, time.Hour, "h", time.Minute, "m")
	case d < 100*day:
		return units(d, day, "d", time.Hour, "h")
	}
	return fmt.Sprintf("%dd", d/day)
}

func units(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	s := fmt.Sprintf("%d%s", d/big, bigName)
	if rest := d % big / small; rest > 0 {
		s += fmt.Sprintf("%d%s", rest, smallName)
	}
	return s
}

// Tenths is a number of tenths, without a zero behind the point.
func Tenths(n time.Duration) string {
	if n%10 == 0 {
		return strconv.Itoa(int(n / 10))
	}
	return fmt.Sprintf("%d.%d", n/10, n%10)
}

// Setting formats a duration that a user has chosen, exactly and in one unit: 2h, 75s,
// 1500ms.
func Setting(d time.Duration) string {
	switch {
	case d == 0:
		return "0s"
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d%time.Second == 0:
		return fmt.Sprintf("%ds", d/time.Second)
	case d%time.Millisecond == 0:
		return fmt.Sprintf("%dms", d/time.Millisecond)
	}
	return d.String()
}

// Plural is a number of things: 1 probe, 3 probes.
func Plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// Size is a number of bytes: 0, 512, 1.5K, 64K, 3M.
func Size(n uint32) string {
	switch {
	case n < 1<<10:
		return strconv.Itoa(int(n))
	case n < 10<<10:
		return Tenths(time.Duration(n)*10>>10) + "K"
	case n < 1<<20:
		return fmt.Sprintf("%dK", n>>10)
	case n < 10<<20:
		return Tenths(time.Duration(n)*10>>20) + "M"
	case n < 1<<30:
		return fmt.Sprintf("%dM", n>>20)
	}
	return fmt.Sprintf("%dG", n>>30)
}
