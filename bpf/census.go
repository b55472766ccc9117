// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// CensusResult is what one census found.
type CensusResult struct {
	Counts     CensusCounts
	Namespaces int // visited, or known to have no TCP socket
	// Unvisited is how many namespaces could not be entered, or went away.
	Unvisited int
	Err       error // why the last of them could not, nil if they went away
	// CPU is the time that it took of a core, in the kernel and here.
	CPU  time.Duration
	ways map[uint64]way
}

// Path leads to the network namespace of that inode number; "" if it is our own,
// or there is none.
func (r *CensusResult) Path(netns uint32) string {
	w := r.ways[uint64(netns)]
	return w.file()
}

// Census visits every TCP socket of every network namespace that can be
// found, counts them all, and calls visit for each socket whose class is in
// classes: of ClassNone those that are no connections. visit runs on another goroutine, but not after Census returns.
// One census runs at a time.
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
		k.objs.CensusCounts.Put(uint32(0), &CensusCounts{})); err != nil {
		return res, fmt.Errorf("set up census: %w", err)
	}

	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		began := threadCPU()
		home := true
		ways, err := k.namespaces()
		if err != nil {
			err = fmt.Errorf("find network namespaces: %w", err)
		} else {
			res.ways = ways
			home, err = k.visitNamespaces(ctx, ways, &res, visit)
		}
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

// visitNamespaces runs on a locked thread. home tells whether the thread is in
// the namespace that it came from. That one is visited first, which needs no
// privilege.
func (k *Kernel) visitNamespaces(ctx context.Context, ways map[uint64]way, res *CensusResult, visit func(*Conn)) (home bool, err error) {
	var c Conn
	record := bytesOf(&c)
	pass := func() error {
		return k.pass("census", record, func() { visit(&c) })
	}
	from, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, err
	}
	defer from.Close()
	var own unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &own); err != nil {
		return true, err
	}
	res.Namespaces++
	if err := pass(); err != nil {
		return true, err
	}
	delete(ways, own.Ino)
	if len(ways) == 0 {
		return true, nil
	}
	silent := make(map[uint64]float64)
	defer func() { home = unix.Setns(int(from.Fd()), unix.CLONE_NEWNET) == nil }()
	for ino, w := range ways {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		switch err := enter(&w, ino); {
		case gone(err):
			res.Unvisited++
		case err != nil:
			res.Unvisited++
			res.Err = fmt.Errorf("enter network namespace %d: %w", ino, err)
		default:
			res.Namespaces++
			if err := k.visitUnlessEmpty(ino, silent, pass); err != nil {
				return false, err
			}
		}
	}
	k.silent = silent
	return false, nil
}

// visitUnlessEmpty makes a pass over the calling thread's network namespace, but
// not if it is certain that there is no TCP socket: none that the kernel counts,
// and no segment since there was none at all, as in the beginning. silent is what
// the next census has to know.
func (k *Kernel) visitUnlessEmpty(ino uint64, silent map[uint64]float64, pass func() error) error {
	if sockets, err := countedTCP(); err != nil || sockets > 0 {
		return pass()
	}
	segments, err := tcpSegments()
	if err != nil {
		return pass()
	}
	if segments == k.silent[ino] {
		silent[ino] = segments
		return nil
	}
	before, err := k.counted()
	if err := errors.Join(err, pass()); err != nil {
		return err
	}
	after, err := k.counted()
	if after == before {
		silent[ino] = segments
	}
	return err
}

// counted is how many sockets this census has seen.
func (k *Kernel) counted() (n uint64, err error) {
	var counts CensusCounts
	if err := k.objs.CensusCounts.Lookup(uint32(0), &counts); err != nil {
		return 0, fmt.Errorf("read census: %w", err)
	}
	for _, classes := range counts.Sockets {
		for _, sockets := range classes {
			n += sockets
		}
	}
	return n, nil
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
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != ino {
		return errNotSame
	}
	return unix.Setns(fd, unix.CLONE_NEWNET)
}
