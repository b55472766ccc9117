// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// explainCommand has the flags and the argument of the command.
type explainCommand struct {
	target target
	output string
	peer
	thresholds
}

func explainFlags(cmd *kingpin.CmdClause) action {
	var e explainCommand
	cmd.Arg("connection", "The socket's cookie (ss -e prints it after sk:), or its local address and port, such as 10.0.0.1:37024, [2001:db8::1]:443 or just :443.").
		Required().SetValue(&value[target]{parse: parseTarget, into: &e.target})
	cmd.Flag("output", "How to print: text or json.").Short('o').Default("text").
		SetValue(&value[string]{flag: "output", parse: oneOf("text", "json"), into: &e.output})
	e.peer.flags(cmd, "Ask")
	e.thresholds.verdictFlags(cmd)
	return e.run
}

// target is the connection that the user means: by its cookie, or by its local address.
type target struct {
	text   string
	cookie uint64
	addr   netip.Addr // none: any
	port   uint16     // 0: by cookie
}

func parseTarget(s string) (target, error) {
	t := target{text: s}
	if addr, err := netip.ParseAddr(s); err == nil {
		return t, fmt.Errorf("%q is an address without its port: write it as %s", s, netip.AddrPortFrom(addr, 37024))
	}
	host, port, isAddr := cutLast(s, ":")
	if isAddr && host != "sk" {
		p, err := collector.ParsePort(port)
		if err != nil {
			return t, err
		}
		t.port = p
		if host == "" || host == "*" {
			return t, nil
		}
		if addr, err := netip.ParseAddrPort(s); err == nil {
			t.addr = addr.Addr().Unmap().WithZone("")
			return t, nil
		}
		return t, fmt.Errorf("%q is not an address and a port, such as 10.0.0.1:37024, [2001:db8::1]:443 or :443", s)
	}
	var err error
	t.cookie, err = conn.ParseCookie(strings.TrimPrefix(s, "sk:"))
	if err == nil && t.cookie == 0 {
		err = errors.New("no socket has the cookie 0")
	}
	return t, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// is reports whether the target is this end of a connection.
func (t *target) is(e api.Endpoint) bool {
	addr, err := netip.ParseAddr(e.IP)
	return err == nil && e.Port == t.port && (!t.addr.IsValid() || t.addr == addr.Unmap().WithZone(""))
}

func (t *target) String() string {
	switch {
	case t.port == 0:
		return "the cookie " + conn.FormatCookie(t.cookie)
	case t.addr.IsValid():
		return "the local address " + netip.AddrPortFrom(t.addr, t.port).String()
	}
	return "the local port " + strconv.Itoa(int(t.port))
}

func (e *explainCommand) run(ctx context.Context, stdout, stderr io.Writer) error {
	agent, err := e.peer.agentSaying(ctx, e.thresholds.own(), stderr)
	if err != nil {
		return err
	}
	var look looker
	if agent != nil {
		look = asked{agent}
	} else {
		c, unload, err := e.thresholds.lookOnce(ctx)
		if err != nil {
			return err
		}
		defer unload()
		look = here{c}
	}
	cookie := e.target.cookie
	if e.target.port != 0 {
		connections, err := look.withPort(ctx, e.target.port)
		if err != nil {
			return err
		}
		if cookie, err = e.target.choose(connections); err != nil {
			return err
		}
	}
	body, err := look.detail(ctx, conn.FormatCookie(cookie))
	switch {
	case err != nil:
		return err
	case body == nil:
		return e.target.unknown()
	case e.output == "json":
		_, err := escape.Writer{W: stdout}.Write(body)
		return err
	}
	var doc api.ConnectionDetail
	if json.Unmarshal(body, &doc) != nil {
		return agent.NotAnAgent()
	}
	_, err = io.WriteString(stdout, explanation(&doc, min(roomFor(stdout), explanationWidth), paletteFor(stdout)))
	return err
}

// looker is an agent, or this node.
type looker interface {
	// withPort returns the connections that have the port at either end.
	withPort(ctx context.Context, port uint16) ([]api.Connection, error)
	detailer
}

type detailer interface {
	// detail returns everything known of a connection as the API has it, nil
	// if there is none.
	detail(ctx context.Context, cookie string) ([]byte, error)
}

// detailOf returns everything known of a connection, nil if there is none.
func detailOf(ctx context.Context, from detailer, cookie string) (*api.ConnectionDetail, error) {
	body, err := from.detail(ctx, cookie)
	if err != nil || body == nil {
		return nil, err
	}
	d := new(api.ConnectionDetail)
	return d, json.Unmarshal(body, d)
}

// here reads the kernel of this node.
type here struct{ c *collector.Collector }

func (h here) withPort(ctx context.Context, port uint16) ([]api.Connection, error) {
	_, connections, err := h.connections(ctx, collector.Query{Ports: []uint16{port}})
	return connections, err
}

// connections returns the connections that a query selects, and how many it would select
// without its limit.
func (h here) connections(ctx context.Context, q collector.Query) (total int, connections []api.Connection, err error) {
	total, found, err := h.c.Connections(ctx, q)
	if err != nil {
		return 0, nil, err
	}
	for connection, err := range found {
		if err != nil {
			return 0, nil, err
		}
		connections = append(connections, api.NewConnection(connection))
	}
	return total, connections, nil
}

func (h here) detail(ctx context.Context, cookie string) ([]byte, error) {
	n, err := conn.ParseCookie(cookie)
	if err != nil {
		return nil, err
	}
	d, err := h.c.Connection(ctx, n)
	if err != nil || d == nil {
		return nil, err
	}
	body, err := json.Marshal(api.NewConnectionDetail(d))
	return append(body, '\n'), err
}

// asked is an agent as a looker, and as the source of top.
type asked struct{ *api.Client }

func (a asked) withPort(ctx context.Context, port uint16) ([]api.Connection, error) {
	doc, err := a.Connections(ctx, api.ConnectionParameters(&collector.Query{Ports: []uint16{port}}))
	if err != nil {
		return nil, err
	}
	return doc.Connections, nil
}

func (a asked) detail(ctx context.Context, cookie string) ([]byte, error) {
	return a.Detail(ctx, cookie)
}

// choices is how many connections the error names to choose from.
const choices = 3

// choose returns the cookie of the one connection whose local end is the target.
func (t *target) choose(connections []api.Connection) (cookie uint64, err error) {
	mine := slices.DeleteFunc(slices.Clone(connections), func(c api.Connection) bool { return !t.is(c.Local) })
	switch len(mine) {
	case 0:
		return 0, t.nowhere(connections)
	case 1:
		return conn.ParseCookie(mine[0].Cookie)
	}
	apart := slices.ContainsFunc(mine, func(c api.Connection) bool { return c.Netns != mine[0].Netns })
	var names []string
	for i := range mine[:min(len(mine), choices)] {
		c := &mine[i]
		where := ""
		if apart {
			where = fmt.Sprintf(", in network namespace %d", c.Netns)
		}
		names = append(names, fmt.Sprintf("%s (to %s%s)", text(&c.Cookie), endpoint(c.Remote), where))
	}
	more := ""
	if n := len(mine) - choices; n > 0 {
		more = fmt.Sprintf(" and %d more, see halfopen list -o wide --port %d", n, t.port)
	}
	return 0, fmt.Errorf("%d connections have %s; choose one by its cookie: %s%s", len(mine), t, strings.Join(names, ", "), more)
}

// nowhere returns the error of a target that is the local end of no connection.
func (t *target) nowhere(connections []api.Connection) error {
	for i := range connections {
		if t.is(connections[i].Remote) {
			return fmt.Errorf("no connection has %s, but for %s it is the remote one: explain that by its cookie, %s",
				t, endpoint(connections[i].Local), text(&connections[i].Cookie))
		}
	}
	return fmt.Errorf("no connection has %s: it has ended (the stub that stays in time_wait or fin_wait2 has nothing to explain), is a listener, or never existed: see halfopen list --all", t)
}

// unknown returns the error of a cookie that no connection has.
func (t *target) unknown() error {
	hint := "it has ended, is a listener, or never existed: halfopen list -o wide lists the current connections"
	if port, err := collector.ParsePort(t.text); err == nil {
		hint += fmt.Sprintf(", or write :%d if you mean the port", port)
	}
	return fmt.Errorf("no connection has %s: %s", t, hint)
}

// explanationWidth is the width of continuous text in columns.
const explanationWidth = 80

// explanation formats an explanation as text. Lines are at most room wide, except
// commands.
func explanation(d *api.ConnectionDetail, room int, p palette) string {
	x := &d.Explanation
	w := writer{room: max(room, 40), p: p}
	verdict := ""
	if d.Verdict != nil {
		verdict = ", " + p.paint(paintVerdict(*d.Verdict), text(d.Verdict))
	}
	w.line(p.paint(bold, endpoint(d.Local)+" → "+endpoint(d.Remote)))
	w.line(text(&d.State) + verdict + "; " + ownerIn(&d.Ownership))
	w.line("cookie " + text(&d.Cookie) + ", network namespace " + strconv.FormatUint(uint64(d.Netns), 10))

	w.heading("WHAT IT IS DOING")
	w.paragraph("  ", "  ", strings.Join(x.Doing, " "))

	if len(x.Path) > 0 { // not of an older agent
		w.heading("PATH")
		w.paragraph("  ", "  ", strings.Join(x.Path, " "))
	}

	w.heading("TIMERS")
	for _, t := range x.Timers {
		w.timer(&t, x.At)
	}

	w.heading("SETTINGS")
	w.settings(x.Settings)

	w.heading("WHAT HAPPENS NEXT")
	w.paragraph("  ", "  ", strings.Join(x.Next, " "))
	if g := d.GivesUp; g != nil {
		w.paragraph("  ", "  ", fmt.Sprintf("That would be %s.", span(g.At, x.At, g.LatestInSeconds-g.InSeconds)))
	}

	w.heading(adviceTitle(word(d.Verdict)))
	w.paragraph("  ", "  ", x.Assessment)
	for i, a := range x.Advice {
		w.advice(i+1, &a)
	}
	return w.b.String()
}

// adviceTitle is the title of the advice for a connection with a verdict.
func adviceTitle(verdict string) string {
	switch verdict {
	case conn.Stuck.String(), conn.Blocked.String(), conn.Unread.String():
		return "WHAT TO DO"
	}
	return "NOTICING SOONER"
}

// writer writes text. It makes all text printable, except that of line.
type writer struct {
	b    strings.Builder
	room int
	p    palette
}

func (w *writer) line(s string) { w.b.WriteString(s + "\n") }

func (w *writer) heading(s string) { w.line("\n" + w.p.paint(bold, s)) }

// paragraph wraps a text. first begins its first line, and next the others.
func (w *writer) paragraph(first, next, s string) { w.painted("", first, next, s) }

func (w *writer) painted(style style, first, next, s string) {
	for i, l := range wrap(escape.Text(s), w.room-max(columns(first), columns(next))) {
		if i > 0 {
			first = next
		}
		w.line(first + w.p.paint(style, l))
	}
}

// wrap breaks a text between words into lines of at most room columns. A longer word
// has a line of its own.
func wrap(s string, room int) []string {
	var lines []string
	var line string
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case columns(line)+1+columns(word) <= room:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

func (w *writer) timer(t *api.Timer, now time.Time) {
	name := text(&t.Name)
	if t.Fires == nil {
		w.paragraph("  "+name+": ", "    ", lowerFirst(t.Then))
		return
	}
	f := t.Fires
	w.line("  " + name + ": fires in " + age(max(0, duration(f.InSeconds))) + ", " + span(f.At, now, f.LatestInSeconds-f.InSeconds))
	w.paragraph("    ", "    ", t.Purpose)
	w.paragraph("    Then: ", "          ", t.Then)
}

// lowerFirst makes a sentence fit after a colon.
func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(r)) + s[n:]
}

// span formats a time of day, and the end of the span if that is a second or more
// later.
func span(at, now time.Time, seconds float64) string {
	s := "at " + clock(at, now)
	if seconds >= 1 {
		s = "between " + clock(at, now) + " and " + clock(at.Add(duration(seconds)), now)
	}
	return s
}

// clock formats a local time of day, with the date if it is not that of now.
func clock(at, now time.Time) string {
	at, now = at.Local(), now.Local()
	if at.Format(time.DateOnly) != now.Format(time.DateOnly) {
		return at.Format(time.DateTime)
	}
	return at.Format(time.TimeOnly)
}

func (w *writer) settings(all []api.Setting) {
	var names, values []string
	var nameWidth, valueWidth int
	for i := range all {
		names, values = append(names, settingName(&all[i])), append(values, settingValue(&all[i]))
		nameWidth, valueWidth = max(nameWidth, columns(names[i])), max(valueWidth, columns(values[i]))
	}
	indent := strings.Repeat(" ", 2+nameWidth+2)
	for i := range all {
		s := &all[i]
		pad := func(s string, n int) string { return s + strings.Repeat(" ", n-columns(s)) }
		w.line("  " + pad(names[i], nameWidth) + "  " + pad(values[i], valueWidth) + "  " + settingSource(s))
		w.painted(faint, indent, indent, s.Means)
	}
}

// settingName returns the option, or else the last part of the sysctl.
func settingName(s *api.Setting) string {
	if s.Option == nil && s.Sysctl != nil {
		_, name, _ := cutLast(*s.Sysctl, ".")
		return text(&name)
	}
	return text(s.Option)
}

func settingValue(s *api.Setting) string {
	n := strconv.FormatInt(s.Value, 10)
	d := time.Second
	switch s.Unit {
	case "switch":
		if s.Value == 0 {
			return "off"
		}
		return "on"
	case "seconds":
		n += " s"
	case "milliseconds":
		if s.Value == 0 {
			return "off"
		}
		n += " ms"
		d = time.Millisecond
	default:
		return n
	}
	if long := time.Duration(s.Value) * d; long >= 2*time.Minute && s.Value < 1e9 {
		n += " (" + age(long) + ")"
	}
	return n
}

func settingSource(s *api.Setting) string {
	switch {
	case s.Source == "socket":
		return "set on the socket"
	case s.Source == "sysctl":
		return "sysctl " + text(s.Sysctl)
	case s.Sysctl != nil:
		return "default of " + text(s.Sysctl)
	}
	return "default, not set on the socket"
}

func (w *writer) advice(n int, a *api.Advice) {
	w.line("")
	w.paragraph(fmt.Sprintf("  %d. ", n), "     ", a.Text)
	for _, how := range a.How {
		w.line("       " + w.p.paint(bold, escape.Text(how)))
	}
	if g := a.GivesUp; g != nil {
		w.paragraph("     ", "     ", fmt.Sprintf("Done now, the kernel would give up in %s (%s).", age(max(0, duration(g.InSeconds))), g.By))
	}
}
