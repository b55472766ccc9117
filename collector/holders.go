// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"context"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// holders has one process for each socket: a process that holds the socket. There may be very
// many sockets, so the entry of a socket takes few bytes. Call free in the end.
type holders struct {
	prefer    set[uint32]       // ids of the processes to prefer
	processes []process         // each process once
	numbers   map[uint32]uint32 // numbers of processes, from 1, by process id
	sockets   *socketTable
	err       error // of add
}

type process struct {
	pid     uint32
	started uint64 // since boot, ns
	comm    string
}

// free frees the memory of the holders. It does nothing if h is nil.
func (h *holders) free() {
	if h != nil {
		h.sockets.free()
	}
}

// add adds a descriptor of a socket. If several processes hold the socket, add keeps one of
// them: a process in prefer, else the oldest process. A younger one may be a child that was
// forked just now and is about to execute another program.
func (h *holders) add(d *abi.FDHolder) {
	if h.err != nil {
		return
	}
	number, ok := h.numbers[d.PID]
	if !ok {
		h.processes = append(h.processes, process{d.PID, d.Started, unix.ByteSliceToString(d.Comm[:])})
		number = uint32(len(h.processes))
		h.numbers[d.PID] = number
	}
	var known *socketEntry
	if known, h.err = h.sockets.add(d.Cookie); h.err != nil {
		return
	}
	found := socketEntry{d.Cookie, number, d.FD}
	if known.process == 0 || h.compare(&found, known) < 0 {
		*known = found
	}
}

// compare compares two descriptors of one socket. The result is negative if a is better.
func (h *holders) compare(a, b *socketEntry) int {
	p, q := &h.processes[a.process-1], &h.processes[b.process-1]
	rank := func(p *process) int {
		if h.prefer.has(p.pid) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(p), rank(q)), cmp.Compare(p.started, q.started), cmp.Compare(p.pid, q.pid), cmp.Compare(a.fd, b.fd))
}

// has reports whether process returns a process.
func (h *holders) has(cookie uint64) bool { return h.sockets.find(cookie).process&^listedBit != 0 }

// process returns the process that holds a socket; nil if h has none.
func (h *holders) process(cookie uint64) *conn.Process {
	found := h.sockets.find(cookie)
	number := found.process &^ listedBit
	if number == 0 {
		return nil
	}
	p := &h.processes[number-1]
	return &conn.Process{PID: p.pid, Comm: p.comm, FD: found.fd}
}

// list marks a socket as listed. It reports whether the socket was not marked before.
func (h *holders) list(cookie uint64) (first bool, err error) {
	e, err := h.sockets.add(cookie)
	if err != nil {
		return false, err
	}
	first = e.process&listedBit == 0
	e.process |= listedBit
	return first, nil
}

// findHolders searches for the processes that hold these sockets.
func (c *Collector) findHolders(cookies []uint64, prefer set[uint32]) (*holders, error) {
	return c.searchHolders(cookies, len(cookies), prefer)
}

// findAllHolders searches for the processes that hold any TCP socket.
func (c *Collector) findAllHolders(ctx context.Context, prefer set[uint32]) (*holders, error) {
	res, err := c.kernel.Census(ctx, bpf.Select(), func(*abi.Conn) {})
	if err != nil {
		return nil, err
	}
	return c.searchHolders(nil, int(res.Counts.Total()), prefer)
}

// searchHolders reads the descriptors of all processes, unless cookies is empty but not nil.
// sockets is about how many sockets it will find.
func (c *Collector) searchHolders(cookies []uint64, sockets int, prefer set[uint32]) (*holders, error) {
	table, err := newSocketTable(sockets)
	if err != nil {
		return nil, err
	}
	h := &holders{prefer: prefer, numbers: make(map[uint32]uint32), sockets: table}
	if cookies == nil || len(cookies) > 0 {
		if err = c.kernel.FDHolders(cookies, h.add); err == nil {
			err = h.err
		}
	}
	if err != nil {
		h.free()
		return nil, err
	}
	return h, nil
}
