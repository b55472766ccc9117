// SPDX-License-Identifier: Apache-2.0

// Package collector makes connections, verdicts and deaths of what the kernel
// tells (package bpf). It knows nothing of HTTP or Prometheus.
//
// [Rules] judge one connection at one moment, from the kernel's fields alone.
// A [Table] keeps what needs a memory: the connections in trouble, since when
// they are, how the others were counted, and how connections ended. Both are
// pure: time and facts come in as values, so any history can be replayed in a
// test.
//
// A [Collector] feeds a Table: events as the kernel sends them, twice a second
// the sockets under watch, and every Options.CensusInterval a census of all
// sockets, which also repairs whatever was lost. Idle, unguarded and active
// connections are nobody's memory: the kernel counts them, and who wants to
// see them makes the kernel look again ([Collector.Connections]).
package collector
