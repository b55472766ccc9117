// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
)

const (
	million       = 1_000_000
	millionRounds = 5
	scalable      = 800_000 // with fewer, times scaled to a million say little
	// socketBytes is about what the kernel needs for a socket of the crowd, with its file.
	socketBytes = 8 << 10
)

// most returns how many sockets of a crowd the machine can hold, at most a million.
func most() (int, error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	available, err := sumOf(bytes.NewReader(info), "MemAvailable:", 1024)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile("/proc/sys/fs/file-nr")
	if err != nil {
		return 0, err
	}
	var open, free, limit int64
	if _, err := fmt.Sscan(string(text), &open, &free, &limit); err != nil {
		return 0, err
	}
	return int(max(min(million, available/2/socketBytes, limit-open-100_000), 0)), nil
}

// million measures an agent on a node with a million connections, or as many as the machine
// holds: then times are scaled to a million.
func (b *bench) million(ctx context.Context) (err error) {
	sockets, err := most()
	if err != nil {
		return err
	}
	if b.quick {
		sockets = min(sockets, 60_000)
	}
	c, err := newCrowd()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.grow(ctx, sockets); err != nil {
		return err
	}
	m := &crowdedNode{bench: b, sockets: 2 * c.pairs}
	// Nothing has asked for the cookies of these sockets yet, unless another agent runs here.
	if m.agent, err = b.startAgent(ctx, "--idle-after=1s"); err != nil {
		return err
	}
	defer m.agent.stop()
	first, err := m.agent.metric("census_duration_seconds ", "")
	if err != nil {
		return err
	}
	m.add("the first census", 2, sample{first}, "it names the sockets that are older than the agent")
	m.add("start to ready", 3, sample{m.agent.ready.Seconds()}, "until /-/ready answers 200, with that first census")
	if err := m.census(c); err != nil {
		return err
	}
	return m.ask()
}

// crowdedNode is an agent on a node with very many sockets.
type crowdedNode struct {
	*bench
	agent   *agent
	sockets int
}

// add adds a row of how long something took, in seconds.
func (m *crowdedNode) add(what string, bar float64, took sample, how string) {
	scaled := make(sample, len(took))
	for i := range took {
		scaled[i] = took[i] * million / float64(m.sockets)
	}
	result := scaled.atMost(bar)
	if m.sockets < scalable {
		result = unclear
	}
	m.bench.add(row{fmt.Sprintf("a million sockets: %s", what), fmt.Sprintf("≤ %g s", bar), scaled.String() + " s",
		fmt.Sprintf("%s; %d times with %d sockets: %.2f s", how, len(took), m.sockets, took.median()), result})
}

// census measures what the agent does every 15 s.
func (m *crowdedNode) census(c *crowd) error {
	k, err := bpf.Load(bpf.Options{IdleAfter: time.Second, IdleBounds: collector.IdleBounds})
	if err != nil {
		return err
	}
	defer k.Close()
	v := view{crowd: c, kernel: k}
	if _, err := v.census(); err != nil { // looks for sockets without a cookie
		return err
	}
	var took sample
	for range m.rounds(censusRounds) {
		if err := took.take(v.census, 2*c.pairs); err != nil {
			return err
		}
	}
	m.add("a census", 0.35, took, fmt.Sprintf("%.0f ns for each socket", took.median()/float64(m.sockets)*1e9))
	return nil
}

// ask asks the agent for what takes longest.
func (m *crowdedNode) ask() error {
	get := func(path string) (took sample, err error) {
		for range m.rounds(millionRounds) {
			if err := took.take(func() (int, error) { return -1, m.agent.getInto(io.Discard, path) }, 0); err != nil {
				return nil, err
			}
		}
		return took, nil
	}
	worst, err := get("/api/v1/connections?limit=1000")
	if err != nil {
		return err
	}
	m.add("the worst 1000 by the API", 0.6, worst, "every connection judged, and the owners of these found")
	owners, err := get("/api/v1/groups?by=owner")
	if err != nil {
		return err
	}
	m.add("all by owner", 5, owners, "`halfopen list --by owner`, by the API")
	before, err := m.agent.peak()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := m.agent.getInto(io.Discard, fmt.Sprintf("/api/v1/connections?limit=%d", math.MaxInt32)); err != nil {
		return err
	}
	took := time.Since(began)
	peak, err := m.agent.peak()
	if err != nil {
		return err
	}
	const mb = 1e6
	m.bench.add(row{fmt.Sprintf("memory with %d idle sockets", m.sockets), "≤ 60 MB resident, also while all are asked for", fmt.Sprintf("%.1f MB", float64(peak)/mb),
		fmt.Sprintf("most of the whole process, after it was asked for all, which took %.0f s; before that, with the above, %.1f MB", took.Seconds(), float64(before)/mb), met(float64(peak)/mb <= 60)})
	return nil
}
