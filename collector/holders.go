// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// holders are the processes that hold sockets, one for each socket: there may be very
// many sockets, so that each takes few bytes.
type holders struct {
	prefer    []uint32       // ids of processes that come before others
	processes []process      // each process once
	index     map[uint32]int // of processes, by id
	sockets   map[uint64]descriptor
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

func newHolders(prefer []uint32) *holders {
	return &holders{prefer: prefer, index: make(map[uint32]int), sockets: make(map[uint64]descriptor)}
}

// add takes in a descriptor. Of several that hold a socket it keeps one: of the
// processes in prefer, if there are such, that of the oldest process, which is not a
// child that has just been forked and will execute another program.
func (h *holders) add(o *abi.Owner) {
	i, ok := h.index[o.Pid]
	if !ok {
		i = len(h.processes)
		h.index[o.Pid] = i
		h.processes = append(h.processes, process{o.Pid, o.Started, unix.ByteSliceToString(o.Comm[:])})
	}
	found := descriptor{uint32(i), o.Fd}
	if known, ok := h.sockets[o.Cookie]; !ok || h.compare(found, known) < 0 {
		h.sockets[o.Cookie] = found
	}
}

func (h *holders) compare(a, b descriptor) int {
	p, q := &h.processes[a.process], &h.processes[b.process]
	other := func(p *process) int {
		if slices.Contains(h.prefer, p.pid) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(other(p), other(q)), cmp.Compare(p.started, q.started), cmp.Compare(p.pid, q.pid), cmp.Compare(a.fd, b.fd))
}

// of returns the process that holds a socket, nil for none.
func (h *holders) of(cookie uint64) *conn.Process {
	found, ok := h.sockets[cookie]
	if !ok {
		return nil
	}
	p := &h.processes[found.process]
	return &conn.Process{PID: p.pid, Comm: p.comm, FD: found.fd}
}

// holders finds who holds these sockets; with nil for cookies, who holds any.
func (c *Collector) holders(cookies []uint64, prefer []uint32) (*holders, error) {
	h := newHolders(prefer)
	if err := c.kernel.Owners(cookies, h.add); err != nil {
		return nil, err
	}
	return h, nil
}
