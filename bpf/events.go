// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"os"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Errors of [Kernel.ReadEvent].
var (
	// ErrFlushed says that every event from before the call of [Kernel.Flush] has
	// been read. It comes once for one or several calls.
	ErrFlushed     = ringbuf.ErrFlushed
	ErrUndecodable = errors.New("event of an unexpected size")
)

// ReadEvent waits for the next event and stores it in e. After [Kernel.Close] it returns
// os.ErrClosed. Only one goroutine may call it.
func (k *Kernel) ReadEvent(e *abi.Event) error {
	if k.events == nil {
		return os.ErrClosed
	}
	if err := k.events.ReadInto(&k.record); err != nil {
		return err
	}
	if len(k.record.RawSample) < int(unsafe.Sizeof(*e)) {
		return ErrUndecodable
	}
	*e = *(*abi.Event)(unsafe.Pointer(unsafe.SliceData(k.record.RawSample)))
	return nil
}

// Flush makes [Kernel.ReadEvent] return the events that are there now, and then
// [ErrFlushed].
func (k *Kernel) Flush() error {
	if k.events == nil {
		return nil
	}
	return k.events.Flush()
}
