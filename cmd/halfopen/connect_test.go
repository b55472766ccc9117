// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/exporter"
)

// healthyAgent answers as an agent does that is well.
var healthyAgent = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if r.Host != "halfopen" {
		http.Error(w, "foreign host", http.StatusMisdirectedRequest)
	}
})

// serveOn serves on a Unix socket, made as user uid, until the test ends.
func serveOn(t *testing.T, path string, uid int, h http.Handler) {
	t.Helper()
	l := listenAs(t, path, uid)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	srv.Start()
	t.Cleanup(srv.Close)
}

// listenAs listens on a Unix socket as another user, which SO_PEERCRED tells whoever
// connects. The thread is that user's meanwhile, and no other.
func listenAs(t *testing.T, path string, uid int) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with this
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		if errno != 0 {
			made <- result{nil, errno}
			return
		}
		l, err := net.Listen("unix", path)
		made <- result{l, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.l
}

// needRoot skips a test that makes network namespaces, or a socket that is to be believed.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: sudo make test")
	}
}

func TestAgentOfThisMachineIsFound(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "s")
	serveOn(t, path, 0, healthyAgent)
	c, err := machineAgent(t.Context(), path, time.Minute)
	if err != nil || c == nil || c.String() != path {
		t.Fatalf("client %v, error %v", c, err)
	}
}

func TestNoAgentOnThisMachine(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	ending := filepath.Join(dir, "ending") // while it is asked
	serveOn(t, ending, 0, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	for _, path := range []string{stale, ending, filepath.Join(dir, "none"), filepath.Join(dir, "none", "none")} {
		if c, err := machineAgent(t.Context(), path, time.Minute); c != nil || err != nil {
			t.Errorf("%s: client %v, error %v", path, c, err)
		}
	}
}

func TestSocketThatAnotherUserMadeIsNotAsked(t *testing.T) {
	needRoot(t)
	asked := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })
	dir := func(mode os.FileMode, uid int) string {
		path := t.TempDir()
		if err := errors.Join(os.Chmod(path, mode), os.Chown(path, uid, -1)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	roots := dir(0o755, 0)
	if err := os.Chmod(roots, 0o777); err != nil { // the user's socket comes into root's directory
		t.Fatal(err)
	}
	const nobody = 65534
	for name, tt := range map[string]struct{ dir, want string }{
		"in a directory of that user":        {dir(0o755, nobody), "does not belong to root, so any user may listen there: not asked: use --url=none, or name the agent with --url"},
		"in a directory of everybody":        {dir(0o777, 0), "can be written to by others than root, so any user may listen there: not asked"},
		"in a directory with the sticky bit": {dir(os.ModeSticky|0o777, 0), "can be written to by others than root"},
		"in a directory of root's":           {roots, "is listened on by user 65534, not by root: not asked: use --url=none, or name the agent with --url"},
	} {
		t.Run(name, func(t *testing.T) {
			for p := tt.dir; p != "/tmp" && len(p) > 1; p = filepath.Dir(p) { // so that that user gets there
				if info, err := os.Stat(p); err != nil || info.Mode().Perm()&1 == 0 {
					if err := os.Chmod(p, 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			path := filepath.Join(tt.dir, "s")
			serveOn(t, path, nobody, asked)
			if tt.dir == roots {
				if err := os.Chmod(roots, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			c, err := machineAgent(t.Context(), path, time.Minute)
			if c != nil || err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), tt.dir) {
				t.Errorf("client %v, error %v, want %q", c, err, tt.want)
			}
		})
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(roots, link); err != nil {
		t.Fatal(err)
	}
	if c, err := machineAgent(t.Context(), filepath.Join(link, "s"), time.Minute); c != nil || err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("client %v, error %v", c, err)
	}
}

func TestAgentOfThisMachineThatDoesNotAnswer(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	hangs, full := filepath.Join(dir, "hangs"), filepath.Join(dir, "full")
	release := make(chan struct{})
	serveOn(t, hangs, 0, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)
	// Nobody accepts, and no more may wait for it.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: full}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.DialTimeout("unix", full, time.Second)
		if err != nil {
			break
		}
		defer c.Close()
	}
	for _, path := range []string{hangs, full} {
		want := "the agent of this machine has not answered on " + path + " within 100ms: restart it, or look without it with --url=none"
		if c, err := machineAgent(t.Context(), path, 100*time.Millisecond); c != nil || err == nil || err.Error() != want {
			t.Errorf("client %v, error %v, want %s", c, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := machineAgent(ctx, hangs, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestWhatAnswersOnTheSocketIsNoAgent(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "s")
	serveOn(t, path, 0, http.NotFoundHandler())
	want := "what answers at " + path + " is not a halfopen agent: look without it with --url=none"
	if c, err := machineAgent(t.Context(), path, time.Minute); c != nil || err == nil || err.Error() != want {
		t.Errorf("client %v, error %v", c, err)
	}
}

func TestSocketByItsURL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/connections", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"generated_at":"2026-11-21T12:00:00Z","total":0,"connections":[]}`))
	})
	serveOn(t, path, os.Getuid(), mux)
	if status, _, stderr := halfopen(t, "list", "--url=unix://"+path); status != exitDone || stderr != "no connections\n" {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	wantFailure(t, "ask "+path+".not: dial unix "+path+".not: connect: no such file or directory: check that the agent runs and listens there, or look without it with --url=none",
		"list", "--url=unix://"+path+".not")
}

func TestPlaces(t *testing.T) {
	for _, s := range []string{"", "None", "unix://host/s", "unix://s", "unix:s", "ftp://h", "127.0.0.1:9839"} {
		if p, err := parsePlace(s); err == nil {
			t.Errorf("%q is %+v", s, p)
		}
	}
	for s, path := range map[string]string{"unix:///run/s": "/run/s", "unix:/run/s": "/run/s"} {
		if p, err := parsePlace(s); err != nil || p.url == nil || p.url.Path != path {
			t.Errorf("%q is %+v, error %v", s, p, err)
		}
	}
	if p, err := parsePlace("none"); err != nil || !p.none {
		t.Errorf("none is %+v, error %v", p, err)
	}
}

func TestSocketsOfTheAgent(t *testing.T) {
	for s, want := range map[string]string{
		"none": "", exporter.SocketPath: exporter.SocketPath,
	} {
		if got, err := parseSocket(s); err != nil || got != want {
			t.Errorf("%q is %q, error %v", s, got, err)
		}
	}
	for _, s := range []string{"", "s", "./s", "/s", "/run/../s", "/run/", "/" + strings.Repeat("x", 50) + "/" + strings.Repeat("x", 100)} {
		if got, err := parseSocket(s); err == nil {
			t.Errorf("%q is %q", s, got)
		}
	}
}

func TestWebClientConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		w.Write([]byte(`{"generated_at":"2026-11-21T12:00:00Z","total":0,"connections":[]}`))
	}))
	defer srv.Close()
	write("password", "secret\n")
	write("wrong", "guess\n")
	of := func(file string) string { // beside it, by a relative path
		return write("with-"+file+".yml", "basic_auth:\n  username: me\n  password_file: "+file+"\n")
	}
	if status, stdout, stderr := halfopen(t, "list", "--url", srv.URL, "--web.client-config", of("password")); status != exitDone || stderr != "no connections\n" {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	wantFailure(t, "ask "+srv.URL+": it refused the user or password: check them in "+of("wrong"), "list", "--url", srv.URL, "--web.client-config", of("wrong"))
	missing, broken := of("missing"), write("broken.yml", "basic_auht: {}\n")
	for config, want := range map[string][]string{
		missing:                       {"ask " + srv.URL, filepath.Join(dir, "missing") + ": open", "no such file", "--web.client-config, " + missing},
		broken:                        {"web client config " + broken, "basic_auht", "--web.client-config"},
		filepath.Join(dir, "not.yml"): {"web client config", "no such file"},
		write("no-key.yml", "tls_config:\n  cert_file: none.pem\n"): {"web client config", "key"},
		write("no-ca.yml", "tls_config:\n  ca_file: none.pem\n"):    {"web client config", "none.pem", "no such file"},
	} {
		status, stdout, stderr := halfopen(t, "list", "--url", srv.URL, "--web.client-config", config)
		if status != exitFailed || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: status %d, stdout %q, stderr %q", config, status, stdout, stderr)
		}
		for _, part := range want {
			if !strings.Contains(stderr, part) {
				t.Errorf("%s: %q does not say %q", config, stderr, part)
			}
		}
	}
	for _, args := range []string{"list", "explain 1", "trace"} {
		for _, url := range []string{"", " --url=none", " --url=unix:///run/s"} {
			status, _, stderr := halfopen(t, strings.Fields(args+url+" --web.client-config=x")...)
			if status != exitUsage || !strings.Contains(stderr, "--web.client-config is for an agent that --url names") {
				t.Errorf("%s%s: status %d, stderr %q", args, url, status, stderr)
			}
		}
	}
}
