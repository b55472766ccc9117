// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/halfopen/halfopen/internal/escape"
)

// text returns the lines of the help, or of the connection shown in detail.
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

// head returns the most important facts of the connection shown in detail.
func (m screen) head() string {
	d := m.detail
	s := m.p.paint(bold, "The kernel never gives up.")
	switch {
	case m.gone:
		s = m.p.paint(red, m.epitaph())
	case d.GivesUp != nil:
		at := older(&d.Connection, m.shown().Sub(m.read)).GivesUp
		s = m.p.paint(bold, "The kernel gives up in "+duration(at.InSeconds).String()+" ("+escape.Text(at.By)+").")
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

// epitaph returns how the connection shown in detail ended.
func (m screen) epitaph() string {
	for i := range m.reading.deaths {
		if d := &m.reading.deaths[i]; d.Cookie == m.open {
			return fmt.Sprintf("It died at %s: %s.", clock(d.At, m.reading.at), text(&d.Cause))
		}
	}
	return "It has ended."
}

// story formats the recent events of the connection shown in detail.
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
    namespace:shop  pod:checkout-xhnvf
    state:close_wait  risk:no_keepalive  netns:4026531840  owner:"two words"
COLUMNS
  GIVES UP is when the kernel ends the connection if nothing more is heard.
  A wider terminal has more columns. The counts on top are of the whole node.`
