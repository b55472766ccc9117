// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter"
)

// Of these there may be very many; top has the worst connections and the latest
// deaths, as many as an agent tells unless asked for more.
const (
	topConnections = 1000
	topDeaths      = 1000
)

// topPatience is how long top waits for an answer: what it shows is to be of now.
const topPatience = 10 * time.Second

// source is where top has from what it shows: an agent, or a collector of its own.
type source interface {
	// look returns what is selected, and how the node is.
	look(ctx context.Context, s *selection) (*reading, error)
	// detail returns everything known of a connection as the API has it, nil
	// if there is none.
	detail(ctx context.Context, cookie string) ([]byte, error)
	// String says whom we are looking at.
	String() string
}

// reading is one look of top's.
type reading struct {
	at     time.Time             // by the clock of the node
	conns  []exporter.Connection // the worst, worst first
	total  int                   // how many are selected
	deaths []exporter.Death      // the latest, newest first
	node   node
}

// node is what top says of all connections of a node, and of its agent.
type node struct {
	verdicts map[string]int // how many connections have each
	counted  bool           // there was a census
	started  time.Time      // of the agent; zero: not known
	lost     int            // events
	degraded []string       // the reasons why not everything is seen
	detached []string       // programs
}

// connections is how many there are.
func (n *node) connections() (sum int) {
	for _, count := range n.verdicts {
		sum += count
	}
	return sum
}

// newNode is of the connections counted by verdict, and of an agent's metrics.
func newNode(groups []exporter.Group, families map[string]*dto.MetricFamily) node {
	n := node{verdicts: make(map[string]int)}
	for i := range groups {
		for verdict, count := range groups[i].Verdicts {
			n.verdicts[verdict] += count
		}
	}
	each := func(name string, f func(value float64, label string)) {
		for _, m := range families["halfopen_"+name].GetMetric() {
			label := ""
			for _, l := range m.GetLabel() {
				if name := l.GetName(); name == "program" || name == "reason" {
					label = l.GetValue()
				}
			}
			f(cmp.Or(m.GetGauge().GetValue(), m.GetCounter().GetValue()), label)
		}
	}
	each("census_duration_seconds", func(v float64, _ string) { n.counted = v > 0 })
	each("events_lost_total", func(v float64, _ string) { n.lost += int(v) })
	each("degraded", func(v float64, reason string) {
		if v != 0 {
			n.degraded = append(n.degraded, reason)
		}
	})
	each("bpf_program_attached", func(v float64, program string) {
		if v == 0 {
			n.detached = append(n.detached, program)
		}
	})
	slices.Sort(n.degraded)
	slices.Sort(n.detached)
	for _, m := range families["process_start_time_seconds"].GetMetric() {
		n.started = time.Unix(0, int64(m.GetGauge().GetValue()*1e9))
	}
	return n
}

func (c *client) look(ctx context.Context, s *selection) (*reading, error) {
	limited, cancel := context.WithTimeout(ctx, topPatience)
	defer cancel()
	r, err := c.read(limited, s)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("ask %s: no answer within %s", c, setting(topPatience))
	}
	return r, err
}

func (c *client) read(ctx context.Context, s *selection) (*reading, error) {
	var connections exporter.Connections
	if err := c.get(ctx, "connections", s.query(topConnections), &connections); err != nil {
		return nil, err
	}
	var deaths exporter.Deaths
	if err := c.get(ctx, "deaths", url.Values{"limit": {strconv.Itoa(topDeaths)}}, &deaths); err != nil {
		return nil, err
	}
	var groups exporter.Groups
	if err := c.get(ctx, "groups", url.Values{"by": {conn.ByVerdict.String()}}, &groups); err != nil {
		return nil, err
	}
	status, body, err := c.fetch(ctx, "metrics", nil)
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if status != http.StatusOK || err != nil || families["halfopen_tcp_connections"] == nil {
		return nil, c.stranger()
	}
	return &reading{
		at: connections.GeneratedAt, conns: connections.Connections, total: connections.Total, deaths: deaths.Deaths, node: newNode(groups.Groups, families),
	}, nil
}

// self is a collector in this process.
type self struct {
	here
	metrics *prometheus.Registry
	started time.Time
}

func newSelf(c *collector.Collector) (self, error) {
	s := self{here{c}, prometheus.NewRegistry(), time.Now()}
	return s, s.metrics.Register(exporter.NewMetrics(c))
}

func (s self) look(ctx context.Context, sel *selection) (*reading, error) {
	total, connections, err := s.c.Connections(ctx, sel.asked(topConnections))
	if err != nil {
		return nil, err
	}
	r := &reading{at: time.Now(), total: total}
	for connection, err := range connections {
		if err != nil {
			return nil, err
		}
		r.conns = append(r.conns, exporter.NewConnection(connection))
	}
	_, counts, err := s.c.CountConnections(ctx, collector.Query{}, conn.ByVerdict)
	if err != nil {
		return nil, err
	}
	var groups []exporter.Group
	for i := range counts {
		groups = append(groups, exporter.NewGroup(&counts[i], conn.ByVerdict))
	}
	_, deaths := s.c.Deaths(nil, topDeaths)
	for i := range deaths {
		r.deaths = append(r.deaths, exporter.NewDeath(&deaths[i]))
	}
	gathered, err := s.metrics.Gather()
	if err != nil {
		return nil, err
	}
	families := make(map[string]*dto.MetricFamily, len(gathered))
	for _, f := range gathered {
		families[f.GetName()] = f
	}
	r.node = newNode(groups, families)
	r.node.started = s.started
	return r, nil
}

func (s self) String() string { return "this node" }
