// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Agent returns the policy of an agent, or of top and trace, that has loaded and attached
// its programs. It may read files beneath /proc and beneath the other directories.
func Agent(others ...string) *Policy {
	p := &Policy{Files: append([]string{"/proc"}, others...), Syscalls: agentSyscalls()}
	switch {
	case !bpfNeedsCapability():
	case permitted(cap.BPF):
		p.Capabilities = []int{unix.CAP_BPF}
	default: // which includes it
		p.Capabilities = []int{unix.CAP_SYS_ADMIN}
	}
	return p
}

// Helper returns the policy of the helper process. It stays root: the files of network
// namespaces, the state of containers and the socket are root's. It reads whatever leads to
// a namespace, so its files are not restricted.
func Helper() *Policy {
	return &Policy{
		Capabilities: []int{unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_NET_ADMIN},
		KeepUser:     true,
		Syscalls:     helperSyscalls(),
	}
}

// bpfNeedsCapability reports whether bpf(2) may need CAP_BPF for every command, also for
// those on descriptors that the process has: before Linux 5.19, where
// kernel.unprivileged_bpf_disabled is set (kernel/bpf/syscall.c, __sys_bpf). Root can set
// it at any time. It returns true if the kernel's version is unknown.
func bpfNeedsCapability() bool {
	code, err := features.LinuxVersionCode()
	return err != nil || code < 5<<16|19<<8
}

// Terminal returns the policy p for a process that also draws on its terminal. The process
// keeps its user, for three reasons: job control and the parent, which restores the
// terminal, send it signals; it sends SIGTSTP to its process group; and a change of user
// would make the kernel forget PR_SET_PDEATHSIG.
func Terminal(p *Policy) *Policy {
	return &Policy{
		Capabilities: p.Capabilities,
		Files:        append(p.Files, "/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo"),
		KeepUser:     true,
		Syscalls: append(p.Syscalls,
			Syscall{Number: unix.SYS_IOCTL, Only: oneOf(1, unix.TCSETS, unix.TCSETSW, unix.TCSETSF)},
			Syscall{Number: unix.SYS_KILL, Only: oneOf(0, 0)}, // only its process group
		),
	}
}
