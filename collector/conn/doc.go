// SPDX-License-Identifier: Apache-2.0

// Package conn is the model: what halfopen knows about connections, and how it judges
// them. It has no clock, does no I/O and knows no BPF program. Times and facts are
// arguments, so a test can replay any history.
//
// [Rules] judge one connection at one moment from the fields of the kernel alone, and
// forecast when the kernel gives it up. A [Tracker] has a memory: the connections in
// trouble and since when, the counts of all others, and how connections ended.
// [Tracker.Apply] applies each [Fact].
package conn
