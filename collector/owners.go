// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"golang.org/x/sys/unix"
)

// findOwners finds who holds the connections in trouble, and held those that
// have just died, whenever there is news of such.
func (c *Collector) findOwners(ctx context.Context) error {
	var since time.Time
	for {
		began := time.Now()
		c.attempt(ctx, passOwners, func() error { return c.takeOwners(began, since) })
		since = began
		spacing := max(ownersSpacing, time.Duration(float64(time.Since(began))/ownersShare))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(spacing):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.news:
		case <-time.After(ownersAgain):
		}
	}
}

func (c *Collector) takeOwners(now, since time.Time) error {
	c.mu.Lock()
	wanted := c.table.needOwners(now, since)
	c.mu.Unlock()
	if len(wanted) == 0 {
		return nil
	}
	found, err := c.kernel.Owners(slices.Collect(maps.Keys(wanted)))
	if err != nil {
		return err
	}
	owners := make(map[uint64]owner, len(wanted))
	processes := make(processGroups)
	for cookie, cgroup := range wanted {
		owners[cookie] = c.ownerOf(processOf(found[cookie], nil), cgroup, processes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.Apply(&Fact{Kind: FactOwners, At: now, Owners: owners})
	return nil
}

// initScope is where systemd itself runs, and so the group of the sockets that it
// opens for others (systemd.socket(5)).
const initScope = "/init.scope"

// ownerOf completes what is known of an owner. The socket's own group tells whose
// it is even after its process has gone; where there is none to tell (cgroup v1)
// or it is that of systemd, the process's does.
func (c *Collector) ownerOf(p *Process, cgroup uint64, processes processGroups) owner {
	group := c.groups.byID(cgroup)
	if p != nil && (group.tells() == 0 || group.Path == initScope) {
		if of := processes.of(p.PID); of.tells() > 0 || group.Path == "" {
			group = of
		}
	}
	return owner{p, group}
}

// processOf picks one of the descriptors that hold a socket: of the processes
// in pids, if there are such, the oldest: not a child that has just been forked and
// will execute another program.
func processOf(owners []bpf.Owner, pids []uint32) *Process {
	if len(owners) == 0 {
		return nil
	}
	other := func(o bpf.Owner) int {
		if slices.Contains(pids, o.Pid) {
			return 0
		}
		return 1
	}
	o := slices.MinFunc(owners, func(a, b bpf.Owner) int {
		return cmp.Or(cmp.Compare(other(a), other(b)), cmp.Compare(a.Started, b.Started), cmp.Compare(a.Pid, b.Pid), cmp.Compare(a.Fd, b.Fd))
	})
	return &Process{PID: o.Pid, Comm: unix.ByteSliceToString(o.Comm[:]), FD: o.Fd}
}

// FillOwners fills in Process and Group of those connections that have none yet,
// and that somebody holds.
func (c *Collector) FillOwners(conns []Connection) error { return c.fillOwners(conns, nil) }

// fillOwners prefers, where several processes hold a socket, one of pids.
func (c *Collector) fillOwners(conns []Connection, pids []uint32) error {
	var wanted []uint64
	for i := range conns {
		if conns[i].held() && (conns[i].Process == nil || len(pids) > 0) {
			wanted = append(wanted, conns[i].Cookie)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	owners, err := c.kernel.Owners(wanted)
	if err != nil {
		return err
	}
	processes := make(processGroups)
	for i := range conns {
		conn := &conns[i]
		if found := owners[conn.Cookie]; len(found) > 0 {
			conn.Process = processOf(found, pids)
		}
		if conn.held() && conn.Group.Path == "" {
			conn.Group = c.ownerOf(conn.Process, conn.Cgroup, processes).group
		}
	}
	return nil
}
