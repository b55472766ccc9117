// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"fmt"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketTable has an entry for each of very many sockets, by cookie. Its memory is not on the
// heap of Go, where the garbage collector would let as much garbage grow beside it, and would
// keep the memory for a while. It is a hash table with linear probing. Call free in the end.
type socketTable struct {
	entries []socketEntry
	used    int
}

// socketEntry is the entry of a socket. The entry of a new socket has only the cookie.
type socketEntry struct {
	cookie  uint64 // 0: the entry is free; no socket has this cookie
	process uint32 // the number of a process that holds the socket, see holders.numbers; 0: none is known
	fd      uint32 // the descriptor of the process
}

// listedBit is set in socketEntry.process by holders.list.
const listedBit = 1 << 31

// newSocketTable returns a table with room for so many sockets. It grows if there are more.
func newSocketTable(sockets int) (*socketTable, error) {
	t := new(socketTable)
	return t, t.allocate(sockets + sockets/8 + 64)
}

func (t *socketTable) allocate(entries int) error {
	memory, err := unix.Mmap(-1, 0, entries*int(unsafe.Sizeof(socketEntry{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("allocate a table of sockets: %w", err)
	}
	t.entries, t.used = unsafe.Slice((*socketEntry)(unsafe.Pointer(unsafe.SliceData(memory))), entries), 0
	return nil
}

// free frees the memory. The table and its entries are not usable after that.
func (t *socketTable) free() {
	if t.entries != nil {
		_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(t.entries)), uintptr(len(t.entries))*unsafe.Sizeof(socketEntry{})) // it was mapped
		t.entries = nil
	}
}

// find returns the entry of a socket, or the free entry where it would be.
func (t *socketTable) find(cookie uint64) *socketEntry {
	i, _ := bits.Mul64(cookie*0x9e3779b97f4a7c15, uint64(len(t.entries)))
	for t.entries[i].cookie != cookie && t.entries[i].cookie != 0 {
		if i++; i == uint64(len(t.entries)) {
			i = 0
		}
	}
	return &t.entries[i]
}

// add returns the entry of a socket, which is new if the table had none.
func (t *socketTable) add(cookie uint64) (*socketEntry, error) {
	e := t.find(cookie)
	if e.cookie != 0 {
		return e, nil
	}
	if t.used >= len(t.entries)/16*15 {
		old := *t
		if err := t.allocate(2 * len(old.entries)); err != nil {
			return nil, err
		}
		for _, known := range old.entries {
			if known.cookie != 0 {
				*t.find(known.cookie) = known
				t.used++
			}
		}
		old.free()
		e = t.find(cookie)
	}
	e.cookie = cookie
	t.used++
	return e, nil
}
