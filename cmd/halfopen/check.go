// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter/api"
)

// checkFlags adds the flags of `halfopen check`, which are those of a list of connections.
func checkFlags(cmd *kingpin.CmdClause) action {
	var l list
	cmd.Flag("output", "How to print: table, wide (a table of everything known), or json.").Short('o').Default("table").
		SetValue(&value[string]{flag: "output", parse: oneOf("table", "wide", "json"), into: &l.output})
	l.selection.addFilters(cmd, func(f *api.Filter[collector.Query]) bool { return !f.Switch })
	l.peer.flags(cmd, "Ask")
	l.thresholds.verdictFlags(cmd)
	return l.check
}

// check prints the connections that match. It returns errFound if there are any.
func (l *list) check(ctx context.Context, stdout, stderr io.Writer) error {
	if !l.filtered() {
		return usagef("check needs a filter, such as --risk no_keepalive or --verdict zombie")
	}
	var err error
	if l.agent, err = l.peer.agent(ctx, l.thresholds.own()); err != nil {
		return err
	}
	total, err := l.connections(ctx, stdout, stderr)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case total > 0:
		return errFound
	}
	return nil
}
