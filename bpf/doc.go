// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// Package bpf is everything of halfopen that runs in the kernel, and the way
// to it.
//
// [Load] loads the programs, learns from a socket of its own what the kernel
// does not tell (the addresses of its two TCP timer functions, jiffies a
// second), and attaches them. From then on
//
//   - [Kernel.ReadEvent] delivers what is worth saying: solicitations that went
//     unanswered, and deaths that were not orderly;
//   - [Kernel.Watch] tells how the sockets under suspicion are now;
//   - [Kernel.Census] visits every socket of every network namespace, counts
//     them in the kernel and hands out those that are asked for;
//   - [Kernel.Owners] finds the processes that hold given sockets;
//   - [Kernel.Counters] reads the counters, which are exact whatever was lost.
//
// The package knows nothing of verdicts. Its types are generated from
// halfopen.h and mean what is said there; ages are in jiffies, which
// [Kernel.Duration] translates.
package bpf
