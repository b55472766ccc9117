// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/lab"
)

const (
	// hostileZombies come and go while hostile requests are made, hostileClients at a time.
	hostileZombies = 5000
	hostileClients = 64
	// hostileResident is the most memory, in bytes, that the agent may take.
	hostileResident = 150 << 20
	// lookupCPU is the share of a core for look-ups, by default.
	lookupCPU = 0.25
	// resetStreams is how many requests a connection of HTTP/2 begins and resets.
	resetStreams = 50
)

// attackedAgent is an agent that is asked by hostile clients, over TLS.
type attackedAgent struct {
	*agent
	addr   string
	tls    *tls.Config
	client *http.Client
	socket string // the agent's Unix socket

	mu       sync.Mutex
	outcomes map[string]map[string]int // by kind of requests: what came of them
	broken   int                       // answers that were not complete
}

// A hostileKind is a kind of requests, of which count are made.
type hostileKind struct {
	name  string
	count int
	some  string // an outcome that some have; "": it depends on the share of the CPU
	do    func(h *attackedAgent, i int) (outcome string, err error)
}

var hostileKinds = []hostileKind{
	{"foreign Host", 1000, "421 Misdirected Request", func(h *attackedAgent, i int) (string, error) {
		req := h.request("GET", "/api/v1/connections", nil)
		req.Host = fmt.Sprintf("rebound-%d.example.com", i)
		return h.answer(req, http.StatusMisdirectedRequest)
	}},
	{"garbage", 1000, "answered or closed", (*attackedAgent).garbage},
	{"many values", 750, "", func(h *attackedAgent, i int) (string, error) {
		return h.answer(h.request("GET", "/api/v1/connections?"+manyPorts(1+i%64), nil), http.StatusOK)
	}},
	{"too many values", 750, "400 Bad Request", func(h *attackedAgent, i int) (string, error) {
		return h.answer(h.request("GET", "/api/v1/connections?"+manyPorts(65+i%500), nil), http.StatusBadRequest)
	}},
	{"huge header", 500, "431 Request Header Fields Too Large", func(h *attackedAgent, _ int) (string, error) {
		req := h.request("GET", "/api/v1/connections", nil)
		req.Header.Set("X-Huge", strings.Repeat("x", 64<<10))
		return h.answer(req, http.StatusRequestHeaderFieldsTooLarge)
	}},
	{"huge body", 500, "405 Method Not Allowed", func(h *attackedAgent, _ int) (string, error) {
		return h.answer(h.request("POST", "/api/v1/connections", bytes.NewReader(make([]byte, 256<<10))), http.StatusMethodNotAllowed)
	}},
	{"half-closed", 1000, "400 Bad Request", (*attackedAgent).halfClosed},
	{"never complete", 500, "left", (*attackedAgent).neverComplete},
	{"slow reader", 200, "left", (*attackedAgent).readSlowly},
	{"all there is", 1800, "", func(h *attackedAgent, i int) (string, error) {
		paths := []string{
			"/api/v1/connections?limit=1000000", "/api/v1/connections?limit=1000000&all=true", "/api/v1/connections",
			"/api/v1/connections?owner=nobody", "/api/v1/connections?pid=1&limit=5000", "/api/v1/groups?by=owner&limit=1000000",
			"/api/v1/groups?by=remote", "/api/v1/deaths?limit=1000000",
		}
		return h.answer(h.request("GET", paths[i%len(paths)], nil), http.StatusOK)
	}},
	{"cookies", 1000, "", func(h *attackedAgent, _ int) (string, error) {
		return h.answer(h.request("GET", fmt.Sprintf("/api/v1/connections/%x", rand.Uint64()|1<<63), nil), http.StatusNotFound)
	}},
	{"HTTP/2 rapid reset", 1000 / resetStreams, "survived", (*attackedAgent).rapidReset},
}

func manyPorts(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "&port=%d", 1+i)
	}
	return b.String()[1:]
}

func (h *attackedAgent) request(method, path string, body io.Reader) *http.Request {
	req, err := http.NewRequest(method, h.url+path, body)
	if err != nil {
		h.t.Fatal(err)
	}
	return req
}

// answer makes a request. It returns an error unless the answer has the status, or is a
// refusal that says why and when to ask again.
func (h *attackedAgent) answer(req *http.Request, want int) (string, error) {
	resp, err := h.client.Do(req)
	if err != nil {
		if want != http.StatusOK { // HTTP/2 ends some requests without an answer, and the server connections with a huge body
			return "closed", nil
		}
		return h.countBroken(err)
	}
	defer resp.Body.Close()
	head, err := io.ReadAll(io.LimitReader(resp.Body, 512))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	switch busy := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable; {
	case err != nil:
		return h.countBroken(fmt.Errorf("%s: %w", resp.Status, err))
	case busy:
		var why struct{ Error string }
		if err := json.Unmarshal(head, &why); err != nil || why.Error == "" || resp.Header.Get("Retry-After") == "" {
			return "", fmt.Errorf("%s: %s without a reason or a time: %q", req.URL, resp.Status, head)
		}
	case resp.StatusCode != want:
		return "", fmt.Errorf("%.80s: %s, expected %d: %q", req.URL, resp.Status, want, head)
	}
	return resp.Status, nil
}

// countBroken counts an answer that was not complete: the agent may have cut it off.
func (h *attackedAgent) countBroken(err error) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken++
	h.t.Logf("an answer was not complete: %v", err)
	return "not complete", nil
}

// dial connects with TLS.
func (h *attackedAgent) dial(protocol string) (*tls.Conn, error) {
	conn, err := net.DialTimeout("tcp", h.addr, generous)
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	_ = conn.SetDeadline(time.Now().Add(generous))
	config := h.tls.Clone()
	config.NextProtos, config.ServerName = []string{protocol}, "127.0.0.1"
	c := tls.Client(conn, config)
	if err := c.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// garbage sends what is neither TLS nor, behind that, HTTP.
func (h *attackedAgent) garbage(i int) (string, error) {
	var conn net.Conn
	var err error
	if i%4 > 0 {
		conn, err = net.DialTimeout("tcp", h.addr, generous)
	} else {
		conn, err = h.dial("http/1.1")
	}
	if err != nil {
		return "closed", nil //nolint:nilerr // the agent may close any connection
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(generous))
	b := make([]byte, 100+i%1000)
	for j := range b {
		b[j] = byte(rand.Uint32())
	}
	if i%4 == 1 {
		b = []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") // not TLS
	}
	_, _ = conn.Write(append(b, "\r\n\r\n"...))
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	if i%4 == 0 {
		return "closed", nil
	}
	_, _ = io.Copy(io.Discard, conn)
	return "answered or closed", nil
}

// halfClosed sends a request, closes its own side, and reads what comes.
func (h *attackedAgent) halfClosed(i int) (string, error) {
	conn, err := h.dial("http/1.1")
	if err != nil {
		return "closed", nil //nolint:nilerr // the agent may close any connection
	}
	defer conn.Close()
	request := "GET /api/v1/connections HTTP/1.1\r\nHost: localhost\r\n\r\n"
	_, _ = io.WriteString(conn, request[:len(request)-i%2*10]) // or a half of one
	_ = conn.CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "closed", nil //nolint:nilerr // it has no client to answer
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Status, nil
}

// neverComplete begins a request, and leaves it for a while.
func (h *attackedAgent) neverComplete(int) (string, error) {
	conn, err := h.dial("http/1.1")
	if err != nil {
		return "closed", nil //nolint:nilerr // the agent may close any connection
	}
	_, _ = io.WriteString(conn, "GET /api/v1/connections HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
	time.AfterFunc(10*time.Second, func() { conn.Close() })
	return "left", nil
}

// readSlowly asks for all, and reads a byte a second for a while.
func (h *attackedAgent) readSlowly(int) (string, error) {
	conn, err := h.dial("http/1.1")
	if err != nil {
		return "closed", nil //nolint:nilerr // the agent may close any connection
	}
	_, _ = io.WriteString(conn, "GET /api/v1/connections?limit=1000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	go func() {
		defer conn.Close()
		for range 20 {
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}()
	return "left", nil
}

// rapidReset begins requests over HTTP/2, each of which it resets at once.
func (h *attackedAgent) rapidReset(int) (string, error) {
	conn, err := h.dial("h2")
	if err != nil {
		return "closed", nil //nolint:nilerr // the agent may close any connection
	}
	defer conn.Close()
	out := bufio.NewWriter(conn)
	framer := http2.NewFramer(out, conn)
	_, err = io.WriteString(out, http2.ClientPreface)
	err = errors.Join(err, framer.WriteSettings())
	var fields bytes.Buffer
	encoder := hpack.NewEncoder(&fields)
	for i := range uint32(resetStreams) {
		fields.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", fmt.Sprintf("/api/v1/groups?by=owner&limit=%d", 1+i)}} {
			err = errors.Join(err, encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		id := 1 + 2*i
		err = errors.Join(err, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fields.Bytes(), EndStream: true, EndHeaders: true}),
			framer.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	err = errors.Join(err, framer.WritePing(false, [8]byte{1}), out.Flush())
	for err == nil {
		var f http2.Frame
		if f, err = framer.ReadFrame(); err == nil {
			switch f := f.(type) {
			case *http2.GoAwayFrame:
				return "went away", nil
			case *http2.PingFrame:
				if f.IsAck() {
					return "survived", nil
				}
			}
		}
	}
	return "closed", nil
}

// attack makes all requests of all kinds, in any order, until they are made and the time is
// over.
func (h *attackedAgent) attack(ends time.Time) (requests int) {
	type one struct {
		kind *hostileKind
		i    int
	}
	var all []one
	for k := range hostileKinds {
		for i := range scaled(hostileKinds[k].count) {
			all = append(all, one{&hostileKinds[k], i})
		}
	}
	var next, failed atomic.Int64
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var clients sync.WaitGroup
	for range hostileClients {
		clients.Go(func() {
			for failed.Load() < 10 {
				n := int(next.Add(1)) - 1
				if n >= len(all) && time.Now().After(ends) {
					return
				}
				o := all[n%len(all)]
				outcome, err := o.kind.do(h, o.i)
				if err != nil {
					failed.Add(1)
					h.t.Errorf("%s: %v", o.kind.name, err)
					continue
				}
				h.mu.Lock()
				if h.outcomes[o.kind.name] == nil {
					h.outcomes[o.kind.name] = make(map[string]int)
				}
				h.outcomes[o.kind.name][outcome]++
				h.mu.Unlock()
			}
		})
	}
	clients.Wait()
	return int(next.Load()) - hostileClients
}

// cpu returns the CPU time that the agent has taken.
func (h *attackedAgent) cpu() time.Duration {
	h.t.Helper()
	p, err := procfs.NewProc(h.cmd.Process.Pid)
	if err != nil {
		h.t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		h.t.Fatal(err)
	}
	return time.Duration(stat.CPUTime() * float64(time.Second))
}

// scraper scrapes the metrics every 100 ms, as Prometheus does, until the context ends.
func (h *attackedAgent) scraper(ctx context.Context) (took []time.Duration) {
	client := &http.Client{Timeout: generous, Transport: &http.Transport{TLSClientConfig: h.tls.Clone()}}
	for ctx.Err() == nil {
		began := time.Now()
		resp, err := client.Get(h.url + "/metrics")
		if err != nil {
			h.t.Errorf("scrape: %v", err)
			return took
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			h.t.Errorf("scrape: %s, %v", resp.Status, err)
			return took
		}
		took = append(took, time.Since(began))
		time.Sleep(100 * time.Millisecond)
	}
	return took
}

// operate lists connections over the Unix socket, until the context ends.
func (h *attackedAgent) operate(ctx context.Context) (lists int) {
	for ctx.Err() == nil {
		out, err := exec.Command(binary, "list", "--url=unix://"+h.socket, "--limit=5").CombinedOutput()
		if err != nil {
			h.t.Errorf("list over the Unix socket: %v: %s", err, out)
			return lists
		}
		lists++
		time.Sleep(time.Second)
	}
	return lists
}

// zombies returns how many connections of the process are zombies. It asks over the Unix
// socket.
func (h *attackedAgent) zombies(g *bulkProcess) (n int, err error) {
	out, err := exec.Command(binary, "list", "--url=unix://"+h.socket, "--by=verdict", "-o", "json", fmt.Sprintf("--netns=%d", g.Client.Inode())).Output()
	if err != nil {
		return 0, err
	}
	var doc struct {
		Groups []struct{ Verdicts map[string]int }
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return 0, err
	}
	for _, group := range doc.Groups {
		n += group.Verdicts["zombie"]
	}
	return n, nil
}

// A followed stream is what came of the agent's stream of verdicts.
type followed struct {
	mu   sync.Mutex
	late []time.Duration // how long after their events the verdicts of zombies came
}

func (f *followed) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.late)
}

// follow reads the stream until the context ends.
func (h *attackedAgent) follow(ctx context.Context, g *bulkProcess, f *followed) {
	req := h.request("GET", "/api/v1/stream?event=verdict", nil).WithContext(ctx)
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: h.tls.Clone()}}).Do(req)
	if err != nil {
		h.t.Errorf("stream: %v", err)
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e struct {
			At         time.Time
			Connection struct {
				Netns   uint32
				Verdict string
			}
		}
		if err := json.Unmarshal([]byte(data), &e); ctx.Err() != nil {
			break // what comes last may be half a line
		} else if err != nil {
			h.t.Errorf("event: %v: %s", err, data)
			return
		}
		if e.Connection.Netns == g.Client.Inode() && e.Connection.Verdict == "zombie" {
			f.mu.Lock()
			f.late = append(f.late, time.Since(e.At))
			f.mu.Unlock()
		}
	}
	if ctx.Err() == nil {
		h.t.Errorf("the stream has ended: %v", lines.Err())
	}
}

// missed returns how many events the agent could not send to its streams: on a busy machine
// it wakes too seldom to empty their buffer in time.
func (h *attackedAgent) missed() (n int, err error) {
	resp, err := h.client.Get(h.url + "/api/v1/stream?event=summary")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var summary api.StreamSummary
			err := json.Unmarshal([]byte(data), &summary)
			return int(summary.Missed), err
		}
	}
	return 0, fmt.Errorf("the stream has ended: %w", lines.Err())
}

// quantile returns a quantile of durations, 0 if there are none.
func quantile(of []time.Duration, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return of[int(q*float64(len(of)-1))]
}

// startAttacked starts an agent that listens with TLS and on a Unix socket.
func startAttacked(t *testing.T) *attackedAgent {
	t.Helper()
	dir := t.TempDir()
	ca, key := certify(t, dir, "ca", nil, nil)
	certify(t, dir, "server", ca, key)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	web := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(web, []byte("tls_server_config: {cert_file: server.pem, key_file: server.key}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	h := &attackedAgent{addr: addr, tls: &tls.Config{RootCAs: pool}, socket: filepath.Join(dir, "run", "s"), outcomes: make(map[string]map[string]int)}
	h.client = &http.Client{Timeout: generous, Transport: &http.Transport{TLSClientConfig: h.tls.Clone(), MaxIdleConnsPerHost: hostileClients}}
	h.agent = launchCommand(t, addr, exec.Command(binary, "agent", "--web.listen-address="+addr, "--web.config.file="+web, "--web.socket="+h.socket))
	h.url = "https://" + addr
	t.Cleanup(func() {
		if h.stop(); h.late {
			t.Error("the agent did not end after SIGTERM")
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", h.log)
		}
	})
	return h
}

// awaitZombies waits until the agent counts that many zombies, and returns how long it took.
func (h *attackedAgent) awaitZombies(g *bulkProcess, what string, want int) time.Duration {
	h.t.Helper()
	began := time.Now()
	eventually(h.t, what, func() error {
		select {
		case <-h.done:
			h.t.Fatalf("the agent has ended: %v", h.err)
		default:
		}
		if n, err := h.zombies(g); err != nil || n != want {
			return fmt.Errorf("%d zombies, error %v", n, err)
		}
		return nil
	})
	return time.Since(began)
}

// reportKinds logs the outcomes of each kind of request, and checks those that it must have.
func (h *attackedAgent) reportKinds() {
	h.t.Helper()
	for _, kind := range hostileKinds {
		h.t.Logf("%s: %v", kind.name, h.outcomes[kind.name])
		if kind.some != "" && h.outcomes[kind.name][kind.some] == 0 {
			h.t.Errorf("%s: none has the outcome %s", kind.name, kind.some)
		}
	}
}

// Ten thousand hostile requests of all kinds neither delay a scrape nor a verdict, nor cost
// the agent more than it may take. Times are judged only in make soak.
func TestHostileRequests(t *testing.T) { // not parallel: it is about the CPU and the memory
	soaks, lasting := os.Getenv("HALFOPEN_SOAK") != "", time.Duration(0) // each request once
	if soaks {
		lasting = soakTime(t)
	}
	pairs := scaled(hostileZombies)
	g := startBulkClients(t, "keepalive", pairs, 7650)
	g.ready()

	h := startAttacked(t)
	h.awaitZombies(g, "no zombie", 0)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watchers sync.WaitGroup
	var scrapes []time.Duration
	var verdicts followed
	var lists int
	watchers.Go(func() { scrapes = h.scraper(ctx) })
	watchers.Go(func() { h.follow(ctx, g, &verdicts) })
	watchers.Go(func() { lists = h.operate(ctx) })
	began, before := time.Now(), h.lookups()
	attacked := make(chan int, 1)
	go func() { attacked <- h.attack(began.Add(lasting)) }()
	var came []time.Duration
	requests := -1
	for requests < 0 {
		restore := g.drop(lab.Rule{Percent: 100})
		came = append(came, h.awaitZombies(g, "all are zombies", pairs))
		restore()
		h.awaitZombies(g, "none is a zombie", 0)
		select {
		case requests = <-attacked:
		default:
		}
	}
	took := time.Since(began)
	spent := h.lookups() - before
	eventually(t, "all verdicts came, or are counted as missed", func() error {
		if missed, err := h.missed(); err != nil || verdicts.count()+missed < len(came)*pairs {
			return fmt.Errorf("%d verdicts, %d missed, error %v", verdicts.count(), missed, err)
		}
		return nil
	})
	cancel()
	watchers.Wait()
	late := verdicts.late

	h.reportKinds()
	requests += (resetStreams - 1) * (requests * scaled(1000/resetStreams) / max(1, countHostile()))
	t.Logf("%d hostile requests in %v; %d scrapes took %v at the median, %v at the 99th percentile; %d lists over the Unix socket",
		requests, took.Round(time.Second), len(scrapes), quantile(scrapes, 0.5), quantile(scrapes, 0.99), lists)
	t.Logf("%d zombies came %d times, within %v; %d verdicts came %v after their event at the median, %v at the latest",
		pairs, len(came), came, len(late), quantile(late, 0.5), quantile(late, 1))
	t.Logf("look-ups took %v of CPU time, %.1f %% of a core; the agent had %d MB at most", spent, 100*spent.Seconds()/took.Seconds(), h.peak()>>20)
	if len(scrapes) == 0 || lists == 0 || spent == 0 {
		t.Errorf("%d scrapes, %d lists, look-ups of %v", len(scrapes), lists, spent)
	}
	if n := h.peak(); n > hostileResident {
		t.Errorf("the agent had %d MB", n>>20)
	}
	// Two shares, of TCP and of the Unix socket, with what they had saved, and a look-up of
	// each that exceeds it.
	if most := 2 * (time.Duration(lookupCPU*float64(took+10*time.Second)) + 2*patience*time.Second); spent > most {
		t.Errorf("look-ups took %v of CPU time, more than %v", spent, most)
	}
	if cut := h.value("halfopen_http_answers_cut_total"); float64(h.broken) > cut {
		t.Errorf("%d answers were not complete, but %v were cut off", h.broken, cut)
	}
	if soaks && (quantile(scrapes, 0.99) > 100*time.Millisecond || quantile(late, 1) > time.Second || slices.Max(came) > 13*time.Second) {
		t.Error("that is too late")
	}
	h.flood()
	eventually(t, "list over TLS works again", func() error {
		req := h.request("GET", "/api/v1/connections", nil)
		if status, err := h.answer(req, http.StatusOK); err != nil || status != "200 OK" {
			return fmt.Errorf("%s, %v", status, err)
		}
		return nil
	})
}

func countHostile() (ops int) {
	for _, k := range hostileKinds {
		ops += scaled(k.count)
	}
	return ops
}

// value returns the value of a metric without labels.
func (h *attackedAgent) value(name string) float64 {
	h.t.Helper()
	resp, err := h.client.Get(h.url + "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			var v float64
			if _, err := fmt.Sscan(rest, &v); err != nil {
				h.t.Fatal(err)
			}
			return v
		}
	}
	h.t.Fatalf("no metric %s", name)
	return 0
}

// lookups returns the CPU time of look-ups.
func (h *attackedAgent) lookups() time.Duration {
	h.t.Helper()
	return time.Duration(h.value("halfopen_http_lookups_cpu_seconds_total") * float64(time.Second))
}

// flood checks what the kernel says that the agent takes while clients ask for more than it
// may: without a bound it is all that they get.
func (h *attackedAgent) flood() {
	h.t.Helper()
	const lasting = 15 * time.Second
	before, began := h.cpu(), time.Now()
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for time.Since(began) < lasting {
				path := fmt.Sprintf("/api/v1/groups?by=owner&limit=%d", 1+i)
				if _, err := h.answer(h.request("GET", path, nil), http.StatusOK); err != nil {
					h.t.Error(err)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	clients.Wait()
	took := time.Since(began)
	cpu := h.cpu() - before
	h.t.Logf("a flood of look-ups for %v: the agent took %.1f %% of a core", took.Round(time.Second), 100*cpu.Seconds()/took.Seconds())
	// A half of the share is for one client; besides, there are the answers, the events and
	// the censuses.
	if most := time.Duration(2*lookupCPU*float64(took)) + 2*patience*time.Second; cpu > most {
		h.t.Errorf("the agent took %v of CPU time in %v, more than %v", cpu, took, most)
	}
}
