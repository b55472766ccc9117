// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"os"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A pass over one network namespace takes the kernel past the sockets of all the
// others. It is worth knowing beforehand that there are none to be found.

// countedTCP is how many TCP sockets the kernel counts in the calling thread's
// network namespace: those that have a state, listeners and orphans among them,
// and time_wait. Nothing counts the request sockets of syn_recv.
func countedTCP() (sockets int, err error) {
	thread, err := procfs.NewFS("/proc/thread-self")
	if err != nil {
		return 0, err
	}
	// Time_wait is counted before the socket that it replaces is no more, and
	// therefore read after all others, in sockstat's line of TCP.
	v6, err := thread.NetSockstat6()
	if errors.Is(err, os.ErrNotExist) { // no IPv6
		v6, err = &procfs.NetSockstat{}, nil
	}
	if err != nil {
		return 0, err
	}
	v4, err := thread.NetSockstat()
	if err != nil {
		return 0, err
	}
	err = errors.ErrUnsupported
	for _, p := range append(v6.Protocols, v4.Protocols...) {
		switch {
		case p.Protocol == "TCP6":
			sockets += p.InUse
		case p.Protocol == "TCP" && p.TW != nil:
			sockets += p.InUse + *p.TW
			err = nil
		}
	}
	return sockets, err
}

// tcpSegments is how many segments have arrived in the calling thread's network
// namespace. A request socket takes one, and may outlive its listener.
func tcpSegments() (float64, error) {
	threads, err := procfs.NewFS("/proc/self/task") // may be in another namespace than its process
	if err != nil {
		return 0, err
	}
	thread, err := threads.Proc(unix.Gettid())
	if err != nil {
		return 0, err
	}
	snmp, err := thread.Snmp()
	if err != nil {
		return 0, err
	}
	if snmp.Tcp.InSegs == nil {
		return 0, errors.ErrUnsupported
	}
	return *snmp.Tcp.InSegs, nil
}
