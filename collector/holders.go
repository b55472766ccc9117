// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// holders has one process for each socket: a process that holds the socket. There may be very
// many sockets, so the entry of a socket takes few bytes.
type holders struct {
	prefer    set[uint32]           // ids of the processes to prefer
	processes []process             // each process once
	index     map[uint32]int        // index in processes, by process id
	sockets   map[uint64]descriptor // by cookie
}

type process struct {
	pid     uint32
	started uint64 // since boot, ns
	comm    string
}

// descriptor is a file descriptor of a process.
type descriptor struct {
	process uint32 // index of holders.processes
	fd      uint32
}

func newHolders(prefer set[uint32]) *holders {
	return &holders{prefer: prefer, index: make(map[uint32]int), sockets: make(map[uint64]descriptor)}
}

// add adds a descriptor of a socket. If several processes hold the socket, add keeps one of
// them: a process in prefer, else the oldest process. A younger one may be a child that was
// forked just now and is about to execute another program.
func (h *holders) add(d *abi.FDHolder) {
	i, ok := h.index[d.PID]
	if !ok {
		i = len(h.processes)
		h.index[d.PID] = i
		h.processes = append(h.processes, process{d.PID, d.Started, unix.ByteSliceToString(d.Comm[:])})
	}
	found := descriptor{uint32(i), d.FD}
	if known, ok := h.sockets[d.Cookie]; !ok || h.compare(found, known) < 0 {
		h.sockets[d.Cookie] = found
	}
}

// compare compares two descriptors of one socket. The result is negative if a is better.
func (h *holders) compare(a, b descriptor) int {
	p, q := &h.processes[a.process], &h.processes[b.process]
	rank := func(p *process) int {
		if h.prefer.has(p.pid) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(p), rank(q)), cmp.Compare(p.started, q.started), cmp.Compare(p.pid, q.pid), cmp.Compare(a.fd, b.fd))
}

// process returns the process that holds a socket; nil if h has none.
func (h *holders) process(cookie uint64) *conn.Process {
	found, ok := h.sockets[cookie]
	if !ok {
		return nil
	}
	p := &h.processes[found.process]
	return &conn.Process{PID: p.pid, Comm: p.comm, FD: found.fd}
}

// findHolders searches for the processes that hold these sockets. If cookies is nil, it
// searches for the processes that hold any socket.
func (c *Collector) findHolders(cookies []uint64, prefer set[uint32]) (*holders, error) {
	h := newHolders(prefer)
	if err := c.kernel.FDHolders(cookies, h.add); err != nil {
		return nil, err
	}
	return h, nil
}
