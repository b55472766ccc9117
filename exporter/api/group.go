// SPDX-License-Identifier: Apache-2.0

package api

import "github.com/halfopen/halfopen/collector/conn"

// Group is the number of connections that have an owner, a remote end or a verdict in
// common. The field of that name has the common value; it is left out if there is none.
type Group struct {
	Owner    *Owner         `json:"owner,omitempty"`
	Remote   *Remote        `json:"remote,omitempty"`
	Verdict  *string        `json:"verdict,omitempty"`
	Total    int            `json:"total"`
	Verdicts map[string]int `json:"verdicts"` // number of connections by verdict
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
	out := Group{Total: t.Total, Verdicts: make(map[string]int, conn.Verdicts)}
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
	}
	return out
}
