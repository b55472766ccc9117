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

// startAgent returns once the agent is ready.
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
	a.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	began := time.Now()
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	for time.Since(began) < 20*time.Second && ctx.Err() == nil {
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

// benchPort is the port of the services whose clients become zombies. Other zombies of
// the node, which come and go, have other ports. It is below those of clients.
const benchPort = 15432

// zombies returns how many zombies to benchPort the metrics count. Unlike a query for
// connections, a scrape makes the agent read none.
func (a *agent) zombies() (int, error) {
	body, err := a.get("/metrics")
	if err != nil {
		return 0, err
	}
	total := 0
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "halfopen_tcp_zombies_by_owner{") && strings.Contains(line, fmt.Sprintf("remote_port=%q", fmt.Sprint(benchPort))) {
			var n int
			if _, err := fmt.Sscan(line[strings.LastIndex(line, "}")+1:], &n); err != nil {
				return 0, err
			}
			total += n
		}
	}
	return total, nil
}

// cpu is the time that the process has had of a core. What its programs in the
// kernel take of other processes' time is not in it.
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

// peak is the most bytes that were resident so far.
func (a *agent) peak() (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return sumOf(f, "VmHWM:", 1024)
}

// maps is what the maps of its programs take in the kernel.
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

// sumOf adds up the numbers of the lines that begin with key.
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
