// SPDX-License-Identifier: Apache-2.0

// Package collector feeds the model (package conn) with what the kernel programs
// (package bpf) report, and answers queries. It knows nothing of HTTP or Prometheus.
//
// A [Collector] applies facts to one [conn.Tracker]: events as the kernel sends them,
// twice a second the records of the watched sockets, and every Options.CensusInterval
// a census of all sockets, which also repairs whatever was lost. The kernel programs
// only count the active, idle and unguarded connections; a query reads them anew
// ([Collector.Connections]).
//
// A [Kernel] is all that a Collector needs of the kernel, so that tests can drive it by a
// fake. Options.Record gets every fact; package recording writes them to a file.
package collector
