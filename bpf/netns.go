// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// netnsRef is a way to open a network namespace: by the path of its file or, if path is
// "", by the process or descriptor that holds it.
type netnsRef struct {
	path   string
	holder abi.Holder
}

// The descriptors of all processes are searched for namespaces not more often than
// every fdOnlyInterval, and less often if a search takes more than fdOnlyShare of that
// time.
const (
	fdOnlyInterval = 30 * time.Second
	fdOnlyShare    = 0.005
)

// namespaces returns references to network namespaces by inode number: to those that a
// thread is in, that are bind-mounted (ip netns, container runtimes), or that only a
// descriptor of the namespace or of a socket in it keeps open (fdOnly). A reference may
// be outdated, since processes come and go meanwhile. It is safe for concurrent use.
func (k *Kernel) namespaces() (map[uint64]netnsRef, error) {
	k.netns.Lock()
	defer k.netns.Unlock()
	refs := make(map[uint64]netnsRef)
	var h abi.Holder
	if err := k.searchNetns("netns_task", &h, func() { refs[uint64(h.Netns)] = netnsRef{holder: h} }); err != nil {
		return nil, err
	}
	mounted, err := mountedNamespaces()
	if err != nil {
		return nil, err
	}
	for ino, path := range mounted {
		if _, ok := refs[ino]; !ok { // better a thread: the path may be on a file system that hangs
			refs[ino] = netnsRef{path: path}
		}
	}
	if began := time.Now(); !began.Before(k.fdOnlyDue) {
		var fdOnly []abi.Holder
		if err := k.searchNetns("netns_file", &h, func() { fdOnly = append(fdOnly, h) }); err != nil {
			return nil, err
		}
		k.fdOnly = fdOnly
		k.fdOnlyDue = began.Add(max(fdOnlyInterval, time.Duration(float64(time.Since(began))/fdOnlyShare)))
	}
	for _, h := range k.fdOnly {
		if _, ok := refs[uint64(h.Netns)]; !ok {
			refs[uint64(h.Netns)] = netnsRef{holder: h}
		}
	}
	return refs, nil
}

// searchNetns runs an iterator that reports each network namespace once. It stores each
// in h and then calls visit.
func (k *Kernel) searchNetns(pass string, h *abi.Holder, visit func()) error {
	k.search++
	if err := k.objs.Search.Set(k.search); err != nil {
		return err
	}
	return k.pass(pass, bytesOf(h), visit)
}

// initPidns is the inode number of the machine's own pid namespace
// (include/linux/proc_ns.h, PROC_PID_INIT_INO, since 3.8).
const initPidns = 0xEFFFFFFC

// NetnsRef is a way into the network namespace of that inode number. Without a path and a
// holder none is known, but a thread that is in the namespace needs none.
type NetnsRef struct {
	Inode  uint32
	Path   string     // of a file of the namespace, or "": see Holder
	Holder abi.Holder // a process in it, or with a descriptor of it or of a socket in it
}

// FindNetns returns a way into a network namespace. host reports whether it is the
// machine's own, into which a shell needs no way. In a pid namespace of its own a process
// does not know that.
func (k *Kernel) FindNetns(inode uint32) (ref NetnsRef, host bool) {
	ref.Inode = inode
	var own, first unix.Stat_t
	if machinePIDs() && unix.Stat("/proc/thread-self/ns/net", &own) == nil && own.Ino == uint64(inode) {
		// Some sandboxes do not let us see the namespace of process 1.
		if unix.Stat("/proc/1/ns/net", &first) != nil || first.Ino == own.Ino {
			return ref, true
		}
	}
	if refs, err := k.namespaces(); err == nil {
		found := refs[uint64(inode)]
		ref.Path, ref.Holder = found.path, found.holder
	}
	return ref, false
}

// ShellPath returns the path of a file by which nsenter(1) can enter the namespace, "" if
// none is known. In a pid namespace of its own a process knows none: its /proc is not the
// one that a shell of the machine has.
func (r *NetnsRef) ShellPath() string {
	if !machinePIDs() {
		return ""
	}
	ref := netnsRef{path: r.Path, holder: r.Holder}
	return ref.file()
}

// machinePIDs reports whether this process is in the machine's own pid namespace.
func machinePIDs() bool {
	var pidns unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &pidns) == nil && pidns.Ino == initPidns
}

// Do runs f in the namespace, on a thread of its own that ends with f, and waits for it. It
// returns the error of f, or why the thread could not enter the namespace. It may hang,
// since it opens a file that a user may have chosen. It needs the privileges that
// [GiveCookies] needs, and none for the namespace of this process.
func (r *NetnsRef) Do(f func() error) (err error) {
	onSpareThread(func() {
		var own uint32
		if own, err = ownNetns(); err == nil && own != r.Inode {
			err = r.enter()
		}
		if err == nil {
			err = f()
		}
	})
	return err
}

// enter moves the calling thread into the namespace.
func (r *NetnsRef) enter() error {
	if r.Path == "" && r.Holder.PID == 0 {
		return errHidden
	}
	ref := netnsRef{path: r.Path, holder: r.Holder}
	return ref.enter(uint64(r.Inode))
}

// ownNetns returns the inode number of the calling thread's network namespace.
func ownNetns() (uint32, error) {
	var own unix.Stat_t
	err := unix.Stat("/proc/thread-self/ns/net", &own)
	return uint32(own.Ino), err
}

// file returns the path of a file of the namespace, "" if there is none.
func (r *netnsRef) file() string {
	switch h := r.holder; {
	case r.path != "":
		return r.path
	case h.PID == 0 || h.Kind == abi.HolderSocket:
		return ""
	case h.Kind == abi.HolderFile:
		return fmt.Sprintf("/proc/%d/fd/%d", h.PID, h.FD)
	default:
		return fmt.Sprintf("/proc/%d/ns/net", h.PID)
	}
}

// open returns a descriptor of the namespace, if the reference is still valid. A process
// may have chosen the path and put any file there. So open checks that it is the file of
// a namespace before opening it, since opening a file can have side effects.
func (r *netnsRef) open() (int, error) {
	path := r.file()
	if path == "" {
		return netnsOfSocket(int(r.holder.PID), int(r.holder.FD))
	}
	file, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) // opens nothing
	if err != nil {
		return -1, err
	}
	defer unix.Close(file)
	var fs unix.Statfs_t
	switch err := unix.Fstatfs(file, &fs); {
	case err != nil:
		return -1, err
	case fs.Type != unix.NSFS_MAGIC:
		return -1, errNotSame
	}
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", file), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
}

var errNotSame = fmt.Errorf("another namespace by now (%w)", unix.ESRCH)

// gone reports whether an error says that a reference is no longer valid.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) ||
		errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTTY)
}

// enter moves the calling thread into a network namespace. It returns errNotSame if the
// inode number of the namespace is no longer ino.
func (r *netnsRef) enter(ino uint64) error {
	fd, err := r.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return err
	case st.Ino != ino:
		return errNotSame
	}
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// netnsOfSocket opens the namespace of a socket that another process holds.
func netnsOfSocket(pid, fd int) (int, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	socket, err := unix.PidfdGetfd(process, fd, 0) // 5.6
	if err != nil {
		return -1, err
	}
	defer unix.Close(socket)
	return unix.IoctlRetInt(socket, unix.SIOCGSKNS)
}

// mountedNamespaces returns where network namespaces are bind-mounted, by inode number.
func mountedNamespaces() (map[uint64]string, error) {
	mounts, err := Mounts("nsfs")
	if err != nil {
		return nil, err
	}
	found := make(map[uint64]string)
	for _, m := range mounts {
		var ino uint64
		if _, err := fmt.Sscanf(m.Root, "net:[%d]", &ino); err == nil {
			found[ino] = m.Point
		}
	}
	return found, nil
}
