// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/lab"
)

// ends has the two ends of a connection, which has its own lab.
type ends struct {
	*lab.Lab
	collector      *collector.Collector
	told           *collector.Subscription
	client, server *net.TCPConn
}

// histories are recorded all at the same time.
var histories = []history{
	{name: "keepalive", held: true, live: func(ctx context.Context, e *ends) error {
		if err := errors.Join(lab.SetKeepalive(e.client, time.Second, time.Second, 4), e.cut()); err != nil {
			return err
		}
		return e.death(ctx, conn.CauseKeepaliveTimeout)
	}},
	{name: "user-timeout", held: true, live: func(ctx context.Context, e *ends) error {
		if err := errors.Join(lab.SetUserTimeout(e.client, 5*time.Second), e.cut(), e.write()); err != nil {
			return err
		}
		return e.death(ctx, conn.CauseUserTimeout)
	}},
	{name: "retransmit", held: true, live: func(ctx context.Context, e *ends) error {
		if err := errors.Join(e.Client.Sysctl("net.ipv4.tcp_retries2", "4"), e.cut(), e.write()); err != nil {
			return err
		}
		return e.death(ctx, conn.CauseRetransmitTimeout)
	}},
	{name: "recovery", live: func(ctx context.Context, e *ends) error {
		restore, err := e.Client.Drop(cut)
		if err := errors.Join(err, lab.SetKeepalive(e.client, time.Second, time.Second, 60)); err != nil {
			return err
		}
		if err := e.verdict(ctx, conn.Zombie); err != nil {
			return err
		}
		if err := restore(); err != nil {
			return err
		}
		return e.verdict(ctx, conn.Active)
	}},
	{name: "closed-window", live: func(ctx context.Context, e *ends) error {
		if err := e.fill(); err != nil {
			return err
		}
		if err := e.verdict(ctx, conn.Stalled); err != nil {
			return err
		}
		reading := e.drain()
		defer reading.Wait()
		defer e.client.Close()
		return e.verdict(ctx, conn.Active)
	}},
	{name: "orphan", live: func(ctx context.Context, e *ends) error {
		if err := errors.Join(e.Client.Sysctl("net.ipv4.tcp_orphan_retries", "4"), e.cut(), e.write(), e.client.Close()); err != nil {
			return err
		}
		return e.death(ctx, conn.CauseOrphanTimeout)
	}},
	{name: "reset", held: true, live: func(ctx context.Context, e *ends) error {
		if err := errors.Join(e.server.SetLinger(0), e.server.Close()); err != nil {
			return err
		}
		return e.death(ctx, conn.CauseResetByPeer)
	}},
}

// cut loses all packets from now on.
func (e *ends) cut() error {
	_, err := e.Client.Drop(cut)
	return err
}

func (e *ends) write() error {
	_, err := e.client.Write([]byte("is anybody there?"))
	return err
}
