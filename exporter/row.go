// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/escape"
)

// groupOf returns the best name of a control group, with the kind of a pod or a container;
// "" if there is none.
func groupOf(g *conn.Cgroup) string {
	kind, name := g.Owner()
	if kind == conn.OwnerPod || kind == conn.OwnerContainer {
		return kind.String() + " " + name
	}
	return name
}

// appendRow writes a row. If old is not nil, it writes only the fields that differ from old.
func appendRow(b []byte, r, old *conn.Row) []byte {
	b = append(b, `{"cookie":"`...)
	b = strconv.AppendUint(b, r.Cookie, 16)
	b = append(b, '"')
	key := func(k string) { b = append(append(append(b, `,"`...), k...), `":`...) }
	name := func(changed bool, k, value string) {
		if changed {
			key(k)
			b = append(append(append(b, '"'), value...), '"')
		}
	}
	text := func(changed bool, k, value string) { // text may be hostile: any user can choose it
		if changed {
			key(k)
			quoted, _ := json.Marshal(strings.ToValidUTF8(value, "\uFFFD")) // a string has no way to fail
			b = append(b, escape.JSON(quoted)...)
		}
	}
	number := func(changed bool, k string, value int64) {
		if changed {
			key(k)
			b = strconv.AppendInt(b, value, 10)
		}
	}
	whole := old == nil
	if whole { // leave out fields that are zero
		old = &conn.Row{}
		name(true, "local", r.Local.String())
		name(true, "remote", r.Remote.String())
		number(true, "netns", int64(r.Netns))
	}
	name(r.State != old.State, "state", r.State.String())
	name(whole || r.Verdict != old.Verdict, "verdict", r.Verdict.String())
	number(r.Since != old.Since, "since", r.Since)
	name(r.Evidence != old.Evidence, "evidence", r.Evidence.String())
	number(r.Unanswered != old.Unanswered, "unanswered", int64(r.Unanswered))
	number(r.DataAt != old.DataAt, "data_at", r.DataAt)
	number(r.HeardAt != old.HeardAt, "heard_at", r.HeardAt)
	number(r.GivesUpAt != old.GivesUpAt, "gives_up_at", r.GivesUpAt)
	number(r.GivesUpLatest != old.GivesUpLatest, "gives_up_latest", r.GivesUpLatest)
	name(r.GivesUpAt != 0 && (old.GivesUpAt == 0 || r.GivesUpBy != old.GivesUpBy), "gives_up_by", r.GivesUpBy.String())
	if r.Risks != old.Risks {
		key("risks")
		b = append(b, '[')
		comma := false
		for risk := range conn.Risk(conn.Risks) {
			if r.Risks&(1<<risk) == 0 {
				continue
			}
			if comma {
				b = append(b, ',')
			}
			b = append(append(append(b, '"'), risk.String()...), '"')
			comma = true
		}
		b = append(b, ']')
	}
	name(r.Held != old.Held, "held", r.Held.String())
	number(r.PID != old.PID, "pid", int64(r.PID))
	text(r.Comm != old.Comm, "comm", r.Comm)
	group := groupOf(&r.Cgroup)
	text(group != groupOf(&old.Cgroup), "group", group)
	if r.Keepalive != old.Keepalive || r.KeepaliveTime != old.KeepaliveTime ||
		r.KeepaliveIntvl != old.KeepaliveIntvl || r.Probes != old.Probes {
		key("keepalive")
		if !r.Keepalive {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendInt(append(b, '['), r.KeepaliveTime, 10)
			b = strconv.AppendInt(append(b, ','), r.KeepaliveIntvl, 10)
			b = append(strconv.AppendInt(append(b, ','), int64(r.Probes), 10), ']')
		}
	}
	number(r.UserTimeout != old.UserTimeout, "user_timeout", r.UserTimeout)
	return append(b, '}')
}
