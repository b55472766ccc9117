// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// agent is a running `halfopen agent`.
type agent struct {
	cmd   *exec.Cmd
	url   string
	log   bytes.Buffer
	ready time.Duration // from its start
}

// readyWithin is the longest time that an agent may take to be ready.
const readyWithin = time.Minute

// startAgent starts an agent and returns when it is ready.
func (b *bench) startAgent(ctx context.Context, flags ...string) (*agent, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	a := &agent{url: "http://" + addr}
	a.cmd = exec.Command(b.halfopen, append([]string{"agent", "--web.listen-address=" + addr, "--web.socket=none", "--web.lookup-cpu=100%"}, flags...)...)
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	a.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // Ctrl-C must reach only this program
	began := time.Now()
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	for time.Since(began) < readyWithin && ctx.Err() == nil {
		if _, err := a.get("/-/ready"); err == nil {
			a.ready = time.Since(began)
			return a, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	a.stop()
	return nil, fmt.Errorf("the agent is not ready: %s", &a.log)
}

func (a *agent) stop() {
	_ = a.cmd.Process.Signal(unix.SIGTERM)
	late := time.AfterFunc(10*time.Second, func() { _ = a.cmd.Process.Kill() })
	_ = a.cmd.Wait()
	late.Stop()
}

func (a *agent) get(path string) ([]byte, error) {
	var body bytes.Buffer
	err := a.getInto(&body, path)
	return body.Bytes(), err
}

func (a *agent) getInto(w io.Writer, path string) error {
	resp, err := http.Get(a.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return err
}

// benchPort is the remote port of the zombies that this program makes, so that they can
// be counted apart from other zombies of the node. It is below the range of client ports.
const benchPort = 15432

// zombies returns the number of zombies with remote port benchPort, from /metrics. Unlike
// a query for connections, a scrape does not make the agent read any connection.
func (a *agent) zombies() (int, error) {
	n, err := a.metric("tcp_zombies_by_owner{", fmt.Sprintf("remote_port=%q", fmt.Sprint(benchPort)))
	return int(n), err
}

// metric returns the sum of the series whose lines begin with halfopen_ and that name, and
// have that label.
func (a *agent) metric(name, label string) (sum float64, err error) {
	body, err := a.get("/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if !strings.HasPrefix(line, "halfopen_"+name) || !strings.Contains(line, label) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			return 0, err
		}
		sum += value
	}
	return sum, nil
}

// cpu returns the CPU time of the agent's process so far. It does not include the time
// that the agent's BPF programs take from other processes.
func (a *agent) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var user, system time.Duration // in ticks of USER_HZ, which is 100 everywhere
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, err
	}
	return (user + system) * 10 * time.Millisecond, nil
}

// peak returns the largest resident size of the process so far, in bytes.
func (a *agent) peak() (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return sumOf(f, "VmHWM:", 1024)
}

// maps returns the kernel memory of the maps of the agent's BPF programs, in bytes.
func (a *agent) maps() (total int64, err error) {
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	seen := make(map[int64]bool)
	for _, name := range infos {
		info, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(info, []byte("map_type:")) {
			continue
		}
		id, err := sumOf(bytes.NewReader(info), "map_id:", 1)
		if err != nil || seen[id] {
			continue
		}
		seen[id] = true
		n, err := sumOf(bytes.NewReader(info), "memlock:", 1)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// sumOf returns the sum of the numbers in the lines that begin with key, each times unit.
func sumOf(r io.Reader, key string, unit int64) (sum int64, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), key); ok {
			var n int64
			if _, err := fmt.Sscan(rest, &n); err != nil {
				return 0, err
			}
			sum += n * unit
		}
	}
	return sum, lines.Err()
}
