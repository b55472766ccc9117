// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// guarded is a handler as an agent serves it, on a node named Node7.rack.example.
func guarded(t *testing.T) (http.Handler, *Guard) {
	t.Helper()
	g := NewGuard([]string{"monitor.example:9839", ":9840", "[::1]:9841"}, []string{"proxy.example"})
	g.hostname = func() (string, error) { return "Node7.rack.example", nil }
	return g.Wrap(newHandler(t, &fakeSource{})), g
}

func TestOnlyNamesOfTheAgentAreAnswered(t *testing.T) {
	h, g := guarded(t)
	const accepted, refused = http.StatusOK, http.StatusMisdirectedRequest
	refusals := 0
	for host, want := range map[string]int{
		"127.0.0.1:9839": accepted, "127.0.0.1": accepted, "10.1.2.3:80": accepted, "127.0.0.1.:9839": accepted,
		"[::1]:9839": accepted, "[::1]": accepted, "::1": accepted, "[2001:db8::7]:9839": accepted,
		"[fe80::1%eth0]:9839": accepted, "[fe80::1%25eth0]": accepted, "[::ffff:10.0.0.1]": accepted,
		"localhost": accepted, "localhost:9839": accepted, "LOCALHOST:9839": accepted, "localhost.:9839": accepted,
		"monitor.example": accepted, "Monitor.Example.:1": accepted,
		"proxy.example": accepted, "PROXY.example:443": accepted, "proxy.example.": accepted,
		"node7": accepted, "node7:9839": accepted, "NODE7.rack.example:9839": accepted, "node7.monitoring.svc.": accepted,
		"": accepted, // HTTP/1.0

		"evil.example": refused, "evil.example:9839": refused, "evil.example.:9839": refused,
		"127.0.0.1.evil.example": refused, "localhost.evil.example": refused, "evil.example:80:80": refused,
		"node70": refused, "node": refused, "rack.example": refused, "x.node7": refused, "node7-evil.example": refused,
		"x.proxy.example": refused, "proxy.example.evil": refused, "proxy.example..": refused, "user@localhost": refused,
		"localhost..": refused, "127.1": refused, "0x7f.1": refused, ".": refused, ".evil.example": refused, "[evil.example]": refused,
		"[::1]evil.example": refused, "::1.evil.example": refused, "256.0.0.1": refused,
		strings.Repeat("a", 9999) + ".example": refused,
	} {
		for _, target := range []string{"/", "/api/v1/connections", "/api/nothing", "/web/page.js", "/-/nothing", "//metrics", "/metrics/"} {
			r := httptest.NewRequest("GET", target, nil)
			r.Host = host
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if (w.Code == refused) != (want == refused) {
				t.Errorf("%.99q, %s: status %d, want %d", host, target, w.Code, want)
			}
			if want == refused {
				refusals++
				checkRefusal(t, w, "--web.allowed-host")
			}
		}
		for _, target := range []string{"/metrics", "/-/healthy", "/-/ready"} {
			r := httptest.NewRequest("GET", target, nil)
			r.Host = host
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				t.Errorf("%.99q, %s: status %d", host, target, w.Code)
			}
		}
	}
	w := request(t, g.Wrap(newHandler(t, &fakeSource{}, g)), "GET", "/metrics")
	if got := parseText(t, w.Body.Bytes())[`halfopen_http_requests_refused_total reason="host"`]; got != float64(refusals) {
		t.Errorf("%v refusals are counted, want %d", got, refusals)
	}
}

// checkRefusal checks that a refusal is one short line with what to do, in JSON where
// all else is, and nothing of what was asked for.
func checkRefusal(t *testing.T, w *httptest.ResponseRecorder, what string) {
	t.Helper()
	text := w.Body.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, what) || len(text) > 1000 {
		t.Errorf("status %d: it says %q, want one line with %q", w.Code, text, what)
	}
	if kind := w.Header().Get("Content-Type"); strings.HasPrefix(text, "{") != (kind == "application/json") {
		t.Errorf("%s is %s", text, kind)
	}
}

func TestARefusedHostIsToldWhatToDo(t *testing.T) {
	h, _ := guarded(t)
	for host, want := range map[string]string{
		"Evil.example.:80":     `{"error":"\"evil.example\" is not a name of this agent: use its address or the node's name, or start the agent with --web.allowed-host=evil.example"}`,
		"<b>\"\n\u202e:80":     `{"error":"\"\u003cb\u003e\\\"\\n\\u202e\" is not a name of this agent: use its address or the node's name, or start the agent with --web.allowed-host"}`,
		"x'$(reboot).example:": `{"error":"\"x'$(reboot).example\" is not a name of this agent: use its address or the node's name, or start the agent with --web.allowed-host"}`,
	} {
		r := httptest.NewRequest("GET", "/api/v1/deaths", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := strings.TrimSpace(w.Body.String()); got != want {
			t.Errorf("%q\n got %s\nwant %s", host, got, want)
		}
	}
}

func TestANodeWithoutANameHasNone(t *testing.T) {
	_, g := guarded(t)
	for name, hostname := range map[string]func() (string, error){
		"an error":      func() (string, error) { return "evil.example", errors.New("no") },
		"an empty name": func() (string, error) { return "", nil },
	} {
		g.hostname = hostname
		if g.accepts("evil.example") || g.accepts(".evil.example") {
			t.Errorf("%s: any host is accepted", name)
		}
	}
}

func TestTheNodesNameMayChange(t *testing.T) {
	_, g := guarded(t)
	if g.accepts("node8") {
		t.Error("another node's name is accepted")
	}
	g.hostname = func() (string, error) { return "node8", nil }
	if !g.accepts("node8") || g.accepts("node7") {
		t.Error("the name is still that of the start")
	}
}

func TestPagesOfOtherSitesAreRefused(t *testing.T) {
	h, g := guarded(t)
	const accepted, refused = http.StatusOK, http.StatusForbidden
	refusals := 0
	for _, tc := range []struct {
		method, site, mode, dest string
		want                     int
	}{
		{"GET", "", "", "", accepted}, // no browser
		{"GET", "none", "navigate", "document", accepted},
		{"GET", "none", "cors", "empty", accepted},
		{"GET", "same-origin", "cors", "empty", accepted},
		{"GET", "same-origin", "no-cors", "script", accepted},
		{"GET", "cross-site", "navigate", "document", accepted}, // a link
		{"HEAD", "cross-site", "navigate", "document", accepted},
		{"GET", "same-site", "navigate", "document", accepted},
		{"GET", "cross-site", "cors", "empty", refused},
		{"GET", "cross-site", "no-cors", "script", refused},
		{"GET", "cross-site", "no-cors", "image", refused},
		{"GET", "cross-site", "no-cors", "document", refused},
		{"GET", "cross-site", "navigate", "iframe", refused},
		{"GET", "cross-site", "navigate", "embed", refused},
		{"GET", "cross-site", "navigate", "", refused},
		{"GET", "cross-site", "", "document", refused},
		{"GET", "cross-site", "", "", refused},
		{"POST", "cross-site", "navigate", "document", refused}, // a form
		{"GET", "same-site", "cors", "empty", refused},          // another port of this host
		{"GET", "Cross-Site\n", "cors", "empty", refused},
		{"GET", strings.Repeat("x", 9999), "cors", "empty", refused},
	} {
		for _, target := range []string{"/", "/api/v1/connections", "/api/v1/stream?event=nothing", "/metrics", "/-/ready"} {
			r := httptest.NewRequest(tc.method, target, nil)
			r.Host = "127.0.0.1:9839"
			for name, value := range map[string]string{"Site": tc.site, "Mode": tc.mode, "Dest": tc.dest} {
				if value != "" {
					r.Header.Set("Sec-Fetch-"+name, value)
				}
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if (w.Code == refused) != (tc.want == refused) {
				t.Errorf("%.99v %s: status %d, want %d", tc, target, w.Code, tc.want)
			}
			if tc.want == refused {
				refusals++
				checkRefusal(t, w, "tab of its own")
			}
		}
	}
	w := request(t, newHandler(t, &fakeSource{}, g), "GET", "/metrics")
	if got := parseText(t, w.Body.Bytes())[`halfopen_http_requests_refused_total reason="cross_site"`]; got != float64(refusals) {
		t.Errorf("%v refusals are counted, want %d", got, refusals)
	}
}

func TestEveryAnswerHasTheSecurityHeaders(t *testing.T) {
	h, _ := guarded(t)
	for _, host := range []string{"localhost", "evil.example"} {
		for _, site := range []string{"", "cross-site"} {
			for _, target := range []string{
				"/", "/web/page.js", "/metrics", "/-/ready", "/-/healthy", "/api/v1/deaths", "/api/v1/deaths?limit=0", "/api/nothing", "/nothing", "//",
			} {
				for _, method := range []string{"GET", "HEAD", "POST"} {
					r := httptest.NewRequest(method, target, nil)
					r.Host = host
					r.Header.Set("Sec-Fetch-Site", site)
					w := httptest.NewRecorder()
					h.ServeHTTP(w, r)
					for name := range securityHeaders {
						if w.Header().Get(name) == "" {
							t.Errorf("%s http://%s%s, site %q, status %d: no %s", method, host, target, site, w.Code, name)
						}
					}
					if !strings.Contains(w.Header().Get("Content-Security-Policy"), "frame-ancestors 'none'") {
						t.Errorf("%s may be framed", target)
					}
				}
			}
		}
	}
}

// What reaches the guard of requests as they are on the wire.
func TestHostsOnTheWire(t *testing.T) {
	defer goleak.VerifyNone(t)
	h, _ := guarded(t)
	server := httptest.NewServer(h)
	defer server.Close()
	for lines, want := range map[string]int{
		"GET /api/v1/deaths HTTP/1.0\r\n":                                                            200,
		"GET /api/v1/deaths HTTP/1.0\r\nHost: evil.example\r\n":                                      421,
		"GET /api/v1/deaths HTTP/1.1\r\n":                                                            400,
		"GET /api/v1/deaths HTTP/1.1\r\nHost:\r\n":                                                   200,
		"GET /api/v1/deaths HTTP/1.1\r\nHost: Node7:1\r\n":                                           200,
		"GET /api/v1/deaths HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n":                   400,
		"GET /api/v1/deaths HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\n":       421,
		"GET http://evil.example/api/v1/deaths HTTP/1.1\r\nHost: localhost\r\n":                      421,
		"GET http://localhost/api/v1/deaths HTTP/1.1\r\nHost: evil.example\r\n":                      200,
		"GET http://[fe80::1%25eth0]:80/api/v1/deaths HTTP/1.1\r\nHost: evil.example\r\n":            200,
		"GET /-/../api/v1/deaths HTTP/1.1\r\nHost: evil.example\r\n":                                 421,
		"GET /metrics/../api/v1/deaths HTTP/1.1\r\nHost: evil.example\r\n":                           421,
		"GET /-/healthy HTTP/1.1\r\nHost: evil.example\r\n":                                          200,
		"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n":                                    421,
		"GET /api/v1/deaths HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n":           403,
		"GET /api/v1/deaths HTTP/1.1\r\nHost: localhost\r\nsec-fetch-site:  same-origin \r\n":        200,
		"GET /%61pi/v1/deaths HTTP/1.1\r\nHost: evil.example\r\n":                                    421,
		"OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n":                                               200, // of net/http itself, and empty
		"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nX-Long: " + strings.Repeat("x", 99) + "\r\n": 200,
	} {
		if got := rawStatus(t, "tcp", server.Listener.Addr().String(), lines); got != want {
			t.Errorf("%q: status %d, want %d", lines, got, want)
		}
	}
}

func rawStatus(t *testing.T, network, address, lines string) int {
	t.Helper()
	connection, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, lines+"Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("%q: %v", lines, err)
	}
	return resp.StatusCode
}

func TestTheAuthorityOfHTTP2IsAHost(t *testing.T) {
	h, _ := guarded(t)
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for host, want := range map[string]int{"evil.example:9839": 421, "[::1]": 200, "NODE7.": 200} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/api/v1/deaths", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s, status %d, want %d", host, resp.Proto, resp.StatusCode, want)
		}
	}
}

func TestAUnixSocketIsAskedByItsName(t *testing.T) {
	h, _ := guarded(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	logger := newDiscardLogger()
	go func() {
		done <- Serve(ctx, []net.Listener{l}, h, flagsFor(""), newConnLimit(maxConns, logger), logger)
	}()
	for host, want := range map[string]int{"halfopen": 200, "localhost": 200, "evil.example": 421, "halfopen.evil.example": 421} {
		if got := rawStatus(t, "unix", path, "GET /api/v1/deaths HTTP/1.1\r\nHost: "+host+"\r\n"); got != want {
			t.Errorf("%s: status %d, want %d", host, got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The toolkit checks the password first: without one, an answer does not depend on the host.
func TestThePasswordComesBeforeTheGuard(t *testing.T) {
	h, _ := guarded(t)
	config := writeConfig(t, "basic_auth_users:\n  prometheus: $2a$04$y927JXmOaBp0qsUa5VQsAO9OGZySGiPt6Spxe5Z44eQyidQ6xtiPO\n")
	urls, stop := start(t, h, config)
	address := strings.TrimPrefix(urls[0], "http://")
	const password = "Authorization: Basic cHJvbWV0aGV1czpzZWNyZXQ=\r\n"
	for lines, want := range map[string]int{
		"Host: evil.example\r\n":                                      401,
		"Host: evil.example\r\n" + password:                           421,
		"Host: localhost\r\n" + password:                              200,
		"Host: localhost\r\nSec-Fetch-Site: same-site\r\n" + password: 403,
	} {
		if got := rawStatus(t, "tcp", address, "GET /api/v1/deaths HTTP/1.1\r\n"+lines); got != want {
			t.Errorf("%q: status %d, want %d", lines, got, want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestHostNames(t *testing.T) {
	for name, want := range map[string]string{
		"node": "node", "Node.Example.": "node.example", "xn--nde-sna.example": "xn--nde-sna.example", "my_host": "my_host", "10.0.0.1": "10.0.0.1",
	} {
		if got, err := ParseHostName(name); got != want || err != nil {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{
		"", ".", "node:80", "http://node", "node/", "*", "*.example", "a..b", ".a", "nöde", "[::1]", "a b", "node\n",
		strings.Repeat("a", 64), strings.Repeat("a.", 130),
	} {
		if got, err := ParseHostName(name); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "is not a host name") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}

func FuzzHost(f *testing.F) {
	for _, host := range []string{"localhost", "[::1]:80", "evil.example", "a:b:c", "[", "]", "%", ""} {
		f.Add(host)
	}
	g := NewGuard(nil, nil)
	g.hostname = func() (string, error) { return "node", nil }
	f.Fuzz(func(t *testing.T, s string) {
		if host := hostOf(s); g.accepts(host+".evil.example") && host != "node" && firstLabel(host) != "node" {
			t.Errorf("%q is accepted", host+".evil.example")
		}
		if text := errHost(hostOf(s)).Error(); strings.ContainsAny(text, "\r\n") || len(text) > 2000 {
			t.Errorf("it says %q", text)
		}
		_ = fmt.Sprint(ParseHostName(s))
	})
}

// A name that every machine has, or that an attacker can guess, does not identify a machine.
func TestACommonFirstLabelIsNotTheNodes(t *testing.T) {
	for node, host := range map[string]string{
		"localhost": "localhost.evil.example", "localhost.localdomain": "localhost.evil.example", "10": "10.evil.example", "": ".evil.example",
	} {
		g := NewGuard(nil, nil)
		g.hostname = func() (string, error) { return node, nil }
		if g.accepts(host) {
			t.Errorf("%s is accepted on %q", host, node)
		}
	}
}
