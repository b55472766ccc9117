// SPDX-License-Identifier: Apache-2.0

// Package ask makes the kernel ask the peers of connections for a sign of life, on connections
// of other processes that would not ask by themselves.
//
// [Asker.Ask] takes a duplicate of the socket (pidfd_getfd), changes its keepalive settings so
// that the kernel sends one keepalive probe at once, and puts the settings back. Then it
// watches the numbers of the socket, since the peer's answer moves them.
//
// # What a change leaves behind if it is interrupted
//
// The process can be killed after any system call. So the settings are changed in an order in
// which no healthy connection can end, and none is probed more than once in nine hours, whatever
// the call after which the process ends:
//
//	TCP_USER_TIMEOUT 0       or the kernel ends the connection at the next unanswered probe
//	TCP_KEEPCNT 127          the most: probes that nobody answers end nothing
//	TCP_KEEPINTVL 32767      the next probe is nine hours after this one, answered or not
//	TCP_KEEPIDLE 32767       only if keepalive is off: turning it on sends nothing yet
//	SO_KEEPALIVE 1           likewise
//	TCP_KEEPIDLE 1           the timer fires at the next tick, and the kernel sends a probe
//
// Before the first of these calls a [journal] says what the settings were, and it is removed when
// they are as they were. [Recover] reads the journals that interrupted processes have left. A
// setting that the application has changed meanwhile is left alone.
//
// What cannot be put back: a setting that followed a sysctl has the value of that sysctl from
// then on, and the kernel counts unanswered probes (icsk_probes_out) until the peer is heard.
//
// # Why there is a process for this
//
// setsockopt and TCP_INFO take the lock of the socket. A process that sleeps while it holds this
// lock, as in a write from memory on a hung network file system, keeps them waiting, and a thread
// that waits for the lock cannot be killed, nor can its process end. So [Start] starts this program
// again, and the [Prober] of that process asks. If a socket is locked, the caller gets an answer
// nevertheless, and may end: the other process ends when it has put back what it changed.
package ask
