// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Commands of bpf(2) that an agent uses after loading: it reads and writes its maps, runs
// its programs, and attaches each to its own hook. It cannot load other programs.
var bpfCommands = []uint64{
	unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_GET_NEXT_KEY,
	unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_PROG_TEST_RUN, unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_ITER_CREATE,
	unix.BPF_RAW_TRACEPOINT_OPEN, unix.BPF_LINK_CREATE,
}

// newNamespaces are the flags of clone that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// agentSyscalls returns the system calls of the agent after its programs are loaded.
func agentSyscalls() []Syscall {
	return append([]Syscall{{Number: unix.SYS_BPF, Only: oneOf(0, bpfCommands...)}}, commonSyscalls()...)
}

// helperSyscalls returns the system calls of the helper.
func helperSyscalls() []Syscall {
	return append([]Syscall{
		{Number: unix.SYS_SETNS, Only: oneOf(1, unix.CLONE_NEWNET)},
		{Number: unix.SYS_SOCKET, Only: oneOf(0, unix.AF_NETLINK)},
		{Number: unix.SYS_BIND},
		{Number: unix.SYS_PIDFD_OPEN},
		{Number: unix.SYS_PIDFD_GETFD},
		{Number: unix.SYS_IOCTL, Only: oneOf(1, unix.SIOCGSKNS)},
		{Number: unix.SYS_NAME_TO_HANDLE_AT},
		{Number: unix.SYS_OPEN_BY_HANDLE_AT},
		{Number: unix.SYS_UNLINKAT},
		{Number: unix.SYS_CAPSET}, // a thread drops all; with no_new_privs none gets more
	}, commonSyscalls()...)
}

// commonSyscalls returns the system calls of both processes and of the Go runtime, as strace
// showed them during the end-to-end tests. It restricts arguments that can be dangerous.
func commonSyscalls() []Syscall {
	calls := slices.Concat(archSyscalls, []Syscall{
		// Only threads.
		{Number: unix.SYS_CLONE, Only: [][]Condition{{{0, unix.CLONE_THREAD | newNamespaces, unix.CLONE_THREAD}}}},
		// Only to read.
		{Number: unix.SYS_OPENAT, Only: without(2, unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC)},
		// No memory that can be executed.
		{Number: unix.SYS_MMAP, Only: without(2, unix.PROT_EXEC)},
		{Number: unix.SYS_MPROTECT, Only: without(2, unix.PROT_EXEC)},
		// Only its own threads.
		{Number: unix.SYS_TGKILL, Only: oneOf(0, uint64(os.Getpid()))},
		// The names of its memory.
		{Number: unix.SYS_PRCTL, Only: oneOf(0, unix.PR_SET_VMA)},
		// Only to read a limit of its own.
		{Number: unix.SYS_PRLIMIT64, Only: [][]Condition{{equal(0, 0), {2, 1<<64 - 1, 0}}}},
		// Is it a terminal, and how large is it?
		{Number: unix.SYS_IOCTL, Only: oneOf(1, unix.TCGETS, unix.TIOCGWINSZ)},
	})
	for _, number := range []uintptr{
		// threads, time and memory
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRUSAGE,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
		unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SET_TID_ADDRESS, unix.SYS_MEMBARRIER,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_BRK, unix.SYS_GETRANDOM,
		// files and descriptors
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64,
		unix.SYS_LSEEK, unix.SYS_CLOSE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_FCNTL, unix.SYS_FSTAT, unix.SYS_STATX,
		unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_GETDENTS64, unix.SYS_READLINKAT, unix.SYS_FSYNC, unix.SYS_FTRUNCATE, unix.SYS_PIPE2,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PPOLL,
		// sockets that it has or accepts
		unix.SYS_ACCEPT4, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDFILE, unix.SYS_SHUTDOWN,
		unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
		// itself
		unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETPPID, unix.SYS_UNAME,
		// its helper, when it ends
		unix.SYS_WAIT4, unix.SYS_WAITID,
	} {
		calls = append(calls, Syscall{Number: number})
	}
	return calls
}
