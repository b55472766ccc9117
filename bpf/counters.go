// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/halfopen/halfopen/bpf/abi"
)

// finality is the time within which the kernel programs may find that a death which
// they counted as closed was another one (counters.not_closed in bpf/halfopen.h).
const finality = 2 * time.Millisecond

// Counters returns the counters of the kernel programs, summed over the CPUs. They only
// grow. Deaths of the last 50 ms whose cause is not certain yet are not in them. It
// takes a few milliseconds.
func (k *Kernel) Counters() (abi.Counters, error) {
	if err := k.resolvePending(); err != nil {
		return abi.Counters{}, err
	}
	earlier, err := k.sumCounters()
	if err != nil {
		return earlier, err
	}
	time.Sleep(finality)
	sum, err := k.sumCounters()
	if err != nil {
		return sum, err
	}
	// By now it is certain which of the earlier deaths were closed.
	sum.Deaths[abi.CauseClosed] = k.closed.max(earlier.Deaths[abi.CauseClosed], sum.NotClosed)
	return sum, nil
}

func (k *Kernel) sumCounters() (abi.Counters, error) {
	var perCPU []abi.Counters
	var sum abi.Counters
	if err := k.objs.Counts.Lookup(uint32(0), &perCPU); err != nil {
		return sum, fmt.Errorf("read counters: %w", err)
	}
	for i := range perCPU {
		add(&sum, &perCPU[i])
	}
	return sum, nil
}

// monotonic is the last reported value of a counter that is computed as the difference
// of two others. The second is read later, so that the difference may be too low; the
// reported value never decreases.
type monotonic struct{ atomic.Uint64 }

// max returns first - second, or the last reported value if that is higher.
func (m *monotonic) max(first, second uint64) uint64 {
	for {
		last := m.Load()
		if first < second || first-second <= last {
			return last
		}
		if m.CompareAndSwap(last, first-second) {
			return first - second
		}
	}
}

// add adds the counters of one struct to those of another.
func add[T abi.Counters | abi.CensusCounts](to, from *T) {
	sum := words(to)
	for i, n := range words(from) {
		sum[i] += n
	}
}

// words returns the fields of a struct that has only uint64 fields.
func words[T abi.Counters | abi.CensusCounts](c *T) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(c)), unsafe.Sizeof(*c)/8)
}

// Missed returns by tracepoint how many events no program handled: the kernel skipped
// the primary, since it was running already on that CPU (kernel/trace/bpf_trace.c), and
// the fallback as well. Before Linux 6.1 all are zero, since the kernel skips none.
func (k *Kernel) Missed() (map[string]uint64, error) {
	missed := make(map[string]uint64)
	observers := k.observers()
	for name, o := range observers {
		stats, err := o.primary.Stats()
		if err != nil {
			return nil, fmt.Errorf("read statistics of %s: %w", name, err)
		}
		missed[name] = stats.RecursionMisses
	}
	sum, err := k.sumCounters()
	if err != nil {
		return nil, err
	}
	for name, last := range k.missed {
		var byFallback uint64
		if observers[name].fallback != nil {
			byFallback = sum.Fallbacks[observers[name].hook]
		}
		missed[name] = last.max(missed[name], byFallback)
	}
	return missed, nil
}
