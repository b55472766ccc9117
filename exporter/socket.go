// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/rundir"
)

// SocketPath is where the agent of a machine listens for the other commands. Root and
// the group [SocketGroup] may connect.
const SocketPath = "/run/halfopen/halfopen.sock"

// SocketGroup is the group that may use the socket, if it exists.
const SocketGroup = "halfopen"

const (
	socketMode = 0o660
	// rootSocketMode is the mode of a socket without a group.
	rootSocketMode = 0o600
	// socketTimeout is how long to wait for another agent that makes its socket, or
	// that should answer on it.
	socketTimeout = time.Second
)

// ErrSocketInUse is the error if another process answers on the socket.
var ErrSocketInUse = errors.New("another agent listens there")

// ListenSocket makes the Unix socket at an absolute path and listens on it. It makes
// the directory of the socket, but no other; no directory of the path may be a symbolic
// link or belong to another user. It replaces a socket that a killed agent left, but
// not one that answers ([ErrSocketInUse]). Closing the listener removes the file: it
// calls remove or, if that is nil, [RemoveSocket]. Errors are one line.
func ListenSocket(path string, remove func(device, inode uint64) error, logger *slog.Logger) (net.Listener, error) {
	gid := socketGroupID()
	dir, err := rundir.Open(filepath.Dir(path), gid)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	lockSocketDir(dir)
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a Unix socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	if remove == nil {
		remove = func(device, inode uint64) error { return RemoveSocket(path, device, inode) }
	}
	made := &socketListener{removeFile: remove}
	mode := os.FileMode(socketMode)
	if gid < 0 {
		mode = rootSocketMode
	} else if err := os.Lchown(path, -1, gid); err != nil {
		mode = rootSocketMode
		logger.Warn("The socket is for root only, not for its group", "group", SocketGroup, "err", oneLine(err.Error()))
	}
	// No process can connect before listen, so the mode that the umask left does not
	// matter.
	err = errors.Join(os.Chmod(path, mode), unix.Lstat(path, &made.stat))
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err == nil {
		made.Listener, err = net.FileListener(f)
	}
	if err != nil {
		made.remove()
		return nil, fmt.Errorf("listen on the socket %s: %s", path, oneLine(err.Error()))
	}
	return made, nil
}

// socketListener removes the file of its socket when it is closed.
type socketListener struct {
	net.Listener
	removeFile func(device, inode uint64) error
	stat       unix.Stat_t
	closed     sync.Once
}

// Close ends listening and removes the socket's file.
func (s *socketListener) Close() error {
	s.closed.Do(s.remove)
	return s.Listener.Close()
}

func (s *socketListener) remove() { _ = s.removeFile(s.stat.Dev, s.stat.Ino) }

// RemoveSocket removes the file of a Unix socket, unless another device or inode number
// shows that it is another one now.
func RemoveSocket(path string, device, inode uint64) error {
	var now unix.Stat_t
	if err := unix.Lstat(path, &now); err != nil {
		return err
	}
	if now.Mode&unix.S_IFMT != unix.S_IFSOCK || now.Dev != device || now.Ino != inode {
		return nil
	}
	return os.Remove(path)
}

// socketGroupID returns the id of [SocketGroup], -1 if there is no such group.
func socketGroupID() int {
	g, err := user.LookupGroup(SocketGroup)
	if err != nil {
		return -1
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return id
}

// lockSocketDir keeps two agents that start at once from removing each other's socket.
// Every user who can read the directory can hold the lock, so it waits for a short time
// only and then goes on without.
func lockSocketDir(dir *os.File) {
	for end := time.Now().Add(socketTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return // the lock ends when dir is closed
		}
	}
}

// removeStaleSocket removes a socket on which no process listens.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is not a socket: remove it, or choose another path with --web.socket", path)
	}
	c, err := net.DialTimeout("unix", path, socketTimeout)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("socket %s: %w", path, ErrSocketInUse)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// HasSocket reports whether one of the listeners is a Unix socket, which systemd
// passed.
func HasSocket(listeners []net.Listener) bool {
	for _, l := range listeners {
		if l.Addr().Network() == "unix" {
			return true
		}
	}
	return false
}

// guardedByMode reports whether a listener is a Unix socket that not every user can
// connect to. Its clients need neither TLS nor a password.
func guardedByMode(l net.Listener) bool {
	if l.Addr().Network() != "unix" {
		return false
	}
	info, err := os.Lstat(l.Addr().String()) // an abstract socket has no file
	return err == nil && info.Mode().Type() == fs.ModeSocket && info.Mode().Perm()&0o002 == 0
}

// Peer is the process at the other end of a Unix socket, as it was when it connected,
// or, if it is the server, when it began to listen (SO_PEERCRED). The ids are those of
// this process's namespaces; the pid is 0 if the process is not in our pid namespace.
type Peer struct {
	PID      int32
	UID, GID uint32
}

// ConnPeer returns the peer of a connection, and false if the connection is not over a
// Unix socket.
func ConnPeer(c net.Conn) (Peer, bool) {
	for {
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = wrapper.NetConn()
	}
	connection, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, false
	}
	raw, err := connection.SyscallConn()
	if err != nil {
		return Peer{}, false
	}
	var cred *unix.Ucred
	if ctl := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctl != nil || err != nil {
		return Peer{}, false
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, true
}

type peerKey struct{}

// RequestPeer returns the process that made a request, given the request's context, and
// false if the request did not come over a Unix socket.
func RequestPeer(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// withPeer is the ConnContext of our servers.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if p, ok := ConnPeer(c); ok {
		ctx = context.WithValue(ctx, peerKey{}, p)
	}
	return ctx
}

// logPeers logs the requests whose peer is known.
func logPeers(next http.Handler, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, ok := RequestPeer(r.Context()); ok {
			logger.Debug("Request over the socket", "path", r.URL.Path, "pid", p.PID, "uid", p.UID, "gid", p.GID)
		}
		next.ServeHTTP(w, r)
	})
}
