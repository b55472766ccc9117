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

// cgroups finds control groups. Safe for concurrent use.
type cgroups struct {
	mu    sync.Mutex
	mount *os.File               // of the cgroup v2 hierarchy, open for good; nil: not mounted here
	known map[uint64]conn.Cgroup // by id, which is never used again

	descriptors descriptorCheck
}

// maxCgroups bounds what is remembered; a node has some thousands at most.
const maxCgroups = 16384

func newCgroups() *cgroups {
	g := &cgroups{known: make(map[uint64]conn.Cgroup)}
	mounts, err := bpf.Mounts("cgroup2")
	if err != nil {
		return g // as if it were not mounted
	}
	for _, m := range mounts {
		if g.mount, err = openHierarchy(m.Point); err == nil {
			break
		}
	}
	return g
}

// openHierarchy opens the root of a mounted cgroup v2 hierarchy. Something else may
// have been mounted there since: it is opened only once it is known for what it is.
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

// byID is the group of that id in the cgroup v2 hierarchy; the zero Group if it
// is no more, or not to be seen from here.
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
		return conn.Cgroup{} // it may be gone, or show itself yet
	}
	if len(g.known) >= maxCgroups {
		clear(g.known)
	}
	found := conn.ParseCgroup(path)
	g.known[id] = found
	return found
}

// fileIDKernfs is FILEID_KERNFS (fs/kernfs/mount.c, 5.5): a handle that is
// the id of a node, as the kernel's struct kernfs_node has it.
const fileIDKernfs = 0xfe

// path opens a group by its id, and asks where it is. No walk over the hierarchy
// is needed, which may have tens of thousands of groups.
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
		return "", os.ErrNotExist // outside of what is mounted here
	}
	if path == "" {
		path = "/"
	}
	return path, nil
}

// refused returns why the kernel opens no group by its id for us, nil if it does: it
// asks for the one at the top, which is there.
func (g *cgroups) refused() error {
	if g.mount == nil {
		return nil
	}
	top, _, err := unix.NameToHandleAt(int(g.mount.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil //nolint:nilerr // it has no ids, and so refuses none
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

// processCgroups are the groups of processes, for one use: a process may have very
// many connections, and go to another group.
type processCgroups map[uint32]conn.Cgroup

func (g processCgroups) of(pid uint32) conn.Cgroup {
	found, ok := g[pid]
	if !ok {
		found = ofProcess(pid)
		g[pid] = found
	}
	return found
}

// ofProcess is the group of a process: of the cgroup v2 hierarchy, or, where that
// tells nothing, of the cgroup v1 hierarchy that tells most.
func ofProcess(pid uint32) conn.Cgroup {
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
