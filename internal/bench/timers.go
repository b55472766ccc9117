// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

const timerThreads = 256

// timers measures what the agent's programs cost a timer that is not TCP's: both run for each
// timer of the kernel.
func (b *bench) timers(ctx context.Context) (err error) {
	stop := expireTimers()
	defer func() { err = errors.Join(err, stop()) }()
	c, err := b.compare(ctx, bpf.Options{Observe: true}, func(k *bpf.Kernel) (func() error, error) { return k.Detach, k.Attach() },
		"timer_expire_entry", "timer_expire_exit")
	if err != nil {
		return err
	}
	b.add(row{
		what: "a timer that is not TCP's", bar: "≤ 1.3 × programs that do nothing on both hooks", measured: c.ratio.String() + " ×", met: c.ratio.atMost(1.3),
		how: fmt.Sprintf("%d rounds of %v with %d threads that wait for a message for a jiffy: %d timers in all; the kernel's own clock around each run, both programs together: %.0f ns, and %.0f ns to do nothing",
			len(c.ratio), programWindow, timerThreads, c.runs, c.with.median(), c.without.median()),
	})
	return nil
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
