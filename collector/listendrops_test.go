// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// censusOf has d take a census that finds these listeners.
func (d *listenDrops) censusOf(drops map[uint64]uint32) {
	d.begin()
	for cookie, n := range drops {
		d.observe(cookie, n)
	}
	d.end()
}

func TestListenDropsOnlyGrow(t *testing.T) {
	var d listenDrops
	for i, step := range []struct {
		what  string
		drops map[uint64]uint32
		want  uint64
	}{
		{"older than the agent", map[uint64]uint32{1: 1000, 2: math.MaxUint32 - 2}, 0},
		{"the same", map[uint64]uint32{1: 1000, 2: math.MaxUint32 - 2}, 0},
		{"one drops more", map[uint64]uint32{1: 1007, 2: math.MaxUint32 - 2}, 7},
		{"the kernel's counter wraps", map[uint64]uint32{1: 1007, 2: 2}, 12},
		{"a new one has dropped some", map[uint64]uint32{1: 1007, 2: 2, 3: 5}, 17},
		{"one has ended", map[uint64]uint32{2: 2, 3: 5}, 17},
		{"a census missed it", map[uint64]uint32{1: 1008, 2: 2, 3: 5}, 18},
		{"there are none", nil, 18},
	} {
		if d.censusOf(step.drops); d.total != step.want {
			t.Errorf("census %d, %s: %d, want %d", i, step.what, d.total, step.want)
		}
	}
}

func TestListenDropsAreBounded(t *testing.T) {
	var d listenDrops
	d.censusOf(nil)
	many := make(map[uint64]uint32)
	for cookie := range uint64(2 * maxListeners) {
		many[cookie] = 1
	}
	if d.censusOf(many); len(d.seen) != maxListeners || d.total != maxListeners {
		t.Errorf("%d listeners, %d drops", len(d.seen), d.total)
	}
	for range 2 { // they have all ended: the first census makes room
		d.censusOf(map[uint64]uint32{1 << 40: 3})
	}
	if d.censusOf(map[uint64]uint32{1 << 40: 4}); len(d.seen) != 1 || d.total != maxListeners+4 {
		t.Errorf("%d listeners and %d drops after they have ended", len(d.seen), d.total)
	}
}

// A listener that has dropped something is not a connection in trouble, nor a row.
func TestDropsOfListenersAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		listener := func(drops uint32) abi.Conn {
			return now(&abi.Conn{State: abi.StateListen, Class: abi.ClassNone, Family: 2, TotalRetrans: drops}, 7)
		}
		k.sockets = []abi.Conn{listener(100)}
		k.result.Counts.Risks[abi.RiskAcceptQueueFull] = 1
		c := collect(t, k, Options{})
		c.FollowRows(true)
		synctest.Wait()
		k.set(func() { k.sockets = []abi.Conn{listener(142), healthy(8)} })
		time.Sleep(time.Minute)
		s, err := c.Stats()
		if err != nil || s.Census.Overflows != 42 || s.Unjudged[abi.StateListen] != 1 || s.AtRisk[abi.RiskAcceptQueueFull] != 1 {
			t.Errorf("%d overflows, %d listeners, %d full, error %v", s.Census.Overflows, s.Unjudged[abi.StateListen], s.AtRisk[abi.RiskAcceptQueueFull], err)
		}
		if rows, _ := c.Rows(); len(rows) != 1 || rows[0].Cookie != 8 {
			t.Errorf("rows: %+v", rows)
		}
	})
}
