// SPDX-License-Identifier: Apache-2.0

// Package conn is the model: what halfopen knows of connections, and how it judges
// them. It has no clock, does no I/O and knows no BPF program: time and facts come in
// as values, so a test can replay any history.
//
// [Rules] judge one connection at one moment from the fields of the kernel alone, and
// forecast when the kernel gives it up. A [Tracker] keeps what needs a memory: the
// connections in trouble, since when they are, how many there are of the others, and
// how connections ended. It takes in each [Fact] with [Tracker.Apply].
package conn
