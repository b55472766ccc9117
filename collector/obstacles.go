// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

const (
	obstaclesInterval = time.Second
	obstaclesSpacing  = 200 * time.Millisecond
	// obstaclesAtOnce leaves room for other questions of [Privileged.FlowPath].
	obstaclesAtOnce = flowPathsPerSecond / 10
)

// obstaclesLoop looks at the paths of connections in trouble: can this host send at all? It
// does so soon after a solicitation was sent, or before it could make a zombie.
func (c *Collector) obstaclesLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.obstaclesWanted:
		case <-time.After(obstaclesInterval):
		}
		c.findObstacles(ctx, time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(obstaclesSpacing):
		}
	}
}

// LookOnce is for a collector that does not run, as in a command that looks once: it takes a
// census, and looks at the paths of connections in trouble, of at most flowPathsAtOnce/2 pairs of
// addresses. The queries that follow know what keeps this host from sending, but not since when.
func (c *Collector) LookOnce(ctx context.Context) error {
	c.lookedOnce = true
	if _, err := c.takeCensus(ctx, false); err != nil {
		return err
	}
	now := time.Now()
	for looked := 0; looked < flowPathsAtOnce/2; looked += obstaclesAtOnce {
		if !c.findObstacles(ctx, now) {
			break
		}
	}
	return nil
}

// findObstacles looks at the paths that the tracker doubts, at most obstaclesAtOnce. It reports
// whether there were any.
func (c *Collector) findObstacles(ctx context.Context, now time.Time) bool {
	c.mu.Lock()
	flows := c.tracker.FlowsInDoubt(now, obstaclesAtOnce)
	c.mu.Unlock()
	obstacles := make(map[uint64]*conn.Reason)
	for i := range flows {
		f := &flows[i]
		var obstacle *conn.Reason // nil: the socket or its namespace may be gone
		if o, err := c.Obstacle(ctx, f.Netns, f.Flow); err == nil {
			obstacle = &o
		}
		for _, cookie := range f.Cookies {
			obstacles[cookie] = obstacle
		}
	}
	if len(obstacles) == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apply(&conn.Fact{Kind: conn.FactObstacles, At: now, Obstacles: obstacles})
	return true
}

// Obstacle returns what keeps this host from sending on a flow in a network namespace, of which
// netns is the inode number; the zero value if its path shows nothing.
func (c *Collector) Obstacle(ctx context.Context, netns uint32, f conn.Flow) (conn.Reason, error) {
	ref, _ := c.kernel.FindNetns(netns)
	path, err := c.cgroups.from.FlowPath(ctx, ref, f)
	if err != nil {
		return conn.Reason{}, err
	}
	return path.Obstacle(&f), nil
}
