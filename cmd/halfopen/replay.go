// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/recording"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// replay is the command's flags.
type replay struct {
	file   string
	output string
	mask   string // a file for a copy; "": none
}

func replayFlags(cmd *kingpin.CmdClause) action {
	var r replay
	cmd.Arg("recording", "The file that halfopen agent --debug.record wrote.").Required().
		SetValue(&value[string]{parse: parseFile, into: &r.file})
	cmd.Flag("output", "How to print: text, or json with one object a line.").Short('o').Default("text").
		SetValue(&value[string]{flag: "output", parse: oneOf("text", "json"), into: &r.output})
	cmd.Flag("mask", "Replay nothing, but write a copy to this file in which addresses, the names of processes and control groups are replaced, to be shown to others.").
		PlaceHolder("FILE").SetValue(&value[string]{flag: "mask", parse: parseFile, into: &r.mask})
	return r.run
}

func (r *replay) run(ctx context.Context, stdout, stderr io.Writer) error {
	in, err := os.Open(r.file)
	if err != nil {
		return err
	}
	defer in.Close()
	if r.mask != "" {
		err = r.copyMasked(in, stderr)
	} else {
		err = r.replay(ctx, in, stdout, stderr)
	}
	switch {
	case errors.Is(err, recording.ErrNoEnd):
		_, err = fmt.Fprintf(stderr, "halfopen: the end of %s is missing, since the agent was killed or the disk was full: what there is is whole\n", escape.Text(r.file))
	case err != nil:
		err = fmt.Errorf("%s: %w", r.file, err)
	}
	return err
}

// copyMasked writes a copy without names and addresses (see recording.Mask).
func (r *replay) copyMasked(in *os.File, stderr io.Writer) error {
	if a, err := in.Stat(); err == nil {
		if b, err := os.Stat(r.mask); err == nil && os.SameFile(a, b) {
			return usagef("--mask: the copy cannot be the recording itself")
		}
	}
	out, err := recording.CreateFile(r.mask)
	if err != nil {
		return err
	}
	facts, err := recording.Mask(out, in)
	if closed := out.Close(); closed != nil && (err == nil || errors.Is(err, recording.ErrNoEnd)) {
		err = closed
	}
	if err == nil || errors.Is(err, recording.ErrNoEnd) {
		fmt.Fprintf(stderr, "%s written to %s; ports, process ids, user ids and times are as they were\n", plural(facts, "fact"), escape.Text(r.mask))
	}
	return err
}

// replay prints what the recording's agent said: each notice as trace prints it, then the
// deaths and the connections as they were at the end.
func (r *replay) replay(ctx context.Context, in io.Reader, stdout, stderr io.Writer) error {
	facts, err := recording.NewReader(in)
	if err != nil {
		return err
	}
	emit := (&trace{output: r.output}).printer(stdout)
	var failed error // to print
	rules := facts.Header.Rules.Conn()
	tracker := conn.NewTracker(rules, func(n conn.Notice) {
		if failed == nil {
			failed = emit(new(api.NewNotice(&n)), nil)
		}
	})
	if r.output == "text" {
		h := &facts.Header
		fmt.Fprintf(stderr, "recorded by halfopen %s on Linux %s\n", escape.Text(h.Halfopen), escape.Text(h.Kernel))
	}
	var last time.Time
	var f *conn.Fact
	for f, err = facts.Next(); err == nil; f, err = facts.Next() {
		tracker.Apply(f)
		last = f.At
		if failed != nil {
			return failed
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if failed = r.sum(tracker, last, stdout); failed != nil {
		return failed
	}
	if facts.Lost > 0 {
		fmt.Fprintf(stderr, "halfopen: %s not recorded: they came faster than they could be written\n", plural(int(facts.Lost), "fact"))
	}
	if errors.Is(err, io.EOF) {
		if r.output == "text" {
			fmt.Fprintf(stderr, "ended, since %s\n", escape.Text(facts.End))
		}
		return nil
	}
	return err
}

// counts is the last line of the JSON output.
type counts struct {
	Event    string         `json:"event"` // "counts"
	At       time.Time      `json:"at"`
	Verdicts map[string]int `json:"verdicts"`
	Watched  int            `json:"watched"` // connections in trouble
	Deaths   map[string]int `json:"deaths"`  // that are remembered, by cause
}

// sum prints what the tracker knows in the end.
func (r *replay) sum(tracker *conn.Tracker, at time.Time, stdout io.Writer) error {
	stats := tracker.Stats(at)
	all := conn.Count{}
	byVerdict := make([]api.Group, 0, conn.Verdicts)
	for v := conn.Zombie; ; v-- {
		n := 0
		for state := range stats.Connections {
			n += int(stats.Connections[state][v])
		}
		all.Verdicts[v] = n
		if n > 0 {
			byVerdict = append(byVerdict, api.NewGroup(&conn.Count{GroupKey: conn.GroupKey{Judged: true, Verdict: v}, Total: n}, conn.ByVerdict))
		}
		if v == conn.Active {
			break
		}
	}
	var deaths []api.Death
	byCause := make(map[string]int)
	for d := range tracker.Deaths() {
		deaths = append(deaths, api.NewDeath(d))
		byCause[d.Cause.String()]++
	}
	if r.output == "json" {
		return json.NewEncoder(escape.Writer{W: stdout}).Encode(counts{
			"counts", at.UTC(), api.NewGroup(&all, conn.ByVerdict).Verdicts, stats.Watched, byCause,
		})
	}
	for _, t := range []*table{deathTable(deaths, false), groupTable(byVerdict, conn.ByVerdict)} {
		if len(t.rows) == 0 {
			continue
		}
		if _, err := io.WriteString(stdout, "\n"); err != nil {
			return err
		}
		t.fit(roomFor(stdout))
		if err := t.write(stdout, paletteFor(stdout)); err != nil {
			return err
		}
	}
	return nil
}
