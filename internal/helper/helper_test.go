// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Argument {
		os.Exit(Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func start(t *testing.T, socket string) *Helper {
	t.Helper()
	h, err := Start(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestErrorsKeepTheirErrno(t *testing.T) {
	for _, err := range []error{unix.EPERM, &os.PathError{Op: "open", Path: "/x", Err: unix.ENOENT}} {
		got := failureOf(err).error()
		var errno unix.Errno
		if !errors.As(err, &errno) || !errors.Is(got, errno) || got.Error() != err.Error() {
			t.Errorf("%v became %v", err, got)
		}
	}
	if got := failureOf(errors.New("no errno")).error(); got.Error() != "no errno" || errors.As(got, new(unix.Errno)) {
		t.Errorf("an error without an errno became %v", got)
	}
	if got := failureOf(nil).error(); got != nil {
		t.Errorf("nil became %v", got)
	}
}

func TestHelperRemovesOnlyItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	h := start(t, path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveSocket(st.Dev, st.Ino+1); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("it has removed another socket: %v", err)
	}
	if err := h.RemoveSocket(st.Dev, st.Ino); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it has not removed the socket: %v", err)
	}
	if err := h.RemoveSocket(st.Dev, st.Ino); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v for a socket that is not there", err)
	}
}

func TestHelperAnswersForEachNamespace(t *testing.T) {
	h := start(t, "")
	file := filepath.Join(t.TempDir(), "no namespace")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	errs, _, err := h.GiveCookies(t.Context(), []bpf.CookieTarget{{Netns: 1, Path: file}, {Netns: 1, Path: file + "missing"}})
	if err != nil || len(errs) != 2 {
		t.Fatalf("%v, %v", errs, err)
	}
	if !errors.Is(errs[0], unix.ESRCH) || !errors.Is(errs[1], unix.ENOENT) {
		t.Errorf("%v", errs)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := h.GiveCookies(ended, []bpf.CookieTarget{{Netns: 1, Path: file}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v when the context has ended", err)
	}
}

func TestHelperFindsOnlyContainers(t *testing.T) {
	h := start(t, "")
	for _, id := range []string{"../../../../etc/shadow", "/etc/shadow", strings.Repeat("0", 63), strings.Repeat("0", 64) + "/.."} {
		if names, err := h.ContainerNames(id, ""); !errors.Is(err, unix.EINVAL) || names.Container != "" {
			t.Errorf("%q is %+v, %v", id, names, err)
		}
	}
	if names, err := h.ContainerNames(strings.Repeat("0", 64), "00000000-0000-0000-0000-000000000000"); err == nil || errors.Is(err, unix.EINVAL) {
		t.Errorf("a container that is not there is %+v, %v", names, err)
	}
}

func TestHelperThatIsKilled(t *testing.T) {
	h, err := Start("")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Wait(ctx); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("%v", err)
	}
	if _, err := h.CgroupPath(1); err == nil {
		t.Error("it answers")
	}
	_ = h.Close()
}
