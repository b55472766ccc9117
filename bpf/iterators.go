// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Iterators are programs that the kernel calls for every thread, or for every file
// descriptor of every process, while we read from them. What we read is the records
// that they write.

func (k *Kernel) openIterators() error {
	for name, opts := range map[string]link.IterOptions{
		"owners":     {Program: k.objs.OwnersPass},
		"cookies":    {Program: k.objs.CookiesPass},
		"netns_task": {Program: k.objs.NetnsTaskPass},
		"netns_file": {Program: k.objs.NetnsFilePass},
		"learn":      {Program: k.objs.LearnPass},
	} {
		it, err := link.AttachIter(opts)
		if err != nil {
			return fmt.Errorf("attach iterator %s: %w", name, err)
		}
		k.iters[name] = it
	}
	return nil
}

// pass runs an iterator once. It copies each record into record and then calls visit.
func (k *Kernel) pass(name string, record []byte, visit func()) error {
	r, err := k.iters[name].Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return readRecords(r, record, visit)
}

// bytesOf returns the memory of a record.
func bytesOf[T abi.FDHolder | abi.Holder](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// readSize is the number of bytes to read at a time. The kernel's own buffer has 8
// pages, and the kernel makes a record once more if the last read had no room for it:
// readSize is less than the buffer so that there is always room (kernel/bpf/bpf_iter.c
// bpf_seq_read).
const readSize = 16 << 10

// readRecords reads records of the size of record until the end, copies each into record
// and then calls visit. EAGAIN is not an error: the kernel returns it after a million
// objects that no record was written about.
func readRecords(r io.Reader, record []byte, visit func()) error {
	buf := make([]byte, readSize)
	have := 0
	for {
		n, err := r.Read(buf[have:])
		have += max(n, 0)
		used := 0
		for len(record) > 0 && have-used >= len(record) {
			used += copy(record, buf[used:have])
			visit()
		}
		have = copy(buf, buf[used:have])
		switch {
		case errors.Is(err, io.EOF):
			if have > 0 {
				return fmt.Errorf("iterator ended in the middle of a record: %w", io.ErrUnexpectedEOF)
			}
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		}
	}
}
