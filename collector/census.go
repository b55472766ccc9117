// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"net/netip"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// censusLoop takes a census every interval, and when rows are wanted.
func (c *Collector) censusLoop(ctx context.Context) error {
	owners := 0 // censuses since the last that counted the connections at risk by owner; 0: it is due
	for {
		interval := c.opts.CensusInterval
		c.runPass(ctx, passCensus, func() error {
			next, err := c.takeCensus(ctx, owners == 0)
			if err == nil {
				interval, owners = next, (owners+1)%riskOwnersEvery
			}
			return err
		})
		c.endRows()
		c.checkEnvironment()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.censusWanted:
		case <-time.After(interval):
		}
	}
}

// checkEnvironment finds out what this process may do: the profile of a security module
// can change while it runs.
func (c *Collector) checkEnvironment() {
	e := readEnvironment(c.kernel, c.cgroups)
	c.degraded.change(time.Now(), func(s *situation) { s.environment = e })
}

// takeCensus takes one census, which counts the connections at risk by owner if owners is set,
// and returns the time until the next one.
func (c *Collector) takeCensus(ctx context.Context, owners bool) (time.Duration, error) {
	began := time.Now()
	var troubled []conn.Observation
	selection := bpf.Select(abi.ClassTrouble, abi.ClassUnread, abi.ClassOverflowed)
	selection.CgroupRisks = owners
	var worst *topN             // the connections that get rows; nil: no rows are wanted
	var outline conn.Connection // one for all sockets: it escapes to the heap
	if c.beginRows() {
		selection.Classes |= bpf.ClassesOf(abi.ClassActive, abi.ClassIdle, abi.ClassUnguarded)
		worst = &topN{limit: conn.MaxRows}
	}
	ownTables := time.Duration(ownTablesShare * c.opts.CensusCPU * float64(c.opts.CensusInterval))
	c.drops.begin()
	res, err := c.kernel.PeriodicCensus(ctx, selection, c.zombieHosts(), ownTables, func(k *abi.Conn) {
		if k.Class == abi.ClassNone { // a listener that has dropped something
			c.drops.observe(k.Cookie, k.ListenDrops())
			return
		}
		if conn.Followed(k) {
			troubled = append(troubled, conn.Observation{Conn: *k, At: wall(k.At)})
		}
		if worst != nil {
			outline = c.rules.Outline(k, wall(k.At))
			worst.add(k, &outline)
			worst.narrow(selection)
		}
	})
	if err != nil {
		return 0, err
	}
	if err := c.readAgain(); err != nil {
		return 0, err
	}
	c.drops.end()
	ended := time.Now()
	c.degraded.change(ended, func(s *situation) { s.census(&res) })
	took := ended.Sub(began)
	sockets := res.Counts.Total()
	var atRisk map[conn.OwnerLabel]int
	if owners {
		atRisk = c.riskOwners(&res)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if owners {
		c.atRiskByOwner = atRisk
	}
	c.apply(&conn.Fact{Kind: conn.FactCensus, At: ended, Census: &conn.Census{
		Began: began, Counts: &res.Counts, Troubled: troubled, Unwalked: res.Unwalked, Hosts: hostCounts(res.Hosts), Rows: worst.observations(),
	}})
	c.counts = res.Counts
	c.census = CensusStats{
		At:         ended,
		Duration:   took,
		Interval:   max(c.opts.CensusInterval, c.budget.spacing(res.CPU, ended, c.processCPU())),
		Sockets:    sockets,
		Namespaces: res.Namespaces,
		Unvisited:  res.Unvisited,
		OwnTables:  len(res.OwnTables),
		Overflows:  c.drops.total,
	}
	if !c.ready.Swap(true) {
		c.log.Info("First census taken", "sockets", sockets, "namespaces", res.Namespaces, "duration", took)
	}
	return c.census.Interval, nil
}

// zombieHosts returns the remote addresses of zombies, to which a census counts all connections.
func (c *Collector) zombieHosts() (keys []abi.PeerHostKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.tracker.ZombieHosts(bpf.HostsMost) {
		keys = append(keys, abi.PeerHostKey{Addr: h.Addr.As16(), Netns: h.Netns})
	}
	return keys
}

// hostCounts returns what a census counted in the form that the tracker needs.
func hostCounts(hosts map[abi.PeerHostKey]abi.PeerHost) map[conn.HostKey]conn.HostCount {
	if len(hosts) == 0 {
		return nil
	}
	counts := make(map[conn.HostKey]conn.HostCount, len(hosts))
	for key, h := range hosts {
		count := conn.HostCount{Connections: int(h.Connections), Exposed: int(h.Exposed)}
		if h.Heard > 0 {
			count.HeardAt = wall(h.Heard)
		}
		counts[conn.HostKey{Netns: key.Netns, Addr: netip.AddrFrom16(key.Addr).Unmap()}] = count
	}
	return counts
}

// readAgain has the tracker end what is not unread any more, if it follows any such connection.
// The census does not report these: to it they are as all others.
func (c *Collector) readAgain() error {
	c.mu.Lock()
	follows := c.tracker.FollowsUnread()
	c.mu.Unlock()
	if !follows {
		return nil
	}
	var ended []abi.Conn
	if err := c.kernel.ReadAgain(func(k *abi.Conn) { ended = append(ended, *k) }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range ended {
		c.apply(&conn.Fact{Kind: conn.FactWatch, At: wall(ended[i].At), Conn: &ended[i]})
	}
	return nil
}
