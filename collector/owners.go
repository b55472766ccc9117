// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// ownersLoop finds who holds the connections in trouble, and held those that
// have just died, whenever there is news of such.
func (c *Collector) ownersLoop(ctx context.Context) error {
	var since time.Time
	for {
		began := time.Now()
		c.attempt(ctx, passOwners, func() error { return c.resolveOwners(began, since) })
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

func (c *Collector) resolveOwners(now, since time.Time) error {
	c.mu.Lock()
	wanted := c.tracker.NeedOwners(now, since)
	c.searchAwaited(wanted)
	c.mu.Unlock()
	if len(wanted) == 0 {
		return nil
	}
	found, err := c.holders(slices.Collect(maps.Keys(wanted)), nil)
	if err != nil {
		return err
	}
	owners := make(map[uint64]conn.Ownership, len(wanted))
	processes := make(processCgroups)
	for cookie, cgroup := range wanted {
		owners[cookie] = c.ownershipOf(found.of(cookie), cgroup, processes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apply(&conn.Fact{Kind: conn.FactOwners, At: now, Owners: owners})
	c.foundAwaited(owners)
	return nil
}

// initScope is where systemd itself runs, and so the group of the sockets that it
// opens for others (systemd.socket(5)).
const initScope = "/init.scope"

// ownershipOf completes what is known of an owner. The socket's own group tells whose
// it is even after its process has gone; where there is none to tell (cgroup v1)
// or it is that of systemd, the process's does.
func (c *Collector) ownershipOf(p *conn.Process, cgroup uint64, processes processCgroups) conn.Ownership {
	group := c.cgroups.byID(cgroup)
	if p != nil && (group.Detail() == 0 || group.Path == initScope) {
		if of := processes.of(p.PID); of.Detail() > 0 || group.Path == "" {
			group = of
		}
	}
	return conn.Ownership{Process: p, Cgroup: group}
}

// fillOwners fills in Process and Cgroup of the connections that a process can hold and
// that have none yet. Where several processes hold a socket, it prefers one of pids.
func (c *Collector) fillOwners(connections []conn.Connection, pids []uint32) error {
	wanted := []uint64{}
	for i := range connections {
		if needsHolder(&connections[i], pids) {
			wanted = append(wanted, connections[i].Cookie)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	found, err := c.holders(wanted, pids)
	if err != nil {
		return err
	}
	processes := make(processCgroups)
	for i := range connections {
		c.fillOwner(&connections[i], found, processes)
	}
	return nil
}

// needsHolder reports whether it has to be found out which process holds a connection.
func needsHolder(c *conn.Connection, pids []uint32) bool {
	return c.Held() && (c.Process == nil || len(pids) > 0)
}

// fillOwner fills in Process and Cgroup of a connection by what was found.
func (c *Collector) fillOwner(connection *conn.Connection, found *holders, processes processCgroups) {
	if !needsHolder(connection, found.prefer) {
		return
	}
	if p := found.of(connection.Cookie); p != nil {
		connection.Process = p
	}
	if connection.Cgroup.Path == "" {
		connection.Cgroup = c.ownershipOf(connection.Process, connection.CgroupID, processes).Cgroup
	}
}
