// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"testing"

	"github.com/halfopen/halfopen/collector/conn/conntest"
)

func TestTimerWheel(t *testing.T) {
	// A timer is never early, and late by at most the granularity of its level.
	for wait, late := range map[uint64]uint64{1: 1, 62: 1, 63: 8, 503: 8, 504: 64, 4031: 64, 4032: 512, 32255: 512, 32256: 4096, 1800000: 32768} {
		for now := uint64(conntest.Jiffies); now < conntest.Jiffies+600; now += 7 {
			if got := fires(now, now+wait); got <= now+wait || got > now+wait+late {
				t.Fatalf("%d jiffies from %d: %d late", wait, now, got-now-wait)
			}
		}
	}
}
