// SPDX-License-Identifier: Apache-2.0

// Package api has what the agent's JSON API and its clients share: the objects of the
// API with their encoders, the table of filters, the queries of each path, and the
// [Client] that the command line asks an agent with.
//
// The objects ([Connection], [Death], [Event], [Notice], [Status] and the envelopes
// [Connections], [Groups], [Deaths] and [ConnectionDetail]) are what the agent answers,
// what the command line prints as JSON, and what it decodes from an agent. Durations are
// float seconds, times RFC 3339 in UTC. null means that a value is not known or does not
// apply; it never stands for 0.
package api
