// SPDX-License-Identifier: Apache-2.0

// Package helper runs a second process that keeps privileges, so that the process that
// serves HTTP needs none.
//
// [Start] starts this program again, which then calls [Main]. The two processes speak
// JSON-RPC over a socketpair. The methods of [Helper] are the only questions. No question
// gives the other process an open file, or runs a program that it chooses. The helper reads
// only these questions, ends when the other process ends, and drops the privileges that it
// does not need.
package helper
