// SPDX-License-Identifier: Apache-2.0

// Package exporter shows what a collector knows: Prometheus metrics, a JSON API with
// a stream of events, a live page, and the HTTP server that carries them. It has no
// BPF in it, and it remembers nothing but the counts of the last hour, for the page.
//
// The life cycle: [NewLive] makes what tells the pages from a [Source], which is a
// *collector.Collector, and [Live.Run] runs it; [NewHandler] makes the handler, and a
// [Guard] wraps it; [Listen] opens the listeners, and [Serve] serves on them, with a
// [ConnLimit], and ends with its context. Every answer but the stream is made from the
// Source when it is asked for.
//
// The objects of the API ([Connection], [Death], [Event], [Notice] and the
// envelopes [Connections], [Deaths] and [ConnectionDetail]) are what the
// command line prints as JSON too, and what it decodes from a running agent.
// Durations are float seconds, times RFC 3339 in UTC. null means that a thing
// is not known or does not apply; it never stands for 0.
package exporter
