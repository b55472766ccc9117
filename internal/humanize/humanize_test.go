// SPDX-License-Identifier: Apache-2.0

package humanize

import (
	"testing"
	"time"
)

func TestAge(t *testing.T) {
	for _, tt := range []struct {
		name string
		d    time.Duration
		want string
	}{
		{"what never happened is a dash", -1, "-"},
		{"nothing is zero", 0, "0s"},
		{"below a second in milliseconds", 450 * time.Millisecond, "450ms"},
		{"it never says a second too early", time.Second - 1, "999ms"},
		{"a second has no tenths", time.Second, "1s"},
		{"below ten seconds in tenths", 2449 * time.Millisecond, "2.4s"},
		{"ten seconds are not reached before", 10*time.Second - 1, "9.9s"},
		{"below a minute in seconds", 12*time.Second + 900*time.Millisecond, "12s"},
		{"a minute", time.Minute, "1m"},
		{"below ten minutes with seconds", 2*time.Minute + 30*time.Second, "2m30s"},
		{"below an hour in minutes", 12*time.Minute + 59*time.Second, "12m"},
		{"below a day with minutes", 2*time.Hour + 11*time.Minute + 15*time.Second, "2h11m"},
		{"two hours sharp", 2 * time.Hour, "2h"},
		{"below a hundred days with hours", 3*day + 4*time.Hour + 59*time.Minute, "3d4h"},
		{"above in days", 400*day + time.Hour, "400d"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Age(tt.d); got != tt.want {
				t.Errorf("%v is %s, want %s", tt.d, got, tt.want)
			}
		})
	}
}

func TestSetting(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 2 * time.Hour: "2h", 75 * time.Second: "75s", 5 * time.Minute: "5m",
		90 * time.Minute: "90m", 1500 * time.Millisecond: "1500ms", time.Microsecond: "1µs",
	} {
		if got := Setting(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint32]string{
		0: "0", 1023: "1023", 1024: "1K", 1536: "1.5K", 10240: "10K", 65536: "64K",
		1<<20 - 1: "1023K", 1 << 20: "1M", 9 << 20: "9M", 100 << 20: "100M", 1 << 31: "2G",
	} {
		if got := Size(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
