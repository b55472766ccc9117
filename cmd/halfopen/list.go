// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/url"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// list has the flags of the command.
type list struct {
	output   string
	by       conn.Grouping
	grouped  bool // --by was given
	settings bool
	agent    *api.Client // nil: read the kernel ourselves
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
	cmd.Flag("by", "Count connections in groups, worst first, instead of listing them: by owner, remote (address, and port of a service), verdict or netns (network namespace).").PlaceHolder("WHAT").
		IsSetByUser(&l.grouped).SetValue(&value[conn.Grouping]{flag: "by", parse: conn.ParseGrouping, into: &l.by})
	cmd.Flag("settings", "With --by netns: show the sysctls of each namespace, and how many of its connections follow them or have settings of their own.").
		BoolVar(&l.settings)
	cmd.Flag("limit", "Print at most this many, 0: all.").Default("0").
		SetValue(&value[int]{flag: "limit", parse: atLeast(0), into: &l.Limit})
	l.peer.flags(cmd, "Ask")
	l.thresholds.verdictFlags(cmd)
	return l.run
}

func (l *list) run(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case l.All && len(l.Verdicts)+len(l.Risks) > 0:
		return usagef("--all cannot be combined with --verdict or --risk: leave out --all")
	case l.settings && (!l.grouped || l.by != conn.ByNetns):
		return usagef("--settings needs --by netns")
	case l.grouped && l.output == "wide":
		return usagef("--by has no wide table: leave out -o wide")
	case len(l.deaths.Causes) > 0 && (l.filtered() || l.All || l.grouped):
		return usagef("--cause cannot be combined with filters of connections, --all or --by")
	}
	if l.settings {
		l.by = conn.BySettings
	}
	var err error
	if l.agent, err = l.peer.agentSaying(ctx, l.thresholds.own(), stderr); err != nil {
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
	_, err = l.connections(ctx, stdout, stderr)
	return err
}

// connections prints the connections that match, and returns how many there are.
func (l *list) connections(ctx context.Context, stdout, stderr io.Writer) (total int, err error) {
	if l.agent != nil {
		answer, err := l.agent.OpenConnections(ctx, api.ConnectionParameters(&l.Query))
		if err != nil {
			return 0, err
		}
		defer answer.Close()
		if l.output == "json" {
			return answer.Head.Total, passListing(answer, stdout)
		}
		return answer.Head.Total, l.table(&answer.Head, answer.All(), stdout, stderr)
	}
	c, unload, err := l.thresholds.lookOnce(ctx)
	if err != nil {
		return 0, err
	}
	defer unload()
	total, connections, err := c.Connections(ctx, l.Query)
	if err != nil {
		return 0, err
	}
	if n := c.Unwalked(); n > 0 {
		fmt.Fprintf(stderr, "halfopen: not all is listed: the hash tables of %s take too long to walk (halfopen doctor names them)\n", plural(n, "network namespace"))
	}
	order := api.OrderOf(&l.Query, total)
	if l.output == "json" {
		return total, writeJSON(stdout, func(w io.Writer) error {
			return api.WriteList(w, "connections", total, order, connections, api.NewConnection)
		})
	}
	head := api.Connections{GeneratedAt: time.Now().UTC(), Total: total, Order: order}
	return total, l.table(&head, func(yield func(*api.Connection, error) bool) {
		for connection, err := range connections {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(new(api.NewConnection(connection)), nil) {
				return
			}
		}
	}, stdout, stderr)
}

// passListing prints the agent's answer as the agent encoded it: the answer as a whole, so
// that it does not wait for a slow reader, unless it is very large.
func passListing(answer *api.Listing, stdout io.Writer) error {
	if answer.Head.Order == api.OrderVerdict {
		return answer.CopyTo(escape.Writer{W: stdout})
	}
	var body bytes.Buffer
	if err := answer.CopyTo(&body); err != nil {
		return err
	}
	_, err := escape.Writer{W: stdout}.Write(body.Bytes())
	return err
}

// tableRows is the most connections in one table of a list that is not sorted: such a list
// has several tables, so that it takes little memory.
const tableRows = 2000

// table prints connections as a table. head has all of their answer but the list.
func (l *list) table(head *api.Connections, connections iter.Seq2[*api.Connection, error], stdout, stderr io.Writer) error {
	most := math.MaxInt
	if head.Order == api.OrderVerdict {
		most = tableRows
		fmt.Fprintf(stderr, "halfopen: %s are too many to sort: the worst verdict comes first, those with one verdict in any order\n", plural(head.Total, l.thing()))
	}
	s := shownCounts{total: head.Total, verdicts: make(map[string]int)}
	var rows []api.Connection
	write := func() error {
		t := connectionTable(rows, head.GeneratedAt, l.output == "wide")
		if l.output == "table" {
			t.fit(roomFor(stdout))
		}
		s.add(rows)
		rows = rows[:0]
		return t.write(stdout, paletteFor(stdout))
	}
	for connection, err := range connections {
		if err != nil {
			return err
		}
		if rows = append(rows, *connection); len(rows) < most {
			continue
		}
		if err := write(); err != nil {
			return err
		}
	}
	if len(rows) > 0 {
		if err := write(); err != nil {
			return err
		}
	}
	text := l.selection.nothing(l.thing())
	if s.shown > 0 {
		text = s.summary(l.thing())
	}
	_, err := fmt.Fprintln(stderr, text)
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
		c, unload, err := l.thresholds.lookOnce(ctx)
		if err != nil {
			return err
		}
		defer unload()
		total, counts, err := c.CountConnections(ctx, l.Query, l.by)
		if err != nil {
			return err
		}
		encode := func(t *conn.Count) api.Group { return api.NewGroup(t, l.by) }
		if l.output == "json" {
			return writeJSON(stdout, func(w io.Writer) error { return api.WriteList(w, "groups", total, "", api.Values(counts), encode) })
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
	_, err = escape.Writer{W: stdout}.Write(body)
	return err
}

// thing returns the noun for what is listed or counted.
func (l *list) thing() string {
	if l.All || l.Listeners() {
		return "socket"
	}
	return "connection"
}

// writeJSON prints what write writes, as an agent would answer.
func writeJSON(w io.Writer, write func(io.Writer) error) error {
	b := bufio.NewWriter(w)
	if err := write(b); err != nil {
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

// shownCounts is what the summary of a list counts.
type shownCounts struct {
	shown, total int
	verdicts     map[string]int
}

// add counts connections that are shown.
func (s *shownCounts) add(connections []api.Connection) {
	s.shown += len(connections)
	for i := range connections {
		if v := connections[i].Verdict; v != nil {
			s.verdicts[*v]++
		}
	}
}

func (s *shownCounts) summary(thing string) string {
	return shown(s.shown, s.total, thing) + counted(s.shown, s.verdicts)
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

// counted formats how many of total have each verdict, worst first.
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

// shown formats how many things are listed, and of how many.
func shown(n, total int, thing string) string {
	if n < total {
		return fmt.Sprintf("%d of %s shown", n, plural(total, thing))
	}
	return plural(n, thing)
}
