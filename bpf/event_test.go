// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/halfopen/halfopen/bpf/abi"
)

// BenchmarkReadEvent reads events that another program has written, a full ring buffer at
// a time. It does not measure the writing.
func BenchmarkReadEvent(b *testing.B) {
	const size = int(unsafe.Sizeof(abi.Event{}))
	spec, err := loadHalfopen()
	if err != nil {
		b.Fatal(err)
	}
	events, err := ebpf.NewMap(spec.Maps["events"])
	if err != nil {
		b.Skip("needs root: ", err)
	}
	defer events.Close()
	write := asm.Instructions{asm.Mov.Imm(asm.R0, 0)}
	for at := size; at > 0; at -= 8 {
		write = append(write, asm.StoreMem(asm.RFP, -int16(at), asm.R0, asm.DWord))
	}
	write = append(write,
		asm.LoadMapPtr(asm.R1, events.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -int32(size)),
		asm.Mov.Imm(asm.R3, int32(size)),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(), // 0, which the test takes for a packet that is dropped
		asm.Return())
	writer, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: write})
	if err != nil {
		b.Fatal(err)
	}
	defer writer.Close()
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		b.Fatal(err)
	}
	defer reader.Close()

	k := &Kernel{events: reader}
	full := int(events.MaxEntries()) / (size + 16)
	var e abi.Event
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; {
		n := min(left, full)
		left -= n
		b.StopTimer()
		if _, err := writer.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: uint32(n)}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for range n {
			if err := k.ReadEvent(&e); err != nil {
				b.Fatal(err)
			}
		}
	}
}
