// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// learnSeconds is the TCP_KEEPIDLE that learn sets on its socket. The kernel keeps it in
// jiffies, so that it shows how many jiffies make a second.
const learnSeconds = 1000

// learn has the programs read a socket of ours, and learns from it the addresses of the
// kernel's two TCP timer functions, the hash tables of sockets and HZ.
func (k *Kernel) learn() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	}
	if err != nil {
		return fmt.Errorf("open TCP socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, learnSeconds); err != nil {
		return fmt.Errorf("set TCP_KEEPIDLE: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("get SO_COOKIE: %w", err)
	}
	if err := k.objs.LearnCookie.Set(cookie); err != nil {
		return err
	}
	if err := k.pass("learn", nil, nil); err != nil {
		return err
	}
	var keepalive, write uint64
	var jiffies uint32
	if err := errors.Join(k.objs.KeepaliveTimerFn.Get(&keepalive), k.objs.WriteTimerFn.Get(&write),
		k.objs.LearnKeepaliveTime.Get(&jiffies)); err != nil {
		return err
	}
	if keepalive == 0 || write == 0 || keepalive == write {
		return errors.New("our own socket shows no timer functions; please report this kernel")
	}
	if err := k.mapResults(); err != nil {
		return err
	}
	k.hz = jiffies / learnSeconds
	if k.hz == 0 || jiffies%learnSeconds != 0 {
		return fmt.Errorf("a TCP_KEEPIDLE of %d s is %d jiffies; please report this kernel", learnSeconds, jiffies)
	}
	return nil
}

// mapResults checks that the programs have learned where the sockets are, and maps into
// our memory what the programs that we run write.
func (k *Kernel) mapResults() error {
	var connections, listeners uint32
	var first uint64
	if err := errors.Join(k.objs.EhashChains.Get(&connections), k.objs.LhashChains.Get(&listeners), k.objs.FirstNet.Get(&first)); err != nil {
		return err
	}
	if connections == 0 || listeners == 0 || first == 0 {
		return errors.New("no hash tables of TCP sockets are to be found; please report this kernel")
	}
	var err error
	if k.netnsList, err = mapped[abi.NetnsList](k.objs.NetnsList); err != nil {
		return err
	}
	if k.walkBatch, err = mapped[abi.WalkBatch](k.objs.WalkBatch); err != nil {
		return err
	}
	k.batch, err = mapped[abi.Batch](k.objs.Batch)
	return err
}
