// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

// drops measures what the agent's program costs a packet that the host drops, while the agent
// watches them.
func (b *bench) drops(ctx context.Context) (err error) {
	stop := dropPackets()
	defer func() { err = errors.Join(err, stop()) }()
	c, err := b.compare(ctx, bpf.Options{Observe: true}, func(k *bpf.Kernel) (func() error, error) {
		return func() error { return k.WatchDrops(false) }, k.WatchDrops(true)
	}, "kfree_skb")
	if err != nil {
		return err
	}
	b.add(row{
		what: "a packet that the host drops, while the agent watches drops", bar: "≤ 1.5 × a program that does nothing on the hook", measured: c.ratio.String() + " ×", met: c.ratio.atMost(1.5),
		how: fmt.Sprintf("%d rounds of %v, in which each core sends datagrams to a port of its own host that nothing listens on: %.0f drops a second; the kernel's own clock around each run: %.0f ns, and %.0f ns to do nothing",
			len(c.ratio), programWindow, float64(c.runs)/float64(len(c.ratio))/programWindow.Seconds(), c.with.median(), c.without.median()),
	})
	return nil
}

// dropPackets makes the host drop packets, as many as it can, until stop is called.
func dropPackets() (stop func() error) {
	done := make(chan struct{})
	var sending sync.WaitGroup
	failed := make(chan error, runtime.NumCPU())
	for range runtime.NumCPU() {
		sending.Go(func() {
			if err := sendInVain(done); err != nil {
				failed <- err
			}
		})
	}
	return func() error {
		close(done)
		sending.Wait()
		close(failed)
		return <-failed
	}
}

func sendInVain(done chan struct{}) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	nobody := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}} // discard
	for {
		select {
		case <-done:
			return nil
		default:
		}
		if err := unix.Sendto(s, []byte{0}, 0, nobody); err != nil {
			return fmt.Errorf("send to a port that nothing listens on: %w", err)
		}
	}
}
