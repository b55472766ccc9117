// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A socket has no cookie until somebody asks for it. Since 5.12 a tracing program
// can; before, two others have to: a program of cgroups, at the beginning of each
// connection, and sock_diag, for those that are older.

// CookiesErr is why a connection that begins while we observe is without a cookie
// until a census, so that what it asks before is not seen; nil if it is not.
func (k *Kernel) CookiesErr() error { return k.cookiesErr }

// giveCookies gives every TCP socket a cookie that connects, or is made by a
// listener, until it is closed.
func giveCookies() (link.Link, error) {
	const initial = 0xeffffffb // PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/cgroup", &ns); err == nil && ns.Ino != initial {
		return nil, errors.New("in a cgroup namespace of our own there is no root of all cgroups: use the host's")
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.FnGetSocketCookie.Call(),
			asm.Mov.Imm(asm.R0, 1), // nothing else is to change
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer program.Close()
	// A mount that nobody else sees: the hierarchy need not be mounted.
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open cgroup2: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("open cgroup2: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup2: %w", err)
	}
	defer unix.Close(root)
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: fmt.Sprintf("/proc/self/fd/%d", root), Attach: ebpf.AttachCGroupSockOps, Program: program,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to the root cgroup: %w", err)
	}
	return l, nil
}

// diagCookies gives every TCP socket of the calling thread's network namespace a
// cookie that has none: sock_diag gives one to each socket that it shows.
func diagCookies() error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(diagRequest(family))
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func([]byte) bool { return true })
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}

// diagRequest is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h): all TCP
// sockets of a family.
type diagRequest byte

func (diagRequest) Len() int { return 56 }

func (family diagRequest) Serialize() []byte {
	b := make([]byte, 56)
	b[0], b[1] = byte(family), unix.IPPROTO_TCP
	b[4], b[5] = 0xff, 0xff // every state
	b[6], b[7] = 0xff, 0xff
	return b
}
