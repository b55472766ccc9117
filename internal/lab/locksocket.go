// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockTimeout is the longest wait until the writer is stuck, which usually takes
// microseconds.
const lockTimeout = 10 * time.Second

// LockSocket holds the lock of a connection's socket until release is called, as a process
// does in the middle of a system call. Until then the socket's write timer defers its work,
// its keepalive timer tries again every 50 ms, and arriving segments wait. release sends
// one zero byte, so the send buffer must have room for it.
//
// A thread writes from a page that does not exist yet, and whose faults user space handles
// (userfaultfd(2)). tcp_sendmsg() holds the socket's lock while it copies, so it sleeps with
// the lock until release provides the page. This needs root, or /dev/userfaultfd.
func LockSocket(c syscall.Conn) (release func() error, err error) {
	l := &socketLock{fd: -1, done: make(chan error, 1)}
	if err := l.prepare(); err != nil {
		l.close()
		return nil, fmt.Errorf("lock socket: %w", err)
	}
	onThread(func() {
		// A signal could not end the sleep, but would turn it into a busy loop.
		var all unix.Sigset_t
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
			l.done <- err
			return
		}
		l.done <- control(c, func(fd int) error {
			_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), l.page, 1, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			if errno != 0 {
				return errno
			}
			return nil
		})
	})
	if err := l.stuck(); err != nil {
		_ = l.give()
		l.close()
		return nil, fmt.Errorf("lock socket: %w", err)
	}
	return sync.OnceValue(func() error {
		defer l.close()
		if err := l.give(); err != nil {
			return fmt.Errorf("release socket: %w", err)
		}
		if err := <-l.done; err != nil {
			return fmt.Errorf("write that held the socket: %w", err)
		}
		return nil
	}), nil
}

// socketLock is a page that does not exist yet, and the userfaultfd that handles its faults.
type socketLock struct {
	fd   int
	page uintptr
	done chan error // gets the writer's error
}

// Requests and the one message of include/uapi/linux/userfaultfd.h.
const (
	uffdAPI         = 0xaa
	uffdioAPI       = 0xc018aa3f
	uffdioRegister  = 0xc020aa00
	uffdioZeropage  = 0xc020aa04
	uffdMissing     = 1
	uffdMessageSize = 32
)

func (l *socketLock) prepare() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	l.fd = int(fd)
	size := uintptr(unix.Getpagesize())
	l.page, _, errno = unix.Syscall6(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if errno != 0 {
		l.page = 0
		return fmt.Errorf("mmap: %w", errno)
	}
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI}
	if err := l.ioctl(uffdioAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("UFFDIO_API: %w", err)
	}
	register := struct{ start, len, mode, ioctls uint64 }{uint64(l.page), uint64(size), uffdMissing, 0}
	if err := l.ioctl(uffdioRegister, unsafe.Pointer(&register)); err != nil {
		return fmt.Errorf("UFFDIO_REGISTER: %w", err)
	}
	return nil
}

func (l *socketLock) ioctl(request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// stuck waits until the writer sleeps in the page's fault.
func (l *socketLock) stuck() error {
	fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	for late := time.Now().Add(lockTimeout); time.Now().Before(late); {
		select {
		case err := <-l.done:
			l.done <- err
			if err == nil {
				err = errors.New("the write needed no page")
			}
			return fmt.Errorf("the write has ended without holding the socket: %w", err)
		default:
		}
		if n, err := unix.Poll(fds, 10); err != nil && err != unix.EINTR {
			return err
		} else if n > 0 {
			var message [uffdMessageSize]byte
			_, err := unix.Read(l.fd, message[:])
			return err
		}
	}
	return fmt.Errorf("no page fault within %s", lockTimeout)
}

// give provides the page, which wakes the writer.
func (l *socketLock) give() error {
	zero := struct{ start, len, mode, zeropage uint64 }{uint64(l.page), uint64(unix.Getpagesize()), 0, 0}
	return l.ioctl(uffdioZeropage, unsafe.Pointer(&zero))
}

func (l *socketLock) close() {
	if l.page != 0 {
		_, _, _ = unix.Syscall(unix.SYS_MUNMAP, l.page, uintptr(unix.Getpagesize()), 0)
	}
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
	}
}
