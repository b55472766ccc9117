// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// selection is what the flags of filters select: connections, or deaths.
type selection struct {
	collector.Query
	deaths api.DeathQuery
}

// filtered reports whether a filter leaves connections out.
func (s *selection) filtered() bool {
	return slices.ContainsFunc(api.Filters, func(f api.Filter[collector.Query]) bool { return !f.Switch && len(f.Values(&s.Query)) > 0 })
}

// addFilter adds the flag of a filter of q to a command.
func addFilter[Q any](cmd *kingpin.CmdClause, f *api.Filter[Q], q *Q) *kingpin.FlagClause {
	help := f.Help
	if !f.Switch {
		help += " Repeatable."
	}
	flag := cmd.Flag(f.Name, help).PlaceHolder(f.Placeholder).Short(f.Short)
	flag.SetValue(&filterValue[Q]{f, q})
	return flag
}

// addFilters adds the flags of the filters that are wanted, in the order of [api.Filters].
func (s *selection) addFilters(cmd *kingpin.CmdClause, wanted func(*api.Filter[collector.Query]) bool) {
	for i := range api.Filters {
		if f := &api.Filters[i]; wanted(f) {
			addFilter(cmd, f, &s.Query)
		}
	}
}

// causeFlag adds the flag --cause, the filter of deaths. help says what the command does
// with it.
func (s *selection) causeFlag(cmd *kingpin.CmdClause, help string) {
	addFilter(cmd, &api.DeathFilters[0], &s.deaths).
		Help(help + " An orderly end (closed) is only counted, unless the connection was in trouble. Repeatable.")
}

// filterValue is the value of a filter's flag.
type filterValue[Q any] struct {
	filter *api.Filter[Q]
	query  *Q
}

func (v *filterValue[Q]) Set(s string) error {
	if err := v.filter.Add(v.query, s); err != nil {
		return fmt.Errorf("--%s: %w", v.filter.Name, err)
	}
	return nil
}

func (v *filterValue[Q]) String() string     { return fmt.Sprint(v.filter.Values(v.query)) }
func (v *filterValue[Q]) IsCumulative() bool { return !v.filter.Switch }
func (v *filterValue[Q]) IsBoolFlag() bool   { return v.filter.Switch }

// nothing returns the sentence for an empty answer.
func (s *selection) nothing(thing string) string {
	if s.filtered() || len(s.deaths.Causes) > 0 {
		return "no " + thing + " matches" + s.onlyCounted()
	}
	return "no " + thing + "s"
}

// onlyCounted returns where to find selected things that no list has, "" if a list can
// have them all.
func (s *selection) onlyCounted() string {
	switch {
	case slices.ContainsFunc(s.deaths.Causes, conn.Cause.IsOrderly):
		return ": orderly ends (closed) are only counted, unless the connection was in trouble, by the metric halfopen_tcp_deaths_total"
	case !s.All && slices.ContainsFunc(s.States, func(st conn.State) bool { return !st.Judged() && st != conn.Listen }):
		return ": sockets in syn_recv and time_wait are not connections: list them with --all"
	}
	return ""
}
