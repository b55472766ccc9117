// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter"
	"github.com/halfopen/halfopen/exporter/api"
)

// top reads at most so many of the worst connections and of the latest deaths: as many as
// an agent answers by default.
const (
	topConnections = api.DefaultLimit
	topDeaths      = api.DefaultLimit
)

// topTimeout is how long top waits for an answer.
const topTimeout = 10 * time.Second

// source is what top reads: an agent, or a collector of its own.
type source interface {
	// look returns the connections that a query selects, and how the node is. It sets
	// the limit of the query.
	look(ctx context.Context, q collector.Query) (*reading, error)
	detailer
	// String returns the name of the agent or the node, for the title.
	String() string
}

// reading is what top read at one moment.
type reading struct {
	at     time.Time        // by the clock of the node
	conns  []api.Connection // the worst, worst first
	total  int              // how many the query selects
	deaths []api.Death      // the latest, newest first
	node   node
}

// node is what top shows of a node and its agent.
type node struct {
	verdicts map[string]int // how many connections have each, now
	status   api.Status
}

// connections returns how many connections the node has.
func (n *node) connections() (sum int) {
	for _, count := range n.verdicts {
		sum += count
	}
	return sum
}

// newNode makes a node of its groups by verdict and its status.
func newNode(groups []api.Group, status *api.Status) node {
	n := node{verdicts: make(map[string]int), status: *status}
	for i := range groups {
		for verdict, count := range groups[i].Verdicts {
			n.verdicts[verdict] += count
		}
	}
	return n
}

func (a asked) look(ctx context.Context, q collector.Query) (*reading, error) {
	limited, cancel := context.WithTimeout(ctx, topTimeout)
	defer cancel()
	r, err := a.read(limited, q)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("ask %s: no answer within %s", a, setting(topTimeout))
	}
	return r, err
}

func (a asked) read(ctx context.Context, q collector.Query) (*reading, error) {
	q.Limit = topConnections
	connections, err := a.Connections(ctx, api.ConnectionParameters(&q))
	if err != nil {
		return nil, err
	}
	deaths, err := a.Deaths(ctx, api.DeathParameters(&api.DeathQuery{Limit: topDeaths}))
	if err != nil {
		return nil, err
	}
	groups, err := a.Groups(ctx, api.GroupParameters(&collector.Query{}, conn.ByVerdict))
	if err != nil {
		return nil, err
	}
	status, err := a.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &reading{
		at: connections.GeneratedAt, conns: connections.Connections, total: connections.Total,
		deaths: deaths.Deaths, node: newNode(groups.Groups, status),
	}, nil
}

// self is a collector in this process.
type self struct {
	here
	started time.Time
}

func (s self) look(ctx context.Context, q collector.Query) (*reading, error) {
	q.Limit = topConnections
	total, connections, err := s.connections(ctx, q)
	if err != nil {
		return nil, err
	}
	r := &reading{at: time.Now(), conns: connections, total: total}
	_, counts, err := s.c.CountConnections(ctx, collector.Query{}, conn.ByVerdict)
	if err != nil {
		return nil, err
	}
	var groups []api.Group
	for i := range counts {
		groups = append(groups, api.NewGroup(&counts[i], conn.ByVerdict))
	}
	_, deaths := s.c.Deaths(nil, topDeaths)
	for i := range deaths {
		r.deaths = append(r.deaths, api.NewDeath(&deaths[i]))
	}
	status, err := exporter.NewStatus(s.c, s.started)
	if err != nil {
		return nil, err
	}
	r.node = newNode(groups, &status)
	return r, nil
}

func (s self) String() string { return "this node" }
