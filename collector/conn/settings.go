// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Settings are the TCP sysctls of a network namespace, and how many of its connections follow
// them or have settings of their own. Listeners and stubs do not count.
type Settings struct {
	Sysctls *Sysctls // nil: the namespace has ended meanwhile
	// KeepaliveOn and KeepaliveOff are the connections with and without SO_KEEPALIVE. Own of
	// KeepaliveOn have at least one of TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT set.
	KeepaliveOn, KeepaliveOff            int
	Own, OwnTime, OwnInterval, OwnProbes int
	UserTimeout                          int // connections with TCP_USER_TIMEOUT
	OwnFinTimeout                        int // connections with TCP_LINGER2
}

// Sysctls are sysctls of a network namespace below net.ipv4.
type Sysctls struct {
	KeepaliveTime, KeepaliveInterval time.Duration // tcp_keepalive_time, tcp_keepalive_intvl
	KeepaliveProbes                  int           // tcp_keepalive_probes
	Retries2                         int           // tcp_retries2
	SynRetries                       int           // tcp_syn_retries
	OrphanRetries                    int           // tcp_orphan_retries; the kernel takes 0 for 8
	FinTimeout                       time.Duration // tcp_fin_timeout
}

// Add counts the settings of a connection.
func (s *Settings) Add(c *abi.Conn) {
	has := func(flags uint32, n *int) bool {
		if c.Flags&flags == 0 {
			return false
		}
		*n++
		return true
	}
	if has(abi.ConnKeepalive, &s.KeepaliveOn) {
		has(abi.ConnKeepaliveTimeSet|abi.ConnKeepaliveIntvlSet|abi.ConnKeepaliveProbesSet, &s.Own)
		has(abi.ConnKeepaliveTimeSet, &s.OwnTime)
		has(abi.ConnKeepaliveIntvlSet, &s.OwnInterval)
		has(abi.ConnKeepaliveProbesSet, &s.OwnProbes)
	} else {
		s.KeepaliveOff++
	}
	if c.UserTimeout > 0 {
		s.UserTimeout++
	}
	has(abi.ConnFinTimeSet, &s.OwnFinTimeout)
}

// Sysctls returns the sysctls of a namespace from the record of the kernel programs.
func (r *Rules) Sysctls(s *abi.NetnsSysctls) *Sysctls {
	return &Sysctls{
		KeepaliveTime: r.Duration(s.KeepaliveTime), KeepaliveInterval: r.Duration(s.KeepaliveIntvl), KeepaliveProbes: int(s.KeepaliveProbes),
		Retries2: int(s.Retries2), SynRetries: int(s.SynRetries), OrphanRetries: int(s.OrphanRetries), FinTimeout: r.Duration(s.FinTimeout),
	}
}
