// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
)

// Kernel is everything that a Collector needs of the kernel. [bpf.Kernel] implements it,
// whose documentation has the details. It is safe for concurrent use; ReadEvent has one
// caller at a time.
type Kernel interface {
	// HZ returns how many jiffies a second has.
	HZ() int
	// ReadEvent waits for an event and stores it in e. It returns [bpf.ErrFlushed] when
	// Flush was called and no event is left, [bpf.ErrUndecodable] for an event that
	// cannot be read, and [os.ErrClosed] when there will be no more events.
	ReadEvent(e *abi.Event) error
	// Flush makes ReadEvent return what has been sent so far, and then ErrFlushed.
	Flush() error
	// Watch calls visit with a record of each watched socket.
	Watch(visit func(*abi.Conn)) error
	// ReadAgain calls visit with a record of each socket that a census reported with
	// [abi.ConnUnread], and whose application has read since.
	ReadAgain(visit func(*abi.Conn)) error
	// Census counts all sockets, and calls visit with a record of each in the selection,
	// which visit may narrow.
	Census(ctx context.Context, selection *bpf.Selection, visit func(*abi.Conn)) (bpf.CensusResult, error)
	// PeriodicCensus is Census for who takes one regularly. Hash tables of single
	// network namespaces may take ownTables of CPU time. In addition, it counts the connections
	// to these hosts.
	PeriodicCensus(ctx context.Context, selection *bpf.Selection, hosts []abi.PeerHostKey, ownTables time.Duration, visit func(*abi.Conn)) (bpf.CensusResult, error)
	// Find is a census that calls visit with the connection of that cookie, if there is one.
	Find(ctx context.Context, cookie uint64, visit func(*abi.Conn)) (bpf.CensusResult, error)
	// Sysctls returns the TCP sysctls of all network namespaces, by inode number.
	Sysctls(ctx context.Context) (map[uint32]abi.NetnsSysctls, error)
	// FDHolders calls visit with each descriptor that holds one of these sockets; with nil
	// for cookies, one of all TCP sockets.
	FDHolders(cookies []uint64, visit func(*abi.FDHolder)) error
	// FindNetns returns a way into a network namespace, and whether it is the machine's
	// own, into which a shell needs none.
	FindNetns(inode uint32) (ref bpf.NetnsRef, host bool)
	// WatchDrops attaches the program that sees why this host drops what TCP's timers send, or
	// detaches it.
	WatchDrops(on bool) error
	// Drops returns how many packets the host has dropped while it was attached.
	Drops() (uint64, error)
	// Stats returns what the programs counted.
	Stats() (bpf.Stats, error)
	// CookieStatus returns since when the search for sockets without a cookie hangs, the
	// zero time if it does not, and why new connections get no cookie.
	CookieStatus() (hangsSince time.Time, err error)
}

var _ Kernel = (*bpf.Kernel)(nil)
