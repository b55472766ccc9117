// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// limited serves on two TCP ports and a Unix socket, with one limit, until the test ends.
type limited struct {
	t         *testing.T
	limit     *ConnLimit
	listeners []net.Listener
	log       *lockedBuffer
}

func serveLimited(t *testing.T, limit int, h http.Handler, config string) *limited {
	t.Helper()
	listeners, err := Listen(flagsFor(config, "127.0.0.1:0", "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	local, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &limited{t: t, listeners: append(listeners, local), log: &lockedBuffer{}}
	logger := slog.New(slog.NewTextHandler(s.log, nil))
	s.limit = newConnLimit(limit, logger)
	s.limit.full.first = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, s.listeners, h, flagsFor(config), s.limit, logger) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial connects to one of the listeners, sends text, and closes when the test ends.
func (s *limited) dial(listener int, text string) net.Conn {
	s.t.Helper()
	addr := s.listeners[listener].Addr()
	connection, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { connection.Close() })
	if _, err := io.WriteString(connection, text); err != nil {
		s.t.Fatal(err)
	}
	return connection
}

const keptAlive = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

// idle makes a connection that has been answered once, and is kept.
func (s *limited) idle(listener int) net.Conn {
	s.t.Helper()
	connection := s.dial(listener, keptAlive)
	if err := answered(connection); err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); s.busy(); {
		if time.Now().After(deadline) {
			s.t.Fatal("a connection does not become idle")
		}
		time.Sleep(time.Millisecond)
	}
	return connection
}

// busy reports whether a request is being answered.
func (s *limited) busy() bool {
	s.limit.mu.Lock()
	defer s.limit.mu.Unlock()
	for _, c := range s.limit.conns {
		if c.state == http.StateActive && !c.closing {
			return true
		}
	}
	return false
}

func answered(connection net.Conn) error {
	if err := connection.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// ended waits for the end of a connection.
func (s *limited) ended(connection net.Conn) {
	s.t.Helper()
	if err := connection.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, connection); errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Error("a connection is still open")
	}
}

func (s *limited) alive(connection net.Conn) {
	s.t.Helper()
	if _, err := io.WriteString(connection, keptAlive); err != nil {
		s.t.Error(err)
		return
	}
	if err := answered(connection); err != nil {
		s.t.Errorf("a connection is no more: %v", err)
	}
}

func (s *limited) closed() map[string]float64 {
	reg := samplesOf(s.t, s.limit)
	got := make(map[string]float64)
	for _, state := range []string{"new", "active", "idle"} {
		got[state] = reg[fmt.Sprintf("halfopen_http_connections_closed_total state=%q", state)]
	}
	if open := reg["halfopen_http_connections"]; open > float64(s.limit.max) {
		s.t.Errorf("%v are open", open)
	}
	return got
}

// wantClosed waits until so many were closed.
func (s *limited) wantClosed(state string, want float64) {
	s.t.Helper()
	got := s.closed()
	for deadline := time.Now().Add(20 * time.Second); got[state] < want && time.Now().Before(deadline); got = s.closed() {
		time.Sleep(time.Millisecond)
	}
	for other, n := range got {
		if other == state && n != want || other != state && n != 0 {
			s.t.Errorf("closed %v, want %v of %s", got, want, state)
		}
	}
}

func TestTheOldestIdleConnectionMakesRoom(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		const limit, clients = 9, 31
		s := serveLimited(t, limit, ok, "")
		var connections []net.Conn
		for i := range clients {
			connections = append(connections, s.idle(i%2))
		}
		for _, c := range connections[:clients-limit] {
			s.ended(c)
		}
		for _, c := range connections[clients-limit:] {
			s.alive(c)
		}
		s.wantClosed("idle", clients-limit)
	})
}

var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })

func TestHeadersThatDribbleDoNotKeepOthersOut(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		const limit, clients = 9, 31
		s := serveLimited(t, limit, ok, "")
		for i := range clients {
			s.dial(1, []string{"", "G", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "}[i%3])
		}
		s.alive(s.dial(1, ""))
		s.wantClosed("new", clients+1-limit)
	})
}

// Whoever takes no answer, or asks for what takes long.
func TestRequestsThatTakeLongDoNotKeepOthersOut(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		const limit = 5
		entered := make(chan struct{})
		s := serveLimited(t, limit, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/long" {
				entered <- struct{}{}
				<-r.Context().Done()
			}
		}), "")
		var connections []net.Conn
		for i := range limit {
			connections = append(connections, s.dial(i%2, "GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n"))
			<-entered
		}
		s.alive(s.dial(0, ""))
		s.ended(connections[0])
		s.wantClosed("active", 1)
		for _, c := range connections {
			c.Close() // which ends the requests
		}
	})
}

// The clients of a Unix socket are one client of many, and have no address.
func TestTheClientWithMostMakesRoom(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		const limit = 7
		s := serveLimited(t, limit, ok, "")
		few := []net.Conn{s.idle(0), s.idle(1)}
		var many []net.Conn
		for range limit {
			many = append(many, s.idle(2))
		}
		for _, c := range many[:2] {
			s.ended(c)
		}
		for _, c := range append(few, many[2:]...) {
			s.alive(c)
		}
	})
}

func TestConnectionsOfHTTP2MakeRoom(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		config := tlsConfig(t)
		const limit, clients = 3, 11
		s := serveLimited(t, limit, ok, config)
		for i := range clients {
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
			t.Cleanup(transport.CloseIdleConnections)
			resp, err := (&http.Client{Transport: transport}).Get("https://" + s.listeners[i%2].Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
				t.Errorf("%s, %s", resp.Proto, resp.Status)
			}
		}
		s.wantClosed("idle", clients-limit)
		for range limit { // handshakes that never come
			s.dial(0, "")
		}
		s.alive(tls.Client(s.dial(0, ""), &tls.Config{InsecureSkipVerify: true}))
	})
}

func TestWhatAConnectionTakesIsBounded(t *testing.T) {
	s := serveLimited(t, 9, ok, tlsConfig(t))
	dial := func(protocol, text string) net.Conn {
		connection := tls.Client(s.dial(0, ""), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
		if err := connection.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(connection, text); err != nil {
			t.Fatal(err)
		}
		return connection
	}
	long := dial("http/1.1", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: "+strings.Repeat("x", 2*maxHeaderBytes))
	if err := answered(long); err == nil || !strings.HasPrefix(err.Error(), "431 ") {
		t.Errorf("a header of %d bytes: %v", 2*maxHeaderBytes, err)
	}

	// The server begins with its SETTINGS (RFC 9113, section 6.5).
	connection := dial("h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	frame := make([]byte, 9)
	if _, err := io.ReadFull(connection, frame); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, int(frame[1])<<8|int(frame[2]))
	if _, err := io.ReadFull(connection, payload); err != nil || frame[3] != 4 {
		t.Fatalf("a frame of type %d, %v", frame[3], err)
	}
	settings := make(map[uint16]uint32)
	for ; len(payload) >= 6; payload = payload[6:] {
		settings[binary.BigEndian.Uint16(payload)] = binary.BigEndian.Uint32(payload[2:])
	}
	for name, setting := range map[string]struct {
		id       uint16
		at, most uint32
	}{
		"MAX_CONCURRENT_STREAMS": {3, maxStreams, maxStreams},
		"MAX_FRAME_SIZE":         {5, maxFrameBytes, maxFrameBytes},
		"MAX_HEADER_LIST_SIZE":   {6, maxHeaderBytes, maxHeaderBytes + 1024},
	} {
		if got := settings[setting.id]; got < setting.at || got > setting.most {
			t.Errorf("%s is %d", name, got)
		}
	}
}

// tlsConfig writes a web config file with a certificate.
func tlsConfig(t *testing.T) string {
	t.Helper()
	server := httptest.NewUnstartedServer(ok)
	server.StartTLS()
	server.Close()
	certificate := &server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := "tls_server_config:\n"
	for _, block := range []struct {
		option, kind string
		der          []byte
	}{{"cert", "CERTIFICATE", certificate.Certificate[0]}, {"key", "PRIVATE KEY", key}} {
		text += "  " + block.option + ": |\n    " +
			strings.ReplaceAll(strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: block.kind, Bytes: block.der}))), "\n", "\n    ") + "\n"
	}
	return writeConfig(t, text)
}

func TestOneWarningTellsOfAll(t *testing.T) {
	s := serveLimited(t, 2, ok, "")
	for range 19 {
		s.idle(0)
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(s.log.String(), "too many") && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	s.wantClosed("idle", 17)
	if got := s.log.String(); strings.Count(got, "too many HTTP connections") != 1 || !strings.Contains(got, "the limit is 2") {
		t.Errorf("the log has:\n%s", got)
	}
}

func TestWhichConnectionIsClosed(t *testing.T) {
	now := time.Now()
	const busy, idle, fresh = http.StateActive, http.StateIdle, http.StateNew
	type conn struct {
		name, client string
		state        http.ConnState
		age          time.Duration
	}
	for name, tc := range map[string]struct {
		conns []conn
		want  string
	}{
		"the oldest idle one": {[]conn{{"a", "10.0.0.1:1", idle, 5 * time.Second}, {"b", "10.0.0.1:2", idle, 9 * time.Second}}, "b"},
		"an idle one before an older that is busy": {
			[]conn{{"a", "10.0.0.1:1", busy, time.Minute}, {"b", "10.0.0.1:2", idle, 2 * time.Second}}, "b",
		},
		"one whose header dribbles like an idle one": {
			[]conn{{"a", "10.0.0.1:1", fresh, 9 * time.Second}, {"b", "10.0.0.1:2", idle, 8 * time.Second}}, "a",
		},
		"a busy one before one that has only just come": {
			[]conn{{"a", "10.0.0.1:1", busy, time.Minute}, {"b", "10.0.0.1:2", fresh, time.Millisecond}}, "a",
		},
		"one that has just come before an answer that is on its way": {
			[]conn{{"a", "10.0.0.1:1", busy, 50 * time.Millisecond}, {"b", "10.0.0.1:2", fresh, 40 * time.Millisecond}}, "b",
		},
		"of the client with most, though another's is older": {
			[]conn{{"a", "10.0.0.1:1", idle, time.Minute}, {"b", "10.0.0.2:1", idle, 2 * time.Second}, {"c", "10.0.0.2:2", idle, 3 * time.Second}}, "c",
		},
		"of the client with most, though it is busy and another's is idle": {
			[]conn{{"a", "10.0.0.1:1", idle, time.Minute}, {"b", "10.0.0.2:1", busy, 2 * time.Second}, {"c", "10.0.0.2:2", busy, 3 * time.Second}}, "c",
		},
		"an IPv6 network is one client": {
			[]conn{{"a", "[2001:db8::1]:1", idle, time.Second}, {"b", "[2001:db8::2]:1", idle, 2 * time.Second}, {"c", "10.0.0.2:2", idle, time.Minute}}, "b",
		},
		"this host is one client": {
			[]conn{{"a", "127.0.0.9:1", idle, time.Second}, {"b", "[::1]:1", idle, 2 * time.Second}, {"c", "10.0.0.2:2", idle, time.Minute}}, "b",
		},
		"none of none": {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newConnLimit(1, newDiscardLogger())
			names := make(map[net.Conn]string)
			for _, c := range tc.conns {
				nc := &net.TCPConn{}
				client := clientOf(c.client)
				l.conns[nc] = &httpConn{client: client, state: c.state, since: now.Add(-c.age)}
				l.clients[client]++
				names[nc] = c.name
			}
			if nc, _ := l.choose(nil, now); names[nc] != tc.want {
				t.Errorf("%q is closed, want %q", names[nc], tc.want)
			}
		})
	}
}

func TestWhoIsOneClient(t *testing.T) {
	for remote, want := range map[string]string{
		"10.1.2.3:80": "10.1.2.3/32", "[::ffff:10.1.2.3]:80": "10.1.2.3/32",
		"127.0.0.1:80": "127.0.0.0/8", "127.1.2.3:80": "127.0.0.0/8", "[::1]:80": "127.0.0.0/8", "[::ffff:127.0.0.1]:80": "127.0.0.0/8",
		"[2001:db8:1:2:3::4]:80": "2001:db8:1:2::/64", "[fe80::1%eth0]:80": "fe80::/64",
	} {
		if got := clientOf(remote); got != netip.MustParsePrefix(want) {
			t.Errorf("%s: %v, want %s", remote, got, want)
		}
	}
	for _, remote := range []string{"", "@", "/run/s"} { // Unix sockets
		if got := clientOf(remote); got != (netip.Prefix{}) {
			t.Errorf("%q: %v", remote, got)
		}
	}
}

// flaky is a listener whose Accept fails a number of times.
type flaky struct {
	net.Listener
	errs chan error
}

func (f *flaky) Accept() (net.Conn, error) {
	select {
	case err := <-f.errs:
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	default:
		return f.Listener.Accept()
	}
}

// Without descriptors, one is freed; and no error of accept(2) ends the agent.
func TestAcceptGoesOn(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	log := &lockedBuffer{}
	l := newConnLimit(9, slog.New(slog.NewTextHandler(log, nil)))
	l.failed.first = time.Millisecond
	f := &flaky{inner, make(chan error, 9)}
	server := &http.Server{Handler: ok, ConnState: l.connState}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l.listener(f)) }()
	s := &limited{t: t, limit: l, listeners: []net.Listener{inner}}
	old := s.idle(0) // after which the listener waits in Accept
	for _, err := range []error{unix.EMFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM, unix.ENETDOWN, unix.ECONNABORTED} {
		f.errs <- err
	}
	s.idle(0) // for which it has waited
	s.alive(s.dial(0, ""))
	s.ended(old)
	s.wantClosed("idle", 1)
	if err := inner.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	server.Close()
	if got := log.String(); !strings.Contains(got, "cannot be accepted") || strings.Count(got, "\n") > 1 {
		t.Errorf("the log has:\n%s", got)
	}
}

func TestTheLimitLeavesDescriptors(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	got := NewConnLimit(newDiscardLogger()).max
	if got < 1 || got > maxConns || uint64(got) > files.Cur/connShare {
		t.Errorf("%d connections with %d descriptors", got, files.Cur)
	}
}
