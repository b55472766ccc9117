// SPDX-License-Identifier: Apache-2.0

// Package e2e tries the real binary on the real kernel: known traffic in
// private network namespaces, and each answer of the agent held against an
// independent source (ss, the application's errno, /proc). It needs root; run
// it with `make e2e`.
package e2e
