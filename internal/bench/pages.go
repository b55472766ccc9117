// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

const (
	pageCount   = 50
	pageSockets = 10_000
	pageZombies = 500
	pageSeconds = 45
)

// pages measures the CPU time of the agent on a node with many zombies: without live pages
// and scrapes, then with many live pages open and a scrape each second.
func (b *bench) pages(ctx context.Context) (err error) {
	c, err := newCrowd()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.grow(ctx, pageSockets-2*pageZombies); err != nil {
		return err
	}
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer l.Close()
	conns, closeAll, err := connectPageZombies(ctx, l)
	defer closeAll()
	if err != nil {
		return err
	}
	a, err := b.startAgent(ctx)
	if err != nil {
		return err
	}
	defer a.stop()
	if err := silence(l, conns); err != nil {
		return err
	}
	if err := a.awaitZombies(ctx, pageZombies); err != nil {
		return err
	}

	seconds := pageSeconds * time.Second
	if b.quick {
		seconds = 10 * time.Second
	}
	without, err := a.cpuPercent(ctx, seconds, func() error { return nil })
	if err != nil {
		return err
	}
	with, got, err := a.cpuPercentWithPages(ctx, seconds)
	if err != nil {
		return err
	}
	peak, err := a.peak()
	if err != nil {
		return err
	}
	perPage := float64(got) / pageCount / seconds.Seconds()
	b.add(row{
		what: fmt.Sprintf("%d live pages open, and a scrape every second", pageCount), bar: "< 2 % of a core",
		measured: fmt.Sprintf("%.2f %%", with-without), met: met(with-without < 2),
		how: fmt.Sprintf("%d connections, %d of them zombies: half with data in flight, half with a keepalive probe every 10 s; CPU time of the process in %v: %.2f %% of a core, and %.2f %% without pages and scrapes; each page receives %.1f kB/s; at most %.1f MB resident",
			pageSockets, pageZombies, seconds, with, without, perPage/1e3, float64(peak)/1e6),
	})
	return nil
}

// connectPageZombies makes the connections that will become zombies, and returns the
// clients' ends. closeAll closes both ends and the listener; call it even after an error.
func connectPageZombies(ctx context.Context, l *lab.Lab) (conns []*net.TCPConn, closeAll func(), err error) {
	var open []io.Closer
	closeAll = func() {
		for _, c := range open {
			c.Close()
		}
	}
	addr := netip.AddrPortFrom(l.Server.Addr4(), benchPort)
	ln, err := l.Server.Listen("tcp", addr)
	if err != nil {
		return nil, closeAll, err
	}
	open = append(open, ln)
	for range pageZombies {
		conn, err := l.Client.Dial(ctx, addr)
		if err != nil {
			return nil, closeAll, err
		}
		open = append(open, conn)
		accepted, err := ln.AcceptTCP()
		if err != nil {
			return nil, closeAll, err
		}
		open = append(open, accepted)
		if err := lab.SetKeepalive(conn, 2*time.Second, 10*time.Second, 60); err != nil {
			return nil, closeAll, err
		}
		conns = append(conns, conn)
		time.Sleep(4 * time.Millisecond) // so that the probes do not leave all at the same time
	}
	return conns, closeAll, nil
}

// silence drops all packets from the server, and sends data from half of the clients.
func silence(l *lab.Lab, conns []*net.TCPConn) error {
	if _, err := l.Client.Drop(lab.Rule{Port: benchPort, Direction: lab.In, Percent: 100}); err != nil {
		return err
	}
	for i, conn := range conns {
		if i%2 == 0 {
			if _, err := conn.Write([]byte("anybody there?")); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitZombies waits until the agent counts at least want zombies, for a minute at most.
func (a *agent) awaitZombies(ctx context.Context, want int) error {
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		n, err := a.zombies()
		if err != nil {
			return err
		}
		if n >= want {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Since(began) > 60*time.Second {
			return fmt.Errorf("the agent found only %d of %d zombies", n, want)
		}
	}
}

// cpuPercent measures the agent's process for that time, and returns its CPU time in
// percent of a core. It calls meanwhile once every second.
func (a *agent) cpuPercent(ctx context.Context, length time.Duration, meanwhile func() error) (float64, error) {
	before, err := a.cpu()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for time.Since(began) < length && ctx.Err() == nil {
		if err := meanwhile(); err != nil {
			return 0, err
		}
		time.Sleep(time.Until(began.Add(time.Since(began).Truncate(time.Second) + time.Second)))
	}
	after, err := a.cpu()
	return 100 * (after - before).Seconds() / time.Since(began).Seconds(), errors.Join(err, ctx.Err())
}

// cpuPercentWithPages is cpuPercent with all pages open and a scrape every second. It also
// returns the number of bytes that the pages received.
func (a *agent) cpuPercentWithPages(ctx context.Context, length time.Duration) (percent float64, bytes int64, err error) {
	streams, stop := context.WithCancel(ctx)
	var got atomic.Int64
	var open sync.WaitGroup
	defer open.Wait()
	defer stop()
	failed := make(chan error, pageCount)
	for range pageCount {
		open.Go(func() {
			if err := a.readStream(streams, &got); streams.Err() == nil {
				failed <- fmt.Errorf("a page lost its stream: %w", err)
			}
		})
	}
	time.Sleep(3 * time.Second) // until all pages have received their first frame
	before := got.Load()
	percent, err = a.cpuPercent(ctx, length, func() error {
		select {
		case err := <-failed:
			return err
		default:
		}
		_, err := a.get("/metrics")
		return err
	})
	return percent, got.Load() - before, err
}

// readStream reads the stream of a live page until the context ends, and adds the number
// of bytes to got.
func (a *agent) readStream(ctx context.Context, got *atomic.Int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+"/api/v1/stream?event=summary&event=history&event=rows&event=death", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(buf)
		got.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return errors.New("the agent closed the stream")
		}
		if err != nil {
			return err
		}
	}
}
