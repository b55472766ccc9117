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
	"github.com/halfopen/halfopen/exporter/api"
)

// View implements tea.Model.
func (m screen) View() tea.View {
	lines := m.lines()
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true // No title: the one that was there could not be put back.
	if m.editing && len(lines) > 0 {
		v.Cursor = m.input.Cursor()
		v.Cursor.Y = len(lines) - 1
		v.Cursor.X = min(v.Cursor.X, m.width-1)
	}
	return v
}

// lines are those of the screen: as many as it has, none longer than it is wide.
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

// The heights that it takes to show more than the table: least what matters now.
const (
	heightOfSummary = 3
	heightOfTitle   = 6
	heightOfDeaths  = 9
	heightOfGap     = 12
	// Of these at most, what is wrong takes a line.
	linesOfTrouble = 3
)

// top is what is above the table, or whatever else there is.
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

// roomForRows is how many rows of the table there is room for.
func (m screen) roomForRows() int {
	room := m.roomForText()
	if room > 1 {
		room-- // the titles
	}
	return room
}

// roomForText is how many lines there is room for between top and footer.
func (m screen) roomForText() int {
	room := m.height - len(m.top())
	if room > 1 {
		room-- // the footer
	}
	return max(room, 1)
}

// between puts one text to the left and one to the right; where there is no room
// for both, the left one is cut, but not to less than half.
func between(left, right string, room int) string {
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
	name, source, running := m.p.paint(bold, "halfopen top")+"  ", printable(m.src.String()), ""
	if r := m.reading; !r.node.status.StartedAt.IsZero() {
		running = m.p.paint(faint, ", running for "+age(max(0, r.at.Sub(r.node.status.StartedAt)+m.shown().Sub(m.read)).Truncate(time.Second)))
	}
	for _, left := range []string{name + source + running, name + source} {
		if ansi.StringWidth(left)+2+ansi.StringWidth(right) <= m.width {
			return between(left, right, m.width)
		}
	}
	return between(source, right, m.width)
}

// state says how the agent is, and how we are.
func (m screen) state() (string, style) {
	s := &m.reading.node.status
	var troubles []string
	trouble := func(format string, args ...any) { troubles = append(troubles, fmt.Sprintf(format, args...)) }
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
		trouble("not attached: %s", printable(strings.Join(s.Detached, " ")))
	}
	if lost := s.Lost(); lost > 0 {
		trouble("%s lost", plural(int(lost), "event"))
	}
	if reasons := s.Reasons(); len(reasons) > 0 {
		trouble("not all is seen: %s", printable(strings.Join(reasons, " ")))
	}
	if len(troubles) > 0 {
		return strings.Join(troubles, ", "), yellow
	}
	return "healthy", green
}

// summary counts the connections of the node by verdict.
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
		return between(line, m.p.paint(faint, total), m.width)
	}
	if ansi.StringWidth(line) > m.width && len(some) > 0 {
		line = strings.Join(some, "  ")
	}
	return line
}

// deaths counts the latest ones by cause.
func (m screen) deaths() string {
	r := m.reading
	since := time.Hour
	if up := r.at.Sub(r.node.status.StartedAt); !r.node.status.StartedAt.IsZero() && up < since {
		since = up
	}
	counts := make(map[string]int)
	for i := range r.deaths {
		d := &r.deaths[i]
		ago := r.at.Sub(d.At)
		if ago > since {
			break
		}
		counts[d.Cause]++
		if i == topDeaths-1 {
			since = ago // no more are known
		}
	}
	causes := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, cause := range causes {
		parts = append(parts, fmt.Sprintf("%d %s", counts[cause], text(&cause)))
	}
	s := "died in the last " + age(max(0, since).Truncate(time.Second)) + ": "
	if len(causes) == 0 {
		return m.p.paint(faint, s+"none")
	}
	return m.p.paint(faint, s) + strings.Join(parts, ", ")
}

// trouble says why what is shown is old.
func (m screen) trouble() []string {
	said := fmt.Sprintf("Lost at %s, trying again: %s.", m.lost.Local().Format(time.TimeOnly), oneLine(m.err))
	lines := wrap(said, m.width)
	if most := min(linesOfTrouble, max(1, m.height-heightOfSummary)); len(lines) > most {
		lines = append(lines[:most-1], cut(strings.Join(lines[most-1:], " "), m.width))
	}
	for i, l := range lines {
		lines[i] = m.p.paint(red, l)
	}
	return lines
}

// spareInTop is which columns are left out first where there is little room.
// Those that are not here stay.
var spareInTop = map[string]int{
	"KEEPALIVE": 1, runsInTitle: 2, "STATE": 3, "IDLE": 4, "UNANSWERED": 5, "LOCAL": 6, "SILENT": 7, ownerTitle: 8, "GIVES UP": 9,
}

// leastWidth is to how much a column may be cut before one is left out, or, of
// ages, how much it has at least, so that they do not jump.
var leastWidth = map[string]int{"LOCAL": 15, "REMOTE": 15, ownerTitle: 12, runsInTitle: 12}

const widthOfAges = 6

// table is the titles and the rows that there is room for.
func (m screen) table(room int) []string {
	if len(m.rows) == 0 {
		return []string{m.p.paint(faint, m.filter.nothing("connection"))}
	}
	connections := make([]api.Connection, len(m.rows))
	for i := range m.rows {
		connections[i] = older(&m.rows[i], m.shown().Sub(m.read))
	}
	t := connectionTable(connections, m.reading.at, false)
	for i := range t.columns {
		c := &t.columns[i]
		c.spare = spareInTop[c.title]
		if c.title == orders[m.by].title && (m.by > 0 || m.reversed) {
			c.title += mark(m.reversed)
		}
	}
	widths := t.widths() // of all rows: they stay when one scrolls
	t.rows = t.rows[m.offset:min(len(t.rows), m.offset+m.roomForRows())]
	widths = t.squeeze(widths, m.width)
	var lines []string
	if room > 1 {
		lines = append(lines, t.head(widths, m.p))
	}
	for i := range t.rows {
		switch {
		case m.offset+i == m.cursor:
			line := ansi.Truncate(t.row(i, widths, false), m.width, "…")
			lines = append(lines, inverse(line+strings.Repeat(" ", max(0, m.width-ansi.StringWidth(line)))))
		case m.err != nil:
			lines = append(lines, m.p.paint(faint, t.row(i, widths, false)))
		default:
			lines = append(lines, t.row(i, widths, m.p))
		}
	}
	return lines
}

// mark is beside the title of the column that is sorted by.
func mark(reversed bool) string {
	if reversed {
		return "▴"
	}
	return "▾"
}

// inverse is where the cursor is, without colours too.
func inverse(s string) string { return "\x1b[7m" + s + "\x1b[0m" }

// older is a connection after some more time in which nothing happened.
func older(c *api.Connection, by time.Duration) api.Connection {
	o := *c
	for _, seconds := range []**float64{&o.SilentSeconds, &o.IdleSeconds} {
		if *seconds != nil {
			*seconds = new(whole(**seconds + by.Seconds()))
		}
	}
	if c.GivesUp != nil {
		g := *c.GivesUp
		g.InSeconds = whole(max(0, g.InSeconds-by.Seconds()))
		o.GivesUp = &g
	}
	return o
}

// whole leaves out what would only flicker.
func whole(seconds float64) float64 { return float64(int64(seconds)) }

// squeeze makes the table of these widths fit: it cuts what is long, with an
// ellipsis, or leaves out columns, or, where that is not enough, is still too wide.
func (t *table) squeeze(widths []int, room int) []int {
	for i := range t.columns {
		switch t.columns[i].plainTitle() {
		case "SILENT", "IDLE", "GIVES UP":
			widths[i] = max(widths[i], widthOfAges)
		}
	}
	var over int
	for {
		over = -len(gap) - room
		can, next := 0, -1
		for i := range t.columns {
			c := &t.columns[i]
			over += widths[i] + len(gap)
			if least := leastWidth[c.plainTitle()]; least > 0 {
				can += max(0, widths[i]-least)
			}
			if c.spare > 0 && (next < 0 || c.spare < t.columns[next].spare) {
				next = i
			}
		}
		// Rather a column less than several cut, but for those that say most.
		if over <= 0 || next < 0 || over <= can && t.columns[next].spare >= spareInTop["LOCAL"] {
			break
		}
		t.drop(next)
		widths = slices.Delete(widths, next, next+1)
	}
	for _, title := range []string{runsInTitle, "LOCAL", ownerTitle, "REMOTE"} {
		i := slices.IndexFunc(t.columns, func(c column) bool { return c.plainTitle() == title })
		if i < 0 || over <= 0 {
			continue
		}
		width := max(min(widths[i], leastWidth[title]), widths[i]-over)
		over -= widths[i] - width
		widths[i] = width
		for _, row := range t.rows {
			row[i] = cutEndpoint(row[i], width)
		}
	}
	return widths
}

func (c *column) plainTitle() string { return strings.TrimRight(c.title, "▴▾") }

// cutEndpoint shortens an address but not its port, or else any text.
func cutEndpoint(s string, room int) string {
	if columns(s) <= room {
		return s
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 && len(s)-i <= len(":65535") && len(s)-i < room-1 {
		return cut(s[:i], room-(len(s)-i)) + s[i:]
	}
	return cut(s, room)
}

// text is the help, or the connection in detail, in lines that fit.
func (m screen) text() []string {
	text := helpText
	switch {
	case m.help:
	case m.detail == nil && m.gone:
		text = m.epitaph()
	case m.detail == nil:
		text = "…"
	default:
		text = m.head() + "\n\n" + explanation(m.detail, min(m.width, explanationWidth), m.p) + m.story()
	}
	return strings.Split(ansi.Wrap(strings.TrimRight(text, "\n"), m.width, ""), "\n")
}

// head says of the connection in detail what matters most.
func (m screen) head() string {
	d := m.detail
	s := m.p.paint(bold, "The kernel never gives up.")
	switch {
	case m.gone:
		s = m.p.paint(red, m.epitaph())
	case d.GivesUp != nil:
		at := older(&d.Connection, m.shown().Sub(m.read)).GivesUp
		s = m.p.paint(bold, "The kernel gives up in "+duration(at.InSeconds).String()+" ("+printable(at.By)+").")
	}
	s += "\nOwner: " + owner(&d.Ownership)
	if d.Process != nil {
		s += fmt.Sprintf(", descriptor %d", d.Process.FD)
	}
	if d.UID != nil {
		s += ", uid " + uid(d.UID)
	}
	if in := runsInAll(&d.Ownership); in != none {
		s += ", in " + in
	}
	return s
}

// epitaph says what became of the connection in detail.
func (m screen) epitaph() string {
	for i := range m.reading.deaths {
		if d := &m.reading.deaths[i]; d.Cookie == m.open {
			return fmt.Sprintf("It died at %s: %s.", clock(d.At, m.reading.at), text(&d.Cause))
		}
	}
	return "It has ended."
}

// story is what has happened to the connection in detail lately.
func (m screen) story() string {
	if len(m.detail.Events) == 0 {
		return ""
	}
	s := "\n" + m.p.paint(bold, "WHAT HAPPENED LATELY") + "\n"
	for i := range m.detail.Events {
		e := &m.detail.Events[i]
		s += "  " + clock(e.At, m.detail.Explanation.At) + "  "
		switch e.Kind {
		case "verdict":
			s += m.p.paint(paintVerdict(e.To), text(&e.To)) + ", was " + text(&e.From)
		case "answer":
			s += "the peer answered"
			if e.TookSeconds != nil {
				s += " after " + age(duration(*e.TookSeconds))
			}
		default:
			s += fmt.Sprintf("%s %d in a row", text(&e.Evidence), e.Unanswered)
		}
		s += "\n"
	}
	return s
}

const helpText = `KEYS
  ↑ ↓ PgUp PgDn Home End   move; also k j g G
  Enter                    explain the connection; Esc goes back
  /                        filter as you type; Enter keeps it, Esc clears it
  s  S                     sort by the next column, or the one before
  r                        reverse the order
  p                        pause, and go on
  ?                        this help
  q                        quit
FILTERS
  Words are looked for in what is shown of a connection: all have to be there.
  These are as for halfopen list: of one any, of different ones all.
    verdict:zombie  owner:nginx  remote:10.0.0.0/8  port:5432  pid:812
    state:close_wait  risk:no_keepalive  netns:4026531840  owner:"two words"
COLUMNS
  GIVES UP is when the kernel ends the connection if nothing more is heard.
  A wider terminal has more columns. The counts on top are of the whole node.`

// footer says what is shown of how much, and which keys there are.
func (m screen) footer() string {
	if m.editing {
		typed, hint := strings.TrimRight(m.input.View(), " "), ""
		if room := m.width - ansi.StringWidth(typed) - 2; m.inputErr != nil && room > 0 {
			hint = m.p.paint(yellow, cut(oneLine(m.inputErr), room))
		}
		return between(typed, hint, m.width)
	}
	var left string
	hints := []string{"?", "help", "q", "quit", "/", "filter", "⏎", "explain", "s", "sort", "p", "pause"}
	if m.help || m.open != "" {
		hints = []string{"esc", "back", "q", "quit", "↑↓", "scroll", "p", "pause"}
		if n := len(m.text()); n > m.roomForText() {
			left = fmt.Sprintf("lines %d to %d of %d", m.scrolled+1, min(n, m.scrolled+m.roomForText()), n)
		}
	} else {
		left = m.standing()
	}
	right := hints[0] + " " + hints[1] // whatever is cut for it
	for i := 2; i < len(hints); i += 2 {
		more := right + "  " + hints[i] + " " + hints[i+1]
		if ansi.StringWidth(left)+2+ansi.StringWidth(more) > m.width {
			break
		}
		right = more
	}
	return between(left, m.p.paint(faint, right), m.width)
}

// standing says what is in the table.
func (m screen) standing() string {
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
		s += "  " + m.p.paint(yellow, "/"+printable(m.filter.text))
	}
	return s
}
