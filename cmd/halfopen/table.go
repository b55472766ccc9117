// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"
)

// table formats rows in aligned columns, two spaces apart.
type table struct {
	columns []column
	rows    [][]string
}

type column struct {
	title string
	right bool               // numbers, aligned to the right
	paint func(string) style // returns the style of a cell; nil: none
	spare int                // 1 is left out first if the table is too wide; 0: never
	rare  bool               // left out if every cell is none
}

const gap = "  "

func (t *table) widths() []int {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = columns(c.title)
		for _, row := range t.rows {
			widths[i] = max(widths[i], columns(row[i]))
		}
	}
	return widths
}

// fit leaves out columns until the table has at most that width, or none can be spared.
func (t *table) fit(room int) {
	for {
		width, next := -len(gap), -1
		for i, w := range t.widths() {
			width += w + len(gap)
			if spare := t.columns[i].spare; spare > 0 && (next < 0 || spare < t.columns[next].spare) {
				next = i
			}
		}
		if width <= room || next < 0 {
			return
		}
		t.drop(next)
	}
}

func (t *table) drop(i int) {
	t.columns = slices.Delete(t.columns, i, i+1)
	for j, row := range t.rows {
		t.rows[j] = slices.Delete(row, i, i+1)
	}
}

// dropRare leaves out the rare columns that have nothing to show.
func (t *table) dropRare() {
	for i := len(t.columns) - 1; i >= 0; i-- {
		if t.columns[i].rare && !slices.ContainsFunc(t.rows, func(row []string) bool { return row[i] != none }) {
			t.drop(i)
		}
	}
}

// roomFor returns the width of a terminal in columns, or a very large number if w is
// not a terminal.
func roomFor(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return math.MaxInt
}

// write prints the table. All cells must be printable.
func (t *table) write(w io.Writer, p palette) error {
	widths := t.widths()
	var b strings.Builder
	b.WriteString(t.head(widths, p) + "\n")
	for i := range t.rows {
		b.WriteString(t.row(i, widths, p) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// head formats the line of the titles.
func (t *table) head(widths []int, p palette) string {
	return t.line(widths, p, func(i int) (string, style) { return t.columns[i].title, bold })
}

// row formats the line of row n.
func (t *table) row(n int, widths []int, p palette) string {
	return t.line(widths, p, func(i int) (string, style) {
		text := t.rows[n][i]
		if t.columns[i].paint == nil {
			return text, ""
		}
		return text, t.columns[i].paint(text)
	})
}

func (t *table) line(widths []int, p palette, cell func(i int) (string, style)) string {
	var b strings.Builder
	for i, c := range t.columns {
		text, s := cell(i)
		pad := strings.Repeat(" ", widths[i]-columns(text))
		if i > 0 {
			b.WriteString(gap)
		}
		switch {
		case c.right:
			b.WriteString(pad + p.paint(s, text))
		case i == len(t.columns)-1:
			b.WriteString(p.paint(s, text)) // no spaces at the end of the line
		default:
			b.WriteString(p.paint(s, text) + pad)
		}
	}
	return b.String()
}

// style is a way to write on a terminal (ECMA-48 SGR).
type style string

const (
	bold   style = "1"
	faint  style = "2"
	red    style = "1;31"
	green  style = "32"
	yellow style = "33"
	purple style = "35"
	orange style = "1;33"
)

// palette is whether to write with styles.
type palette bool

func (p palette) paint(s style, text string) string {
	if !p || s == "" || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// paletteFor returns whether to use styles: only on a terminal, and not if NO_COLOR
// (no-color.org) is set or the terminal is dumb.
func paletteFor(w io.Writer) palette {
	f, ok := w.(*os.File)
	return palette(ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())))
}

func paintVerdict(verdict string) style {
	switch verdict {
	case "zombie":
		return red
	case "suspect":
		return yellow
	case "stuck", "blocked":
		return orange
	case "stalled", "unread":
		return purple
	case "idle", "active":
		return faint
	}
	return ""
}
