// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/internal/lab"
)

const (
	httpAddr     = "127.0.0.1:8080"
	httpRounds   = 801
	httpWindow   = 40 * time.Millisecond
	httpSettle   = 20 * time.Millisecond // after something was attached or detached
	idleEvery    = 10                    // the rounds with the arm that is only for comparison
	agentSeconds = 20
)

const nginxConf = `
daemon off;
worker_processes auto;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	keepalive_requests 1000000000;
	server { listen ` + httpAddr + ` backlog=4096; return 200 "ok\n"; }
}
`

// http measures what nginx serves with the agent, without, and with programs in
// its place that do nothing.
func (b *bench) http(ctx context.Context) error {
	ns, err := lab.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	conf := filepath.Join(b.tmp, "nginx.conf")
	if err := os.WriteFile(conf, []byte(nginxConf), 0o644); err != nil {
		return err
	}
	var log bytes.Buffer
	nginx := exec.Command("nginx", "-p", b.tmp, "-e", "stderr", "-c", conf)
	nginx.Stderr = &log
	if err := ns.Start(nginx); err != nil {
		return err
	}
	defer func() {
		_ = nginx.Process.Signal(unix.SIGTERM) // to its workers, too
		_ = nginx.Wait()
	}()
	if err := reachable(ns, httpAddr); err != nil {
		return fmt.Errorf("nginx: %w: %s", err, &log)
	}

	k, err := bpf.Load(bpf.Options{Observe: true, IdleBounds: collector.IdleBounds})
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.Detach(); err != nil {
		return err
	}
	observe, programs, err := observeNothing()
	if err != nil {
		return err
	}
	defer programs.Close()
	arms := []arm{
		{"off", 1, func() (func() error, error) { return func() error { return nil }, nil }},
		{"on", 1, func() (func() error, error) { return k.Detach, k.Attach() }},
		{"idle", idleEvery, observe},
	}
	for _, load := range []struct {
		what, header string
		bar          float64
	}{
		{"connection churn: HTTP, a connection for each request", "Connection: close", 0.98},
		{"keep-alive HTTP", "Connection: keep-alive", 0.99},
	} {
		rates, err := b.underLoad(ctx, ns, load.header, arms)
		if err != nil {
			return err
		}
		share, err := b.agentUnderLoad(ctx, ns, load.header)
		if err != nil {
			return err
		}
		// What the process takes of the cores, the load does not get.
		process := share / float64(runtime.NumCPU())
		kept := rates["on"].over(rates["off"])
		for i := range kept {
			kept[i] *= 1 - process
		}
		b.add(row{
			what: load.what, bar: fmt.Sprintf("≥ %.2f of the throughput without the agent", load.bar),
			measured: kept.String(), met: kept.atLeast(load.bar),
			how: fmt.Sprintf("%d rounds of two pairs of %v, programs attached and not, under one load that leaves no core idle; nginx and wrk on loopback, so that the agent sees both ends; without: %.0f requests/s; "+
				"less the %.2f %% of the cores that the agent's process takes meanwhile", len(kept), httpWindow, rates["off"].median(), 100*process),
		})
		b.add(row{
			what: "…, programs that do nothing instead of the agent", bar: "none: what the kernel charges for any",
			measured: rates["idle"].over(every(rates["off"], idleEvery)).String(),
			how:      fmt.Sprintf("each %dth of the rounds; one program on each of the agent's tracepoints", idleEvery),
		})
	}
	return nil
}

// An arm is what is attached while the load goes on, in every so many rounds.
type arm struct {
	name  string
	every int
	start func() (stop func() error, err error)
}

// every is each nth, from the first on.
func every(s sample, n int) (some sample) {
	for i := 0; i < len(s); i += n {
		some = append(some, s[i])
	}
	return some
}

// underLoad returns how many requests a second were answered in each round, by
// arm. The load never stops: there is nothing to warm up, and what else the machine
// does changes little from one window to the next. It changes the less the shorter
// they are: for the same time in all, many short ones tell more than few long ones.
// Each round goes through the arms forth and back, so that what drifts meanwhile
// cancels out.
func (b *bench) underLoad(ctx context.Context, ns *lab.Namespace, header string, arms []arm) (rates map[string]sample, err error) {
	stop, err := wrk(ns, header)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	time.Sleep(time.Second)
	rates = make(map[string]sample)
	for round := range b.rounds(httpRounds) {
		sum := make(map[string]float64)
		var turn []arm
		for _, arm := range arms {
			if round%arm.every == 0 {
				turn = append(turn, arm)
			}
		}
		for i := range 2 * len(turn) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			arm := turn[(round+min(i, 2*len(turn)-1-i))%len(turn)]
			detach, err := arm.start()
			if err != nil {
				return nil, err
			}
			time.Sleep(httpSettle)
			rate, err := rate(ns, httpWindow)
			if err = errors.Join(err, detach()); err != nil {
				return nil, err
			}
			sum[arm.name] += rate
		}
		for name, both := range sum {
			rates[name] = append(rates[name], both/2)
		}
	}
	return rates, nil
}

// rate returns how many requests a second are answered: the kernel counts the
// segments with data, of which each takes two.
func rate(ns *lab.Namespace, window time.Duration) (float64, error) {
	read := func() (int, time.Time, error) {
		counters, err := ns.Netstat()
		return counters["TcpExtTCPOrigDataSent"], time.Now(), err
	}
	before, began, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(window)
	after, ended, err := read()
	if err == nil && after == before {
		err = errors.New("no request was answered")
	}
	return float64(after-before) / 2 / ended.Sub(began).Seconds(), err
}

// agentUnderLoad returns how much of a core the agent's process takes.
func (b *bench) agentUnderLoad(ctx context.Context, ns *lab.Namespace, header string) (share float64, err error) {
	stop, err := wrk(ns, header)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	a, err := b.startAgent(ctx)
	if err != nil {
		return 0, err
	}
	defer a.stop()
	before, err := a.cpu()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-time.After(agentSeconds * time.Second):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := a.cpu()
	return (after - before).Seconds() / time.Since(began).Seconds(), err
}

func reachable(ns *lab.Namespace, addr string) error {
	return ns.Do(func() (err error) {
		for range 100 {
			var c net.Conn
			if c, err = net.Dial("tcp", addr); err == nil {
				return c.Close()
			}
			time.Sleep(20 * time.Millisecond)
		}
		return err
	})
}

var wrkErrors = regexp.MustCompile(`Socket errors:.*|Non-2xx.*`)

// wrk loads nginx until it is stopped.
func wrk(ns *lab.Namespace, header string) (stop func() error, err error) {
	var out bytes.Buffer
	threads := runtime.NumCPU()
	cmd := exec.Command("wrk", fmt.Sprintf("-t%d", threads), fmt.Sprintf("-c%d", 32*threads), fmt.Sprintf("-d%.0fs", limit.Seconds()), "-H", header, "http://"+httpAddr+"/")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Start(cmd); err != nil {
		return nil, err
	}
	return func() error {
		_ = cmd.Process.Signal(unix.SIGINT) // it sums up
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		err := cmd.Wait()
		if e := wrkErrors.Find(out.Bytes()); e != nil {
			return fmt.Errorf("wrk: %s", e)
		}
		if err != nil {
			return fmt.Errorf("wrk: %w: %s", err, &out)
		}
		return nil
	}, nil
}
