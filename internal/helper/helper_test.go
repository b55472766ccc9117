// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/lab"
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

// own returns a connection of this process, and the namespace that it is in.
func own(t *testing.T) (bpf.NetnsRef, conn.Flow) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	cookie, err := lab.Cookie(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return bpf.NetnsRef{Inode: uint32(st.Ino)}, conn.Flow{
		Cookie: cookie, Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: c.RemoteAddr().(*net.TCPAddr).AddrPort(),
	}
}

func TestHelperFindsThePathOfAFlow(t *testing.T) {
	h := start(t, "")
	netns, flow := own(t)
	p, err := h.FlowPath(t.Context(), netns, flow)
	if err != nil || p.LocalDevice == nil || p.LocalDevice.Name != "lo" || !p.LocalDevice.Up || p.LocalDevice.MTU == 0 ||
		p.Route.Type != conn.RouteLocal || p.Route.Device == nil || p.Neighbour != nil {
		t.Fatalf("%+v, %v", p, err)
	}
	// As without a helper.
	if want, err := collector.NewDirect().FlowPath(t.Context(), netns, flow); err != nil || !cmp.Equal(p, want, cmpopts.EquateComparable(netip.Addr{})) {
		t.Errorf("%+v, expected %+v, %v", p, want, err)
	}
	flow.Cookie++
	if p, err := h.FlowPath(t.Context(), netns, flow); p != nil || !errors.Is(err, unix.ENOENT) {
		t.Errorf("%+v, %v for another socket", p, err)
	}
	if p, err := h.FlowPath(t.Context(), bpf.NetnsRef{Inode: 1, Path: strings.Repeat("x", maxPath+1)}, flow); p != nil || err == nil {
		t.Errorf("%+v, %v for a path that is too long", p, err)
	}
}

// A thousand questions at once are answered or refused; they take few threads, and no
// other question waits for them.
func TestHelperBoundsQuestionsAboutPaths(t *testing.T) {
	h := start(t, "")
	netns, flow := own(t)
	began := time.Now()
	var answered, refused atomic.Int64
	var all errgroup.Group
	for range 1000 {
		all.Go(func() error {
			switch p, err := h.FlowPath(t.Context(), netns, flow); {
			case err == nil && p != nil:
				answered.Add(1)
			case errors.Is(err, unix.EBUSY):
				refused.Add(1)
			default:
				return err
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	most := int64(50 + 20*(time.Since(began).Seconds()+1))
	if answered.Load() == 0 || answered.Load() > most || refused.Load() != 1000-answered.Load() {
		t.Errorf("%d questions were answered, at most %d are possible; %d were refused", answered.Load(), most, refused.Load())
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", h.cmd.Process.Pid))
	if err != nil || len(threads) > 64 {
		t.Errorf("the helper has %d threads, %v", len(threads), err)
	}
	if err := h.CgroupsRefused(); err != nil {
		t.Log(err)
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
