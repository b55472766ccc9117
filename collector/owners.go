// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// ownersLoop searches for the owners of the connections in trouble, of those that have a
// row, and of those that have just died, whenever one of these has changed.
func (c *Collector) ownersLoop(ctx context.Context) error {
	var since time.Time
	for {
		began := time.Now()
		c.runPass(ctx, passOwners, func() error { return c.resolveOwners(began, since) })
		since = began
		spacing, share := ownersSpacing, ownersShare
		if c.awaitsOwners() {
			spacing, share = awaitedSpacing, awaitedShare
		}
		spacing = min(max(spacing, time.Duration(float64(time.Since(began))/share)), ownersSpacingMost)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(spacing):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ownersWanted:
		case <-time.After(conn.OwnersRetry):
		}
	}
}

// resolveOwners searches for the owners that the tracker and the subscribers need now,
// those of connections that died at since or later included.
func (c *Collector) resolveOwners(now, since time.Time) error {
	c.mu.Lock()
	wanted := c.tracker.NeedOwners(now, since)
	c.addAwaited(wanted)
	c.mu.Unlock()
	if len(wanted) == 0 {
		return nil
	}
	found, err := c.findHolders(slices.Collect(maps.Keys(wanted)), nil)
	if err != nil {
		return err
	}
	defer found.free()
	owners := make(map[uint64]conn.Ownership, len(wanted))
	processes := make(processCgroups)
	for cookie, cgroup := range wanted {
		owners[cookie] = c.ownershipOf(found.process(cookie), cgroup, processes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apply(&conn.Fact{Kind: conn.FactOwners, At: now, Owners: owners})
	c.setAwaitedOwners(owners)
	return nil
}

// initScope is the group of systemd itself, and so of the sockets that it opens for other
// units (systemd.socket(5)).
const initScope = "/init.scope"

// ownershipOf returns the owner of a socket. p is the process that holds the socket, or nil;
// cgroup is the id of the socket's own group, which names the owner even after the process
// has ended. If that group says nothing (cgroup v1), or is systemd's, the group of the
// process counts.
func (c *Collector) ownershipOf(p *conn.Process, cgroup uint64, processes processCgroups) conn.Ownership {
	group := c.cgroups.byID(cgroup)
	if p != nil && (group.Detail() == 0 || group.Path == initScope) {
		if own := processes.get(p.PID); own.Detail() > 0 || group.Path == "" {
			group = own
		}
	}
	c.cgroups.containers.fill(&group)
	return conn.Ownership{Process: p, Cgroup: group}
}

// fillOwners sets Process and Cgroup of the connections that a process can hold and that
// have none yet. If several processes hold a socket, it prefers one of pids.
func (c *Collector) fillOwners(connections []conn.Connection, pids set[uint32]) error {
	wanted := []uint64{}
	for i := range connections {
		if needsHolder(&connections[i], pids) {
			wanted = append(wanted, connections[i].Cookie)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	found, err := c.findHolders(wanted, pids)
	if err != nil {
		return err
	}
	defer found.free()
	processes := make(processCgroups)
	for i := range connections {
		c.fillOwner(&connections[i], found, processes)
	}
	return nil
}

// needsHolder reports whether fillOwners has to search for the process that holds the
// connection.
func needsHolder(c *conn.Connection, pids set[uint32]) bool {
	return c.Held() && (c.Process == nil || len(pids) > 0)
}

// fillOwner sets Process and Cgroup of a connection from the result of a search.
func (c *Collector) fillOwner(connection *conn.Connection, found *holders, processes processCgroups) {
	if !needsHolder(connection, found.prefer) {
		return
	}
	if p := found.process(connection.Cookie); p != nil {
		connection.Process = p
	}
	c.fillCgroup(connection, processes)
}

// fillCgroup sets Cgroup of a connection that a process can hold, unless it is set.
func (c *Collector) fillCgroup(connection *conn.Connection, processes processCgroups) {
	if connection.Held() && connection.Cgroup.Path == "" {
		connection.Cgroup = c.ownershipOf(connection.Process, connection.CgroupID, processes).Cgroup
	}
}
