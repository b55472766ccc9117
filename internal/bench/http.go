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
	httpSettle   = 20 * time.Millisecond // after programs were attached or detached
	idleEvery    = 10                    // every so many rounds measure the idle arm, which is only for comparison
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

// http measures the throughput of nginx with the agent's programs, without programs, and
// with empty programs in their place.
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
		_ = nginx.Process.Signal(unix.SIGTERM) // nginx passes it on to its workers
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
		// The load cannot use the CPU time that the agent's process takes.
		process := share / float64(runtime.NumCPU())
		kept := rates["on"].over(rates["off"])
		for i := range kept {
			kept[i] *= 1 - process
		}
		b.add(row{
			what: load.what, bar: fmt.Sprintf("≥ %.2f of the throughput without the agent", load.bar),
			measured: kept.String(), met: kept.atLeast(load.bar),
			how: fmt.Sprintf("%d rounds; each compares two windows of %v with the programs attached to two without, while a load keeps all cores busy; nginx and wrk use loopback, so the agent sees both ends; without the agent: %.0f requests/s; "+
				"the %.2f %% of the cores that the agent's process takes is deducted", len(kept), httpWindow, rates["off"].median(), 100*process),
		})
		b.add(row{
			what: "…, empty programs instead of the agent's", bar: "none; the kernel's cost of any programs",
			measured: rates["idle"].over(every(rates["off"], idleEvery)).String(),
			how:      fmt.Sprintf("every %dth round; one empty program on each of the agent's tracepoints", idleEvery),
		})
	}
	return nil
}

// An arm is one of the compared cases: the programs that are attached in a window, and how often.
type arm struct {
	name  string
	every int
	start func() (stop func() error, err error)
}

// every returns each nth sample, from the first on.
func every(s sample, n int) (some sample) {
	for i := 0; i < len(s); i += n {
		some = append(some, s[i])
	}
	return some
}

// underLoad returns the requests answered per second, for each arm in each round. The
// load never stops, so no window needs a warm-up. Other work of the machine changes
// little from one window to the next, and the less the shorter the windows are: in the
// same total time, many short windows give a more exact result than few long ones. Each
// round visits the arms in order and then in reverse, so that a steady drift cancels out.
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

// rate returns the requests answered per second. It derives them from the kernel's counter
// of sent segments with data: each request takes two.
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

// agentUnderLoad returns the share of a core that the agent's process takes under the load.
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

// wrk puts load on nginx until it is stopped.
func wrk(ns *lab.Namespace, header string) (stop func() error, err error) {
	var out bytes.Buffer
	threads := runtime.NumCPU()
	cmd := exec.Command("wrk", fmt.Sprintf("-t%d", threads), fmt.Sprintf("-c%d", 32*threads), fmt.Sprintf("-d%.0fs", limit.Seconds()), "-H", header, "http://"+httpAddr+"/")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Start(cmd); err != nil {
		return nil, err
	}
	return func() error {
		_ = cmd.Process.Signal(unix.SIGINT) // wrk then prints its summary
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
