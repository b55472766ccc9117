// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is a struct seccomp_data.
type call struct {
	number    uintptr
	arch      uint32
	arguments [6]uint64
}

// verdict runs a filter in the virtual machine of package bpf, which reads big-endian
// numbers: the call is written so that each half of it reads as the kernel has it.
func verdict(t *testing.T, program []bpf.Instruction, c call) uint32 {
	t.Helper()
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(c.number))
	data = binary.BigEndian.AppendUint32(data, c.arch)
	data = append(data, make([]byte, 8)...) // the instruction pointer
	for _, a := range c.arguments {
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func TestFilter(t *testing.T) {
	const (
		allowed = uint32(unix.SECCOMP_RET_ALLOW)
		eperm   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		enosys  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		high    = uint64(1) << 32 // a bit that the kernel ignores in an argument of 32 bits
	)
	agent := Agent().Syscalls
	top := Terminal(Agent()).Syscalls
	self := uint64(os.Getpid())
	for _, tt := range []struct {
		name    string
		allowed []Syscall
		call    call
		want    uint32
	}{
		{"a call of the list", agent, call{number: unix.SYS_FUTEX}, allowed},
		{"the last call of the list", agent, call{number: agent[len(agent)-1].Number}, allowed},
		{"a call that is not in the list", agent, call{number: unix.SYS_SETNS}, eperm},
		{"a call of another architecture", agent, call{number: unix.SYS_FUTEX, arch: unix.AUDIT_ARCH_I386}, eperm},
		{"a call that nobody knows yet", agent, call{number: lastKnown + 1}, enosys},
		{"a call of x32", agent, call{number: 0x40000000 + unix.SYS_READ}, enosys},
		{"bpf reads a map", agent, call{number: unix.SYS_BPF, arguments: [6]uint64{unix.BPF_MAP_LOOKUP_ELEM}}, allowed},
		{"bpf with more bits than an int has", agent, call{number: unix.SYS_BPF, arguments: [6]uint64{high | unix.BPF_MAP_LOOKUP_ELEM}}, allowed},
		{"bpf loads a program", agent, call{number: unix.SYS_BPF, arguments: [6]uint64{unix.BPF_PROG_LOAD}}, eperm},
		{"a file to read", agent, call{number: unix.SYS_OPENAT, arguments: [6]uint64{2: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_PATH}}, allowed},
		{"a file to write", agent, call{number: unix.SYS_OPENAT, arguments: [6]uint64{2: unix.O_WRONLY}}, eperm},
		{"a file to read and write", agent, call{number: unix.SYS_OPENAT, arguments: [6]uint64{2: unix.O_RDWR}}, eperm},
		{"a file to make", agent, call{number: unix.SYS_OPENAT, arguments: [6]uint64{2: unix.O_CREAT}}, eperm},
		{"a thread", agent, call{number: unix.SYS_CLONE, arguments: [6]uint64{unix.CLONE_VM | unix.CLONE_THREAD}}, allowed},
		{"a process", agent, call{number: unix.SYS_CLONE, arguments: [6]uint64{uint64(unix.SIGCHLD)}}, eperm},
		{"a thread by clone3", agent, call{number: unix.SYS_CLONE3}, enosys},
		{"a thread in a namespace of its own", agent, call{number: unix.SYS_CLONE, arguments: [6]uint64{unix.CLONE_THREAD | unix.CLONE_NEWUSER}}, eperm},
		{"memory", agent, call{number: unix.SYS_MMAP, arguments: [6]uint64{2: unix.PROT_READ | unix.PROT_WRITE}}, allowed},
		{"memory to execute", agent, call{number: unix.SYS_MMAP, arguments: [6]uint64{2: unix.PROT_READ | unix.PROT_EXEC}}, eperm},
		{"a signal to itself", agent, call{number: unix.SYS_TGKILL, arguments: [6]uint64{self, 1}}, allowed},
		{"a signal to another", agent, call{number: unix.SYS_TGKILL, arguments: [6]uint64{1, 1}}, eperm},
		{"its limit", agent, call{number: unix.SYS_PRLIMIT64, arguments: [6]uint64{0, unix.RLIMIT_NOFILE, 0, 1}}, allowed},
		{"another limit", agent, call{number: unix.SYS_PRLIMIT64, arguments: [6]uint64{0, unix.RLIMIT_NOFILE, high}}, eperm},
		{"the limit of another", agent, call{number: unix.SYS_PRLIMIT64, arguments: [6]uint64{1, unix.RLIMIT_NOFILE}}, eperm},
		{"the agent sets a terminal", agent, call{number: unix.SYS_IOCTL, arguments: [6]uint64{1: unix.TCSETS}}, eperm},
		{"top sets a terminal", top, call{number: unix.SYS_IOCTL, arguments: [6]uint64{1: unix.TCSETS}}, allowed},
		{"top asks for the size of a terminal", top, call{number: unix.SYS_IOCTL, arguments: [6]uint64{1: unix.TIOCGWINSZ}}, allowed},
		{"top types into a terminal", top, call{number: unix.SYS_IOCTL, arguments: [6]uint64{1: unix.TIOCSTI}}, eperm},
		{"top stops its process group", top, call{number: unix.SYS_KILL, arguments: [6]uint64{0, uint64(unix.SIGTSTP)}}, allowed},
		{"top ends another process", top, call{number: unix.SYS_KILL, arguments: [6]uint64{1, uint64(unix.SIGKILL)}}, eperm},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.call.arch == 0 {
				tt.call.arch = auditArch
			}
			if got := verdict(t, program(tt.allowed), tt.call); got != tt.want {
				t.Errorf("%#x, expected %#x", got, tt.want)
			}
		})
	}
}
