// SPDX-License-Identifier: Apache-2.0

package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// archSyscalls are the system calls of agentSyscalls that only this architecture has.
var archSyscalls = []Syscall{{Number: unix.SYS_FSTATAT}}
