// SPDX-License-Identifier: Apache-2.0

// Package conntest makes records of connections as the kernel programs write them, for
// tests. Times are in jiffies of [HZ].
package conntest
