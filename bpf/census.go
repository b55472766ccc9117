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
	// ownTablesCPU is the CPU time that a census may take for hash tables of single
	// namespaces while a user waits for it.
	ownTablesCPU = 250 * time.Millisecond
	// ownTableLate is the age from which the last complete walk of such a table is
	// reported as late.
	ownTableLate = 5 * time.Minute
)

// CensusResult is the result of one census.
type CensusResult struct {
	// Counts are the counts of the hash table that namespaces share, as it is now, and
	// of each table of a single namespace, as it was at its last complete walk.
	Counts     abi.CensusCounts
	Namespaces int // the number of network namespaces
	// CgroupRisks are, if the selection asks for them, the connections at risk in the shared
	// table by the id of the control group of their socket, 0 for none. Groups that the kernel
	// programs have no room for are missing.
	CgroupRisks map[uint64]abi.RiskCounts
	// Unvisited is the number of namespaces with connections that have no cookie and
	// could not be given one: these connections are counted, but neither listed nor
	// followed. Of these namespaces, Refused is the number of those that we had no
	// privilege to enter, and Hidden of those that nothing visible to us leads to.
	Unvisited, Refused, Hidden int
	// Err is the reason why the last of them could not be entered; nil if they went
	// away or are hidden.
	Err error
	// Hosts is what a periodic census counted of the connections to the given remote addresses,
	// without those in Unwalked.
	Hosts map[abi.PeerHostKey]abi.PeerHost
	// OwnTables are the inode numbers of the namespaces that have a hash table of
	// their own, ascending. Unwalked are those whose table this census did not walk
	// completely, for lack of CPU time; Late is the number of those whose last complete
	// walk is minutes ago.
	OwnTables, Unwalked []uint32
	Late                int
	// CPU is the CPU time that the census took, without that of visit if other censuses
	// may go on meanwhile. In addition, OwnTablesCPU is the time
	// that the tables of single namespaces took, and CookiesCPU the time that it took to
	// give cookies to sockets, which each socket needs once.
	CPU, OwnTablesCPU, CookiesCPU time.Duration
}

// Connections returns the number of all sockets that are connections.
func (r *CensusResult) Connections() (n uint64) {
	for _, classes := range r.Counts.Sockets {
		for class, sockets := range classes {
			if uint8(class) != abi.ClassNone {
				n += sockets
			}
		}
	}
	return n
}

// Sockets returns the number of all sockets.
func (r *CensusResult) Sockets() (n uint64) {
	for _, classes := range r.Counts.Sockets {
		for _, sockets := range classes {
			n += sockets
		}
	}
	return n
}

// ownTable is the hash table of a network namespace that does not use the shared one.
type ownTable struct {
	abi.OwnTable
	// counts are the counts of the last complete walk, which ended at walked. For a new
	// table, walked is the time when it was found.
	counts abi.CensusCounts
	walked time.Time
	// partial are the counts so far of the walk that continues at next. If no walk is
	// under way, next is the zero value.
	partial abi.CensusCounts
	next    abi.Cursor
}

// Classes is a set of classes of sockets, such as [abi.ClassIdle].
type Classes uint32

// ClassesOf returns the set of these classes.
func ClassesOf(classes ...uint8) (set Classes) {
	for _, c := range classes {
		set |= 1 << c
	}
	return set
}

// Selection is the sockets of which a census writes out records.
type Selection struct {
	// Classes are the classes of the sockets. Those of ClassNone are not connections, and
	// those of ClassOverflowed are listeners that have dropped a SYN or an ACK.
	Classes Classes
	// Idle is, for each class, how long a connection must have been without data, unless
	// it is in trouble.
	Idle [len(abi.CensusCounts{}.Sockets[0])]time.Duration
	// Netns are inode numbers of network namespaces. If there are any, a census walks no
	// hash table of another single namespace. The table that namespaces share is walked
	// whole, so visit still gets sockets of others.
	Netns []uint32
	// CgroupRisks says to count the connections at risk by control groups. Only a
	// PeriodicCensus does.
	CgroupRisks bool
}

// Select returns the selection of all sockets of these classes.
func Select(classes ...uint8) *Selection { return &Selection{Classes: ClassesOf(classes...)} }

// Census counts the TCP sockets of all network namespaces, and calls visit for each
// socket of the selection. visit may narrow the selection: Census then calls it for few
// more of the others. Census does not wait for a process that has locked a socket. It
// walks hash tables of single namespaces for at most a quarter of a second of CPU time,
// the smallest first. visit may take its time: while it is called, other censuses may go
// on. It must not keep its argument.
func (k *Kernel) Census(ctx context.Context, selection *Selection, visit func(*abi.Conn)) (CensusResult, error) {
	return k.takeCensus(ctx, &censusRequest{selection: selection, ownTables: ownTablesCPU, visit: visit, aside: true})
}

// Find takes a census that calls visit only for the connection with that cookie.
func (k *Kernel) Find(ctx context.Context, cookie uint64, visit func(*abi.Conn)) (CensusResult, error) {
	return k.takeCensus(ctx, &censusRequest{selection: &Selection{Classes: ^ClassesOf(abi.ClassNone, abi.ClassOverflowed)}, cookie: cookie, ownTables: ownTablesCPU, visit: visit, aside: true})
}

// PeriodicCensus is [Kernel.Census] for a caller that takes one regularly. It walks hash
// tables of single namespaces for ownTables of CPU time, the one with the oldest walk
// first, and the next PeriodicCensus continues where this one stopped. Other censuses wait
// until it ends. In addition, it counts the connections to these hosts, at most [HostsMost].
func (k *Kernel) PeriodicCensus(ctx context.Context, selection *Selection, hosts []abi.PeerHostKey, ownTables time.Duration, visit func(*abi.Conn)) (CensusResult, error) {
	return k.takeCensus(ctx, &censusRequest{selection: selection, hosts: hosts, ownTables: ownTables, visit: visit, resume: true})
}

// censusRequest says what a census writes out, and how it walks hash tables of single
// namespaces.
type censusRequest struct {
	selection *Selection        // the sockets to write out
	hosts     []abi.PeerHostKey // if there are some, count the connections to these
	cookie    uint64            // if not 0, write out only the connection with this cookie
	ownTables time.Duration     // CPU time for tables of single namespaces
	resume    bool              // continue unfinished walks of these tables, and leave off where time ends
	visit     func(*abi.Conn)
	aside     bool // call visit while other censuses may go on
	// visited is the CPU time that calls of visit have taken, if aside is set.
	visited time.Duration
}

func (k *Kernel) takeCensus(ctx context.Context, req *censusRequest) (res CensusResult, err error) {
	if req.cookie == 0 { // else the connection has one
		res.CookiesCPU = k.assignCookies(ctx, req.selection.Classes)
	}
	k.census.Lock()
	defer k.census.Unlock()
	if err := ctx.Err(); err != nil { // waiting for the lock may have taken long
		return res, err
	}
	runtime.LockOSThread() // threadCPU is the time of one thread
	defer runtime.UnlockOSThread()
	began := req.cpu()
	if res.Namespaces, err = k.listNetns(ctx, nil); err != nil {
		return res, fmt.Errorf("list network namespaces: %w", err)
	}
	res.OwnTables = slices.Sorted(maps.Keys(k.ownTables))
	if len(req.hosts) > 0 {
		if err := k.setHosts(req.hosts); err != nil {
			return res, err
		}
		defer func() {
			hosts, failed := k.takeHosts()
			res.Hosts, err = hosts, errors.Join(err, failed)
		}()
	}
	if err := k.walkSharedTable(ctx, req, &res); err != nil {
		return res, fmt.Errorf("census: %w", err)
	}
	res.CPU = req.cpu() - began
	if res.Unwalked, err = k.walkOwnTables(ctx, req); ctx.Err() != nil {
		return res, ctx.Err()
	} else if err != nil {
		return res, fmt.Errorf("census of the hash tables of single namespaces: %w", err)
	}
	res.OwnTablesCPU = req.cpu() - began - res.CPU
	for _, t := range k.ownTables {
		add(&res.Counts, &t.counts)
		if time.Since(t.walked) > ownTableLate {
			res.Late++
		}
	}
	noCookie, err := k.takeNoCookie()
	if err != nil {
		return res, err
	}
	k.cookies.complete(&res, noCookie)
	return res, nil
}

// walkSharedTable walks the table that namespaces share. The caller holds k.census.
func (k *Kernel) walkSharedTable(ctx context.Context, req *censusRequest, res *CensusResult) error {
	var cgroups uint32
	if req.selection.CgroupRisks && !req.aside { // else a walk ends at each record, and another may begin
		cgroups = 1
	}
	if err := k.objs.CensusCgroups.Set(cgroups); err != nil {
		return err
	}
	_, _, err := k.walk(ctx, req, abi.OwnTable{}, abi.Cursor{}, &res.Counts, nil)
	if cgroups == 0 {
		return err
	}
	err = errors.Join(err, k.objs.CensusCgroups.Set(uint32(0)))
	var taken error
	res.CgroupRisks, taken = k.takeCgroupRisks()
	return errors.Join(err, taken)
}

// threadCPU returns the CPU time that the calling thread has used.
func threadCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// walk walks the hash table of a single namespace, or the shared one if table is the zero
// value, beginning at from. It adds the numbers of sockets to counts, and calls visit of
// the request for each record. If stop is not nil and returns true, the walk ends early:
// done is false, and the walk can continue at next. The caller holds k.census.
func (k *Kernel) walk(ctx context.Context, req *censusRequest, table abi.OwnTable, from abi.Cursor, counts *abi.CensusCounts, stop func() bool) (next abi.Cursor, done bool, err error) {
	if err := k.beginWalk(req, table, from); err != nil {
		return from, false, err
	}
	var aside []abi.Conn
	for !done && (stop == nil || !stop()) {
		if err := ctx.Err(); err != nil {
			return from, false, err
		}
		end, err := run(k.objs.WalkRun)
		if err != nil {
			return from, false, fmt.Errorf("walk: %w", err)
		}
		done = end != 0
		records := k.walkBatch.Record[:k.walkBatch.Records]
		if !req.aside || len(records) == 0 {
			classes, idle := req.selection.Classes, req.selection.Idle
			for i := range records {
				req.visit(&records[i])
			}
			if req.selection.Classes != classes || req.selection.Idle != idle {
				if err := k.selectSockets(req.selection); err != nil {
					return from, false, fmt.Errorf("set up walk: %w", err)
				}
			}
			continue
		}
		at, err := k.endWalk(counts)
		if err != nil {
			return from, false, err
		}
		aside = append(aside[:0], records...)
		k.visitAside(req, aside)
		if err := k.beginWalk(req, table, at); err != nil {
			return from, false, err
		}
	}
	next, err = k.endWalk(counts)
	if err != nil {
		return from, false, err
	}
	return next, done, nil
}

// beginWalk sets up a walk that begins at from. The caller holds k.census.
func (k *Kernel) beginWalk(req *censusRequest, table abi.OwnTable, from abi.Cursor) error {
	if k.walkBatch == nil {
		return os.ErrClosed
	}
	if err := errors.Join(k.selectSockets(req.selection), k.objs.CensusCookie.Set(req.cookie), k.objs.WalkTable.Set(table),
		k.objs.WalkAt.Set(from), k.objs.CensusCounts.Put(uint32(0), &abi.CensusCounts{})); err != nil {
		return fmt.Errorf("set up walk: %w", err)
	}
	return nil
}

// selectSockets sets of which sockets the walk writes out records. The caller holds
// k.census.
func (k *Kernel) selectSockets(s *Selection) error {
	var idle [len(s.Idle)]uint32
	for class, d := range s.Idle {
		if d > 0 {
			idle[class] = k.jiffies(d)
		}
	}
	return errors.Join(k.objs.CensusWrite.Set(uint32(s.Classes)), k.objs.CensusIdle.Set(idle))
}

// endWalk adds what the walk has counted since beginWalk to counts, and returns where it
// has stopped. The caller holds k.census.
func (k *Kernel) endWalk(counts *abi.CensusCounts) (at abi.Cursor, err error) {
	var counted abi.CensusCounts
	if err := errors.Join(k.objs.CensusCounts.Lookup(uint32(0), &counted), k.objs.WalkAt.Get(&at)); err != nil {
		return at, fmt.Errorf("read census: %w", err)
	}
	add(counts, &counted)
	return at, nil
}

// visitAside calls visit of the request for each of the records without k.census, which
// the caller holds.
func (k *Kernel) visitAside(req *censusRequest, records []abi.Conn) {
	k.census.Unlock()
	defer k.census.Lock()
	began := threadCPU()
	defer func() { req.visited += threadCPU() - began }()
	for i := range records {
		req.visit(&records[i])
	}
}

// maxRestarts limits how often listNetns begins the list again, because the namespace
// where a run stopped has left the list meanwhile.
const maxRestarts = 16

// listNetns returns the number of network namespaces, and updates k.ownTables. If sysctls is
// not nil, it stores those of each namespace there. The caller holds k.census.
func (k *Kernel) listNetns(ctx context.Context, sysctls map[uint32]abi.NetnsSysctls) (namespaces int, err error) {
	if k.netnsList == nil {
		return 0, os.ErrClosed
	}
	var withSysctls uint32
	if sysctls != nil {
		withSysctls = 1
	}
	if err := errors.Join(k.objs.NetnsWithSysctls.Set(withSysctls), k.objs.NetnsAt.Set(uint64(0)), k.objs.NetnsCount.Set(uint32(0)), k.objs.NetnsRestarts.Set(uint32(0))); err != nil {
		return 0, err
	}
	found := make(map[uint32]*ownTable)
	var restarts uint32
	for end := uint32(0); end == 0 && restarts <= maxRestarts; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if end, err = run(k.objs.NetnsListRun); err != nil {
			return 0, err
		}
		for _, table := range k.netnsList.Table[:k.netnsList.Tables] {
			if t := k.ownTables[table.Netns]; t != nil && t.OwnTable == table {
				found[table.Netns] = t
			} else {
				found[table.Netns] = &ownTable{OwnTable: table, walked: time.Now()}
			}
		}
		for i := range k.netnsList.Namespaces {
			s := &k.netnsList.Sysctls[i]
			sysctls[s.Netns] = *s
		}
		if err := k.objs.NetnsRestarts.Get(&restarts); err != nil {
			return 0, err
		}
	}
	// After maxRestarts, the namespaces found so far have to do.
	var count uint32
	if err := k.objs.NetnsCount.Get(&count); err != nil {
		return 0, err
	}
	k.ownTables = found
	return int(count), nil
}

// walkOwnTables walks the hash tables of single namespaces: the smallest first and each
// from its beginning or, if the request says resume, the one with the oldest walk first
// and each from where its last walk stopped. It leaves out those that the selection does
// not want. It returns the inode numbers of those that it had no CPU time to complete. The
// caller holds k.census.
func (k *Kernel) walkOwnTables(ctx context.Context, req *censusRequest) (unwalked []uint32, err error) {
	stop := req.cpuLimit()
	tables := slices.SortedFunc(maps.Values(k.ownTables), func(a, b *ownTable) int {
		order := cmp.Compare(a.Chains, b.Chains)
		if req.resume {
			order = a.walked.Compare(b.walked)
		}
		return cmp.Or(order, cmp.Compare(a.Netns, b.Netns))
	})
	for _, t := range tables {
		if err := ctx.Err(); err != nil {
			return unwalked, err
		}
		if wanted := req.selection.Netns; len(wanted) > 0 && !slices.Contains(wanted, t.Netns) {
			continue
		}
		var counts abi.CensusCounts
		var from abi.Cursor
		if req.resume {
			counts, from = t.partial, t.next
		}
		next, done, err := k.walk(ctx, req, t.OwnTable, from, &counts, stop)
		switch {
		case err != nil:
			return unwalked, err
		case !done:
			unwalked = append(unwalked, t.Netns)
			if req.resume {
				t.partial, t.next = counts, next
			}
		case req.resume || t.next == (abi.Cursor{}): // else a resumed walk is under way
			t.counts, t.walked = counts, time.Now()
			t.partial, t.next = abi.CensusCounts{}, abi.Cursor{}
		}
	}
	return unwalked, nil
}

// cpu returns the CPU time that the calling thread has used, without calls of visit.
func (req *censusRequest) cpu() time.Duration { return threadCPU() - req.visited }

// cpuLimit returns a function that reports whether the calling thread has used the time for
// tables of single namespaces since.
func (req *censusRequest) cpuLimit() func() bool {
	began := req.cpu()
	return func() bool { return req.cpu()-began > req.ownTables }
}
