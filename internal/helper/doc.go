// SPDX-License-Identifier: Apache-2.0

// Package helper runs a second process that answers what takes privileges, so that the
// process that serves HTTP needs none.
//
// [Start] starts this program again, which then calls [Main], and the two speak JSON-RPC
// over a socketpair. [Helper] has all questions: a list that is closed, and of which none
// returns a file to the one who asks or runs what it chooses. The helper reads nothing but
// these questions, ends when the other process does, and drops what it does not need.
package helper
