// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// Package bpf has the programs that run in the kernel, and loads, attaches and reads
// them.
//
// [Load] loads the programs, has them learn from a socket of its own what the kernel
// does not export (the addresses of its two TCP timer functions, the hash tables of
// sockets, jiffies a second), and attaches them. From then on
//
//   - [Kernel.ReadEvent] returns events: solicitations that stayed unanswered, and
//     deaths that were not orderly;
//   - [Kernel.Watch] reads the sockets that the programs watch as suspects;
//   - [Kernel.Census] counts every TCP socket of every network namespace in the kernel,
//     and returns those of the classes that the caller asks for;
//   - [Kernel.FDHolders] finds the descriptors that hold given sockets;
//   - [Kernel.Counters] reads the counters, which are exact even if events were lost.
//
// The package knows nothing of verdicts. Its types are in package abi, which is
// generated from halfopen.h; ages are in jiffies, of which [Kernel.HZ] make a second.
package bpf
