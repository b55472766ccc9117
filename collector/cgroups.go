// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector/conn"
)

// cgroups finds control groups. It is safe for concurrent use.
type cgroups struct {
	mu    sync.Mutex
	mount *os.File               // the root of the cgroup v2 hierarchy, always open; nil: not mounted here
	known map[uint64]conn.Cgroup // by id; the kernel never uses an id again

	descriptors descriptorCheck
}

// maxCgroups is the most control groups that are remembered. A node has some thousands at
// most.
const maxCgroups = 16384

func newCgroups() *cgroups {
	g := &cgroups{known: make(map[uint64]conn.Cgroup)}
	mounts, err := bpf.Mounts("cgroup2")
	if err != nil {
		return g // treated as not mounted
	}
	for _, m := range mounts {
		if g.mount, err = openHierarchy(m.Point); err == nil {
			break
		}
	}
	return g
}

// openHierarchy opens the root of a mounted cgroup v2 hierarchy. Something else may have
// been mounted there since, so it checks the file system before it opens it.
func openHierarchy(point string) (*os.File, error) {
	there, err := unix.Open(point, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: point, Err: err}
	}
	defer unix.Close(there)
	var system unix.Statfs_t
	if err := unix.Fstatfs(there, &system); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: point, Err: err}
	}
	if system.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not a cgroup v2 hierarchy", point)
	}
	fd, err := unix.Openat(there, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: point, Err: err}
	}
	return os.NewFile(uintptr(fd), point), nil
}

// byID returns the group with that id in the cgroup v2 hierarchy; the zero Cgroup if it
// does not exist any more, or is not visible from here.
func (g *cgroups) byID(id uint64) conn.Cgroup {
	if id == 0 || g.mount == nil {
		return conn.Cgroup{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if known, ok := g.known[id]; ok {
		return known
	}
	path, err := g.path(id)
	if err != nil {
		return conn.Cgroup{} // not remembered: it may become visible
	}
	if len(g.known) >= maxCgroups {
		clear(g.known)
	}
	found := conn.ParseCgroup(path)
	g.known[id] = found
	return found
}

// fileIDKernfs is FILEID_KERNFS (fs/kernfs/mount.c, since 5.5): the type of a file handle
// that consists of the id of a struct kernfs_node.
const fileIDKernfs = 0xfe

// path opens a group by its id and returns its path. This avoids a walk over the
// hierarchy, which may have tens of thousands of groups.
func (g *cgroups) path(id uint64) (string, error) {
	handle := unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(g.mount.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	path, ok := strings.CutPrefix(path, strings.TrimSuffix(g.mount.Name(), "/"))
	if !ok || strings.HasSuffix(path, " (deleted)") {
		return "", os.ErrNotExist // outside of the mounted hierarchy
	}
	if path == "" {
		path = "/"
	}
	return path, nil
}

// refused returns the error if this process may not open groups by their ids, else nil.
// It tries to open the root group, which exists.
func (g *cgroups) refused() error {
	if g.mount == nil {
		return nil
	}
	top, _, err := unix.NameToHandleAt(int(g.mount.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil //nolint:nilerr // the root has no id, so nothing was refused
	}
	fd, err := unix.OpenByHandleAt(int(g.mount.Fd()), top, unix.O_PATH|unix.O_CLOEXEC)
	if err == nil {
		return unix.Close(fd)
	}
	if refused(err) {
		return err
	}
	return nil
}

// processCgroups remembers the groups of processes, by id, during one search for owners: a
// process may have very many connections. It is not kept, since a process may move to
// another group.
type processCgroups map[uint32]conn.Cgroup

// get returns the group of a process.
func (g processCgroups) get(pid uint32) conn.Cgroup {
	found, ok := g[pid]
	if !ok {
		found = cgroupOfProcess(pid)
		g[pid] = found
	}
	return found
}

// cgroupOfProcess returns the group of a process: the one in the cgroup v2 hierarchy or, if
// its path says nothing, the one in a cgroup v1 hierarchy whose path says most.
func cgroupOfProcess(pid uint32) conn.Cgroup {
	p, err := procfs.NewProc(int(pid))
	if err != nil {
		return conn.Cgroup{}
	}
	cgroups, err := p.Cgroups()
	if err != nil {
		return conn.Cgroup{}
	}
	var best conn.Cgroup
	for _, c := range cgroups {
		found := conn.ParseCgroup(c.Path)
		if c.HierarchyID == 0 && found.Detail() > 0 {
			return found
		}
		if best.Path == "" || found.Detail() > best.Detail() {
			best = found
		}
	}
	return best
}
