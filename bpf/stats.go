// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Stats is what the programs counted, and how they are.
type Stats struct {
	Counters abi.Counters
	Missed   map[string]uint64 // by tracepoint: see [Kernel.Missed]
	Attached map[string]bool   // by tracepoint: see [Kernel.Attached]
}

// Stats reads the counters first, then the rest.
func (k *Kernel) Stats() (Stats, error) {
	counters, err := k.Counters()
	if err != nil {
		return Stats{}, err
	}
	missed, err := k.Missed()
	return Stats{Counters: counters, Missed: missed, Attached: k.Attached()}, err
}

// CookieStatus returns since when the search for sockets without a cookie has not ended
// (see [Kernel.CookieSearchHangs]), and why connections that begin now get no cookie
// before a census (see [Kernel.CookiesErr]).
func (k *Kernel) CookieStatus() (hangsSince time.Time, err error) {
	return k.CookieSearchHangs(), k.CookiesErr()
}
