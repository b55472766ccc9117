// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

// Values of [Conn].Pending: what the write timer is armed for (ICSK_TIME_* of
// include/net/inet_connection_sock.h).
const (
	PendingRetransmit    = uint8(1)
	PendingWindowProbe   = uint8(3)
	PendingTailLossProbe = uint8(5)
	PendingReorder       = uint8(6)
)
