// SPDX-License-Identifier: Apache-2.0

// Package lab makes private networks in which TCP connections can be broken on
// purpose: namespaces joined by a veth pair, with IPv4 and IPv6, and packets
// that vanish by port and direction as they do behind a middlebox that has
// forgotten a connection. The end-to-end tests and `halfopen demo` use it. It
// needs root.
//
// # Life cycle
//
//	l, err := lab.New()            // two namespaces, ready for traffic
//	defer l.Close()                // and nothing is left of them
//
//	ln, err := l.Server.Listen("tcp", netip.AddrPortFrom(l.Server.Addr4(), 5432))
//	c, err := l.Client.Dial(ctx, netip.AddrPortFrom(l.Server.Addr4(), 5432))
//	err = lab.SetKeepalive(c, 10*time.Second, 5*time.Second, 3)
//
//	remove, err := l.Client.Drop(lab.Rule{Port: 5432, Percent: 100})
//	// ... c is half open from here: both ends believe in it, nothing passes.
//	err = remove()                 // and here traffic is back
//
// # What holds a namespace
//
// A namespace has no name in /run/netns and no link in the host's namespace: the
// veth pair is born with one end in each. It lives by two things, and both end
// with this process, kill -9 included:
//
//   - the holder, a `sleep infinity` started inside it, so that a reader of
//     /proc/*/ns/net finds it. Its parent-death signal is SIGKILL;
//   - one file descriptor and one OS thread of this process. The thread is there
//     because the kernel sends the parent-death signal when the thread that
//     forked ends, not when the process does.
//
// [Namespace.Close] kills and reaps the holder, closes the descriptor and ends
// the thread; the kernel then removes veth, addresses and rules. A socket still
// open keeps the kernel's side of the namespace, out of sight, until it is
// closed; and one closed while its FIN cannot be delivered keeps it until the
// kernel gives up on the FIN, which Close makes soon.
//
// # Threads
//
// A namespace is a property of a thread in Linux. [Namespace.Do] runs a function
// on a thread that is inside, and throws the thread away. A socket belongs for
// ever to the namespace it was created in, so the connections of
// [Namespace.Dial] and [Namespace.Listen] may be used from any goroutine.
package lab
