// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// list is the command's flags.
type list struct {
	output  string
	by      conn.Grouping
	grouped bool        // by that
	agent   *api.Client // nil: look here and now
	peer
	selection
	thresholds
}

func listFlags(cmd *kingpin.CmdClause) action {
	var l list
	cmd.Flag("output", "How to print: table, wide (a table of everything known), or json.").Short('o').Default("table").
		SetValue(&value[string]{flag: "output", parse: oneOf("table", "wide", "json"), into: &l.output})
	l.selection.addFilters(cmd, func(*api.Filter[collector.Query]) bool { return true })
	l.selection.causeFlag(cmd, "Show deaths of this cause, such as keepalive_timeout, instead of living connections; needs an agent, since only that remembers them.")
	cmd.Flag("by", "Count connections in groups, worst first, instead of listing them: by owner, remote (address, and port of a service) or verdict.").PlaceHolder("WHAT").
		IsSetByUser(&l.grouped).SetValue(&value[conn.Grouping]{flag: "by", parse: conn.ParseGrouping, into: &l.by})
	cmd.Flag("limit", "Print at most this many, 0: all.").Default("0").
		SetValue(&value[int]{flag: "limit", parse: atLeast(0), into: &l.Limit})
	l.peer.flags(cmd, "Ask")
	l.thresholds.verdictFlags(cmd)
	return l.run
}

func (l *list) run(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case l.All && len(l.Verdicts)+len(l.Risks) > 0:
		return usagef("--all cannot be combined with --verdict or --risk, which only connections have")
	case l.grouped && l.output == "wide":
		return usagef("--by has no wide table: leave out -o wide")
	case len(l.deaths.Causes) > 0 && (l.filtered() || l.All || l.grouped):
		return usagef("--cause cannot be combined with filters of connections, --all or --by")
	}
	var err error
	if l.agent, err = l.peer.agent(ctx, l.thresholds.own()); err != nil {
		return err
	}
	switch {
	case len(l.deaths.Causes) > 0 && l.agent == nil:
		return errors.New("--cause needs an agent, since only that remembers deaths: start one, or name it with --url")
	case len(l.deaths.Causes) > 0:
		return l.listDeaths(ctx, stdout, stderr)
	case l.grouped:
		return l.groups(ctx, stdout, stderr)
	}
	return l.connections(ctx, stdout, stderr)
}

func (l *list) connections(ctx context.Context, stdout, stderr io.Writer) error {
	doc := api.Connections{GeneratedAt: time.Now().UTC()}
	query := api.ConnectionParameters(&l.Query)
	switch {
	case l.agent != nil && l.output == "json":
		return l.passOn(ctx, "connections", query, stdout)
	case l.agent != nil:
		answer, err := l.agent.Connections(ctx, query)
		if err != nil {
			return err
		}
		doc = *answer
	default:
		k, err := l.thresholds.load(0)
		if err != nil {
			return err
		}
		defer k.Close()
		c := collector.New(k, l.thresholds.options(nil))
		total, connections, err := c.Connections(ctx, l.Query)
		if err != nil {
			return err
		}
		if n := c.Unwalked(); n > 0 {
			fmt.Fprintf(stderr, "halfopen: not all is listed: the hash tables of %s take too long to walk (halfopen doctor names them)\n", plural(n, "network namespace"))
		}
		if l.output == "json" {
			return writeList(stdout, "connections", total, connections, api.NewConnection)
		}
		doc.Total = total
		for connection, err := range connections {
			if err != nil {
				return err
			}
			doc.Connections = append(doc.Connections, api.NewConnection(connection))
		}
	}
	if len(doc.Connections) == 0 {
		_, err := fmt.Fprintln(stderr, l.selection.nothing(l.thing()))
		return err
	}
	t := connectionTable(doc.Connections, doc.GeneratedAt, l.output == "wide")
	if l.output == "table" {
		t.fit(roomFor(stdout))
	}
	if err := t.write(stdout, paletteFor(stdout)); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stderr, summary(&doc, l.thing()))
	return err
}

func (l *list) groups(ctx context.Context, stdout, stderr io.Writer) error {
	var doc api.Groups
	query := api.GroupParameters(&l.Query, l.by)
	switch {
	case l.agent != nil && l.output == "json":
		return l.passOn(ctx, "groups", query, stdout)
	case l.agent != nil:
		answer, err := l.agent.Groups(ctx, query)
		if err != nil {
			return err
		}
		doc = *answer
	default:
		k, err := l.thresholds.load(0)
		if err != nil {
			return err
		}
		defer k.Close()
		total, counts, err := collector.New(k, l.thresholds.options(nil)).CountConnections(ctx, l.Query, l.by)
		if err != nil {
			return err
		}
		encode := func(t *conn.ConnCount) api.Group { return api.NewGroup(t, l.by) }
		if l.output == "json" {
			return writeList(stdout, "groups", total, api.Values(counts), encode)
		}
		doc.Total = total
		for i := range counts {
			doc.Groups = append(doc.Groups, encode(&counts[i]))
		}
	}
	if len(doc.Groups) == 0 {
		_, err := fmt.Fprintln(stderr, l.selection.nothing(l.thing()))
		return err
	}
	if err := groupTable(doc.Groups, l.by).write(stdout, paletteFor(stdout)); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stderr, groupSummary(&doc, l.thing()))
	return err
}

// passOn prints the agent's answer as the agent encoded it.
func (l *list) passOn(ctx context.Context, what string, query url.Values, stdout io.Writer) error {
	body, err := l.agent.Raw(ctx, what, query)
	if err != nil {
		return err
	}
	_, err = escapingWriter{stdout}.Write(body)
	return err
}

// thing is what is listed or counted.
func (l *list) thing() string {
	if l.All {
		return "socket"
	}
	return "connection"
}

// writeList writes what the agent would answer.
func writeList[In, Out any](w io.Writer, name string, total int, items iter.Seq2[*In, error], encode func(*In) Out) error {
	b := bufio.NewWriter(w)
	if err := api.WriteList(escapingWriter{b}, name, total, items, encode); err != nil {
		return err
	}
	return b.Flush()
}

func (l *list) listDeaths(ctx context.Context, stdout, stderr io.Writer) error {
	query := api.DeathParameters(&api.DeathQuery{Causes: l.deaths.Causes, Limit: l.Limit})
	if l.output == "json" {
		return l.passOn(ctx, "deaths", query, stdout)
	}
	doc, err := l.agent.Deaths(ctx, query)
	if err != nil {
		return err
	}
	if len(doc.Deaths) == 0 {
		_, err := fmt.Fprintln(stderr, l.selection.nothing("death"))
		return err
	}
	if err := deathTable(doc.Deaths, l.output == "wide").write(stdout, paletteFor(stdout)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stderr, shown(len(doc.Deaths), doc.Total, "death"))
	return err
}

// field is a column of a table of T.
type field[T any] struct {
	column
	wide bool // of the wide table only
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

// The columns that say whose a connection is.
const (
	ownerTitle  = "OWNER"
	runsInTitle = "RUNS IN"
)

// connectionTable shows connections as they were at now.
func connectionTable(connections []api.Connection, now time.Time, wide bool) *table {
	type conn = api.Connection
	// Of what is no connection, the state says most.
	spareState, spareGivesUp := 5, 6
	if slices.ContainsFunc(connections, func(c conn) bool { return c.Verdict == nil }) {
		spareState, spareGivesUp = 0, 5
	}
	// of connections: nothing to show of anything else.
	of := func(cell func(*conn) string) func(*conn) string {
		return func(c *conn) string {
			if c.Verdict == nil {
				return none
			}
			return cell(c)
		}
	}
	// set is of sockets that have settings.
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
		{column{title: "KEEPALIVE", spare: 1, rare: true}, false, set(func(c *conn) string { return keepalive(&c.Keepalive) })},
		{column{title: ownerTitle}, false, func(c *conn) string {
			if c.Verdict == nil && c.UID == nil && c.Accepted == nil {
				return none // of a connection that has ended
			}
			return owner(&c.Ownership)
		}},
		{column{title: runsInTitle, spare: 4, rare: true}, false, func(c *conn) string { return runsIn(&c.Ownership) }},
	}
	if wide {
		at := func(title string) *field[conn] {
			return &fields[slices.IndexFunc(fields, func(f field[conn]) bool { return f.title == title })]
		}
		unanswered := at("UNANSWERED")
		unanswered.cell = of(func(c *conn) string {
			if c.Evidence == nil {
				return none
			}
			return count(c.Unanswered) + " " + text(c.Evidence)
		})
		at("KEEPALIVE").cell = set(func(c *conn) string { return keepaliveOf(&c.Keepalive) })
		at(runsInTitle).cell = func(c *conn) string { return runsInAll(&c.Ownership) }
		fields = append(fields, []field[conn]{
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
			{column{title: "SEND-Q", right: true, rare: true}, true, of(func(c *conn) string {
				if c.SendQueueBytes == 0 {
					return none
				}
				return size(c.SendQueueBytes)
			})},
			{column{title: "WINDOW", right: true, rare: true}, true, of(func(c *conn) string { return size(c.SendWindowBytes) })},
			{column{title: "ACCEPT-Q", right: true, rare: true}, true, func(c *conn) string {
				if c.AcceptQueue == nil {
					return none
				}
				return fmt.Sprintf("%d/%d", c.AcceptQueue.Length, c.AcceptQueue.Limit)
			}},
			{column{title: "NETNS"}, true, func(c *conn) string { return strconv.FormatUint(uint64(c.Netns), 10) }},
			{column{title: "COOKIE"}, true, func(c *conn) string { return text(&c.Cookie) }},
			{column{title: "RISKS", rare: true}, true, func(c *conn) string {
				if len(c.Risks) == 0 {
					return none
				}
				return printable(strings.Join(c.Risks, ","))
			}},
		}...)
	}
	return makeTable(fields, connections, wide)
}

// groupTable shows groups of connections.
func groupTable(groups []api.Group, by conn.Grouping) *table {
	type group = api.Group
	fields := []field[group]{{column{title: "TOTAL", right: true}, false, func(g *group) string { return count(g.Total) }}}
	if by != conn.ByVerdict {
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
		conn.ByVerdict: {column{title: "VERDICT", paint: paintVerdict}, false, func(g *group) string { return text(g.Verdict) }},
	}[by])
	return makeTable(fields, groups, false)
}

func deathTable(deaths []api.Death, wide bool) *table {
	type death = api.Death
	return makeTable([]field[death]{
		{column{title: "DIED"}, false, func(d *death) string { return d.At.Local().Format(time.DateTime) }},
		{column{title: "CAUSE", paint: func(string) style { return bold }}, false, func(d *death) string { return text(&d.Cause) }},
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

func summary(doc *api.Connections, thing string) string {
	counts := make(map[string]int)
	for i := range doc.Connections {
		if v := doc.Connections[i].Verdict; v != nil {
			counts[*v]++
		}
	}
	return shown(len(doc.Connections), doc.Total, thing) + counted(len(doc.Connections), counts)
}

func groupSummary(doc *api.Groups, thing string) string {
	total, counts := 0, make(map[string]int)
	for i := range doc.Groups {
		g := &doc.Groups[i]
		total += g.Total
		for _, name := range conn.VerdictNames() {
			counts[name] += g.Verdicts[name]
		}
	}
	return shown(len(doc.Groups), doc.Total, "group") + ", " + plural(total, thing) + counted(total, counts)
}

// counted says how many of so many there are of each verdict, worst first.
func counted(total int, counts map[string]int) string {
	var parts []string
	without := total
	for _, name := range conn.VerdictNames() {
		if n := counts[name]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, name))
			without -= n
		}
	}
	if without > 0 {
		parts = append(parts, fmt.Sprintf("%d without a verdict", without))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

// shown says how many things are listed, of how many there are.
func shown(n, total int, thing string) string {
	if n < total {
		return fmt.Sprintf("%d of %s shown", n, plural(total, thing))
	}
	return plural(n, thing)
}

// text is a word that may be missing. It comes from an agent, which may be
// anybody.
func text(s *string) string {
	if s == nil || *s == "" {
		return none
	}
	return cut(printable(*s), 40)
}

func count(n int) string { return strconv.Itoa(n) }

// some is count of what there is usually none of.
func some(n int) string {
	if n == 0 {
		return none
	}
	return count(n)
}

func duration(seconds float64) time.Duration {
	return time.Duration(math.Round(seconds * float64(time.Second)))
}

func ageOf(seconds *float64) string {
	if seconds == nil {
		return none
	}
	return age(duration(*seconds))
}

func uid(id *uint32) string {
	if id == nil {
		return none
	}
	return strconv.FormatUint(uint64(*id), 10)
}

func address(s string) string {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return none
	}
	return printable(ip.String())
}

func endpoint(e api.Endpoint) string {
	ip, err := netip.ParseAddr(e.IP)
	if err != nil {
		return none
	}
	return printable(netip.AddrPortFrom(ip, e.Port).String()) // a zone can be anything
}
