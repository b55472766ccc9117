// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// A way leads to a network namespace: the path of a file that is one, or whoever
// holds it.
type way struct {
	path   string
	holder Holder
}

// The files of all processes are searched for namespaces this often at most, and
// within this share of a core.
const (
	hiddenInterval = 30 * time.Second
	hiddenShare    = 0.005
)

// namespaces finds ways into network namespaces, by inode number: into those that a
// thread is in, those that are bind-mounted somewhere (ip netns, container runtimes),
// and those that nothing but a file descriptor holds, of the namespace or of a socket
// in it. Processes come and go while it looks. It is safe for concurrent use.
func (k *Kernel) namespaces() (map[uint64]way, error) {
	k.netns.Lock()
	defer k.netns.Unlock()
	ways := make(map[uint64]way)
	var h Holder
	if err := k.searchNetns("netns_task", &h, func() { ways[uint64(h.Netns)] = way{holder: h} }); err != nil {
		return nil, err
	}
	mounted, err := mountedNamespaces()
	if err != nil {
		return nil, err
	}
	for ino, path := range mounted {
		if _, ok := ways[ino]; !ok { // a path may be on a file system that does not answer
			ways[ino] = way{path: path}
		}
	}
	if began := time.Now(); !began.Before(k.hiddenDue) {
		var hidden []Holder
		if err := k.searchNetns("netns_file", &h, func() { hidden = append(hidden, h) }); err != nil {
			return nil, err
		}
		k.hidden = hidden
		k.hiddenDue = began.Add(max(hiddenInterval, time.Duration(float64(time.Since(began))/hiddenShare)))
	}
	for _, h := range k.hidden {
		if _, ok := ways[uint64(h.Netns)]; !ok {
			ways[uint64(h.Netns)] = way{holder: h}
		}
	}
	return ways, nil
}

// searchNetns is one pass that tells of each network namespace once.
func (k *Kernel) searchNetns(pass string, h *Holder, visit func()) error {
	k.search++
	if err := k.objs.Search.Set(k.search); err != nil {
		return err
	}
	return k.pass(pass, bytesOf(h), visit)
}

// NetnsPath is the path of a file that leads into the network namespace of that inode
// number, for nsenter(1); "" if it is our own, or no file does.
func (k *Kernel) NetnsPath(netns uint32) string {
	var own unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil || own.Ino == uint64(netns) {
		return ""
	}
	ways, err := k.namespaces()
	if err != nil {
		return ""
	}
	w := ways[uint64(netns)]
	return w.file()
}

// file is a path that leads to the namespace, "" where there is none.
func (w *way) file() string {
	switch h := w.holder; {
	case w.path != "":
		return w.path
	case h.Pid == 0 || h.Kind == abi.HolderSocket:
		return ""
	case h.Kind == abi.HolderFile:
		return fmt.Sprintf("/proc/%d/fd/%d", h.Pid, h.Fd)
	default:
		return fmt.Sprintf("/proc/%d/ns/net", h.Pid)
	}
}

// open returns a descriptor of the namespace, if it is still there. The path may be
// one that a process chose, and what is there by now anything: it is looked at before
// it is opened, since opening alone can do something.
func (w *way) open() (int, error) {
	path := w.file()
	if path == "" {
		return netnsOfSocket(int(w.holder.Pid), int(w.holder.Fd))
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

var errNotSame = errors.New("another namespace by now")

// gone tells whether whatever led to a namespace is there no more.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) ||
		errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTTY) || errors.Is(err, errNotSame)
}

// enter moves the calling thread into a network namespace, which must still be the
// one of that inode.
func enter(w *way, ino uint64) error {
	fd, err := w.open()
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

// mountedNamespaces are the network namespaces that are bind-mounted, by inode
// number.
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
