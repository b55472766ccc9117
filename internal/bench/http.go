// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

const (
	httpAddr    = "127.0.0.1:8080"
	httpSeconds = 2 // of load, each time
	httpRounds  = 11
)

const nginxConf = `
daemon off;
master_process off;
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
		_ = nginx.Process.Kill()
		_ = nginx.Wait()
	}()
	if err := reachable(ns, httpAddr); err != nil {
		return fmt.Errorf("nginx: %w: %s", err, &log)
	}

	nothing := func() (func(), error) { return func() {}, nil }
	withAgent := func() (func(), error) {
		a, err := b.startAgent(ctx)
		if err != nil {
			return nil, err
		}
		return a.stop, nil
	}
	arms := []struct {
		name  string
		start func() (stop func(), err error)
	}{{"off", nothing}, {"idle", observeNothing}, {"on", withAgent}}
	for _, load := range []struct {
		what, header string
		bar          float64
	}{
		{"connection churn: HTTP, a connection for each request", "Connection: close", 0.97},
		{"keep-alive HTTP", "Connection: keep-alive", 0.99},
	} {
		rates := make(map[string]sample)
		if _, err := wrk(ns, load.header); err != nil { // to warm up
			return err
		}
		for round := range b.rounds(httpRounds) {
			for i := range arms {
				if err := ctx.Err(); err != nil {
					return err
				}
				arm := arms[(round+i)%len(arms)]
				stop, err := arm.start()
				if err != nil {
					return err
				}
				rate, err := wrk(ns, load.header)
				stop()
				if err != nil {
					return err
				}
				rates[arm.name] = append(rates[arm.name], rate)
			}
		}
		kept := rates["on"].over(rates["off"])
		b.add(row{
			what: load.what, bar: fmt.Sprintf("≥ %.2f of the throughput without the agent", load.bar),
			measured: kept.String(), met: kept.atLeast(load.bar),
			how: fmt.Sprintf("%d rounds of %d s; nginx and wrk on loopback, so that the agent sees both ends; without: %.0f requests/s", len(kept), httpSeconds, rates["off"].median()),
		})
		b.add(row{
			what: "…, programs that do nothing instead of the agent", bar: "none: what the kernel charges for any",
			measured: rates["idle"].over(rates["off"]).String(),
			how:      "same rounds; one program on each of the agent's tracepoints",
		})
	}
	return nil
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

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkErrors = regexp.MustCompile(`Socket errors:.*|Non-2xx.*`)
)

// wrk returns how many requests a second were answered.
func wrk(ns *lab.Namespace, header string) (float64, error) {
	out, err := ns.Output("wrk", "-t1", "-c32", "-d"+strconv.Itoa(httpSeconds)+"s", "-H", header, "http://"+httpAddr+"/")
	if err != nil {
		return 0, err
	}
	if e := wrkErrors.Find(out); e != nil {
		return 0, fmt.Errorf("wrk: %s", e)
	}
	m := wrkRate.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk said %q", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
