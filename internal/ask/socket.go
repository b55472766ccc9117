// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Target is a connection, and a descriptor that holds it.
type Target struct {
	Cookie uint64 `json:"cookie"`
	Netns  uint32 `json:"netns"` // inode number
	PID    int    `json:"pid"`
	FD     int    `json:"fd"`
}

// notAsked is why a connection was not asked. It completes "not asked: ".
type notAsked string

func (n notAsked) Error() string { return string(n) }

// socket is a duplicate of the socket of another process. While it is open, the kernel does not
// end the connection when the process closes its own.
type socket struct {
	process int // pidfd
	fd      int
	target  Target
}

// duplicate takes a duplicate of the target's socket. The cookie shows that it is the right one:
// the kernel gives none twice, whatever became of the process id and the descriptor. The error
// is a notAsked.
func duplicate(t Target) (*socket, error) {
	process, err := unix.PidfdOpen(t.PID, 0)
	if err != nil {
		return nil, refusal(&t, err)
	}
	s := &socket{process: process, fd: -1, target: t}
	if s.fd, err = s.take(); err != nil {
		s.close()
		return nil, refusal(&t, err)
	}
	return s, nil
}

// errOther is the error if a descriptor is another one now.
var errOther = errors.New("the descriptor is another one now")

// take takes another duplicate.
func (s *socket) take() (fd int, err error) {
	if fd, err = unix.PidfdGetfd(s.process, s.target.FD, 0); err != nil {
		return -1, err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err == nil && cookie == s.target.Cookie {
		return fd, nil
	}
	unix.Close(fd)
	return -1, errOther
}

// refusal returns why no duplicate could be taken.
func refusal(t *Target, err error) notAsked {
	switch {
	case errors.Is(err, unix.ESRCH):
		return notAsked(fmt.Sprintf("its process %d has ended", t.PID))
	case errors.Is(err, unix.EBADF), errors.Is(err, errOther):
		return notAsked(fmt.Sprintf("its process %d has closed it", t.PID))
	case errors.Is(err, unix.ENOSYS):
		return "this kernel, or a seccomp profile, has no pidfd_getfd, which takes a duplicate of its socket"
	case errors.Is(err, unix.EPERM):
		why := "taking a duplicate of its socket needs CAP_SYS_PTRACE, and no security profile that forbids pidfd_getfd"
		if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(scope)) == "3" {
			why = "kernel.yama.ptrace_scope is 3, which forbids to take a duplicate of its socket until the next boot"
		}
		return notAsked(why)
	}
	return notAsked(fmt.Sprintf("no duplicate of its socket: %v", err))
}

func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	unix.Close(s.process)
}

// held reports whether the process still holds the socket by the descriptor.
func (s *socket) held() bool {
	fd, err := s.take()
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// look is what the kernel says of a connection at one moment.
type look struct {
	unix.TCPInfo
	at moment // just before it
}

func (s *socket) look() (l look, err error) {
	l.at = clock()
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return l, notAsked(fmt.Sprintf("TCP_INFO: %v", err))
	}
	l.TCPInfo = *info
	return l, nil
}

// outstanding returns how many bytes of ours, FIN included, the peer has not acknowledged.
func (s *socket) outstanding() (int, error) {
	n, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
	if err != nil {
		return 0, notAsked(fmt.Sprintf("SIOCOUTQ: %v", err))
	}
	return n, nil
}

// accepted returns how long ago TCP last accepted a segment of the peer, as the kernel's keepalive
// timer counts it (keepalive_time_elapsed).
func (l *look) accepted() time.Duration {
	return time.Duration(min(l.Last_ack_recv, l.Last_data_recv)) * time.Millisecond
}

// heardSince reports whether any segment of the peer has come since another look.
func (l *look) heardSince(before *look) bool { return l.Segs_in != before.Segs_in }

// acceptedSince reports whether TCP has accepted a segment of the peer since another look. The
// stamps are jiffies.
func (l *look) acceptedSince(before *look) bool {
	return l.heardSince(before) && l.at.add(-l.accepted()).sub(before.at.add(-before.accepted())) > 2*jiffy
}

// moment is a time of CLOCK_MONOTONIC in nanoseconds.
type moment int64

func (m moment) sub(n moment) time.Duration { return time.Duration(m - n) }
func (m moment) add(d time.Duration) moment { return m + moment(d) }

// began is one moment on both clocks. Go's is CLOCK_MONOTONIC, too, and needs no system call.
var began = struct {
	moment
	time.Time
}{timeOf(unix.CLOCK_MONOTONIC, unix.ClockGettime), time.Now()}

func clock() moment { return began.moment.add(time.Since(began.Time)) }

// lastTick returns when the last jiffy began. The kernel's timers fire right after that.
func lastTick() moment { return timeOf(unix.CLOCK_MONOTONIC_COARSE, unix.ClockGettime) }

// jiffy is how long a jiffy is.
var jiffy = timeOf(unix.CLOCK_MONOTONIC_COARSE, unix.ClockGetres).sub(0)

func timeOf(id int32, read func(int32, *unix.Timespec) error) moment {
	var t unix.Timespec
	if read(id, &t) != nil {
		return 0
	}
	return moment(t.Nano())
}
