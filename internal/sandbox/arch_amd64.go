// SPDX-License-Identifier: Apache-2.0

package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// archSyscalls are the system calls of agentSyscalls that only this architecture has.
var archSyscalls = []Syscall{
	{Number: unix.SYS_NEWFSTATAT},
	{Number: unix.SYS_EPOLL_WAIT},
	{Number: unix.SYS_POLL},
	{Number: unix.SYS_READLINK},
	{Number: unix.SYS_ARCH_PRCTL}, // a new thread of C
}
