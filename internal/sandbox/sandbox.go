// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// User is the id of the user, and of the group, that a process of root changes to. No
// account has this id: systemd's list of ids leaves 60706 to 61183 unused. So no process
// of another program may send signals to ours. As user nobody, another process could.
const User = 61044

// Policy lists the rights that a process keeps.
type Policy struct {
	// Capabilities are the capabilities to keep (unix.CAP_...), as far as the process
	// has them.
	Capabilities []int
	// Files are the directories beneath which the process may still open files, to read
	// them. A directory that does not exist is left out. nil: all files, and all that the
	// process may read of other processes. The kernel enforces this if it has Landlock
	// (5.13).
	Files []string
	// KeepUser keeps the user even if it is root. Otherwise root becomes [User].
	KeepUser bool
	// Syscalls are the system calls that the process may still make; nil: all.
	Syscalls []Syscall
}

// Enter restricts all threads of the process to the policy. It takes every step that the
// kernel and the privileges of the process permit; the error has a line for each other
// step. It returns after all threads have answered, so no thread may be in a system call
// that no signal can interrupt.
func Enter(p *Policy) error {
	var errs []error
	failed := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	_, _ = time.Now().Zone() // reads /etc/localtime, unless it has been read already
	failed("set no_new_privs", noNewPrivs())
	if p.Files != nil {
		failed(restrictsFiles, restrictFiles(p.Files))
	}
	failed("drop the bounding set", dropBounding())
	if !p.KeepUser && os.Geteuid() == 0 {
		failed(changesUser, changeUser())
	}
	failed("drop capabilities", keepCapabilities(p.Capabilities))
	if p.Syscalls != nil {
		failed(filtersSyscalls, filterSyscalls(p.Syscalls))
	}
	return errors.Join(errs...)
}

// Missing returns the error of the steps that [Enter] could not take here, nil if it could
// take all. It changes nothing.
func Missing() error {
	var errs []error
	if !hasLandlock() {
		errs = append(errs, fmt.Errorf("%s: %w", restrictsFiles, errors.ErrUnsupported))
	}
	if os.Geteuid() == 0 {
		if err := mayChangeUser(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", changesUser, err))
		}
	}
	if !hasFilter() {
		errs = append(errs, fmt.Errorf("%s: %w", filtersSyscalls, errors.ErrUnsupported))
	}
	return errors.Join(errs...)
}

// Steps of Enter that may not be possible.
const (
	restrictsFiles  = "restrict files (Landlock)"
	changesUser     = "change the user"
	filtersSyscalls = "filter system calls (seccomp)"
)

func noNewPrivs() error {
	_, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	return err
}

// hasLandlock reports whether the kernel can restrict which files a process opens.
func hasLandlock() bool {
	abi, err := llsys.LandlockGetABIVersion()
	return err == nil && abi > 0
}

// restrictFiles lets the process open only files beneath these directories, and only to
// read them. It leaves out what the ABI can do from version 6 on: before a fix of 6.15 the
// threads of a process could then send each other no signals (hook_task_kill), which Go
// needs.
func restrictFiles(directories []string) error {
	if !hasLandlock() {
		return errors.ErrUnsupported
	}
	const read = llsys.AccessFSReadFile | llsys.AccessFSReadDir
	paths := landlock.PathAccess(read, directories...).IgnoreIfMissing()
	return landlock.V5.BestEffort().Restrict(paths)
}

// dropBounding empties the bounding set, if the process may: no program that it could run
// would get a capability from its file. With no_new_privs none would anyway.
func dropBounding() error {
	if !permitted(cap.SETPCAP) {
		return nil
	}
	var drop []cap.Value
	for v := range cap.MaxBits() {
		if has, err := cap.GetBound(v); err == nil && has {
			drop = append(drop, v)
		}
	}
	set := cap.GetProc()
	return errors.Join(set.SetFlag(cap.Effective, true, cap.SETPCAP), set.SetProc(), cap.DropBound(drop...))
}

// changeUser changes the user from root to [User], without other groups.
func changeUser() error {
	if err := mayChangeUser(); err != nil {
		return err
	}
	if err := cap.SetGroups(User); err != nil {
		return err
	}
	return cap.SetUID(User)
}

func mayChangeUser() error {
	for _, v := range []cap.Value{cap.SETGID, cap.SETUID} {
		if !permitted(v) {
			return fmt.Errorf("without %s: %w", strings.ToUpper(v.String()), unix.EPERM)
		}
	}
	return nil
}

// permitted reports whether the process may use a capability.
func permitted(v cap.Value) bool {
	has, err := cap.GetProc().GetFlag(cap.Permitted, v)
	return err == nil && has
}

// keepCapabilities drops all capabilities except these from all sets.
func keepCapabilities(bits []int) error {
	kept := cap.NewSet()
	for _, bit := range bits {
		v := cap.Value(bit)
		if !permitted(v) {
			continue
		}
		if err := errors.Join(kept.SetFlag(cap.Permitted, true, v), kept.SetFlag(cap.Effective, true, v)); err != nil {
			return err
		}
	}
	return errors.Join(cap.ResetAmbient(), kept.SetProc())
}

// Readable reports whether [User] can read a file, judged by its mode and the modes of the
// directories above it.
func Readable(path string) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	const read, pass fs.FileMode = 0o004, 0o001
	for need := read; ; need = pass {
		info, err := os.Stat(path)
		if err != nil || info.Mode()&need == 0 {
			return false
		}
		dir := filepath.Dir(path)
		if dir == path {
			return true
		}
		path = dir
	}
}
