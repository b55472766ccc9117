// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/halfopen/halfopen/exporter/api"
)

// spareInTop is the order in which columns are left out on a narrow terminal. Columns
// that are not here stay.
var spareInTop = map[string]int{
	"KEEPALIVE": 1, runsInTitle: 2, "STATE": 3, "IDLE": 4, "UNANSWERED": 5, "LOCAL": 6, "SILENT": 7, ownerTitle: 8, "GIVES UP": 9,
}

// leastWidth is the width to which a column may be cut before another one is left out.
var leastWidth = map[string]int{"LOCAL": 15, "REMOTE": 15, ownerTitle: 12, runsInTitle: 12}

const widthOfAges = 6

// table returns the titles and the rows that fit.
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
	widths := t.widths() // of all rows, so that widths stay the same while scrolling
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

// mark returns the mark beside the title of the column that orders the rows.
func mark(reversed bool) string {
	if reversed {
		return "▴"
	}
	return "▾"
}

// inverse marks the row at the cursor, also without colours.
func inverse(s string) string { return "\x1b[7m" + s + "\x1b[0m" }

// older returns a connection as it is after some more time without any event.
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

// whole drops fractions of a second, which would flicker.
func whole(seconds float64) float64 { return float64(int64(seconds)) }

// squeeze makes a table of these widths fit: it cuts long cells with an ellipsis, and
// leaves out columns. If that is not enough, the table stays too wide.
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
		// Leave out one column rather than cut several, except for the most important
		// ones.
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

// cutEndpoint shortens an address and keeps its port, or shortens any other text.
func cutEndpoint(s string, room int) string {
	if columns(s) <= room {
		return s
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 && len(s)-i <= len(":65535") && len(s)-i < room-1 {
		return cut(s[:i], room-(len(s)-i)) + s[i:]
	}
	return cut(s, room)
}
