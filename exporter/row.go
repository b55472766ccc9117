// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// A row is what the live page's table shows of a connection. All times are
// absolute, so that what only gets older does not change.
type row struct {
	cookie         uint64
	at             time.Time // of the look that it is from
	local, remote  netip.AddrPort
	netns          uint32
	state          conn.State
	verdict        conn.Verdict
	since          int64 // milliseconds since 1970, as are the others; 0: not known
	evidence       conn.Evidence
	unanswered     int
	dataAt         int64
	heardAt        int64
	givesUpAt      int64 // 0: never
	givesUpLatest  int64
	givesUpBy      conn.Cause
	risks          uint32 // a bit each
	held           held
	pid            uint32
	fd             uint32 // not shown
	comm           string
	group          string // pod, container or unit
	keepalive      bool
	userTimeout    int64 // milliseconds
	keepaliveTime  int64
	keepaliveIntvl int64
	probes         int
}

// held is whether somebody can hold the socket.
type held uint8

const (
	heldByProcess held = iota
	heldByNobody       // its application has closed it
	notAccepted
)

var heldNames = [...]string{"", "orphaned", "unaccepted"}

// jitter is by how much two looks at what has not changed may differ: the kernel
// stamps in jiffies, and two clocks are read one after the other.
const jitter = 300 // ms

func newRow(c *conn.Connection) row {
	r := row{
		cookie: c.Cookie, at: c.At, local: c.Local, remote: c.Remote, netns: c.Netns,
		state: c.State, verdict: c.Verdict, evidence: c.Evidence, unanswered: c.Unanswered,
		since: millis(c.Since), dataAt: ago(c.At, c.Idle), heardAt: ago(c.At, c.Silent),
		keepalive: c.Keepalive.Enabled, keepaliveTime: c.Keepalive.Time.Milliseconds(),
		keepaliveIntvl: c.Keepalive.Interval.Milliseconds(), probes: c.Keepalive.Probes,
		userTimeout: c.UserTimeout.Milliseconds(),
	}
	if c.GivesUp.Ever() {
		r.givesUpAt, r.givesUpLatest, r.givesUpBy = millis(c.GivesUp.At), millis(c.GivesUp.Latest), c.GivesUp.By
	}
	for _, risk := range c.Risks {
		r.risks |= 1 << risk
	}
	switch {
	case !c.Accepted:
		r.held = notAccepted
	case c.Orphaned:
		r.held = heldByNobody
	default:
		if p := c.Process; p != nil {
			r.pid, r.comm, r.fd = p.PID, p.Comm, p.FD
		}
		r.group = groupOf(&c.Cgroup)
	}
	return r
}

// groupOf is the best name there is for a control group, "" if it tells nothing.
func groupOf(g *conn.Cgroup) string {
	switch {
	case g.PodUID != "":
		return "pod " + g.PodUID
	case g.ContainerID != "":
		return "container " + g.ContainerID[:12]
	}
	return g.Unit
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func ago(at time.Time, age time.Duration) int64 {
	if age < 0 {
		return 0
	}
	return at.Add(-age).UnixMilli()
}

// follow makes r what comes after old: what differs by jitter alone stays, and
// so does an owner that was known.
func (r *row) follow(old *row) {
	steady := func(now *int64, before int64) {
		if d := *now - before; *now != 0 && before != 0 && -jitter < d && d < jitter {
			*now = before
		}
	}
	steady(&r.since, old.since)
	steady(&r.dataAt, old.dataAt)
	steady(&r.heardAt, old.heardAt)
	steady(&r.givesUpAt, old.givesUpAt)
	steady(&r.givesUpLatest, old.givesUpLatest)
	if r.held == heldByProcess && r.pid == 0 {
		r.pid, r.comm, r.fd = old.pid, old.comm, old.fd
	}
	if r.held == heldByProcess && r.group == "" {
		r.group = old.group
	}
}

// asOf is the row, if it is still the same at that time.
func (r *row) asOf(at time.Time) row {
	same := *r
	same.at = at
	return same
}

// appendJSON writes the row; only what is not as in old, if that is not nil.
func (r *row) appendJSON(b []byte, old *row) []byte {
	b = append(b, `{"cookie":"`...)
	b = strconv.AppendUint(b, r.cookie, 16)
	b = append(b, '"')
	key := func(k string) { b = append(append(append(b, `,"`...), k...), `":`...) }
	name := func(changed bool, k, value string) {
		if changed {
			key(k)
			b = append(append(append(b, '"'), value...), '"')
		}
	}
	text := func(changed bool, k, value string) { // which anybody may have chosen
		if changed {
			key(k)
			quoted, _ := json.Marshal(strings.ToValidUTF8(value, "\uFFFD")) // a string has no way to fail
			b = append(b, quoted...)
		}
	}
	number := func(changed bool, k string, value int64) {
		if changed {
			key(k)
			b = strconv.AppendInt(b, value, 10)
		}
	}
	whole := old == nil
	if whole { // what is zero is left out
		old = &row{}
		name(true, "local", r.local.String())
		name(true, "remote", r.remote.String())
		number(true, "netns", int64(r.netns))
	}
	name(r.state != old.state, "state", r.state.String())
	name(whole || r.verdict != old.verdict, "verdict", r.verdict.String())
	number(r.since != old.since, "since", r.since)
	name(r.evidence != old.evidence, "evidence", r.evidence.String())
	number(r.unanswered != old.unanswered, "unanswered", int64(r.unanswered))
	number(r.dataAt != old.dataAt, "data_at", r.dataAt)
	number(r.heardAt != old.heardAt, "heard_at", r.heardAt)
	number(r.givesUpAt != old.givesUpAt, "gives_up_at", r.givesUpAt)
	number(r.givesUpLatest != old.givesUpLatest, "gives_up_latest", r.givesUpLatest)
	name(r.givesUpAt != 0 && (old.givesUpAt == 0 || r.givesUpBy != old.givesUpBy), "gives_up_by", r.givesUpBy.String())
	if r.risks != old.risks {
		key("risks")
		b = append(b, '[')
		comma := false
		for risk := range conn.Risk(conn.Risks) {
			if r.risks&(1<<risk) == 0 {
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
	name(r.held != old.held, "held", heldNames[r.held])
	number(r.pid != old.pid, "pid", int64(r.pid))
	text(r.comm != old.comm, "comm", r.comm)
	text(r.group != old.group, "group", r.group)
	if r.keepalive != old.keepalive || r.keepaliveTime != old.keepaliveTime ||
		r.keepaliveIntvl != old.keepaliveIntvl || r.probes != old.probes {
		key("keepalive")
		if !r.keepalive {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendInt(append(b, '['), r.keepaliveTime, 10)
			b = strconv.AppendInt(append(b, ','), r.keepaliveIntvl, 10)
			b = append(strconv.AppendInt(append(b, ','), int64(r.probes), 10), ']')
		}
	}
	number(r.userTimeout != old.userTimeout, "user_timeout", r.userTimeout)
	return append(b, '}')
}
