// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

const (
	programRounds = 31
	programWindow = 200 * time.Millisecond
)

// comparison is what programs take for one event, in nanoseconds, and programs that do nothing.
type comparison struct {
	with, without, ratio sample
	runs                 uint64 // of the programs
}

// compare measures the agent's programs of these names against programs that do nothing on the same
// tracepoints. attach attaches the former; the events must occur meanwhile.
func (b *bench) compare(ctx context.Context, opts bpf.Options, attach func(*bpf.Kernel) (detach func() error, err error), names ...string) (c comparison, err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return c, fmt.Errorf("measure the run time of programs: %w", err)
	}
	defer stats.Close()
	k, err := bpf.Load(opts)
	if err != nil {
		return c, err
	}
	defer k.Close()
	if err := k.Detach(); err != nil {
		return c, err
	}
	ours, err := ownPrograms(names...)
	if err != nil {
		return c, err
	}
	defer ours.close()
	var nothing programs
	defer func() { nothing.close() }()
	for _, p := range ours {
		idle, err := doNothing(ebpf.AttachTraceRawTp, p.name)
		if err != nil {
			return c, err
		}
		nothing = append(nothing, program{p.name, idle})
	}
	for round := range b.rounds(programRounds) {
		for i := range 2 {
			if (round+i)%2 == 0 {
				cost, n, err := ours.cost(ctx, func() (func() error, error) { return attach(k) })
				if err != nil {
					return c, err
				}
				c.with = append(c.with, cost)
				c.runs += n
				continue
			}
			cost, _, err := nothing.cost(ctx, nothing.attach)
			if err != nil {
				return c, err
			}
			c.without = append(c.without, cost)
		}
	}
	c.ratio = c.with.over(c.without)
	return c, nil
}

// A program has the name of the tracepoint that it is for.
type program struct {
	name string
	*ebpf.Program
}

type programs []program

func (ps programs) close() {
	for _, p := range ps {
		p.Close()
	}
}

// ownPrograms returns the programs of these names that this process has loaded.
func ownPrograms(names ...string) (found programs, err error) {
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for _, file := range files {
			info, err := os.ReadFile(file)
			if err != nil || !bytes.Contains(info, []byte("\nprog_type:")) {
				continue
			}
			id, err := sumOf(bytes.NewReader(info), "prog_id:", 1)
			if err != nil {
				return nil, err
			}
			p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
			if err != nil {
				return nil, err
			}
			if info, err := p.Info(); err == nil && info.Name != "" && strings.HasPrefix(name, info.Name) {
				found = append(found, program{name, p})
				break
			}
			p.Close()
		}
	}
	if len(found) != len(names) {
		return nil, fmt.Errorf("only %d programs of %v", len(found), names)
	}
	return found, nil
}

// attach attaches each to its tracepoint.
func (ps programs) attach() (detach func() error, err error) {
	var links closers
	for _, p := range ps {
		l, err := link.AttachTracing(link.TracingOptions{Program: p.Program, AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return nil, errors.Join(err, links.Close())
		}
		links = append(links, l)
	}
	return links.Close, nil
}

// cost returns how many nanoseconds the programs take together for one event, and for how
// many events they ran.
func (ps programs) cost(ctx context.Context, attach func() (func() error, error)) (ns float64, events uint64, err error) {
	before, err := ps.stats()
	if err != nil {
		return 0, 0, err
	}
	detach, err := attach()
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(programWindow)
	if err := errors.Join(detach(), ctx.Err()); err != nil {
		return 0, 0, err
	}
	after, err := ps.stats()
	if err != nil {
		return 0, 0, err
	}
	for i := range after {
		runs := after[i].RunCount - before[i].RunCount
		if runs == 0 {
			return 0, 0, fmt.Errorf("%s has not run", ps[i].name)
		}
		ns += float64(after[i].Runtime-before[i].Runtime) / float64(runs)
		events = max(events, runs)
	}
	return ns, events, nil
}

func (ps programs) stats() (all []*ebpf.ProgramStats, err error) {
	for _, p := range ps {
		s, err := p.Stats()
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
