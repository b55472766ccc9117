// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// visible reports whether a terminal can show a character as it is: the character takes
// up room of its own, and does nothing to the terminal or to the text around it. Control
// characters, characters that change the direction of writing or have no width, and
// combining characters are not visible.
func visible(r rune) bool {
	return unicode.IsPrint(r) && !unicode.IsMark(r) && !unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r)
}

// printable escapes characters that are not visible, and the backslash, as Go's strings
// do. Names of processes are hostile input: they can have any bytes, and would reach the
// user's terminal.
func printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\\':
			b.WriteString(`\\`)
		case !visible(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// escapingWriter writes JSON, and escapes in its strings what could do something to a
// terminal. Each Write must be of whole characters.
type escapingWriter struct{ w io.Writer }

func (h escapingWriter) Write(p []byte) (int, error) {
	var b bytes.Buffer
	for _, r := range string(p) {
		switch {
		case r < 0x7f || visible(r): // JSON has no control characters of ASCII but white space
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	if _, err := h.w.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}
