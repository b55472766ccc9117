// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// filter is a parsed filter line, which begins with /: filters of `halfopen list` as in
// owner:nginx, and words to find in what top shows of a connection.
type filter struct {
	text string
	selection
	words []string // lower case; a connection must have them all
}

// parseFilter parses a filter line up to the first error. A text in quotation marks, as
// Go has them, is one word.
func parseFilter(text string) (filter, error) {
	f := filter{text: text}
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		by, value, err := cutWord(&rest)
		if err != nil {
			return f, err
		}
		if by == nil {
			f.words = append(f.words, strings.ToLower(value))
		} else if err := by.Add(&f.Query, value); err != nil {
			return f, fmt.Errorf("%s: %w", by.Name, err)
		}
	}
	return f, nil
}

// cutWord cuts the next word off rest. If the word has the name of a filter, it returns
// the filter and the value.
func cutWord(rest *string) (by *api.Filter[collector.Query], value string, err error) {
	for i := range api.Filters {
		f := &api.Filters[i]
		if after, ok := strings.CutPrefix(*rest, f.Name+":"); ok && !f.Switch {
			by, *rest = f, after
			break
		}
	}
	if strings.HasPrefix(*rest, `"`) {
		quoted, err := strconv.QuotedPrefix(*rest)
		if err != nil {
			return by, "", errors.New("a quotation mark is not closed")
		}
		*rest = (*rest)[len(quoted):]
		value, err = strconv.Unquote(quoted)
		return by, value, err
	}
	end := strings.IndexFunc(*rest, unicode.IsSpace)
	if end < 0 {
		end = len(*rest)
	}
	value, *rest = (*rest)[:end], (*rest)[end:]
	return by, value, nil
}

// filterText returns what a user would type to select the same.
func filterText(q *collector.Query) string {
	var words []string
	for i := range api.Filters {
		f := &api.Filters[i]
		if f.Switch {
			continue
		}
		for _, v := range f.Values(q) {
			if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r == '"' || !escape.Visible(r) || unicode.IsSpace(r) }) {
				v = strconv.Quote(v)
			}
			words = append(words, f.Name+":"+v)
		}
	}
	return strings.Join(words, " ")
}

// matches reports whether the text of a connection has all words of the filter.
func (f *filter) matches(c *api.Connection) bool {
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
