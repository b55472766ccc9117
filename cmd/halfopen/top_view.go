// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/escape"
)

// View implements tea.Model.
func (m screen) View() tea.View {
	lines := m.lines()
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true // View sets no window title: top could not restore the old one.
	if m.editing && len(lines) > 0 {
		v.Cursor = m.input.Cursor()
		v.Cursor.Y = len(lines) - 1
		v.Cursor.X = min(v.Cursor.X, m.width-1)
	}
	return v
}

// lines returns the lines of the screen: m.height lines, none wider than m.width.
func (m screen) lines() []string {
	if m.width <= 0 || m.height <= 0 {
		return nil
	}
	lines := m.top()
	room := m.height - len(lines)
	footer := room > 1
	if footer {
		room--
	}
	var body []string
	if m.help || m.open != "" {
		body = m.text()[m.scrolled:]
	} else {
		body = m.table(room)
	}
	if len(body) > room {
		body = body[:room]
	}
	for len(body) < room {
		body = append(body, "")
	}
	lines = append(lines, body...)
	if footer {
		lines = append(lines, m.footer())
	}
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, m.width, "…")
	}
	return lines
}

// The minimum height of a screen that shows each of these parts besides the table.
const (
	heightOfSummary = 3
	heightOfTitle   = 6
	heightOfDeaths  = 9
	heightOfGap     = 12
	// maxTroubleLines is the greatest number of lines about a lost agent.
	maxTroubleLines = 3
)

// top returns the lines above the table, the detail or the help.
func (m screen) top() (lines []string) {
	if m.height >= heightOfTitle {
		lines = append(lines, m.title())
	}
	if m.height >= heightOfSummary {
		lines = append(lines, m.summary())
	}
	if m.height >= heightOfDeaths && m.err == nil {
		lines = append(lines, m.deaths())
	}
	if m.err != nil {
		lines = append(lines, m.trouble()...)
	}
	if m.height >= heightOfGap {
		lines = append(lines, "")
	}
	return lines
}

// roomForRows returns how many rows of the table fit.
func (m screen) roomForRows() int {
	room := m.roomForText()
	if room > 1 {
		room-- // the titles of the columns
	}
	return room
}

// roomForText returns how many lines fit between top and footer.
func (m screen) roomForText() int {
	room := m.height - len(m.top())
	if room > 1 {
		room-- // the footer
	}
	return max(room, 1)
}

// justify puts one text at the left and one at the right of a line. If they do not fit, it
// cuts the left text to no less than half of the room, and then the right text.
func justify(left, right string, room int) string {
	if w := ansi.StringWidth(right); right != "" && ansi.StringWidth(left)+2+w > room {
		left = ansi.Truncate(left, max(room-w-2, room/2), "…")
		right = ansi.Truncate(right, max(0, room-ansi.StringWidth(left)-2), "…")
	}
	if right == "" {
		return left
	}
	pad := max(0, room-ansi.StringWidth(left)-ansi.StringWidth(right))
	return left + strings.Repeat(" ", pad) + right
}

func (m screen) title() string {
	state, style := m.state()
	right := m.p.paint(style, state) + "  " + m.shown().Local().Format(time.TimeOnly)
	name, source, running := m.p.paint(bold, "halfopen top")+"  ", escape.Text(m.src.String()), ""
	if r := m.reading; !r.node.status.StartedAt.IsZero() {
		running = m.p.paint(faint, ", running for "+age(max(0, r.at.Sub(r.node.status.StartedAt)+m.shown().Sub(m.read)).Truncate(time.Second)))
	}
	for _, left := range []string{name + source + running, name + source} {
		if ansi.StringWidth(left)+2+ansi.StringWidth(right) <= m.width {
			return justify(left, right, m.width)
		}
	}
	return justify(source, right, m.width)
}

// state returns the state of the agent, or the state of top if top is paused or has lost the
// agent.
func (m screen) state() (string, style) {
	s := &m.reading.node.status
	var problems []string
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	switch {
	case m.err != nil:
		return "lost", red
	case m.asking && m.now.Sub(m.asked) >= topLate:
		return "no answer for " + age(m.now.Sub(m.asked).Truncate(time.Second)), yellow
	case m.paused:
		return "paused", yellow
	case s.Census.At == nil:
		return "first census under way", yellow
	}
	if len(s.Detached) > 0 {
		add("not attached: %s", escape.Text(strings.Join(s.Detached, " ")))
	}
	if lost := s.Lost(); lost > 0 {
		add("%s lost", plural(int(lost), "event"))
	}
	if reasons := s.Reasons(); len(reasons) > 0 {
		add("view incomplete: %s", escape.Text(strings.Join(reasons, " ")))
	}
	if len(problems) > 0 {
		return strings.Join(problems, ", "), yellow
	}
	return "healthy", green
}

// summary formats how many connections of the node have each verdict.
func (m screen) summary() string {
	n := &m.reading.node
	var all, some []string
	for _, name := range conn.VerdictNames() {
		count := n.verdicts[name]
		part := fmt.Sprintf("%d %s", count, name)
		if count == 0 {
			part = m.p.paint(faint, part)
		} else {
			part = m.p.paint(paintVerdict(name), part)
			some = append(some, part)
		}
		all = append(all, part)
	}
	total := plural(n.connections(), "connection")
	line := strings.Join(all, "  ")
	if ansi.StringWidth(line)+2+len(total) <= m.width {
		return justify(line, m.p.paint(faint, total), m.width)
	}
	if ansi.StringWidth(line) > m.width && len(some) > 0 {
		line = strings.Join(some, "  ")
	}
	return line
}

// deaths formats how many connections died in the last hour, by cause. The time is shorter
// if the agent has not run for an hour, or if top has not read all deaths of it.
func (m screen) deaths() string {
	r := m.reading
	since := time.Hour
	if up := r.at.Sub(r.node.status.StartedAt); !r.node.status.StartedAt.IsZero() && up < since {
		since = up
	}
	counts, more := make(map[string]int), make(map[string]string)
	for i := range r.deaths {
		d := &r.deaths[i]
		ago := r.at.Sub(d.At)
		if ago > since {
			break
		}
		counts[d.Cause]++
		switch {
		case d.SimilarSince == nil:
		case r.at.Sub(*d.SimilarSince) <= since:
			counts[d.Cause] += d.Similar
		default: // not known how many of them are older
			more[d.Cause] = "+"
		}
		if i == topDeaths-1 {
			since = ago // top has not read older deaths
		}
	}
	causes := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, cause := range causes {
		parts = append(parts, fmt.Sprintf("%d%s %s", counts[cause], more[cause], text(&cause)))
	}
	s := "died in the last " + age(max(0, since).Truncate(time.Second)) + ": "
	if len(causes) == 0 {
		return m.p.paint(faint, s+"none")
	}
	return m.p.paint(faint, s) + strings.Join(parts, ", ")
}

// trouble returns the lines that say why the screen shows old data.
func (m screen) trouble() []string {
	message := fmt.Sprintf("Lost at %s, trying again: %s.", m.lost.Local().Format(time.TimeOnly), oneLine(m.err))
	lines := wrap(message, m.width)
	if most := min(maxTroubleLines, max(1, m.height-heightOfSummary)); len(lines) > most {
		lines = append(lines[:most-1], cut(strings.Join(lines[most-1:], " "), m.width))
	}
	for i, l := range lines {
		lines[i] = m.p.paint(red, l)
	}
	return lines
}

// footer returns the last line: which connections the table has, and the keys. While the
// user edits the filter, it is the filter and its error.
func (m screen) footer() string {
	if m.editing {
		typed, hint := strings.TrimRight(m.input.View(), " "), ""
		if room := m.width - ansi.StringWidth(typed) - 2; m.inputErr != nil && room > 0 {
			hint = m.p.paint(yellow, cut(oneLine(m.inputErr), room))
		}
		return justify(typed, hint, m.width)
	}
	var left string
	hints := []string{"?", "help", "q", "quit", "/", "filter", "⏎", "explain", "s", "sort", "p", "pause"}
	if m.help || m.open != "" {
		hints = []string{"esc", "back", "q", "quit", "↑↓", "scroll", "p", "pause"}
		if n := len(m.text()); n > m.roomForText() {
			left = fmt.Sprintf("lines %d to %d of %d", m.scrolled+1, min(n, m.scrolled+m.roomForText()), n)
		}
	} else {
		left = m.tableStatus()
	}
	right := hints[0] + " " + hints[1] // always, even if it cuts the left text
	for i := 2; i < len(hints); i += 2 {
		more := right + "  " + hints[i] + " " + hints[i+1]
		if ansi.StringWidth(left)+2+ansi.StringWidth(more) > m.width {
			break
		}
		right = more
	}
	return justify(left, m.p.paint(faint, right), m.width)
}

// tableStatus returns how many connections the table has, their order and the filter.
func (m screen) tableStatus() string {
	r := m.reading
	s := plural(r.total, "connection")
	if len(r.conns) < r.total {
		s = fmt.Sprintf("the worst %d of %s", len(r.conns), s)
	}
	if len(m.filter.words) > 0 {
		s = fmt.Sprintf("%d of %s", len(m.rows), s)
	}
	if m.by > 0 || m.reversed {
		s += ", by " + strings.ToLower(orders[m.by].title)
		if m.reversed {
			s += " reversed"
		}
	}
	if m.filter.text != "" {
		s += "  " + m.p.paint(yellow, "/"+escape.Text(m.filter.text))
	}
	return s
}
