// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/containers"
)

// Privileged is what a collector needs privileges for. [Direct] does it in this process.
// It is safe for concurrent use.
type Privileged interface {
	// CgroupPath returns the path of the group with that id in the cgroup v2 hierarchy.
	// It needs CAP_DAC_READ_SEARCH.
	CgroupPath(id uint64) (string, error)
	// CgroupsRefused returns the error if CgroupPath is not permitted, else nil.
	CgroupsRefused() error
	// DescriptorsRefused returns an error if most other processes' descriptors are
	// refused to this process, else nil. It needs CAP_SYS_PTRACE. Another process can
	// delay it without limit.
	DescriptorsRefused() error
	// FlowPath returns how the kernel would send a packet of a connection now. It
	// returns an error after [FlowPathTimeout] at the latest, and if it is asked too
	// often. To enter the namespace it needs CAP_SYS_ADMIN and CAP_SYS_PTRACE.
	FlowPath(ctx context.Context, netns bpf.NetnsRef, flow conn.Flow) (*conn.Path, error)
	// ContainerNames returns the names of a container by its id and the UID of its pod, of
	// which one can be "". See [containers.Reader.Names].
	ContainerNames(id, podUID string) (containers.Names, error)
}

// Direct is the [Privileged] of a process that has the privileges itself.
type Direct struct {
	mount *os.File // the root of the cgroup v2 hierarchy, always open; nil: not mounted here
	flows flowPathLimits
	state *containers.Reader
}

// NewDirect opens the cgroup v2 hierarchy, if it is mounted.
func NewDirect() *Direct {
	d := &Direct{flows: newFlowPathLimits(), state: containers.NewReader()}
	mounts, err := bpf.Mounts("cgroup2")
	if err != nil {
		return d // treated as not mounted
	}
	for _, m := range mounts {
		if d.mount, err = openHierarchy(m.Point); err == nil {
			break
		}
	}
	return d
}

// cgroups finds control groups. It is safe for concurrent use.
type cgroups struct {
	from Privileged

	mu    sync.Mutex
	known map[uint64]conn.Cgroup // by id; the kernel never uses an id again
	// unknown are the ids that were not found since the time forget. They are tried
	// again: a group may become visible.
	unknown map[uint64]struct{}
	forget  time.Time

	descriptors descriptorCheck
	containers  *containerNames
}

const (
	// maxCgroups is the most control groups that are remembered. A node has some
	// thousands at most.
	maxCgroups = 16384
	// unknownFor is how long an id that was not found is not tried again.
	unknownFor = time.Second
)

func newCgroups(from Privileged) *cgroups {
	if from == nil {
		from = NewDirect()
	}
	return &cgroups{
		from: from, known: make(map[uint64]conn.Cgroup), unknown: make(map[uint64]struct{}), containers: newContainerNames(from),
	}
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
	if id == 0 {
		return conn.Cgroup{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if known, ok := g.known[id]; ok {
		return known
	}
	if now := time.Now(); now.After(g.forget) || len(g.unknown) >= maxCgroups {
		clear(g.unknown)
		g.forget = now.Add(unknownFor)
	}
	if _, ok := g.unknown[id]; ok {
		return conn.Cgroup{}
	}
	path, err := g.from.CgroupPath(id)
	if err != nil {
		g.unknown[id] = struct{}{}
		return conn.Cgroup{}
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

// CgroupPath opens a group by its id and returns its path. This avoids a walk over the
// hierarchy, which may have tens of thousands of groups.
func (d *Direct) CgroupPath(id uint64) (string, error) {
	if d.mount == nil {
		return "", os.ErrNotExist
	}
	handle := unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(d.mount.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	path, ok := strings.CutPrefix(path, strings.TrimSuffix(d.mount.Name(), "/"))
	if !ok || strings.HasSuffix(path, " (deleted)") {
		return "", os.ErrNotExist // outside of the mounted hierarchy
	}
	if path == "" {
		path = "/"
	}
	return path, nil
}

// ContainerNames implements [Privileged].
func (d *Direct) ContainerNames(id, podUID string) (containers.Names, error) {
	return d.state.Names(id, podUID)
}

// CgroupsRefused returns the error if this process may not open groups by their ids, else
// nil. It tries to open the root group, which exists.
func (d *Direct) CgroupsRefused() error {
	if d.mount == nil {
		return nil
	}
	top, _, err := unix.NameToHandleAt(int(d.mount.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil //nolint:nilerr // the root has no id, so nothing was refused
	}
	fd, err := unix.OpenByHandleAt(int(d.mount.Fd()), top, unix.O_PATH|unix.O_CLOEXEC)
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
