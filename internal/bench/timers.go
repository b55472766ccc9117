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
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

const (
	timerThreads = 256
	timerRounds  = 31
	timerWindow  = 200 * time.Millisecond
)

// timers measures what the agent's programs cost a timer that is not TCP's: both run for each
// timer of the kernel.
func (b *bench) timers(ctx context.Context) (err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("measure the run time of programs: %w", err)
	}
	defer stats.Close()
	k, err := bpf.Load(bpf.Options{Observe: true})
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.Detach(); err != nil {
		return err
	}
	ours, err := ownPrograms("timer_expire_entry", "timer_expire_exit")
	if err != nil {
		return err
	}
	defer ours.close()
	var nothing programs
	defer func() { nothing.close() }()
	for _, p := range ours {
		idle, err := doNothing(ebpf.AttachTraceRawTp, p.name)
		if err != nil {
			return err
		}
		nothing = append(nothing, program{p.name, idle})
	}
	stop := expireTimers()
	defer func() { err = errors.Join(err, stop()) }()

	var with, without sample
	var timers uint64
	for round := range b.rounds(timerRounds) {
		for i := range 2 {
			if (round+i)%2 == 0 {
				cost, n, err := ours.cost(ctx, func() (func() error, error) { return k.Detach, k.Attach() })
				if err != nil {
					return err
				}
				with = append(with, cost)
				timers += n
				continue
			}
			cost, _, err := nothing.cost(ctx, nothing.attach)
			if err != nil {
				return err
			}
			without = append(without, cost)
		}
	}
	ratio := with.over(without)
	b.add(row{
		what: "a timer that is not TCP's", bar: "≤ 1.3 × programs that do nothing on both hooks", measured: ratio.String() + " ×", met: ratio.atMost(1.3),
		how: fmt.Sprintf("%d rounds of %v with %d threads that wait for a message for a jiffy: %d timers in all; the kernel's own clock around each run, both programs together: %.0f ns, and %.0f ns to do nothing",
			len(ratio), timerWindow, timerThreads, timers, with.median(), without.median()),
	})
	return nil
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
			if err != nil || !bytes.Contains(info, []byte("prog_type:")) {
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

// cost returns how many nanoseconds the programs take together for one timer, and for how
// many timers they ran.
func (ps programs) cost(ctx context.Context, attach func() (func() error, error)) (ns float64, timers uint64, err error) {
	before, err := ps.stats()
	if err != nil {
		return 0, 0, err
	}
	detach, err := attach()
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(timerWindow)
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
		timers = max(timers, runs)
	}
	return ns, timers, nil
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

// expireTimers makes timers expire, one for each time that a thread waits for a message that
// does not come, until stop is called.
func expireTimers() (stop func() error) {
	done := make(chan struct{})
	var waiting sync.WaitGroup
	failed := make(chan error, timerThreads)
	for range timerThreads {
		waiting.Go(func() {
			if err := waitInVain(done); err != nil {
				failed <- err
			}
		})
	}
	return func() error {
		close(done)
		waiting.Wait()
		close(failed)
		return <-failed
	}
}

func waitInVain(done chan struct{}) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 1}); err != nil { // a jiffy
		return err
	}
	var b [1]byte
	for {
		select {
		case <-done:
			return nil
		default:
		}
		if _, err := unix.Read(pair[0], b[:]); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for a message: %w", err)
		}
	}
}
