// SPDX-License-Identifier: Apache-2.0

package collector

import "maps"

// maxListeners is the most listeners whose drops a listenDrops adds up. Others are left out.
const maxListeners = 4096

// listenDrops adds up what all listeners drop: SYNs, and ACKs that end a handshake. The kernel
// counts it for each listener, and forgets it with the listener. Of a listener that ends, what
// it has dropped since the last census is missing. The zero value is ready for use.
type listenDrops struct {
	total   uint64
	seen    map[uint64]listenerDrops // by cookie
	census  uint64                   // number of the current census
	counted bool                     // a census has ended: what new listeners drop is new, too
}

// listenerDrops is what a listener had dropped (modulo 1<<32) at the last census that saw it.
type listenerDrops struct {
	drops  uint32
	census uint64
}

// begin begins a census.
func (d *listenDrops) begin() {
	if d.seen == nil {
		d.seen = make(map[uint64]listenerDrops)
	}
	if len(d.seen) > maxListeners/2 {
		maps.DeleteFunc(d.seen, func(_ uint64, l listenerDrops) bool { return l.census < d.census })
	}
	d.census++
}

// observe adds what a listener has dropped since the last census. A listener that the first
// census finds may be much older: what it has dropped by then does not count.
func (d *listenDrops) observe(cookie uint64, drops uint32) {
	last, known := d.seen[cookie]
	if !known && len(d.seen) >= maxListeners {
		return
	}
	if known || d.counted {
		d.total += uint64(drops - last.drops)
	}
	d.seen[cookie] = listenerDrops{drops, d.census}
}

// end ends a census that has seen all listeners.
func (d *listenDrops) end() { d.counted = true }
