// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Drops are watched while it is in doubt why something is unanswered, and not if they are too
// many.
func TestDropsAreWatchedWhileInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		attached := func() (on bool, times int) {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.drops.watched, k.drops.attached
		}
		expect := func(what string, on bool, times int) {
			t.Helper()
			synctest.Wait()
			if gotOn, gotTimes := attached(); gotOn != on || gotTimes != times {
				t.Errorf("%s: attached %v, %d times, expected %v, %d times", what, gotOn, gotTimes, on, times)
			}
		}
		degraded := func(want bool) {
			t.Helper()
			if got := reasonsOf(c); (len(got) > 0) != want {
				t.Errorf("degraded: %q", got)
			}
		}
		expect("nothing is unanswered", false, 0)
		trouble := func(cookie uint64, drop uint8) {
			silent := suspect(cookie, 2)
			silent.Drop = drop
			k.set(func() { k.watched = []abi.Conn{silent} })
		}
		trouble(1, abi.DropUnknown)
		time.Sleep(2 * time.Second)
		expect("it is not known whether the probes left", true, 1)
		time.Sleep(3 * dropsLease)
		expect("it is still not known", true, 1)
		trouble(1, abi.DropNone)
		time.Sleep(2 * dropsLease)
		expect("they left", false, 1)

		k.set(func() { k.drops.rate = 2 * dropsPerSecond })
		trouble(2, abi.DropUnknown)
		time.Sleep(5 * time.Second)
		expect("there are too many drops", false, 2)
		degraded(true)
		k.set(func() { k.drops.rate = 0 })
		time.Sleep(dropsLease)
		expect("there are not, a minute later", true, 3)
		time.Sleep(endsAfter + time.Second)
		degraded(false)

		trouble(2, abi.DropNone)
		time.Sleep(2 * dropsLease)
		expect("they left", false, 3)
		k.set(func() { k.drops.err = errors.New("refused") })
		trouble(3, abi.DropUnknown)
		time.Sleep(5 * time.Second)
		expect("the kernel refuses", false, 3)
		degraded(true)
		trouble(3, abi.DropNone)
		time.Sleep(2 * dropsLease)
		degraded(false)
	})
}
