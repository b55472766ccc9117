// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

const (
	obstaclesInterval = time.Second
	// obstaclesAtOnce leaves room for other questions of [Privileged.FlowPath].
	obstaclesAtOnce = flowPathsPerSecond / 2
)

// obstaclesLoop looks at the paths of connections in trouble: can this host send at all?
func (c *Collector) obstaclesLoop(ctx context.Context) error {
	tick := time.NewTicker(obstaclesInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			c.findObstacles(ctx, time.Now())
		}
	}
}

// findObstacles looks at the paths that the tracker doubts, at most obstaclesAtOnce.
func (c *Collector) findObstacles(ctx context.Context, now time.Time) {
	c.mu.Lock()
	flows := c.tracker.FlowsInDoubt(now, obstaclesAtOnce)
	c.mu.Unlock()
	obstacles := make(map[uint64]conn.Reason)
	for i := range flows {
		f := &flows[i]
		ref, _ := c.kernel.FindNetns(f.Netns)
		path, err := c.cgroups.from.FlowPath(ctx, ref, f.Flow)
		if err != nil {
			continue // asked again at the next tick: the socket or its namespace may be gone
		}
		for _, cookie := range f.Cookies {
			obstacles[cookie] = path.Obstacle(&f.Flow)
		}
	}
	if len(obstacles) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apply(&conn.Fact{Kind: conn.FactObstacles, At: now, Obstacles: obstacles})
}
