// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CensusResult is what one census found.
type CensusResult struct {
	Counts     CensusCounts
	Namespaces int // that there are
	// Unvisited is how many namespaces could not be entered, or went away.
	Unvisited int
	// Err is why the last of them could not, or whose sockets may be missing; nil
	// if they went away.
	Err error
	// CPU is the time that it took of a core, in the kernel and here; Naming is what
	// of it went into giving sockets their cookies, which is for once.
	CPU, Naming time.Duration
	ways        map[uint64]way
}

// Path leads to the network namespace of that inode number; "" if it is our own,
// or there is none.
func (r *CensusResult) Path(netns uint32) string {
	w := r.ways[uint64(netns)]
	return w.file()
}

// Census looks at every TCP socket of every network namespace, counts them all,
// and calls visit for each socket whose class is in classes: of ClassNone those
// that are no connections. visit runs on another goroutine, but not after Census
// returns. One census runs at a time.
func (k *Kernel) Census(ctx context.Context, classes []uint8, visit func(*Conn)) (CensusResult, error) {
	var write uint32
	for _, c := range classes {
		write |= 1 << c
	}
	return k.visitAll(ctx, write, 0, visit)
}

// Find is a census that calls visit for the one connection of that cookie.
func (k *Kernel) Find(ctx context.Context, cookie uint64, visit func(*Conn)) (CensusResult, error) {
	return k.visitAll(ctx, ^uint32(1<<ClassNone), cookie, visit)
}

func (k *Kernel) visitAll(ctx context.Context, write uint32, cookie uint64, visit func(*Conn)) (CensusResult, error) {
	k.census.Lock()
	defer k.census.Unlock()
	var res CensusResult
	if err := ctx.Err(); err != nil { // it may have been a long wait
		return res, err
	}
	if err := errors.Join(k.objs.CensusWrite.Set(write), k.objs.CensusCookie.Set(cookie),
		k.objs.CountedShare.Set(^uint32(0)), k.objs.CensusCounts.Put(uint32(0), &CensusCounts{})); err != nil {
		return res, fmt.Errorf("set up census: %w", err)
	}

	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		began := threadCPU()
		home, err := k.takeCensus(ctx, cookie, &res, visit)
		res.CPU = threadCPU() - began
		if home {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return res, fmt.Errorf("census: %w", err)
	}
	if err := k.objs.CensusCounts.Lookup(uint32(0), &res.Counts); err != nil {
		return res, fmt.Errorf("read census: %w", err)
	}
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

// takeCensus runs on a locked thread. home tells whether the thread is in the
// namespace that it came from.
//
// The walk sees all sockets of all namespaces but for two kinds, for which the
// namespaces are visited that have them: those that have no cookie yet, as all of
// them when the first census is taken, and those in hash tables of their own. Where
// a visit could not give cookies either, all sockets are given theirs beforehand.
func (k *Kernel) takeCensus(ctx context.Context, cookie uint64, res *CensusResult, visit func(*Conn)) (home bool, err error) {
	var c Conn
	record := bytesOf(&c)
	pass := func(name string) error { return k.pass(name, record, func() { visit(&c) }) }

	from, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, err
	}
	defer from.Close()
	own, err := inode(int(from.Fd()))
	if err != nil {
		return true, err
	}
	if res.ways, err = k.namespaces(); err != nil {
		return true, fmt.Errorf("find network namespaces: %w", err)
	}
	delete(res.ways, own)
	res.Namespaces = 1 + len(res.ways)
	home = true
	goHome := func() (err error) {
		if !home {
			err = unix.Setns(int(from.Fd()), unix.CLONE_NEWNET)
			home = err == nil
		}
		return err
	}
	defer func() { _ = goHome() }()
	if k.noCookieHelper && cookie == 0 {
		err := k.nameSockets(ctx, res, func(ino uint64) error {
			if ino == own {
				return goHome()
			}
			w := res.ways[ino]
			err := enter(&w, ino)
			home = home && err != nil
			return err
		})
		if err = errors.Join(err, goHome()); err != nil {
			return home, fmt.Errorf("give sockets cookies: %w", err)
		}
	}
	if err := pass("walk"); err != nil {
		return true, err
	}
	unnamed, err := k.takeUnnamed()
	if err != nil {
		return true, err
	}
	if cookie != 0 {
		clear(unnamed) // it has one
	}

	// visitOne visits the namespace that the thread is in, if it has to be. If that
	// was in vain the last time, sock_diag gives the cookies, for the next: from 5.15
	// until 6.17 iter/tcp passes over the first bucket of the hash table in a namespace
	// without listeners (tcp_seek_last_pos(), whose offset is below 0 by then).
	tables, nameless := make(map[uint64]bool, len(k.tables)), make(map[uint64]bool)
	visitOne := func(ino uint64) error {
		if _, known := tables[ino]; !known {
			has, err := false, error(nil)
			if k.hasOwnTables {
				has, err = hasOwnTable()
			}
			if err != nil {
				res.Err = fmt.Errorf("find the hash table of network namespace %d: %w", ino, err)
			} else {
				tables[ino] = has
			}
		}
		ownTable := tables[ino] && ino != k.initNetns
		if !ownTable && !unnamed[ino] {
			return nil
		}
		delete(unnamed, ino)
		if err := k.objs.OwnTable.Set(boolean(ownTable)); err != nil {
			return err
		}
		began := threadCPU()
		err := pass("visit")
		if !ownTable {
			if k.nameless[ino] && !k.noCookieHelper { // iter/tcp does not see what the walk does
				if err := diagCookies(); err != nil {
					res.Err = fmt.Errorf("give sockets of network namespace %d cookies: %w", ino, err)
				}
			}
			nameless[ino] = true
			res.Naming += threadCPU() - began
		}
		return err
	}
	if err := visitOne(own); err != nil {
		return true, err
	}
	for ino, w := range res.ways {
		if err := ctx.Err(); err != nil {
			return home, err
		}
		if ownTable, known := k.tables[ino]; known {
			if tables[ino] = ownTable; !ownTable && !unnamed[ino] {
				continue
			}
		}
		switch err := enter(&w, ino); {
		case gone(err):
			res.Unvisited++
		case err != nil:
			res.Unvisited++
			res.Err = fmt.Errorf("enter network namespace %d: %w", ino, err)
		default:
			home = false
			if err := visitOne(ino); err != nil {
				return home, err
			}
		}
		delete(unnamed, ino)
	}
	res.Unvisited += len(unnamed) // which nobody knows a way into
	k.tables, k.nameless = tables, nameless
	return home, nil
}

// nameSockets gives cookies to the sockets that have none, in the namespaces where
// there are any: sock_diag takes longer than the walk that finds them.
func (k *Kernel) nameSockets(ctx context.Context, res *CensusResult, enter func(ino uint64) error) error {
	unnamed, err := k.findUnnamed()
	if err != nil {
		return err
	}
	for ino := range unnamed {
		if err := ctx.Err(); err != nil {
			return err
		}
		if enter(ino) != nil {
			continue // which the census will find, too
		}
		if err := diagCookies(); err != nil {
			res.Err = fmt.Errorf("give sockets of network namespace %d cookies: %w", ino, err)
		}
	}
	return nil
}

// findUnnamed walks only to see in which namespaces there are sockets without a
// cookie.
func (k *Kernel) findUnnamed() (map[uint64]bool, error) {
	if err := k.objs.OnlyUnnamed.Set(boolean(true)); err != nil {
		return nil, err
	}
	if err := errors.Join(k.pass("walk", nil, nil), k.objs.OnlyUnnamed.Set(boolean(false))); err != nil {
		return nil, err
	}
	return k.takeUnnamed()
}

// takeUnnamed returns in which namespaces the walk has seen sockets without a
// cookie.
func (k *Kernel) takeUnnamed() (map[uint64]bool, error) {
	unnamed := make(map[uint64]bool)
	var ino, value uint32
	all := k.objs.Unnamed.Iterate()
	for all.Next(&ino, &value) {
		unnamed[uint64(ino)] = true
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read namespaces to visit: %w", err)
	}
	for ino := range unnamed {
		if err := k.objs.Unnamed.Delete(uint32(ino)); err != nil {
			return nil, fmt.Errorf("forget namespaces: %w", err)
		}
	}
	return unnamed, nil
}

// hasOwnTable tells whether the network namespace that the thread is in has a hash
// table of TCP sockets of its own (net.ipv4.tcp_child_ehash_entries).
func hasOwnTable() (bool, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_ehash_entries")
	if err != nil {
		return false, err
	}
	entries, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return entries > 0, err // negative: of the table that it shares
}

func boolean(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

var errNotSame = errors.New("another namespace by now")

// gone tells whether whoever led to a namespace is there no more.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) ||
		errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTTY) || errors.Is(err, errNotSame)
}

// enter moves the calling thread into a network namespace, which must still be
// the one of that inode.
func enter(w *way, ino uint64) error {
	fd, err := w.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch is, err := inode(fd); {
	case err != nil:
		return err
	case is != ino:
		return errNotSame
	}
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

func inode(fd int) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Ino, err
}
