// SPDX-License-Identifier: Apache-2.0

package api

import "github.com/halfopen/halfopen/collector/conn"

// Group is the number of connections that have an owner, a remote end, a verdict or a network
// namespace in common. The field of that name has the common value; it is left out if there
// is none.
type Group struct {
	Owner    *Owner         `json:"owner,omitempty"`
	Remote   *Remote        `json:"remote,omitempty"`
	Verdict  *string        `json:"verdict,omitempty"`
	Netns    uint32         `json:"netns,omitempty"` // inode number
	Total    int            `json:"total"`
	Verdicts map[string]int `json:"verdicts"` // number of connections by verdict
	Settings *NetnsSettings `json:"settings,omitempty"`
}

// NetnsSettings are the sysctls of a network namespace, null if it has ended meanwhile, and how
// many of its connections follow them or have settings of their own.
type NetnsSettings struct {
	Sysctls       *Sysctls          `json:"sysctls"`
	Keepalive     KeepaliveSettings `json:"keepalive"`
	UserTimeout   int               `json:"user_timeout"`    // connections with TCP_USER_TIMEOUT
	OwnFinTimeout int               `json:"own_fin_timeout"` // connections with TCP_LINGER2
}

// Sysctls are sysctls of a network namespace below net.ipv4.tcp_.
type Sysctls struct {
	KeepaliveTimeSeconds     float64 `json:"keepalive_time_seconds"`
	KeepaliveIntervalSeconds float64 `json:"keepalive_interval_seconds"`
	KeepaliveProbes          int     `json:"keepalive_probes"`
	Retries2                 int     `json:"retries2"`
	SynRetries               int     `json:"syn_retries"`
	OrphanRetries            int     `json:"orphan_retries"`
	FinTimeoutSeconds        float64 `json:"fin_timeout_seconds"`
}

// KeepaliveSettings are numbers of connections: with keepalive on or off; and, of those with
// keepalive on, with any of the options set on the socket, and with each of them.
type KeepaliveSettings struct {
	On          int `json:"on"`
	Off         int `json:"off"`
	Own         int `json:"own"`
	OwnTime     int `json:"own_time"`
	OwnInterval int `json:"own_interval"`
	OwnProbes   int `json:"own_probes"`
}

func newNetnsSettings(s *conn.Settings) *NetnsSettings {
	out := &NetnsSettings{
		Keepalive:   KeepaliveSettings{s.KeepaliveOn, s.KeepaliveOff, s.Own, s.OwnTime, s.OwnInterval, s.OwnProbes},
		UserTimeout: s.UserTimeout, OwnFinTimeout: s.OwnFinTimeout,
	}
	if k := s.Sysctls; k != nil {
		out.Sysctls = &Sysctls{
			k.KeepaliveTime.Seconds(), k.KeepaliveInterval.Seconds(), k.KeepaliveProbes, k.Retries2, k.SynRetries, k.OrphanRetries, k.FinTimeout.Seconds(),
		}
	}
	return out
}

// Owner is the owner of a connection: see [collector.Connection.Owner].
type Owner struct {
	Kind string `json:"kind"` // process, unit, container, pod
	Name string `json:"name"`
}

// Remote is the remote end of connections.
type Remote struct {
	IP   string  `json:"ip"`
	Port *uint16 `json:"port"` // null: the peer is a client
}

// NewGroup encodes a group of that grouping.
func NewGroup(t *conn.Count, by conn.Grouping) Group {
	out := Group{Netns: t.Netns, Total: t.Total, Verdicts: make(map[string]int, conn.Verdicts)}
	for v, n := range t.Verdicts {
		out.Verdicts[conn.Verdict(v).String()] = n
	}
	switch {
	case by == conn.ByOwner && t.OwnerKind != conn.NoOwner:
		out.Owner = &Owner{Kind: t.OwnerKind.String(), Name: t.Owner}
	case by == conn.ByRemote && t.Remote.IsValid():
		out.Remote = &Remote{IP: t.Remote.Addr().String()}
		if port := t.Remote.Port(); port != 0 {
			out.Remote.Port = &port
		}
	case by == conn.ByVerdict && t.Judged:
		out.Verdict = new(t.Verdict.String())
	case by == conn.BySettings:
		out.Settings = newNetnsSettings(&t.Settings)
	}
	return out
}
