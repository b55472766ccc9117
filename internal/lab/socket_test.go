// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connect returns both ends of a connection from the client to the server.
func connect(t *testing.T, l *Lab, addr netip.AddrPort) (client, accepted *net.TCPConn) {
	t.Helper()
	ln, err := l.Server.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err = l.Client.Dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ln.SetDeadline(time.Now().Add(patience))
	accepted, err = ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return client, accepted
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q, want %q (%v)", got[:n], want, err)
	}
}

// socketNS returns the inode of the namespace that a socket belongs to.
func socketNS(t *testing.T, c syscall.Conn) uint32 {
	t.Helper()
	var st unix.Stat_t
	err := control(c, func(fd int) error {
		ns, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGSKNS, 0)
		if errno != 0 {
			return errno
		}
		defer unix.Close(int(ns))
		return unix.Fstat(int(ns), &st)
	})
	if err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

func getsockopt(t *testing.T, c syscall.Conn, level, name int) int {
	t.Helper()
	var value int
	err := control(c, func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, level, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestSocketsAreOfTheirNamespace(t *testing.T) {
	l := newLab(t)
	families(t, l, func(t *testing.T, server netip.Addr) {
		ln, err := l.Server.Listen("tcp", netip.AddrPortFrom(server, 0))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
		for _, tt := range []struct {
			name string
			sock syscall.Conn
			n    *Namespace
		}{
			{"dialled", client, l.Client},
			{"listening", ln, l.Server},
			{"accepted", accepted, l.Server},
		} {
			if got := socketNS(t, tt.sock); got != tt.n.Inode() {
				t.Errorf("the %s socket is of %d, want %d", tt.name, got, tt.n.Inode())
			}
			if p := getsockopt(t, tt.sock, unix.SOL_SOCKET, unix.SO_PROTOCOL); p != unix.IPPROTO_TCP {
				t.Errorf("the %s socket speaks protocol %d, want TCP", tt.name, p)
			}
		}
		// ss is the independent witness.
		filter := fmt.Sprintf("sport = :%d", client.LocalAddr().(*net.TCPAddr).Port)
		for n, want := range map[*Namespace]int{l.Client: 1, l.Server: 0} {
			out, err := n.Output("ss", "-Htn", filter)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(string(out), "ESTAB"); got != want {
				t.Errorf("ss shows %d sockets with %s, want %d: %s", got, filter, want, out)
			}
		}
	})
}

func TestDialRespectsItsContext(t *testing.T) {
	l := newLab(t)
	if _, err := l.Client.Drop(Rule{Percent: 100}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := l.Client.Dial(ctx, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("dial into the void: %v, want a timeout", err)
	}
}

func TestDialOptions(t *testing.T) {
	l := newLab(t)
	addr := netip.AddrPortFrom(l.Server.Addr4(), 5432)
	ln, err := l.Server.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := l.Client.Dial(context.Background(), addr, func(d *net.Dialer) {
		d.LocalAddr = &net.TCPAddr{Port: 12347}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.LocalAddr().(*net.TCPAddr).Port; got != 12347 {
		t.Errorf("local port is %d, want 12347", got)
	}
}

func TestSocketOptions(t *testing.T) {
	l := newLab(t)
	client, accepted := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	for _, c := range []*net.TCPConn{client, accepted} {
		if on := getsockopt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE); on != 0 {
			t.Errorf("SO_KEEPALIVE is %d on a new socket", on)
		}
	}

	tcp := func(name int) int { return getsockopt(t, client, unix.IPPROTO_TCP, name) }
	if err := SetKeepalive(client, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if on := getsockopt(t, client, unix.SOL_SOCKET, unix.SO_KEEPALIVE); on != 1 {
		t.Errorf("SO_KEEPALIVE is %d after SetKeepalive", on)
	}
	if got := [3]int{tcp(unix.TCP_KEEPIDLE), tcp(unix.TCP_KEEPINTVL), tcp(unix.TCP_KEEPCNT)}; got != [3]int{7200, 75, 9} {
		t.Errorf("keepalive is %v, want the sysctls' 7200, 75 and 9", got)
	}
	if err := SetKeepalive(client, 11*time.Second, 2500*time.Millisecond, 4); err != nil {
		t.Fatal(err)
	}
	if got := [3]int{tcp(unix.TCP_KEEPIDLE), tcp(unix.TCP_KEEPINTVL), tcp(unix.TCP_KEEPCNT)}; got != [3]int{11, 3, 4} {
		t.Errorf("keepalive is %v, want 11, 3 and 4", got)
	}
	if err := SetKeepalive(client, -time.Second, 0, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a negative idle time: %v, want %v", err, unix.EINVAL)
	}

	if err := SetUserTimeout(client, 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := tcp(unix.TCP_USER_TIMEOUT); got != 1500 {
		t.Errorf("TCP_USER_TIMEOUT is %d ms, want 1500", got)
	}

	cookie, err := Cookie(client)
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Client.Output("ss", "-Htne")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(" sk:%x ", cookie); !strings.Contains(string(out), want) {
		t.Errorf("no%sin %s", want, out)
	}

	client.Close()
	if err := SetKeepalive(client, 0, 0, 0); err == nil {
		t.Error("a closed socket took an option")
	}
}

func TestDisconnectAndDestroy(t *testing.T) {
	l := newLab(t)
	diag, err := l.Client.Diag()
	if err != nil {
		t.Fatal(err)
	}
	defer diag.Close()
	families(t, l, func(t *testing.T, server netip.Addr) {
		for _, tt := range []struct {
			name string
			end  func(c *net.TCPConn) error
			want unix.Errno
		}{
			{"disconnect", func(c *net.TCPConn) error { return Disconnect(c) }, unix.ECONNRESET},
			{"destroy", func(c *net.TCPConn) error {
				cookie, err := Cookie(c)
				if err != nil {
					return err
				}
				local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
				if s, err := diag.Find(local, remote, 0); err != nil || s.State != 1 || s.Cookie != cookie {
					t.Errorf("found %+v, want %x, established (%v)", s, cookie, err)
				}
				return diag.Destroy(local, remote, cookie)
			}, unix.ECONNABORTED},
		} {
			t.Run(tt.name, func(t *testing.T) {
				client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
				if err := tt.end(client); err != nil {
					t.Fatal(err)
				}
				info, err := Info(client)
				if err != nil || info.State != 7 { // TCP_CLOSE
					t.Errorf("its state is %d (%v)", info.State, err)
				}
				if errno := unix.Errno(getsockopt(t, client, unix.SOL_SOCKET, unix.SO_ERROR)); errno != tt.want {
					t.Errorf("its error is %v, want %v", errno, tt.want)
				}
				accepted.SetReadDeadline(time.Now().Add(patience))
				if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the peer got %v", err)
				}
				client.Close()
				accepted.Close()
			})
		}
		err := diag.Destroy(netip.AddrPortFrom(server, 1), netip.AddrPortFrom(server, 2), 12345)
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("a socket that does not exist: %v", err)
		}
	})
}
