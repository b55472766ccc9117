// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

// DefaultLimit is how many connections, groups or deaths an answer has at most, unless
// the query says otherwise.
const DefaultLimit = 1000

// DeathQuery selects deaths. The zero value selects all that are remembered.
type DeathQuery struct {
	Causes []conn.Cause // any of them; none: any cause
	Limit  int          // 0: no limit
}

// ParseConnectionQuery parses the query of /api/v1/connections.
func ParseConnectionQuery(raw string) (q collector.Query, err error) {
	params, err := ParseParameters(raw, append(names(Filters), "limit")...)
	if err != nil {
		return q, err
	}
	return connectionQuery(params)
}

// ParseGroupQuery parses the query of /api/v1/groups.
func ParseGroupQuery(raw string) (q collector.Query, by conn.Grouping, err error) {
	params, err := ParseParameters(raw, append(names(Filters), "limit", "by", "settings")...)
	if err != nil {
		return q, by, err
	}
	if len(params["by"]) != 1 {
		return q, by, fmt.Errorf("by must be given once: %s", strings.Join(conn.GroupingNames(), ", "))
	}
	if by, err = conn.ParseGrouping(params.Get("by")); err != nil {
		return q, by, fmt.Errorf("by: %w", err)
	}
	settings, err := ParseSwitch("settings", params["settings"])
	switch {
	case err != nil:
		return q, by, err
	case settings && by != conn.ByNetns:
		return q, by, errors.New("settings needs by=netns")
	case settings:
		by = conn.BySettings
	}
	q, err = connectionQuery(params)
	return q, by, err
}

// ParseDeathQuery parses the query of /api/v1/deaths.
func ParseDeathQuery(raw string) (q DeathQuery, err error) {
	params, err := ParseParameters(raw, append(names(DeathFilters), "limit")...)
	if err != nil {
		return q, err
	}
	if err = addFilters(DeathFilters, params, &q); err != nil {
		return q, err
	}
	q.Limit, err = parseLimit(params["limit"])
	return q, err
}

func connectionQuery(params url.Values) (q collector.Query, err error) {
	if err = addFilters(Filters, params, &q); err != nil {
		return q, err
	}
	q.Limit, err = parseLimit(params["limit"])
	return q, err
}

// ConnectionParameters returns the query of /api/v1/connections that asks for q.
func ConnectionParameters(q *collector.Query) url.Values {
	params := filtersOf(Filters, q)
	params.Set("limit", formatLimit(q.Limit))
	return params
}

// GroupParameters returns the query of /api/v1/groups that asks for q, counted by that.
func GroupParameters(q *collector.Query, by conn.Grouping) url.Values {
	params := ConnectionParameters(q)
	params.Set("by", by.String())
	if by == conn.BySettings {
		params.Set("settings", "true")
	}
	return params
}

// DeathParameters returns the query of /api/v1/deaths that asks for q.
func DeathParameters(q *DeathQuery) url.Values {
	params := filtersOf(DeathFilters, q)
	params.Set("limit", formatLimit(q.Limit))
	return params
}

// ParseParameters parses the query of a URL. It is an error if the query has any other
// parameters than the known ones.
func ParseParameters(raw string, known ...string) (url.Values, error) {
	params, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("malformed query: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown parameter %q", name)
		}
	}
	return params, nil
}

// ParseAll parses each of the values. It returns the first error.
func ParseAll[T any](values []string, parse func(string) (T, error)) ([]T, error) {
	var all []T
	for _, s := range values {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// ParseSwitch parses the values of a parameter that is false, true, or not given: false.
func ParseSwitch(name string, values []string) (on bool, err error) {
	if len(values) > 1 {
		return false, fmt.Errorf("%s is given more than once", name)
	}
	for _, value := range values {
		if on, err = parseSwitch(value); err != nil {
			return false, fmt.Errorf("%s %w", name, err)
		}
	}
	return on, nil
}

func parseSwitch(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, fmt.Errorf("%q is neither true nor false", s)
	}
	return s == "true", nil
}

// parseLimit parses the values of the parameter limit.
func parseLimit(values []string) (int, error) {
	switch len(values) {
	case 0:
		return DefaultLimit, nil
	case 1:
		v, err := strconv.ParseUint(values[0], 10, 31)
		if errors.Is(err, strconv.ErrRange) {
			return 0, fmt.Errorf("limit %q is too large: at most %d", values[0], math.MaxInt32)
		}
		if err != nil || v == 0 {
			return 0, fmt.Errorf("limit %q is not a positive number", values[0])
		}
		return int(v), nil
	}
	return 0, errors.New("limit is given more than once")
}

// formatLimit is the reverse of parseLimit. Without a parameter the agent would have a
// limit of its own, so no limit is the largest that it takes.
func formatLimit(limit int) string {
	if limit <= 0 || limit > math.MaxInt32 {
		limit = math.MaxInt32
	}
	return strconv.Itoa(limit)
}
