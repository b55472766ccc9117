// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter"
)

// list is the command's flags.
type list struct {
	output string
	limit  int
	agent  *agentURL
	selection
	thresholds
}

func listFlags(cmd *kingpin.CmdClause) action {
	var l list
	cmd.Flag("output", "How to print: table, wide (a table of everything known), or json.").Short('o').Default("table").
		SetValue(&value[string]{flag: "output", parse: oneOf("table", "wide", "json"), into: &l.output})
	l.selection.verdictFlag(cmd)
	l.selection.stateFlag(cmd)
	l.selection.portFlag(cmd)
	l.selection.pidFlag(cmd)
	l.selection.causeFlag(cmd, "Show deaths of this cause, such as keepalive_timeout, instead of living connections; needs --url, since only an agent remembers them.")
	cmd.Flag("limit", "Print at most this many, 0: all.").Default("0").
		SetValue(&value[int]{flag: "limit", parse: atLeast(0), into: &l.limit})
	cmd.Flag("url", "Ask the agent at this URL, such as http://127.0.0.1:9839, instead of looking here and now; with https:// and user:password@ where it wants them. SSL_CERT_FILE names the file of a private CA.").PlaceHolder("URL").
		SetValue(&value[*agentURL]{flag: "url", parse: parseAgentURL, into: &l.agent})
	l.thresholds.verdictFlags(cmd)
	return l.run
}

func (l *list) run(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case l.agent != nil && l.thresholds.given():
		return errAgentDecides
	case len(l.causes) == 0:
		return l.connections(ctx, stdout, stderr)
	case l.agent == nil:
		return usagef("--cause needs --url, since only an agent remembers deaths")
	case len(l.verdicts)+len(l.states)+len(l.ports)+len(l.pids) > 0:
		return usagef("--cause cannot be combined with --verdict, --state, --port or --pid")
	}
	return l.deaths(ctx, stdout, stderr)
}

func (l *list) connections(ctx context.Context, stdout, stderr io.Writer) error {
	if l.agent != nil && l.output == "json" {
		return l.agent.pass(ctx, "connections", l.selection.query(l.limit), stdout)
	}
	doc, err := l.look(ctx)
	if err != nil {
		return err
	}
	if l.output == "json" {
		return writeConnections(stdout, &doc)
	}
	if len(doc.Connections) == 0 {
		_, err := fmt.Fprintln(stderr, l.selection.nothing("connection"))
		return err
	}
	t := connectionTable(doc.Connections, doc.GeneratedAt, l.output == "wide")
	if l.output == "table" {
		t.fit(roomFor(stdout))
	}
	if err := t.write(stdout, paletteFor(stdout)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stderr, summary(&doc))
	return err
}

// look looks at the connections, or has the agent do so.
func (l *list) look(ctx context.Context) (doc exporter.Connections, err error) {
	if l.agent != nil {
		return doc, l.agent.get(ctx, "connections", l.selection.query(l.limit), &doc)
	}
	k, err := l.thresholds.load(0)
	if err != nil {
		return doc, err
	}
	defer k.Close()
	total, conns, err := collector.New(k, l.thresholds.options(nil)).Connections(ctx, collector.Query{
		Verdicts: l.verdicts, States: l.states, Ports: l.ports, PIDs: l.pids, Limit: l.limit,
	})
	doc = exporter.Connections{GeneratedAt: time.Now().UTC(), Total: total, Connections: make([]exporter.Connection, 0, len(conns))}
	for i := range conns {
		doc.Connections = append(doc.Connections, exporter.NewConnection(&conns[i]))
	}
	return doc, err
}

// writeConnections writes a connection a line, as the agent does.
func writeConnections(w io.Writer, doc *exporter.Connections) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `{"generated_at":%q,"total":%d,"connections":[`+"\n", doc.GeneratedAt.Format(time.RFC3339Nano), doc.Total)
	enc := json.NewEncoder(harmlessJSON{b})
	for i := range doc.Connections {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := enc.Encode(&doc.Connections[i]); err != nil {
			return err
		}
	}
	b.WriteString("]}\n")
	return b.Flush()
}

func (l *list) deaths(ctx context.Context, stdout, stderr io.Writer) error {
	query := l.selection.query(l.limit)
	if l.output == "json" {
		return l.agent.pass(ctx, "deaths", query, stdout)
	}
	var doc exporter.Deaths
	if err := l.agent.get(ctx, "deaths", query, &doc); err != nil {
		return err
	}
	if len(doc.Deaths) == 0 {
		_, err := fmt.Fprintln(stderr, l.selection.nothing("death"))
		return err
	}
	if err := deathTable(doc.Deaths, l.output == "wide").write(stdout, paletteFor(stdout)); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stderr, shown(len(doc.Deaths), doc.Total, "death"))
	return err
}

// nothing says that there is none.
func (s *selection) nothing(thing string) string {
	if len(s.verdicts)+len(s.states)+len(s.ports)+len(s.pids)+len(s.causes) > 0 {
		return "no " + thing + " matches" + s.onlyCounted()
	}
	return "no " + thing + "s"
}

// onlyCounted says that there is no list of what has been asked for.
func (s *selection) onlyCounted() string {
	switch {
	case slices.Contains(s.causes, collector.CauseClosed):
		return ": orderly ends (closed) are only counted, unless the connection was in trouble, by the metric halfopen_tcp_deaths_total"
	case slices.ContainsFunc(s.states, func(st collector.State) bool { return !st.Judged() }):
		return ": syn_recv, time_wait, close and listen are only counted, by the metric halfopen_tcp_connections"
	}
	return ""
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
	return &t
}

// connectionTable shows connections as they were at now.
func connectionTable(conns []exporter.Connection, now time.Time, wide bool) *table {
	type conn = exporter.Connection
	return makeTable([]field[conn]{
		{column{title: "VERDICT", paint: paintVerdict}, false, func(c *conn) string { return text(c.Verdict) }},
		{column{title: "FOR", right: true}, true, func(c *conn) string {
			if c.Since == nil {
				return none
			}
			return age(max(0, now.Sub(*c.Since)))
		}},
		{column{title: "UNANSWERED", right: true, spare: 3}, false, func(c *conn) string { return count(c.Unanswered) }},
		{column{title: "EVIDENCE"}, true, func(c *conn) string { return text(c.Evidence) }},
		{column{title: "SILENT", right: true}, false, func(c *conn) string { return ageOf(c.SilentSeconds) }},
		{column{title: "IDLE", right: true, spare: 2}, false, func(c *conn) string { return ageOf(c.IdleSeconds) }},
		{column{title: "GIVES UP", right: true, spare: 5}, false, func(c *conn) string { return givesUp(c.GivesUp) }},
		{column{title: "STATE", spare: 4}, false, func(c *conn) string { return text(&c.State) }},
		{column{title: "LOCAL"}, false, func(c *conn) string { return endpoint(c.Local) }},
		{column{title: "REMOTE"}, false, func(c *conn) string { return endpoint(c.Remote) }},
		{column{title: "KEEPALIVE", spare: 1}, false, func(c *conn) string { return keepalive(&c.Keepalive) }},
		{column{title: "USER-TIMEOUT", right: true}, true, func(c *conn) string {
			if c.UserTimeoutSeconds == 0 {
				return "off"
			}
			return setting(duration(c.UserTimeoutSeconds))
		}},
		{column{title: "RETRANSMITS", right: true}, true, func(c *conn) string { return count(c.Retransmits.Total) }},
		{column{title: "UNACKED", right: true}, true, func(c *conn) string { return count(int(c.UnackedSegments)) }},
		{column{title: "SEND-Q", right: true}, true, func(c *conn) string { return size(c.SendQueueBytes) }},
		{column{title: "WINDOW", right: true}, true, func(c *conn) string { return size(c.SendWindowBytes) }},
		{column{title: "RTT", right: true}, true, func(c *conn) string { return moment(duration(c.SRTTSeconds)) }},
		{column{title: "RISKS"}, true, func(c *conn) string {
			if len(c.Risks) == 0 {
				return none
			}
			return printable(strings.Join(c.Risks, ","))
		}},
		{column{title: "NETNS"}, true, func(c *conn) string { return strconv.FormatUint(uint64(c.Netns), 10) }},
		{column{title: "COOKIE"}, true, func(c *conn) string { return text(&c.Cookie) }},
		{column{title: "UID"}, true, func(c *conn) string { return uid(c.UID) }},
		{column{title: "OWNER"}, false, func(c *conn) string { return owner(&c.Ownership) }},
	}, conns, wide)
}

func deathTable(deaths []exporter.Death, wide bool) *table {
	type death = exporter.Death
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
		{column{title: "OWNER"}, false, func(d *death) string { return owner(&d.Ownership) }},
	}, deaths, wide)
}

// summary says how many there are of each verdict, worst first.
func summary(doc *exporter.Connections) string {
	counts := make(map[string]int)
	for i := range doc.Connections {
		if v := doc.Connections[i].Verdict; v != nil {
			counts[*v]++
		}
	}
	var parts []string
	for _, name := range verdictNames() {
		if n := counts[name]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, name))
		}
	}
	s := shown(len(doc.Connections), doc.Total, "connection")
	if len(parts) > 0 {
		s += ": " + strings.Join(parts, ", ")
	}
	return s
}

// shown says how many things are listed, of how many there are.
func shown(n, total int, thing string) string {
	if n < total {
		return fmt.Sprintf("%d of %s", n, plural(total, thing))
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

func endpoint(e exporter.Endpoint) string {
	ip, err := netip.ParseAddr(e.IP)
	if err != nil {
		return none
	}
	return printable(netip.AddrPortFrom(ip, e.Port).String()) // a zone can be anything
}
