// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

const (
	zombies    = 101
	unanswered = 3 // probes before the verdict; by the third, the silence exceeds --zombie-silence
)

// latency measures the time from the probe that decides the verdict until the metrics count
// the connection as a zombie. A packet socket on the link records when each probe leaves.
func (b *bench) latency(ctx context.Context) (err error) {
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer l.Close()
	a, err := b.startAgent(ctx, "--zombie-silence=2s", fmt.Sprint("--zombie-unanswered=", unanswered))
	if err != nil {
		return err
	}
	defer a.stop()
	addr := netip.AddrPortFrom(l.Server.Addr4(), benchPort)
	ln, err := l.Server.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	for range zombies {
		c, err := l.Client.Dial(ctx, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		accepted, err := ln.AcceptTCP()
		if err != nil {
			return err
		}
		defer accepted.Close()
		if err := lab.SetKeepalive(c, time.Second, time.Second, 9); err != nil {
			return err
		}
		time.Sleep(9 * time.Millisecond) // so that the probes do not leave all at the same time
	}
	tap, err := listen(l.Client, addr)
	if err != nil {
		return err
	}
	defer tap.close()
	if _, err := l.Client.Drop(lab.Rule{Port: addr.Port(), Direction: lab.In, Percent: 100}); err != nil {
		return err
	}
	cut := time.Now()

	var shown []time.Time // the time at which each zombie first appeared
	for len(shown) < zombies {
		n, err := a.zombies()
		if err != nil {
			return err
		}
		for now := time.Now(); len(shown) < min(n, zombies); {
			shown = append(shown, now)
		}
		if time.Since(cut) > 20*time.Second || ctx.Err() != nil {
			return fmt.Errorf("only %d of %d zombies were found", len(shown), zombies)
		}
		time.Sleep(10 * time.Millisecond)
	}
	decided, err := tap.nth(unanswered, cut)
	if err != nil {
		return err
	}
	var took sample
	for i := range shown {
		took = append(took, shown[i].Sub(decided[i]).Seconds()*1e3)
	}
	b.add(row{
		what: "from the deciding probe to the verdict shown", bar: "≤ 100 ms at the median, ≤ 1 s at the worst",
		measured: fmt.Sprintf("%.0f ms, worst %.0f ms", took.median(), took.quantile(1)),
		met:      met(took.median() <= 100 && took.quantile(1) <= 1000),
		how:      fmt.Sprintf("%d connections; a packet socket records when each connection's third probe leaves; /metrics, read every 10 ms, gives the number of zombies (a scrape does not make the agent read connections)", zombies),
	})
	return nil
}

// A tap records the packets that leave the link of a namespace.
type tap struct {
	fd   int
	done chan struct{}
	mu   sync.Mutex
	seen map[uint16][]time.Time // by source port
	err  error
}

// listen starts to record when packets to that address leave.
func listen(ns *lab.Namespace, to netip.AddrPort) (*tap, error) {
	t := &tap{fd: -1, done: make(chan struct{}), seen: make(map[uint16][]time.Time)}
	err := ns.Do(func() (err error) {
		t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(hton(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := errors.Join(unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})); err != nil {
		unix.Close(t.fd)
		return nil, fmt.Errorf("set up packet socket: %w", err)
	}
	go t.read(to)
	return t, nil
}

func hton(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

func (t *tap) read(to netip.AddrPort) {
	packet, control := make([]byte, 128), make([]byte, 64)
	for {
		n, nc, _, from, err := unix.Recvmsg(t.fd, packet, control, 0)
		select {
		case <-t.done:
			unix.Close(t.fd)
			return
		default:
		}
		switch link, ok := from.(*unix.SockaddrLinklayer); {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			t.mu.Lock()
			t.err = err
			t.mu.Unlock()
			return
		case !ok || link.Pkttype != unix.PACKET_OUTGOING || n < 40 || packet[0] != 0x45 || packet[9] != unix.IPPROTO_TCP:
			continue
		}
		if addr, _ := netip.AddrFromSlice(packet[16:20]); addr != to.Addr() || binary.BigEndian.Uint16(packet[22:]) != to.Port() {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(control[:nc])
		if err != nil || len(messages) != 1 || len(messages[0].Data) < int(unsafe.Sizeof(unix.Timespec{})) {
			continue
		}
		at := *(*unix.Timespec)(unsafe.Pointer(unsafe.SliceData(messages[0].Data)))
		port := binary.BigEndian.Uint16(packet[20:])
		t.mu.Lock()
		t.seen[port] = append(t.seen[port], time.Unix(at.Unix()))
		t.mu.Unlock()
	}
}

// nth returns when each source port sent its nth packet after since, in order of time.
func (t *tap) nth(n int, since time.Time) ([]time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var times []time.Time
	for _, seen := range t.seen {
		seen = slices.DeleteFunc(slices.Clone(seen), func(at time.Time) bool { return at.Before(since) })
		if len(seen) >= n {
			times = append(times, seen[n-1])
		}
	}
	if len(times) != zombies || t.err != nil {
		return nil, fmt.Errorf("only %d connections have sent %d probes, want %d: %w", len(times), n, zombies, t.err)
	}
	slices.SortFunc(times, time.Time.Compare)
	return times, nil
}

func (t *tap) close() { close(t.done) }
