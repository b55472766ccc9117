// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// dropsTracepoint is the tracepoint that the kernel calls for each packet that it drops.
const dropsTracepoint = "kfree_skb"

// dropsLink is the link of the program that sees drops; nil: it is not attached.
type dropsLink struct {
	sync.Mutex
	link   link.Link
	closed bool
}

// WatchDrops attaches the program that sees why this host drops what TCP's timers send, or
// detaches it. It loads no program, and needs no privileges. While it is attached, each packet
// that the host drops costs some time.
func (k *Kernel) WatchDrops(on bool) error {
	k.drops.Lock()
	defer k.drops.Unlock()
	switch {
	case on == (k.drops.link != nil):
		return nil
	case !on:
		return k.drops.detach(k)
	case k.drops.closed:
		return os.ErrClosed
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: k.objs.KfreeSkb, AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return fmt.Errorf("attach to tracepoint %s: %w", dropsTracepoint, err)
	}
	k.drops.link = l
	return k.objs.DropsWatched.Set(uint32(1))
}

// detach detaches the program. The caller holds the lock.
func (d *dropsLink) detach(k *Kernel) error {
	if d.link == nil {
		return nil
	}
	// First, so that no solicitation counts as sent just because nobody sees its drop.
	err := errors.Join(k.objs.DropsWatched.Set(uint32(0)), d.link.Close())
	d.link = nil
	return err
}

// close detaches the program for good.
func (d *dropsLink) close(k *Kernel) error {
	d.Lock()
	defer d.Unlock()
	d.closed = true
	return d.detach(k)
}

// Drops returns about how many packets the host has dropped while the program was attached: it
// counts a random sample of them.
func (k *Kernel) Drops() (uint64, error) {
	sum, err := k.sumCounters()
	return sum.Drops, err
}
