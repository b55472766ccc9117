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
	pages       = 50
	pageSockets = 10_000
	pageZombies = 500
	pageSeconds = 45
)

// pages measures what the agent takes of a core while many live pages are open, and
// it is scraped each second, on a node with many zombies; and without any of that.
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
	addr := netip.AddrPortFrom(l.Server.Addr4(), 5432)
	ln, err := l.Server.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	var conns []*net.TCPConn
	for range pageZombies {
		conn, err := l.Client.Dial(ctx, addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		accepted, err := ln.AcceptTCP()
		if err != nil {
			return err
		}
		defer accepted.Close()
		if err := lab.SetKeepalive(conn, 2*time.Second, 10*time.Second, 60); err != nil {
			return err
		}
		conns = append(conns, conn)
		time.Sleep(4 * time.Millisecond) // not all in the same instant
	}
	a, err := b.startAgent(ctx)
	if err != nil {
		return err
	}
	defer a.stop()
	if _, err := l.Client.Drop(lab.Rule{Port: addr.Port(), Direction: lab.In, Percent: 100}); err != nil {
		return err
	}
	for i, conn := range conns { // half of them have data in flight
		if i%2 == 0 {
			if _, err := conn.Write([]byte("anybody there?")); err != nil {
				return err
			}
		}
	}
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		n, err := a.zombies()
		if err != nil {
			return err
		}
		if n >= pageZombies {
			break
		}
		if time.Since(began) > 60*time.Second || ctx.Err() != nil {
			return fmt.Errorf("only %d of %d zombies were found", n, pageZombies)
		}
	}

	seconds := pageSeconds * time.Second
	if b.quick {
		seconds = 10 * time.Second
	}
	share := func(meanwhile func() error) (float64, error) {
		before, err := a.cpu()
		if err != nil {
			return 0, err
		}
		began := time.Now()
		for time.Since(began) < seconds && ctx.Err() == nil {
			if err := meanwhile(); err != nil {
				return 0, err
			}
			time.Sleep(time.Until(began.Add(time.Since(began).Truncate(time.Second) + time.Second)))
		}
		after, err := a.cpu()
		return 100 * (after - before).Seconds() / time.Since(began).Seconds(), errors.Join(err, ctx.Err())
	}
	without, err := share(func() error { return nil })
	if err != nil {
		return err
	}
	streams, stop := context.WithCancel(ctx)
	defer stop()
	var got atomic.Int64
	var open sync.WaitGroup
	failed := make(chan error, pages)
	for range pages {
		open.Go(func() {
			if err := a.view(streams, &got); streams.Err() == nil {
				failed <- fmt.Errorf("a page lost its stream: %w", err)
			}
		})
	}
	time.Sleep(3 * time.Second) // until all have begun
	before := got.Load()
	with, err := share(func() error {
		select {
		case err := <-failed:
			return err
		default:
		}
		_, err := a.get("/metrics")
		return err
	})
	each := float64(got.Load()-before) / pages / seconds.Seconds()
	stop()
	open.Wait()
	if err != nil {
		return err
	}
	peak, err := a.peak()
	if err != nil {
		return err
	}
	b.add(row{
		what: fmt.Sprintf("%d live pages open, and a scrape each second", pages), bar: "< 2 % of a core",
		measured: fmt.Sprintf("%.2f %%", with-without), met: met(with-without < 2),
		how: fmt.Sprintf("%d connections, %d of them zombies: half with data in flight, half with a keepalive probe each 10 s; CPU time of the process in %v: %.2f %% of a core, and %.2f %% without pages and scrapes; each page is sent %.1f kB/s; at most %.1f MB resident",
			pageSockets, pageZombies, seconds, with, without, each/1e3, float64(peak)/1e6),
	})
	return nil
}

// view takes what a live page takes, until the context ends.
func (a *agent) view(ctx context.Context, got *atomic.Int64) error {
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
			return errors.New("it ended")
		}
		if err != nil {
			return err
		}
	}
}
