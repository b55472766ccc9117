// SPDX-License-Identifier: Apache-2.0

// Package explain explains one connection in plain sentences: what it is doing, which
// timers of the kernel run and with which settings, what happens next, and what would
// make the kernel notice a peer that is gone sooner.
package explain
