// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/lab"
)

// forecasts is how many connections die of each cause.
const forecasts = 101

// forecast measures how many connections die when the agent has forecast it: by keepalive,
// by retransmissions and by TCP_USER_TIMEOUT.
func (b *bench) forecast(ctx context.Context) error {
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Client.Sysctl("net.ipv4.tcp_retries2", "5"); err != nil {
		return err
	}
	a, err := b.startAgent(ctx)
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
	var sending []*net.TCPConn
	for i := range 3 * forecasts {
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
		switch i % 3 {
		case 0:
			err = lab.SetKeepalive(c, 2*time.Second, time.Second, 7)
		case 1:
			err = lab.SetUserTimeout(c, 5*time.Second)
		}
		if err != nil {
			return err
		}
		if i%3 > 0 {
			sending = append(sending, c)
		}
		time.Sleep(9 * time.Millisecond) // not all in the same instant
	}
	if _, err := l.Client.Drop(lab.Rule{Port: benchPort, Direction: lab.In, Percent: 100}); err != nil {
		return err
	}
	for _, c := range sending {
		if _, err := io.WriteString(c, "anybody there?"); err != nil {
			return err
		}
	}
	deaths, err := a.awaitDeaths(ctx, addr, 3*forecasts)
	if err != nil {
		return err
	}
	inside, worst := 0, 0.0
	for _, d := range deaths {
		if d.ForecastErrorSeconds == nil {
			continue
		}
		if *d.ForecastErrorSeconds == 0 {
			inside++
		}
		worst = max(worst, *d.ForecastErrorSeconds, -*d.ForecastErrorSeconds)
	}
	share := 100 * float64(inside) / float64(len(deaths))
	b.add(row{
		what: "the kernel's time of death inside the forecast", bar: "≥ 99 %", measured: fmt.Sprintf("%.1f %%", share), met: met(share >= 99),
		how: fmt.Sprintf("%d connections, a third each by keepalive, TCP_USER_TIMEOUT and retransmissions; the worst was %.0f ms beside it", len(deaths), worst*1e3),
	})
	return nil
}

// awaitDeaths waits until so many connections to that address have died, and returns their
// deaths.
func (a *agent) awaitDeaths(ctx context.Context, to netip.AddrPort, want int) (found []api.Death, err error) {
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		body, err := a.get("/api/v1/deaths?limit=10000")
		if err != nil {
			return nil, err
		}
		var doc api.Deaths
		if err := json.Unmarshal(body, &doc); err != nil {
			return nil, err
		}
		found = found[:0]
		for _, d := range doc.Deaths {
			if d.Remote.IP == to.Addr().String() && d.Remote.Port == to.Port() {
				found = append(found, d)
			}
		}
		if err := ctx.Err(); err != nil || len(found) >= want {
			return found, err
		}
		if time.Since(began) > 2*time.Minute {
			return nil, fmt.Errorf("only %d of %d connections have died", len(found), want)
		}
	}
}
