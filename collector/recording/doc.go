// SPDX-License-Identifier: Apache-2.0

// Package recording writes the facts that a tracker takes in to a file, and reads them
// again, so that a history can be replayed on another machine: `halfopen agent
// --debug.record` and `halfopen replay`.
//
// A recording is a sequence of JSON objects, one a line. The first is the [Header]. Each
// other is one fact, a number of facts that were lost, or the end of the recording. Fields
// have the names that they have in bpf/halfopen.h; those that are 0 are left out. Without
// an end, the recorder was killed or its disk was full: what is whole is still good.
//
// The rows of a census, which the live page shows, are left out: nothing that is replayed
// depends on them, and there may be very many.
//
// A [Recorder] writes in the background. A [Reader] reads files of strangers: it returns
// an error for whatever is no recording. [Mask] replaces what could identify anybody.
package recording
