// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter"
)

// filter is what is typed after /: the filters of `halfopen list` as in
// owner:nginx, and words that are looked for in what is shown.
type filter struct {
	text string
	selection
	words []string // lower case; all have to be there
}

// filterNames are those of list that top has, without --.
var filterNames = []string{"verdict", "owner", "remote", "port", "state", "pid", "risk", "netns"}

// parseFilter understands what was typed, up to what means nothing (yet). What is in
// quotation marks, as Go has them, is one word.
func parseFilter(text string) (filter, error) {
	f := filter{text: text}
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		name, value, err := cutWord(&rest)
		if err != nil {
			return f, err
		}
		if name == "" {
			f.words = append(f.words, strings.ToLower(value))
		} else if err := f.add(name, value); err != nil {
			return f, fmt.Errorf("%s: %w", name, err)
		}
	}
	return f, nil
}

// cutWord takes the next word from rest: of a filter its name and value, else only
// a value.
func cutWord(rest *string) (name, value string, err error) {
	for _, n := range filterNames {
		if after, ok := strings.CutPrefix(*rest, n+":"); ok {
			name, *rest = n, after
			break
		}
	}
	if strings.HasPrefix(*rest, `"`) {
		quoted, err := strconv.QuotedPrefix(*rest)
		if err != nil {
			return name, "", errors.New("a quotation mark is not closed")
		}
		*rest = (*rest)[len(quoted):]
		value, err = strconv.Unquote(quoted)
		return name, value, err
	}
	end := strings.IndexFunc(*rest, unicode.IsSpace)
	if end < 0 {
		end = len(*rest)
	}
	value, *rest = (*rest)[:end], (*rest)[end:]
	return name, value, nil
}

func (s *selection) add(name, value string) (err error) {
	switch name {
	case "verdict":
		err = appendTo(&s.verdicts, value, named(conn.ParseVerdict, verdictNames()))
	case "state":
		err = appendTo(&s.states, value, named(conn.ParseState, stateNames()))
	case "port":
		err = appendTo(&s.ports, value, parsePort)
	case "pid":
		err = appendTo(&s.pids, value, parsePID)
	case "owner":
		err = appendTo(&s.owners, value, collector.ParseOwner)
	case "remote":
		err = appendTo(&s.remotes, value, collector.ParseRemote)
	case "risk":
		err = appendTo(&s.risks, value, named(conn.ParseRisk, riskNames()))
	case "netns":
		err = appendTo(&s.netns, value, collector.ParseNetns)
	}
	return err
}

func appendTo[T any](into *[]T, value string, parse func(string) (T, error)) error {
	x, err := parse(value)
	if err == nil {
		*into = append(*into, x)
	}
	return err
}

// filterText is what would be typed for a selection.
func (s *selection) filterText() string {
	var words []string
	query := s.query(0)
	for _, name := range filterNames {
		for _, v := range query[name] {
			if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r == '"' || !visible(r) || unicode.IsSpace(r) }) {
				v = strconv.Quote(v)
			}
			words = append(words, name+":"+v)
		}
	}
	return strings.Join(words, " ")
}

// matches tells whether what is shown of a connection, or could be, has all words.
func (f *filter) matches(c *exporter.Connection) bool {
	if len(f.words) == 0 {
		return true
	}
	shown := strings.ToLower(strings.Join(append([]string{
		text(c.Verdict), text(c.Evidence), c.State, endpoint(c.Local), endpoint(c.Remote),
		owner(&c.Ownership), runsInAll(&c.Ownership), c.Cookie,
	}, c.Risks...), "\n"))
	for _, w := range f.words {
		if !strings.Contains(shown, w) {
			return false
		}
	}
	return true
}
