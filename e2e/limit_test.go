// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// idleClients is the number of connections that send no request, and maxResident the
// memory, in bytes, that the agent may take with them.
const (
	idleClients = 3000
	maxResident = 100 << 20
)

// Three thousand clients that hold connections, in all the ways in which a client can,
// cost the agent little, keep no scrape out that comes from the same address, and take
// no descriptor that a pass over the kernel's sockets needs.
func TestIdleClientsKeepNobodyOut(t *testing.T) { // not parallel: it looks at the memory
	for _, tc := range []struct {
		name, limit string
		bound       int
	}{{"as many descriptors as there are", "", 512}, {"1024 descriptors", "ulimit -n 1024 && ", 256}} {
		t.Run(tc.name, func(t *testing.T) {
			addr := freeAddr(t)
			a := stopAtCleanup(t, launchCommand(t, addr, exec.Command("sh", "-c", tc.limit+`exec "$@"`, "sh",
				binary, "agent", "--web.listen-address="+addr, "--census-interval=1s", "--census-cpu=50%")))
			count := scaled(idleClients)
			for i := range count {
				holdConnection(t, addr, i)
			}
			pid := a.cmd.Process.Pid
			for _, path := range []string{"/metrics", "/", "/api/v1/connections"} {
				began := time.Now()
				if err := ask(a.url + path); err != nil {
					t.Errorf("%s with %d idle clients: %v", path, count, err)
				}
				took := time.Since(began)
				t.Logf("%s with %d idle clients took %v", path, count, took)
				if took > 10*patience*time.Second {
					t.Errorf("%s took %v", path, took)
				}
			}
			censuses, last := 0, 0.0
			throughout(t.Context(), 10*patience*time.Second, func() {
				for i := range max(count/100, 1) { // they do not give up
					holdConnection(t, addr, i)
				}
				if at := a.metrics().value("halfopen_census_timestamp_seconds"); at > last {
					last, censuses = at, censuses+1
				}
			})
			if censuses < 3 {
				t.Errorf("%d censuses", censuses)
			}
			m := a.metrics()
			if n := m.value("halfopen_events_lost_total", "type", "pass_failed"); n > 0 {
				t.Errorf("%v passes failed", n)
			}
			if n := m.value("halfopen_http_connections"); n > float64(tc.bound) {
				t.Errorf("%v connections are open, more than %d", n, tc.bound)
			}
			var closed float64
			for _, state := range []string{"new", "active", "idle"} {
				closed += m.value("halfopen_http_connections_closed_total", "state", state)
			}
			if least := float64(count - tc.bound); closed < least {
				t.Errorf("%v connections were closed, expected %v at least", closed, least)
			}
			resident, descriptors := resources(t, pid)
			t.Logf("%d MB resident, %d descriptors, %v connections closed, %d censuses", resident>>20, descriptors, closed, censuses)
			if resident > maxResident {
				t.Errorf("%d MB resident", resident>>20)
			}
			if n := strings.Count(a.log.String(), "too many HTTP connections"); scale == 1 && (n == 0 || n > 3) {
				t.Errorf("%d warnings of them:\n%s", n, a.log)
			}
			if strings.Contains(a.log.String(), "too many open files") {
				t.Errorf("there are no descriptors left:\n%s", a.log)
			}
		})
	}
}

// holdConnection makes a connection as one of three clients: which says nothing, does
// not finish its request, or is answered and stays. It is closed when the test ends.
func holdConnection(t *testing.T, addr string, i int) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	request := []string{"", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", "GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"}[i%3]
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	if i%3 < 2 {
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(generous)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("client %d is not answered: %v", i, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("client %d: %s, %v", i, resp.Status, err)
	}
}

// ask gets a page by a connection of its own.
func ask(url string) error {
	client := http.Client{Timeout: generous, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}

// resources are the bytes of memory that a process has now, and its descriptors.
func resources(t *testing.T, pid int) (resident, descriptors int) {
	t.Helper()
	p, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if descriptors, err = p.FileDescriptorsLen(); err != nil {
		t.Fatal(err)
	}
	return stat.RSS * os.Getpagesize(), descriptors
}
