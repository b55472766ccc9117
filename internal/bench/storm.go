// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// stormSockets is how many connections die at once, both ends counted.
const stormSockets = 100_000

// storm ends very many connections at once: one end of each is aborted, and resets the other.
// It compares what the agent counts with what there was.
func (b *bench) storm(ctx context.Context) (err error) {
	c, err := newCrowd()
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, c.Close())
		}
	}()
	sockets := stormSockets
	if b.quick {
		sockets /= 10
	}
	c.abort = true
	if err := c.grow(ctx, sockets); err != nil {
		return err
	}
	a, err := b.startAgent(ctx)
	if err != nil {
		return err
	}
	defer a.stop()
	causes := []string{"aborted", "reset_by_peer"}
	before, err := a.deaths(causes)
	if err != nil {
		return err
	}
	began := time.Now()
	closed = true
	if err := c.Close(); err != nil {
		return err
	}
	took := time.Since(began)
	counted, err := a.settledDeaths(ctx, causes, before, c.pairs)
	if err != nil {
		return err
	}
	events, err := a.metric("events_lost_total", "")
	if err != nil {
		return err
	}
	suppressed, err := a.metric("events_suppressed_total", "")
	if err != nil {
		return err
	}
	exact, fewer := true, false
	for i := range causes {
		exact = exact && counted[i] == c.pairs
		fewer = fewer || counted[i] < c.pairs
	}
	r := row{
		what: fmt.Sprintf("storm of %d deaths", 2*c.pairs), bar: "counters exact, nothing lost silently", measured: fmt.Sprintf("%d and %d of %d each", counted[0], counted[1], c.pairs),
		how: fmt.Sprintf("aborted, and reset by the peer, within %.2f s; there were details of all but %.0f that it counts as suppressed and %.0f as lost; other connections of the machine may die, too", took.Seconds(), suppressed, events),
		met: met(exact),
	}
	if !exact && !fewer {
		r.met = unclear
	}
	b.add(r)
	return nil
}

// deaths returns how many connections the metrics count as dead of each cause.
func (a *agent) deaths(causes []string) (counts []int, err error) {
	for _, cause := range causes {
		n, err := a.metric("tcp_deaths_total{", fmt.Sprintf("cause=%q", cause))
		if err != nil {
			return nil, err
		}
		counts = append(counts, int(n))
	}
	return counts, nil
}

// settledDeaths returns how many connections have died since before. It waits until there are
// as many of each cause as expected, for ten seconds at most: a program counts some deaths
// only when their cause is certain.
func (a *agent) settledDeaths(ctx context.Context, causes []string, before []int, expected int) (counts []int, err error) {
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if counts, err = a.deaths(causes); err != nil {
			return nil, err
		}
		enough := true
		for i := range counts {
			counts[i] -= before[i]
			enough = enough && counts[i] >= expected
		}
		if enough || time.Since(began) > 10*time.Second || ctx.Err() != nil {
			return counts, ctx.Err()
		}
	}
}
