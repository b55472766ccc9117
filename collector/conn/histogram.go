// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"slices"
	"time"
)

// Histogram counts observations. Counts[i] is the number of observations that are at
// most Bounds[i] and above Bounds[i-1]; the last one is the number above all bounds.
type Histogram struct {
	Bounds []float64 // seconds
	Counts []uint64  // one more than Bounds
	Sum    float64   // seconds
}

func newHistogram(bounds []float64) Histogram {
	return Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
}

func (h *Histogram) observe(d time.Duration) {
	s := d.Seconds()
	h.Sum += s
	for i, bound := range h.Bounds {
		if s <= bound {
			h.Counts[i]++
			return
		}
	}
	h.Counts[len(h.Bounds)]++
}

func (h *Histogram) clone() Histogram {
	c := *h
	c.Counts = slices.Clone(h.Counts)
	return c
}
