// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Kernel is the loaded programs. It is safe for concurrent use by multiple goroutines
// unless a method says otherwise.
type Kernel struct {
	objs halfopenObjects
	// links and iters are kept until Close: the garbage collector would detach them.
	links  map[string][]link.Link // by tracepoint
	iters  map[string]*link.Iter
	events *ringbuf.Reader
	record ringbuf.Record // of the last event
	hz     uint32

	census    sync.Mutex           // one run of a walk at a time; guards the following
	walkBatch *abi.WalkBatch       // written by a run of the walk
	netnsList *abi.NetnsList       // written by a run of the list of namespaces
	ownTables map[uint32]*ownTable // by inode number, as the last census found them

	netns     sync.Mutex // one search for namespaces at a time; guards the following
	search    uint32     // its number
	fdOnly    []abi.Holder
	fdOnlyDue time.Time // the next search for fdOnly, see namespaces

	drops dropsLink // see WatchDrops

	batching sync.Mutex // one run over watched sockets or deaths at a time; guards batch
	batch    *abi.Batch
	owners   sync.Mutex // one search for owners at a time: they share the map of cookies

	cookies        cookieSearch
	giveCookies    func(context.Context, []CookieTarget) ([]error, time.Duration, error)
	noCookieHelper bool         // our programs cannot give cookies (differences.go cookies)
	cookieGiver    *cookieGiver // nil if it is not needed, or cannot be loaded
	cookiesErr     error        // why new connections do not get cookies; nil if they do

	closed monotonic             // deaths with CauseClosed
	missed map[string]*monotonic // by tracepoint

	closing sync.Once
	ctx     context.Context // of background work; ends with Close
	cancel  context.CancelFunc
}

// Close detaches and unloads the programs. [Kernel.ReadEvent] then returns os.ErrClosed.
func (k *Kernel) Close() error {
	var errs []error
	k.closing.Do(func() {
		k.cancel()
		k.cookies.Lock()
		running := k.cookies.running
		k.cookies.Unlock()
		if running != nil { // it may hang; if it goes on later, it finds everything closed
			select {
			case <-running:
			case <-time.After(time.Second):
			}
		}
		if k.events != nil {
			errs = append(errs, k.events.Close())
		}
		errs = append(errs, k.drops.close(k), k.Detach())
		for _, it := range k.iters {
			errs = append(errs, it.Close())
		}
		// Wait until no run is under way, since runs use the mapped memory.
		k.census.Lock()
		defer k.census.Unlock()
		k.batching.Lock()
		defer k.batching.Unlock()
		errs = append(errs, unmap(k.netnsList), unmap(k.walkBatch), unmap(k.batch), k.objs.Close(), k.cookieGiver.Close())
		k.netnsList, k.walkBatch, k.batch = nil, nil, nil
	})
	return errors.Join(errs...)
}

// HZ returns the number of jiffies that the kernel counts in a second.
func (k *Kernel) HZ() int { return int(k.hz) }

// MapBytes returns the kernel memory that the maps of the programs take, in bytes. The
// kernel charges it to the memory control group of the process that loaded them (since
// 5.11).
func (k *Kernel) MapBytes() (total int64) {
	maps := reflect.ValueOf(k.objs.halfopenMaps)
	for i := range maps.NumField() {
		m, ok := maps.Field(i).Interface().(*ebpf.Map)
		if !ok {
			continue
		}
		if info, err := m.Info(); err == nil {
			bytes, _ := info.Memlock()
			total += int64(bytes)
		}
	}
	return total
}

// jiffies translates a duration into an age or interval of the kernel: at least 1 and
// less than [abi.AgeNone].
func (k *Kernel) jiffies(d time.Duration) uint32 {
	return uint32(min(max(d.Seconds()*float64(k.hz), 1), float64(abi.AgeNone-1)))
}
