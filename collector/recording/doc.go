// SPDX-License-Identifier: Apache-2.0

// Package recording writes the facts that a tracker receives to a file, and reads them
// again, so that a history can be replayed on another machine: `halfopen agent
// --debug.record` and `halfopen replay`.
//
// A recording is a sequence of JSON objects, one on each line. The first is the [Header].
// Each other object is a fact, a number of lost facts, or the end of the recording. Fields
// have their names in bpf/halfopen.h; fields that are 0 are left out. If the end is
// missing, the recorder was killed or its disk was full; all complete lines are still valid.
//
// The rows of a census, which the live page shows, are left out: no part of a replay
// depends on them, and a census may have very many.
//
// A [Recorder] writes in the background. A [Reader] accepts files from untrusted sources:
// it returns an error for a file that is not a recording. [Mask] replaces the names and
// addresses that could identify a person or a machine.
package recording
