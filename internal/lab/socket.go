// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Listen opens a listening socket inside the namespace; network is "tcp", "tcp4" or "tcp6".
// SO_KEEPALIVE is off, also for accepted connections. The socket uses plain TCP, not MPTCP,
// which is Go's default.
func (n *Namespace) Listen(network string, addr netip.AddrPort) (*net.TCPListener, error) {
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = config.Listen(context.Background(), network, addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// Dial connects a socket that it creates inside the namespace. SO_KEEPALIVE is off. The
// options change the dialer first, for example its LocalAddr, or its Control to set socket
// options before the SYN. The error is that of [net.Dialer.DialContext], or [ErrClosed].
func (n *Namespace) Dial(ctx context.Context, addr netip.AddrPort, opts ...func(*net.Dialer)) (*net.TCPConn, error) {
	dialer := net.Dialer{KeepAlive: -1}
	dialer.SetMultipathTCP(false)
	for _, opt := range opts {
		opt(&dialer)
	}
	var conn net.Conn
	// For a single literal address the dialer creates the socket in the calling
	// goroutine, hence in the namespace.
	err := n.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// SetKeepalive turns SO_KEEPALIVE on. The kernel sends the first probe after idle and
// further ones every interval, and ends the connection after count unanswered probes. It
// rounds durations up to whole seconds, the kernel's unit. A value of zero leaves the
// setting to the namespace's sysctl.
func SetKeepalive(c syscall.Conn, idle, interval time.Duration, count int) error {
	return setsockopts(c, "set keepalive",
		sockopt{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, ceil(idle, time.Second), idle == 0},
		sockopt{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, ceil(interval, time.Second), interval == 0},
		sockopt{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count, count == 0},
		sockopt{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, false},
	)
}

// SetUserTimeout sets TCP_USER_TIMEOUT, rounded up to whole milliseconds; zero
// turns it off.
func SetUserTimeout(c syscall.Conn, d time.Duration) error {
	return setsockopts(c, "set user timeout",
		sockopt{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ceil(d, time.Millisecond), false})
}

// Cookie returns the kernel's cookie of the socket (SO_COOKIE), unique until the
// next boot.
func Cookie(c syscall.Conn) (uint64, error) {
	var cookie uint64
	err := control(c, func(fd int) (err error) {
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("get socket cookie: %w", err)
	}
	return cookie, nil
}

// SetClass gives the packets that the socket sends from now on a traffic class (IP_TOS,
// IPV6_TCLASS). An existing [Rule] for that class then drops the packets of this connection,
// which needs no rule of its own. An accepted connection inherits the class of its listener.
// TCP itself uses the two lowest bits.
func SetClass(c syscall.Conn, class uint8) error {
	return control(c, func(fd int) error { return SetClassFD(fd, class) })
}

// SetClassFD is SetClass for a descriptor.
func SetClassFD(fd int, class uint8) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("set traffic class: %w", err)
	}
	level, name := unix.IPPROTO_IP, unix.IP_TOS
	if domain == unix.AF_INET6 {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if err := unix.SetsockoptInt(fd, level, name, int(class)); err != nil {
		return fmt.Errorf("set traffic class: %w", err)
	}
	return nil
}

// Info returns the kernel's information about a connection (TCP_INFO). Its State is the
// kernel's number of the state.
func Info(c syscall.Conn) (*unix.TCPInfo, error) {
	var info *unix.TCPInfo
	err := control(c, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get TCP info: %w", err)
	}
	return info, nil
}

// Disconnect ends a connection with connect() to AF_UNSPEC. The socket stays open, and
// could be connected again.
func Disconnect(c syscall.Conn) error {
	return control(c, DisconnectFD)
}

// DisconnectFD is Disconnect for a descriptor.
func DisconnectFD(fd int) error {
	var nowhere unix.RawSockaddr // family 0 is AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nowhere)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return fmt.Errorf("disconnect: %w", errno)
	}
	return nil
}

// Diag finds the sockets of a namespace from outside, as ss does, and ends them as `ss -K`
// does (sock_diag(7)). It is safe for concurrent use.
type Diag struct {
	sockets map[int]*nl.SocketHandle
}

// Diag opens sock_diag in the namespace. The caller must Close it.
func (n *Namespace) Diag() (*Diag, error) {
	d := &Diag{}
	err := n.Do(func() error {
		s, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
		d.sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return d, nil
}

// Close closes the sock_diag socket.
func (d *Diag) Close() { d.sockets[unix.NETLINK_INET_DIAG].Close() }

// A Socket has the kernel's numbers of a socket's state and running timer, and the socket's
// cookie.
type Socket struct {
	State, Timer uint8
	Cookie       uint64
}

// Find returns the connection between two ends that has this cookie; 0: any cookie. The
// error is ENOENT if there is none.
func (d *Diag) Find(local, remote netip.AddrPort, cookie uint64) (Socket, error) {
	messages, err := d.execute(nl.SOCK_DIAG_BY_FAMILY, 0, diagRequest{local, remote, cookie})
	if err != nil {
		return Socket{}, fmt.Errorf("find socket of %s and %s: %w", local, remote, err)
	}
	if len(messages) != 1 || len(messages[0]) < 52 {
		return Socket{}, fmt.Errorf("find socket of %s and %s: %d answers", local, remote, len(messages))
	}
	m := messages[0] // struct inet_diag_msg
	found := uint64(binary.NativeEndian.Uint32(m[44:])) | uint64(binary.NativeEndian.Uint32(m[48:]))<<32
	return Socket{State: m[1], Timer: m[2], Cookie: found}, nil
}

// Destroy ends the connection between two ends that has this cookie.
func (d *Diag) Destroy(local, remote netip.AddrPort, cookie uint64) error {
	if _, err := d.execute(nl.SOCK_DESTROY, unix.NLM_F_ACK, diagRequest{local, remote, cookie}); err != nil {
		return fmt.Errorf("destroy socket %x: %w", cookie, err)
	}
	return nil
}

func (d *Diag) execute(proto, flags int, r diagRequest) ([][]byte, error) {
	request := nl.NewNetlinkRequest(proto, flags)
	request.Sockets = d.sockets
	request.AddData(r)
	return request.Execute(unix.NETLINK_INET_DIAG, 0)
}

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	local, remote netip.AddrPort
	cookie        uint64 // 0: any
}

// Len returns the length of the bytes that Serialize returns.
func (diagRequest) Len() int { return 56 }

// Serialize returns the request in the kernel's layout.
func (r diagRequest) Serialize() []byte {
	b := make([]byte, 0, r.Len())
	family := byte(unix.AF_INET)
	if r.local.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, r.local.Port())
	b = binary.BigEndian.AppendUint16(b, r.remote.Port())
	for _, end := range []netip.AddrPort{r.local, r.remote} {
		var addr [16]byte
		copy(addr[:], end.Addr().AsSlice())
		b = append(b, addr[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // any interface
	cookie := r.cookie
	if cookie == 0 {
		cookie = ^uint64(0) // INET_DIAG_NOCOOKIE
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(cookie))
	return binary.NativeEndian.AppendUint32(b, uint32(cookie>>32))
}

type sockopt struct {
	level, name, value int
	skip               bool
}

func setsockopts(c syscall.Conn, what string, opts ...sockopt) error {
	err := control(c, func(fd int) error {
		for _, o := range opts {
			if o.skip {
				continue
			}
			if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// control runs f on the descriptor of c.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// ceil returns d in units, rounded up. A negative value stays negative, so that the kernel
// refuses it.
func ceil(d, unit time.Duration) int {
	n := int(d / unit)
	if d%unit > 0 {
		n++
	}
	return n
}
