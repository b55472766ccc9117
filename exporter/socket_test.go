// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var quiet = slog.New(slog.DiscardHandler)

// unixClient asks over a Unix socket, each time anew.
func unixClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}

func TestSocketIsForRootAndItsGroupWhateverTheUmask(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sudo make test") // others cannot enter what a umask of 777 leaves
	}
	for _, umask := range []int{0, 0o022, 0o777} {
		path := filepath.Join(t.TempDir(), "halfopen", "halfopen.sock")
		before := unix.Umask(umask)
		l, err := ListenSocket(path, nil, quiet)
		unix.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(socketMode)
		if socketGroupID() < 0 { // then only root may connect
			mode = rootSocketMode
		}
		for name, want := range map[string]os.FileMode{filepath.Dir(path): os.ModeDir | 0o755, path: os.ModeSocket | mode} {
			if info, err := os.Lstat(name); err != nil || info.Mode() != want {
				t.Errorf("umask %o: %s: %v, error %v, want %v", umask, name, info.Mode(), err, want)
			}
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file stays: %v", err)
		}
	}
}

// leave leaves a socket's file behind, as an agent that is killed does.
func leave(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestSocketThatNobodyListensOnIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	leave(t, path)
	l, err := ListenSocket(path, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestSocketOfAnotherAgentIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenSocket(path, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := ListenSocket(path, nil, quiet); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("error %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// What comes after it is not removed with it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := ListenSocket(path, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestOfManyAgentsAtOnceOneHasTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	leave(t, path)
	var have atomic.Int32
	var all sync.WaitGroup
	listeners := make(chan net.Listener, 8)
	for range cap(listeners) {
		all.Go(func() {
			l, err := ListenSocket(path, nil, quiet)
			switch {
			case err == nil:
				have.Add(1)
				listeners <- l
			case !errors.Is(err, ErrSocketInUse):
				t.Error(err)
			}
		})
	}
	all.Wait()
	close(listeners)
	if n := have.Load(); n != 1 {
		t.Errorf("%d have it", n)
	}
	for l := range listeners {
		if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		l.Close()
	}
}

func TestSocketIsNotMadeWhereOthersCanReplaceIt(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sudo make test") // to make files of another user
	}
	dir := t.TempDir()
	made := func(name string, mode os.FileMode, uid int) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(path, 0o755), os.Chmod(path, mode), os.Chown(path, uid, -1)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ours := made("ours", 0o755, 0)
	link := filepath.Join(dir, "link")
	file := filepath.Join(ours, "file")
	if err := errors.Join(os.Symlink(ours, link), os.WriteFile(file, []byte("precious"), 0o600)); err != nil {
		t.Fatal(err)
	}
	theirs := made("theirs", 0o755, 65534)
	if err := os.Mkdir(filepath.Join(theirs, "roots"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(made("everybodys", 0o777, 0), "s"):        "can be written to by others",
		filepath.Join(made("groups", 0o775, 0), "s"):            "can be written to by others",
		filepath.Join(made("tmp", os.ModeSticky|0o777, 0), "s"): "can be written to by others",
		filepath.Join(theirs, "s"):                              "belongs to user 65534",
		filepath.Join(theirs, "roots", "s"):                     "belongs to user 65534",
		filepath.Join(link, "s"):                                "is a symbolic link",
		filepath.Join(link, "made", "s"):                        "is a symbolic link",
		filepath.Join(dir, "missing", "missing", "s"):           "no such file",
		file: "is not a socket",
		filepath.Join(made("a", 0o755, 0), strings.Repeat("x", 200)): "invalid argument",
	} {
		l, err := ListenSocket(path, nil, quiet)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
	if body, err := os.ReadFile(file); string(body) != "precious" {
		t.Errorf("the file was touched: %q, %v", body, err)
	}
}

func TestWhoAsksOverTheSocketIsKnown(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "s")
	socket, err := ListenSocket(path, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		peer Peer
		ok   bool
	}
	answers := make(chan answer, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Serve(ctx, []net.Listener{tcp, socket}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			p, ok := RequestPeer(r.Context())
			answers <- answer{p, ok}
		}), flagsFor(""), newConnLimit(maxConns, quiet), quiet)
	}()
	get := func(c *http.Client, url string) answer {
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return <-answers
	}
	want := answer{Peer{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, true}
	if got := get(unixClient(path), "http://halfopen/"); got != want {
		t.Errorf("over the socket %+v, want %+v", got, want)
	}
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if got := get(plain, "http://"+tcp.Addr().String()); got.ok {
		t.Errorf("over TCP %+v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The mode of the socket says who may ask, so that it needs no password; one that every
// user can connect to, as systemd makes them unless told otherwise, does.
func TestSocketNeedsAPasswordOnlyWhereEverybodyCanConnect(t *testing.T) {
	config := writeConfig(t, "basic_auth_users:\n  prometheus: $2a$04$y927JXmOaBp0qsUa5VQsAO9OGZySGiPt6Spxe5Z44eQyidQ6xtiPO\n")
	for mode, want := range map[os.FileMode]int{0o660: http.StatusOK, 0o600: http.StatusOK, 0o666: http.StatusUnauthorized, 0o622: http.StatusUnauthorized} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if !HasSocket([]net.Listener{l}) {
			t.Error("it is not taken for a Unix socket")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- Serve(ctx, []net.Listener{l}, newHandler(t, &fakeSource{}), flagsFor(config), newConnLimit(maxConns, quiet), quiet)
		}()
		resp, err := unixClient(path).Get("http://halfopen/-/healthy")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("mode %o: status %d, want %d", mode, resp.StatusCode, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
