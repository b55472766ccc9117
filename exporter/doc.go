// SPDX-License-Identifier: Apache-2.0

// Package exporter serves what a collector knows: Prometheus metrics, a JSON API with a
// stream of events, and a live page. It keeps no connections, and remembers only the
// counts of the last hour, for the page. The objects of the API are in package api.
//
// The life cycle: [NewLive] makes the stream of a [Source], which is a
// *collector.Collector, and [Live.Run] runs it; [NewHandler] makes the handler, with
// [Lookups] that bound what it takes, and a [Guard] wraps it; [Listen] opens the
// listeners, and [Serve] serves on them, with a [ConnLimit], until its context ends. Every
// answer but the stream is made from the Source on request.
package exporter
