// SPDX-License-Identifier: Apache-2.0

package api

import "github.com/halfopen/halfopen/collector/conn"

// Group is connections that have something in common, counted. What it is, is in
// the field of that name; all are left out where there is none.
type Group struct {
	Owner    *Owner         `json:"owner,omitempty"`
	Remote   *Remote        `json:"remote,omitempty"`
	Verdict  *string        `json:"verdict,omitempty"`
	Total    int            `json:"total"`
	Verdicts map[string]int `json:"verdicts"` // how many have each
}

// Owner is whose a connection is: see [collector.Connection.Owner].
type Owner struct {
	Kind string `json:"kind"` // process, unit, container, pod
	Name string `json:"name"`
}

// Remote is where connections go to.
type Remote struct {
	IP   string  `json:"ip"`
	Port *uint16 `json:"port"` // null: not that of a service
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
