// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

const (
	// ownTablesCPU is the processor time that hash tables of namespaces' own may
	// take of a census that somebody waits for.
	ownTablesCPU = 250 * time.Millisecond
	// ownTableLate is how old the last whole walk of such a table may be.
	ownTableLate = 5 * time.Minute
)

// CensusResult is what one census found.
type CensusResult struct {
	// Counts are those of the hash table that namespaces share, as it is now, and
	// of each table of a namespace's own, as it was when last walked whole.
	Counts     CensusCounts
	Namespaces int // that there are
	// Unvisited is how many namespaces have connections without a cookie that
	// could not be given one: these are counted, but neither listed nor followed.
	// Refused is how many of those namespaces we had no privilege to enter, and Hidden
	// into how many no way leads that we can see.
	Unvisited, Refused, Hidden int
	// Err is why the last of them could not be entered; nil if they went away or are
	// hidden.
	Err error
	// OwnTables are the inode numbers of the namespaces that have a hash table of
	// their own, ascending. Unwalked are those of them whose table this census has
	// not walked whole, since it was to take no longer; Late is how many of them
	// have not been walked whole for minutes.
	OwnTables, Unwalked []uint32
	Late                int
	// CPU is the time that the census took of a core; OwnTablesCPU is what the
	// tables of namespaces' own took besides, and CookiesCPU what it took to give
	// sockets their cookies, which each needs once.
	CPU, OwnTablesCPU, CookiesCPU time.Duration
}

// An ownTable is the hash table of a network namespace that has one of its own.
type ownTable struct {
	abi.OwnTable
	// counts are of the last walk that reached its end, partial are of the one that
	// goes on at next. That last walk ended at walked, which for a table that has
	// just been found is when that was.
	counts, partial CensusCounts
	walked          time.Time
	next            abi.Cursor
}

// Census looks at every TCP socket of every network namespace, counts them all, and
// calls visit for each socket whose class is in classes: of ClassNone those that are
// no connections. It waits for no process, whatever that has locked. Hash tables of
// namespaces' own are walked for at most a quarter of a second, the smallest first.
// It is safe for concurrent use; one census runs at a time.
func (k *Kernel) Census(ctx context.Context, classes []uint8, visit func(*Conn)) (CensusResult, error) {
	return k.takeCensus(ctx, bits(classes), 0, visit, k.walkOwnTables)
}

// Find is a census that calls visit for the one connection of that cookie.
func (k *Kernel) Find(ctx context.Context, cookie uint64, visit func(*Conn)) (CensusResult, error) {
	return k.takeCensus(ctx, ^uint32(1<<ClassNone), cookie, visit, k.walkOwnTables)
}

// PeriodicCensus is the census of a caller that takes one regularly. Hash tables of
// namespaces' own are walked for the given time of a core, the one that waits longest
// first, and the next such census goes on where this one stopped.
func (k *Kernel) PeriodicCensus(ctx context.Context, classes []uint8, ownTables time.Duration, visit func(*Conn)) (CensusResult, error) {
	return k.takeCensus(ctx, bits(classes), 0, visit, func(ctx context.Context, res *CensusResult, visit func(*Conn)) error {
		return k.continueOwnTables(ctx, ownTables, res, visit)
	})
}

func bits(classes []uint8) (set uint32) {
	for _, c := range classes {
		set |= 1 << c
	}
	return set
}

// takeCensus takes a census that writes out the classes of a set of bits, or only the
// connection of a cookie. ownTables walks the tables of namespaces' own.
func (k *Kernel) takeCensus(ctx context.Context, write uint32, cookie uint64, visit func(*Conn), ownTables func(context.Context, *CensusResult, func(*Conn)) error) (res CensusResult, err error) {
	if cookie == 0 { // what is looked for has one
		res.CookiesCPU = k.assignCookies(ctx, write)
	}
	k.census.Lock()
	defer k.census.Unlock()
	if err := ctx.Err(); err != nil { // it may have been a long wait
		return res, err
	}
	runtime.LockOSThread() // whose time is measured
	defer runtime.UnlockOSThread()
	began := threadCPU()
	if err := errors.Join(k.objs.CensusWrite.Set(write), k.objs.CensusCookie.Set(cookie)); err != nil {
		return res, fmt.Errorf("set up census: %w", err)
	}
	if err := k.listNetns(ctx, &res); err != nil {
		return res, fmt.Errorf("list network namespaces: %w", err)
	}
	if _, _, err := k.walk(ctx, abi.OwnTable{}, abi.Cursor{}, &res.Counts, visit, nil); err != nil {
		return res, fmt.Errorf("census: %w", err)
	}
	res.CPU = threadCPU() - began
	if err := ownTables(ctx, &res, visit); ctx.Err() != nil {
		return res, ctx.Err()
	} else if err != nil {
		return res, fmt.Errorf("census of the hash tables of single namespaces: %w", err)
	}
	res.OwnTablesCPU = threadCPU() - began - res.CPU
	for _, t := range k.ownTables {
		addCounts(&res.Counts, &t.counts)
		if time.Since(t.walked) > ownTableLate {
			res.Late++
		}
	}
	without, err := k.takeNoCookie()
	if err != nil {
		return res, err
	}
	k.cookies.judge(without, &res)
	return res, nil
}

// threadCPU is the time that the calling thread has had of a core.
func threadCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// walk walks the hash table of a network namespace's own, or the zero value's, which is
// the one that namespaces share, from a place in it. It adds to counts what it counted.
// Where stop, if any, returns true, the walk ends early (done is false) and can go on at
// next. The caller holds k.census.
func (k *Kernel) walk(ctx context.Context, table abi.OwnTable, from abi.Cursor, counts *CensusCounts, visit func(*Conn), stop func() bool) (next abi.Cursor, done bool, err error) {
	if k.walked == nil {
		return from, false, os.ErrClosed
	}
	if err := errors.Join(k.objs.WalkTable.Set(table), k.objs.WalkAt.Set(from), k.objs.CensusCounts.Put(uint32(0), &CensusCounts{})); err != nil {
		return from, false, fmt.Errorf("set up walk: %w", err)
	}
	for !done && (stop == nil || !stop()) {
		if err := ctx.Err(); err != nil {
			return from, false, err
		}
		end, err := run(k.objs.WalkRun)
		if err != nil {
			return from, false, fmt.Errorf("walk: %w", err)
		}
		done = end != 0
		for i := range k.walked.Records {
			visit(&k.walked.Record[i])
		}
	}
	var counted CensusCounts
	if err := errors.Join(k.objs.CensusCounts.Lookup(uint32(0), &counted), k.objs.WalkAt.Get(&next)); err != nil {
		return from, false, fmt.Errorf("read census: %w", err)
	}
	addCounts(counts, &counted)
	return next, done, nil
}

// addCounts adds what was counted elsewhere.
func addCounts(to, from *CensusCounts) {
	into := words(to)
	for i, n := range words(from) {
		into[i] += n
	}
}

// restartsMost is how often the list of network namespaces is begun again, since the one
// where a run stopped has left it meanwhile.
const restartsMost = 16

// listNetns counts the network namespaces and finds those that have a hash table of
// their own. The caller holds k.census.
func (k *Kernel) listNetns(ctx context.Context, res *CensusResult) error {
	if k.listed == nil {
		return os.ErrClosed
	}
	if err := errors.Join(k.objs.NetnsAt.Set(uint64(0)), k.objs.NetnsCount.Set(uint32(0)), k.objs.NetnsRestarts.Set(uint32(0))); err != nil {
		return err
	}
	found := make(map[uint32]*ownTable)
	var restarts uint32
	for end := uint32(0); end == 0 && restarts <= restartsMost; {
		var err error
		if err = ctx.Err(); err != nil {
			return err
		}
		if end, err = run(k.objs.NetnsListRun); err != nil {
			return err
		}
		for _, table := range k.listed.Table[:k.listed.Tables] {
			if t := k.ownTables[table.Netns]; t != nil && t.OwnTable == table {
				found[table.Netns] = t
			} else {
				found[table.Netns] = &ownTable{OwnTable: table, walked: time.Now()}
			}
		}
		if err := k.objs.NetnsRestarts.Get(&restarts); err != nil {
			return err
		}
	}
	// So many come and go that the end was not reached: those that were found will do.
	var count uint32
	if err := k.objs.NetnsCount.Get(&count); err != nil {
		return err
	}
	res.Namespaces = int(count)
	k.ownTables = found
	res.OwnTables = slices.Sorted(maps.Keys(found))
	return nil
}

// walkOwnTables walks the tables of namespaces' own, each from its beginning and the
// smallest first, for ownTablesCPU.
func (k *Kernel) walkOwnTables(ctx context.Context, res *CensusResult, visit func(*Conn)) error {
	stop := cpuLimit(ownTablesCPU)
	for _, netns := range k.sortedOwnTables(func(a, b *ownTable) int { return cmp.Compare(a.Chains, b.Chains) }) {
		if err := ctx.Err(); err != nil {
			return err
		}
		var counts CensusCounts
		_, done, err := k.walk(ctx, k.ownTables[netns].OwnTable, abi.Cursor{}, &counts, visit, stop)
		if err != nil {
			return err
		}
		if !done {
			res.Unwalked = append(res.Unwalked, netns)
		} else if t := k.ownTables[netns]; t.next == (abi.Cursor{}) { // no walk of it is under way
			t.counts, t.walked = counts, time.Now()
		}
	}
	return nil
}

// continueOwnTables walks the tables of namespaces' own, the one whose last walk is
// the oldest first, each from where it was left, for cpu of a core.
func (k *Kernel) continueOwnTables(ctx context.Context, cpu time.Duration, res *CensusResult, visit func(*Conn)) error {
	stop := cpuLimit(cpu)
	for _, netns := range k.sortedOwnTables(func(a, b *ownTable) int { return a.walked.Compare(b.walked) }) {
		if err := ctx.Err(); err != nil {
			return err
		}
		t := k.ownTables[netns]
		next, done, err := k.walk(ctx, t.OwnTable, t.next, &t.partial, visit, stop)
		if err != nil {
			return err
		}
		if !done {
			t.next = next
			res.Unwalked = append(res.Unwalked, netns)
			continue
		}
		t.counts, t.walked = t.partial, time.Now()
		t.partial, t.next = CensusCounts{}, abi.Cursor{}
	}
	return nil
}

func (k *Kernel) sortedOwnTables(compare func(a, b *ownTable) int) []uint32 {
	return slices.SortedFunc(maps.Keys(k.ownTables), func(a, b uint32) int {
		return cmp.Or(compare(k.ownTables[a], k.ownTables[b]), cmp.Compare(a, b))
	})
}

// cpuLimit returns whether the calling thread has had that much of a core since.
func cpuLimit(cpu time.Duration) func() bool {
	began := threadCPU()
	return func() bool { return threadCPU()-began > cpu }
}
