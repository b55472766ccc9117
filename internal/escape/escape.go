// SPDX-License-Identifier: Apache-2.0

// Package escape makes hostile text safe to show. Users choose the names of processes,
// units, control groups and mounts, and these may have any bytes: they could move the
// cursor of a terminal, forge a line of a log, or turn the direction of the text around
// them. This package alone defines which characters are escaped and how: in tables,
// sentences and labels of metrics ([Text]), and in JSON and logs ([JSON], [Writer]). The
// page has the same definition (printable in exporter/web/format.js), and a test compares
// the two.
package escape

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Visible reports whether a terminal can show a character as it is: the character takes
// up room of its own, and does nothing to the terminal or to the text around it. Control
// characters (C1 included), characters that change the direction of writing or have no
// width, and combining characters are not visible.
func Visible(r rune) bool {
	if r < utf8.RuneSelf {
		return ' ' <= r && r < 0x7f
	}
	return unicode.IsPrint(r) && !unicode.IsMark(r) && !unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r)
}

// Text escapes characters that are not visible, bytes that are not UTF-8, and the
// backslash, as Go's strings do. Different names have different texts.
func Text(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\\':
			b.WriteString(`\\`)
		case !Visible(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// JSON replaces characters that are not visible, except white space of ASCII, by \uXXXX,
// and bytes that are not UTF-8 by \ufffd. The value of a JSON text stays the same: JSON has
// such characters in strings only. It returns b itself if nothing is to be replaced.
func JSON(b []byte) []byte {
	var out []byte // b[:done], escaped
	done := 0
	for i := 0; i < len(b); {
		if c := b[i]; ' ' <= c && c < 0x7f || c == '\n' || c == '\t' || c == '\r' {
			i++
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		if !Visible(r) || r == utf8.RuneError && n == 1 {
			out = append(out, b[done:i]...)
			for _, unit := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, `\u%04x`, unit)
			}
			done = i + n
		}
		i += n
	}
	if done == 0 {
		return b
	}
	return append(out, b[done:]...)
}

// Writer escapes JSON, or lines of a log whose values are quoted as Go's or JSON's strings
// are, with [JSON]. Each Write must be of whole characters.
type Writer struct{ W io.Writer }

// Write implements [io.Writer].
func (w Writer) Write(p []byte) (int, error) {
	if _, err := w.W.Write(JSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
