// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Syscall is a system call that a process may make. Several entries of one number add up.
type Syscall struct {
	Number uintptr // unix.SYS_...
	// Only allows a call if its arguments satisfy all conditions of at least one list. If
	// there is no list, all calls are allowed.
	Only [][]Condition
}

// Condition holds if the argument with that index, masked with Mask, equals Value.
type Condition struct {
	Argument    int
	Mask, Value uint64
}

// equal returns the condition that a 32-bit argument has that value. The kernel ignores
// the upper half of such an argument.
func equal(argument int, value uint64) Condition {
	return Condition{argument, 1<<32 - 1, value}
}

// oneOf returns lists of conditions that hold if the argument has one of the values.
func oneOf(argument int, values ...uint64) (only [][]Condition) {
	for _, v := range values {
		only = append(only, []Condition{equal(argument, v)})
	}
	return only
}

// without returns a list with the condition that the argument has none of the bits.
func without(argument int, bits uint64) [][]Condition {
	return [][]Condition{{{argument, bits, 0}}}
}

// hasFilter reports whether the kernel can filter system calls for a process.
func hasFilter() bool {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0
}

// filterSyscalls lets all threads make only these system calls. The process has
// no_new_privs.
func filterSyscalls(allowed []Syscall) error {
	raw, err := bpf.Assemble(program(allowed))
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno != 0:
		return errno
	case thread != 0:
		return fmt.Errorf("thread %d has another filter", thread)
	}
	return nil
}

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h). All our architectures
// are little-endian: the lower half of an argument comes first.
const (
	dataNumber    = 0
	dataArch      = 4
	dataArguments = 16
)

// lastKnown is the highest system call number that package unix knows. A newer call fails
// with ENOSYS, as on a kernel without it, so its caller can fall back. The numbers of the
// x32 interface are higher, too.
const lastKnown = unix.SYS_RSEQ_SLICE_YIELD

// program returns the filter. A call that is not allowed fails with EPERM. The filter does
// not kill the process, because then a new version of a library could end the agent.
func program(allowed []Syscall) []bpf.Instruction {
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	refuse := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	unknown := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		refuse, // of the 32-bit interface, for example, whose numbers mean other calls
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: lastKnown, SkipTrue: 1},
		unknown,
		// Its flags are in memory, where a filter cannot read them. The C library then
		// uses clone.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		unknown,
	}
	for _, call := range allowed {
		var body []bpf.Instruction
		for _, conditions := range call.Only {
			body = append(body, list(conditions)...)
		}
		if len(call.Only) == 0 {
			body = append(body, allow)
		} else { // go on to the other rules: one of them may have the same number
			body = append(body, bpf.LoadAbsolute{Off: dataNumber, Size: 4})
		}
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(call.Number), SkipTrue: uint8(len(body))})
		p = append(p, body...)
	}
	return append(p, refuse)
}

// list returns instructions that allow the call if all conditions hold, and otherwise
// continue after the last of them.
func list(conditions []Condition) []bpf.Instruction {
	body := []bpf.Instruction{bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}}
	for _, c := range conditions {
		for half := range 2 {
			mask, value := uint32(c.Mask>>(32*half)), uint32(c.Value>>(32*half))
			if mask == 0 {
				continue
			}
			body = append([]bpf.Instruction{
				bpf.LoadAbsolute{Off: uint32(dataArguments + 8*c.Argument + 4*half), Size: 4},
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: uint8(len(body))},
			}, body...)
		}
	}
	return body
}
