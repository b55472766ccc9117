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

// holdTimeout bounds the wait for the writer to get stuck, which takes
// microseconds.
const holdTimeout = 10 * time.Second

// HoldLock keeps a connection's socket in use, as a process is that is in the
// midst of a system call on it: its write timer then defers its work until
// release, its keepalive timer tries again every 50 ms, and what arrives waits.
// One byte of zero is sent by it. There has to be room for it in the send buffer.
//
// How: a thread writes from a page that is not there, and whose faults user space
// has asked to handle (userfaultfd(2)). tcp_sendmsg() copies with the socket's
// lock held, and so sleeps holding it, until the page is given. That takes root,
// or /dev/userfaultfd.
func HoldLock(c syscall.Conn) (release func() error, err error) {
	h := &hold{fd: -1, done: make(chan error, 1)}
	if err := h.prepare(); err != nil {
		h.close()
		return nil, fmt.Errorf("hold socket lock: %w", err)
	}
	onThread(func() {
		// A signal could not end the sleep, but would turn it into a busy loop.
		var all unix.Sigset_t
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
			h.done <- err
			return
		}
		h.done <- control(c, func(fd int) error {
			_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), h.page, 1, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			if errno != 0 {
				return errno
			}
			return nil
		})
	})
	if err := h.stuck(); err != nil {
		_ = h.give()
		h.close()
		return nil, fmt.Errorf("hold socket lock: %w", err)
	}
	return sync.OnceValue(func() error {
		defer h.close()
		if err := h.give(); err != nil {
			return fmt.Errorf("release socket lock: %w", err)
		}
		if err := <-h.done; err != nil {
			return fmt.Errorf("write of who held the socket: %w", err)
		}
		return nil
	}), nil
}

// hold is one page and what handles its faults.
type hold struct {
	fd   int
	page uintptr
	done chan error // of the writer
}

// The requests of include/uapi/linux/userfaultfd.h, and the one message.
const (
	uffdAPI         = 0xaa
	uffdioAPI       = 0xc018aa3f
	uffdioRegister  = 0xc020aa00
	uffdioZeropage  = 0xc020aa04
	uffdMissing     = 1
	uffdMessageSize = 32
)

func (h *hold) prepare() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	h.fd = int(fd)
	size := uintptr(unix.Getpagesize())
	h.page, _, errno = unix.Syscall6(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if errno != 0 {
		h.page = 0
		return fmt.Errorf("mmap: %w", errno)
	}
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI}
	if err := h.ioctl(uffdioAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("UFFDIO_API: %w", err)
	}
	register := struct{ start, len, mode, ioctls uint64 }{uint64(h.page), uint64(size), uffdMissing, 0}
	if err := h.ioctl(uffdioRegister, unsafe.Pointer(&register)); err != nil {
		return fmt.Errorf("UFFDIO_REGISTER: %w", err)
	}
	return nil
}

func (h *hold) ioctl(request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// stuck waits until the writer sleeps in the page's fault.
func (h *hold) stuck() error {
	fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
	for late := time.Now().Add(holdTimeout); time.Now().Before(late); {
		select {
		case err := <-h.done:
			h.done <- err
			if err == nil {
				err = errors.New("it needed no page")
			}
			return fmt.Errorf("nothing was held, the write is over: %w", err)
		default:
		}
		if n, err := unix.Poll(fds, 10); err != nil && err != unix.EINTR {
			return err
		} else if n > 0 {
			var message [uffdMessageSize]byte
			_, err := unix.Read(h.fd, message[:])
			return err
		}
	}
	return fmt.Errorf("no page fault within %s", holdTimeout)
}

// give makes the page be there, which wakes the writer.
func (h *hold) give() error {
	zero := struct{ start, len, mode, zeropage uint64 }{uint64(h.page), uint64(unix.Getpagesize()), 0, 0}
	return h.ioctl(uffdioZeropage, unsafe.Pointer(&zero))
}

func (h *hold) close() {
	if h.page != 0 {
		_, _, _ = unix.Syscall(unix.SYS_MUNMAP, h.page, uintptr(unix.Getpagesize()), 0)
	}
	if h.fd >= 0 {
		_ = unix.Close(h.fd)
	}
}
