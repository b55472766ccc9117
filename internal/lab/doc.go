// SPDX-License-Identifier: Apache-2.0

// Package lab makes private networks in which tests can break TCP connections on purpose.
// A lab has two network namespaces, joined by a veth pair, with IPv4 and IPv6. Rules drop
// packets by port and direction, as a middlebox does that has forgotten a connection. The
// end-to-end tests and `halfopen demo` use it. It needs root.
//
// # Life cycle
//
//	l, err := lab.New()            // makes two namespaces, ready for traffic
//	defer l.Close()                // removes both
//
//	ln, err := l.Server.Listen("tcp", netip.AddrPortFrom(l.Server.Addr4(), 5432))
//	c, err := l.Client.Dial(ctx, netip.AddrPortFrom(l.Server.Addr4(), 5432))
//	err = lab.SetKeepalive(c, 10*time.Second, 5*time.Second, 3)
//
//	remove, err := l.Client.Drop(lab.Rule{Port: 5432, Percent: 100})
//	// ... c is half open now: it exists at both ends, but no packet passes.
//	err = remove()                 // traffic passes again
//
// # What holds a namespace
//
// A namespace has no name in /run/netns and no link in the host's namespace, because the
// veth pair is created with one end in each namespace. Two things keep a namespace alive.
// Both end with this process, even after kill -9:
//
//   - the holder, a `sleep infinity` started inside the namespace, so that a reader of
//     /proc/*/ns/net finds it. Its parent-death signal is SIGKILL;
//   - one file descriptor and one OS thread of this process. The thread is necessary
//     because the kernel sends the parent-death signal when the thread that
//     forked ends, not when the process ends.
//
// [Namespace.Close] kills and reaps the holder, closes the descriptor and ends the thread;
// the kernel then removes veth, addresses and rules. A socket that is still open keeps the
// namespace alive in the kernel, invisible in /proc, until it is closed. A closed socket
// whose FIN cannot be delivered keeps it until the kernel gives up; Close makes that soon.
//
// # Threads
//
// In Linux, each thread is in a namespace. [Namespace.Do] runs a function on a thread
// inside the namespace, and then ends the thread. A socket always stays in the namespace in
// which it was created, so any goroutine may use the connections of [Namespace.Dial] and
// [Namespace.Listen].
package lab
