// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// field is a column of a table with one T for each row.
type field[T any] struct {
	column
	wide bool // only in the wide table
	cell func(*T) string
}

func makeTable[T any](fields []field[T], things []T, wide bool) *table {
	var t table
	var cells []func(*T) string
	for _, f := range fields {
		if wide || !f.wide {
			t.columns = append(t.columns, f.column)
			cells = append(cells, f.cell)
		}
	}
	for i := range things {
		row := make([]string, len(cells))
		for j, cell := range cells {
			row[j] = cell(&things[i])
		}
		t.rows = append(t.rows, row)
	}
	t.dropRare()
	return &t
}

// Titles of the columns about the owner.
const (
	ownerTitle  = "OWNER"
	runsInTitle = "RUNS IN"
)

// receiveQueue is the evidence of an unread connection.
var receiveQueue = conn.EvidenceReceiveQueue.String()

// acceptQueueFields are the columns about the accept queues of listeners.
func acceptQueueFields(spare int) []field[api.Connection] {
	return []field[api.Connection]{
		{column{title: "ACCEPT-Q", right: true, spare: spare, rare: true}, false, func(c *api.Connection) string {
			if c.AcceptQueue == nil {
				return none
			}
			return fmt.Sprintf("%d/%d", c.AcceptQueue.Length, c.AcceptQueue.Limit)
		}},
		{column{title: "OVERFLOWS", right: true, spare: spare, rare: true}, false, func(c *api.Connection) string {
			if c.AcceptQueue == nil || c.AcceptQueue.Overflows == 0 {
				return none
			}
			return strconv.FormatUint(uint64(c.AcceptQueue.Overflows), 10)
		}},
	}
}

// connectionTable makes a table of connections. Ages in it are relative to now.
func connectionTable(connections []api.Connection, now time.Time, wide bool) *table {
	type conn = api.Connection
	// For sockets that are not connections, the state is the most important column.
	spareState, spareGivesUp, spareQueue := 5, 6, 0
	if slices.ContainsFunc(connections, func(c conn) bool { return c.AcceptQueue == nil }) {
		spareQueue = 1
	}
	if slices.ContainsFunc(connections, func(c conn) bool { return c.Verdict == nil }) {
		spareState, spareGivesUp = 0, 5
	}
	// of makes a cell that is empty for sockets that are not connections.
	of := func(cell func(*conn) string) func(*conn) string {
		return func(c *conn) string {
			if c.Verdict == nil {
				return none
			}
			return cell(c)
		}
	}
	// set makes a cell that is empty for sockets without settings, that is, for all but connections and listeners.
	set := func(cell func(*conn) string) func(*conn) string {
		return func(c *conn) string {
			if c.Verdict == nil && c.AcceptQueue == nil {
				return none
			}
			return cell(c)
		}
	}
	fields := []field[conn]{
		{column{title: "VERDICT", paint: paintVerdict, rare: true}, false, func(c *conn) string { return text(c.Verdict) }},
		{column{title: "FOR", right: true, rare: true}, true, of(func(c *conn) string {
			if c.Since == nil {
				return none
			}
			return age(max(0, now.Sub(*c.Since)))
		})},
		{column{title: "UNANSWERED", right: true, spare: 3, rare: true}, false, of(func(c *conn) string { return count(c.Unanswered) })},
		{column{title: "SILENT", right: true, rare: true}, false, of(func(c *conn) string { return ageOf(c.SilentSeconds) })},
		{column{title: "IDLE", right: true, spare: 2, rare: true}, false, of(func(c *conn) string { return ageOf(c.IdleSeconds) })},
		{column{title: "GIVES UP", right: true, spare: spareGivesUp, rare: true}, false, of(func(c *conn) string { return givesUp(c.GivesUp) })},
		{column{title: "STATE", spare: spareState}, false, func(c *conn) string { return text(&c.State) }},
		{column{title: "LOCAL"}, false, func(c *conn) string { return endpoint(c.Local) }},
		{column{title: "REMOTE", rare: true}, false, func(c *conn) string {
			if c.AcceptQueue != nil {
				return none
			}
			return endpoint(c.Remote)
		}},
	}
	fields = append(fields, acceptQueueFields(spareQueue)...)
	fields = append(fields, []field[conn]{
		{column{title: "KEEPALIVE", spare: 1, rare: true}, false, set(func(c *conn) string { return keepalive(&c.Keepalive) })},
		{column{title: ownerTitle}, false, func(c *conn) string {
			if c.Verdict == nil && c.UID == nil && c.Accepted == nil {
				return none // a stub: the connection has ended
			}
			return owner(&c.Ownership)
		}},
		{column{title: runsInTitle, spare: 4, rare: true}, false, func(c *conn) string { return runsIn(&c.Ownership) }},
	}...)
	if wide {
		at := func(title string) *field[conn] {
			return &fields[slices.IndexFunc(fields, func(f field[conn]) bool { return f.title == title })]
		}
		unanswered := at("UNANSWERED")
		unanswered.cell = of(func(c *conn) string {
			if c.Evidence == nil {
				return none
			}
			if *c.Evidence == receiveQueue { // nothing was asked
				return receiveQueue
			}
			return count(c.Unanswered) + " " + text(c.Evidence)
		})
		at("KEEPALIVE").cell = set(func(c *conn) string { return keepaliveOf(&c.Keepalive) })
		at(runsInTitle).cell = func(c *conn) string { return runsInAll(&c.Ownership) }
		fields = append(fields, []field[conn]{
			{column{title: "ATTEMPTS", right: true, rare: true}, true, of(func(c *conn) string { return some(c.Attempts) })},
			{column{title: "ALSO", rare: true}, true, of(func(c *conn) string { return listed(c.Also) })},
			{column{title: "REASON", rare: true}, true, of(func(c *conn) string {
				if c.Reason == nil {
					return none
				}
				return text(&c.Reason.Code)
			})},
			{column{title: "FD", right: true, rare: true}, true, func(c *conn) string {
				if c.Process == nil {
					return none
				}
				return strconv.FormatUint(uint64(c.Process.FD), 10)
			}},
			{column{title: "UID", right: true}, true, func(c *conn) string { return uid(c.UID) }},
			{column{title: "USER-TIMEOUT", right: true, rare: true}, true, set(func(c *conn) string {
				if c.UserTimeoutSeconds == 0 {
					return none
				}
				return setting(duration(c.UserTimeoutSeconds))
			})},
			{column{title: "RTO", right: true, rare: true}, true, of(func(c *conn) string { return moment(duration(c.RTOSeconds)) })},
			{column{title: "RTT", right: true, rare: true}, true, of(func(c *conn) string { return moment(duration(c.SRTTSeconds)) })},
			{column{title: "RETRANS", right: true, rare: true}, true, of(func(c *conn) string { return some(c.Retransmits.Total) })},
			{column{title: "UNACKED", right: true, rare: true}, true, of(func(c *conn) string { return some(int(c.UnackedSegments)) })},
			{column{title: "SEND-Q", right: true, rare: true}, true, of(func(c *conn) string { return someBytes(c.SendQueueBytes) })},
			{column{title: "RECV-Q", right: true, rare: true}, true, of(func(c *conn) string { return someBytes(c.ReceiveQueueBytes) })},
			{column{title: "WINDOW", right: true, rare: true}, true, of(func(c *conn) string { return size(c.SendWindowBytes) })},
			{column{title: "NETNS"}, true, func(c *conn) string { return strconv.FormatUint(uint64(c.Netns), 10) }},
			{column{title: "COOKIE"}, true, func(c *conn) string { return text(&c.Cookie) }},
			{column{title: "RISKS", rare: true}, true, func(c *conn) string { return listed(c.Risks) }},
		}...)
	}
	return makeTable(fields, connections, wide)
}

// groupTable makes a table of groups of connections.
func groupTable(groups []api.Group, by conn.Grouping) *table {
	type group = api.Group
	fields := []field[group]{{column{title: "TOTAL", right: true}, false, func(g *group) string { return count(g.Total) }}}
	switch by {
	case conn.ByVerdict:
	case conn.BySettings:
		fields = append(fields, settingsFields...)
	default:
		for _, name := range conn.VerdictNames() {
			fields = append(fields, field[group]{column{title: strings.ToUpper(name), right: true, rare: true, paint: func(n string) style {
				if n == none {
					return ""
				}
				return paintVerdict(name)
			}}, false, func(g *group) string { return some(g.Verdicts[name]) }})
		}
	}
	fields = append(fields, map[conn.Grouping]field[group]{
		conn.ByOwner: {column{title: ownerTitle}, false, func(g *group) string {
			if g.Owner == nil {
				return none
			}
			return ownerName(g.Owner.Kind, g.Owner.Name)
		}},
		conn.ByRemote: {column{title: "REMOTE"}, false, func(g *group) string {
			switch {
			case g.Remote == nil:
				return none
			case g.Remote.Port == nil:
				return address(g.Remote.IP)
			}
			return endpoint(api.Endpoint{IP: g.Remote.IP, Port: *g.Remote.Port})
		}},
		conn.ByVerdict:  {column{title: "VERDICT", paint: paintVerdict}, false, func(g *group) string { return text(g.Verdict) }},
		conn.ByNetns:    netnsField,
		conn.BySettings: netnsField,
	}[by])
	return makeTable(fields, groups, false)
}

var netnsField = field[api.Group]{column{title: "NETNS"}, false, func(g *api.Group) string { return strconv.FormatUint(uint64(g.Netns), 10) }}

// settingsFields are the columns about the settings of a network namespace.
var settingsFields = []field[api.Group]{
	settingsField("KEEPALIVE OFF", func(s *api.NetnsSettings) string { return some(s.Keepalive.Off) }),
	settingsField("ON", func(s *api.NetnsSettings) string { return some(s.Keepalive.On) }),
	settingsField("OWN", func(s *api.NetnsSettings) string { return some(s.Keepalive.Own) }),
	settingsField("USER-TIMEOUT", func(s *api.NetnsSettings) string { return some(s.UserTimeout) }),
	sysctlField("KEEPALIVE SYSCTLS", func(k *api.Sysctls) string {
		return keepalive(&api.Keepalive{Enabled: true, TimeSeconds: k.KeepaliveTimeSeconds, IntervalSeconds: k.KeepaliveIntervalSeconds, Probes: k.KeepaliveProbes})
	}),
	sysctlField("RETRIES2", func(k *api.Sysctls) string { return strconv.Itoa(k.Retries2) }),
	sysctlField("SYN-RETRIES", func(k *api.Sysctls) string { return strconv.Itoa(k.SynRetries) }),
	sysctlField("ORPHAN-RETRIES", func(k *api.Sysctls) string { return strconv.Itoa(k.OrphanRetries) }),
	sysctlField("FIN-TIMEOUT", func(k *api.Sysctls) string { return setting(duration(k.FinTimeoutSeconds)) }),
}

func settingsField(title string, cell func(*api.NetnsSettings) string) field[api.Group] {
	return field[api.Group]{column{title: title, right: true}, false, func(g *api.Group) string {
		if g.Settings == nil {
			return none
		}
		return cell(g.Settings)
	}}
}

func sysctlField(title string, cell func(*api.Sysctls) string) field[api.Group] {
	return settingsField(title, func(s *api.NetnsSettings) string {
		if s.Sysctls == nil {
			return none
		}
		return cell(s.Sysctls)
	})
}

// causeAndSimilar returns the cause of a death, with the number of deaths if it stands for
// several.
func causeAndSimilar(d *api.Death) string {
	if d.Similar == 0 {
		return text(&d.Cause)
	}
	return fmt.Sprintf("%s ×%d", text(&d.Cause), d.Similar+1)
}

func deathTable(deaths []api.Death, wide bool) *table {
	type death = api.Death
	return makeTable([]field[death]{
		{column{title: "DIED"}, false, func(d *death) string { return d.At.Local().Format(time.DateTime) }},
		{column{title: "CAUSE", paint: func(string) style { return bold }}, false, causeAndSimilar},
		{column{title: "DURING"}, true, func(d *death) string { return text(d.During) }},
		{column{title: "ERRNO"}, true, func(d *death) string { return text(d.Errno) }},
		{column{title: "VERDICT", paint: paintVerdict}, false, func(d *death) string { return text(d.Verdict) }},
		{column{title: "ZOMBIE-FOR", right: true}, false, func(d *death) string { return ageOf(d.ZombieSeconds) }},
		{column{title: "UNANSWERED", right: true}, false, func(d *death) string { return count(d.Unanswered) }},
		{column{title: "EVIDENCE"}, true, func(d *death) string { return text(d.Evidence) }},
		{column{title: "SILENT", right: true}, false, func(d *death) string { return ageOf(d.SilentSeconds) }},
		{column{title: "STATE"}, false, func(d *death) string { return text(&d.State) }},
		{column{title: "LOCAL"}, false, func(d *death) string { return endpoint(d.Local) }},
		{column{title: "REMOTE"}, false, func(d *death) string { return endpoint(d.Remote) }},
		{column{title: "NETNS"}, true, func(d *death) string { return strconv.FormatUint(uint64(d.Netns), 10) }},
		{column{title: "COOKIE"}, true, func(d *death) string { return text(&d.Cookie) }},
		{column{title: "UID"}, true, func(d *death) string { return uid(d.UID) }},
		{column{title: ownerTitle}, false, func(d *death) string { return owner(&d.Ownership) }},
		{column{title: runsInTitle, rare: true}, true, func(d *death) string { return runsInAll(&d.Ownership) }},
	}, deaths, wide)
}
