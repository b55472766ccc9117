// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Some programs are not attached: we run them (BPF_PROG_TEST_RUN of a raw tracepoint,
// since Linux 5.10), and read what they wrote from a map that is mapped into our memory.
// Each run is short, since the kernel does not preempt it.

// run runs such a program once, and returns its result.
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

// unmap undoes mapped. It does nothing if v is nil.
func unmap[T any](v *T) error {
	if v == nil {
		return nil
	}
	return unix.MunmapPtr(unsafe.Pointer(v), uintptr(sizeMapped[T]()))
}

// sizeMapped returns the size of a T, rounded up to whole pages.
func sizeMapped[T any]() int {
	var v T
	page := os.Getpagesize()
	return (int(unsafe.Sizeof(v)) + page - 1) / page * page
}

// Watch reads all watched sockets and calls visit for each. A record with ConnAnswered
// or ConnGone is the last of its socket. visit must not keep its argument.
func (k *Kernel) Watch(visit func(*abi.Conn)) error {
	if err := k.resolvePending(); err != nil {
		return err
	}
	if err := runBatches[abi.Watch](k, k.objs.Watched, k.objs.WatchRun, visit); err != nil {
		return fmt.Errorf("read watched sockets: %w", err)
	}
	return nil
}

// ReadAgain calls visit for each socket that a census reported with [abi.ConnUnread], and
// whose application has read since. It is the last such record of the socket, until a census
// reports it again. visit must not keep its argument.
func (k *Kernel) ReadAgain(visit func(*abi.Conn)) error {
	if err := runBatches[abi.Unread](k, k.objs.UnreadSockets, k.objs.UnreadRun, visit); err != nil {
		return fmt.Errorf("read sockets with unread data: %w", err)
	}
	return nil
}

// resolvePending has the programs count those pending deaths whose cause is certain,
// since no event can change it any more.
func (k *Kernel) resolvePending() error {
	if err := runBatches[abi.PendingDeath](k, k.objs.PendingDeaths, k.objs.ResolvePendingRun, nil); err != nil {
		return fmt.Errorf("resolve pending deaths: %w", err)
	}
	return nil
}

// runBatches has a program handle all entries of a hash map whose keys are sockets, some
// in each run, and calls visit, if not nil, for each record that the program writes. V
// is the type of the map's values.
func runBatches[V any](k *Kernel, m *ebpf.Map, p *ebpf.Program, visit func(*abi.Conn)) error {
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
