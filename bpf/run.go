// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Some programs are attached to nothing: we run them (BPF_PROG_TEST_RUN of a raw
// tracepoint, 5.10), and read what they wrote from a map that both sides see. A run
// is short, since preemption is off meanwhile.

// run runs such a program once, and returns what it returns.
func run(p *ebpf.Program) (uint32, error) {
	return p.Run(&ebpf.RunOptions{})
}

// mapped maps the value of an array of one element into our memory.
func mapped[T any](m *ebpf.Map) (*T, error) {
	b, err := unix.Mmap(m.FD(), 0, sizeMapped[T](), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", m, err)
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(b))), nil
}

// unmap undoes mapped. Of nil it does nothing.
func unmap[T any](v *T) error {
	if v == nil {
		return nil
	}
	return unix.MunmapPtr(unsafe.Pointer(v), uintptr(sizeMapped[T]()))
}

// sizeMapped is the size of a T in whole pages.
func sizeMapped[T any]() int {
	var v T
	page := os.Getpagesize()
	return (int(unsafe.Sizeof(v)) + page - 1) / page * page
}

// runBatches has a program look at all entries of a hash map that is keyed by sockets,
// and calls visit, if any, for each record that it writes. V is the type of the map's
// values.
func runBatches[V any](k *Kernel, m *ebpf.Map, p *ebpf.Program, visit func(*Conn)) error {
	k.batching.Lock()
	defer k.batching.Unlock()
	if k.batch == nil {
		return os.ErrClosed
	}
	keys := make([]uint64, len(k.batch.Key))
	values := make([]V, len(keys))
	var cursor ebpf.MapBatchCursor
	for end := false; !end; {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		end = errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return err
		}
		if n == 0 {
			continue
		}
		k.batch.Keys = uint32(copy(k.batch.Key[:], keys[:n]))
		if _, err := run(p); err != nil {
			return err
		}
		if visit != nil {
			for i := range k.batch.Records {
				visit(&k.batch.Record[i])
			}
		}
	}
	return nil
}
