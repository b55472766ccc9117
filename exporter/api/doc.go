// SPDX-License-Identifier: Apache-2.0

// Package api has what the agent's JSON API and its clients share: the objects of the
// API with their encoders, the table of filters, the queries of each path, and the
// [Client] that the command line asks an agent with.
//
// The objects ([Connection], [Death], [Event], [Notice], [Status] and the envelopes
// [Connections], [Groups], [Deaths] and [ConnectionDetail]) are the answers of the agent.
// The command line decodes them, and prints them as JSON. Durations are float seconds, times
// RFC 3339 in UTC. null means that a value is unknown or does not apply; it never means 0.
package api
