// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"golang.org/x/sync/errgroup"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter"
)

// traceBuffer is how many events may wait to be printed.
const traceBuffer = 65536

// traceDelay is how long a notice may wait for others, so that the owners of many
// are looked for at once.
const traceDelay = 100 * time.Millisecond

// trace is the command's flags.
type trace struct {
	output   string
	all      bool
	duration time.Duration
	selection
	thresholds
}

func traceFlags(cmd *kingpin.CmdClause) action {
	var t trace
	cmd.Flag("output", "How to print: text, or json with one object a line.").Short('o').Default("text").
		SetValue(&value[string]{flag: "output", parse: oneOf("text", "json"), into: &t.output})
	cmd.Flag("duration", "Stop after this long, instead of when interrupted.").PlaceHolder("DURATION").
		SetValue(&value[time.Duration]{flag: "duration", parse: positiveDuration, into: &t.duration})
	cmd.Flag("all", "Print the first unanswered probe or retransmission in a row too, which nearly always is answered at once.").BoolVar(&t.all)
	t.verdictFlag(cmd)
	t.causeFlag(cmd, "Only deaths, and only of this cause, such as keepalive_timeout.")
	t.portFlag(cmd)
	t.pidFlag(cmd)
	t.thresholds.verdictFlags(cmd)
	t.thresholds.censusFlag(cmd)
	return t.run
}

func (t *trace) run(ctx context.Context, stdout, stderr io.Writer) error {
	from := t.thresholds.eventsFrom()
	if t.all {
		from = 1
	}
	k, err := t.thresholds.load(from)
	if err != nil {
		return err
	}
	defer k.Close()
	c := collector.New(k, t.thresholds.options(nil))
	sub := c.Subscribe(traceBuffer)
	defer sub.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if t.duration > 0 {
		defer time.AfterFunc(t.duration, stop).Stop()
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Run(ctx) })
	if t.duration > 0 {
		fmt.Fprintf(stderr, "watching for %s\n", setting(t.duration))
	} else {
		fmt.Fprintln(stderr, "watching; press Ctrl-C to stop")
	}
	g.Go(func() error {
		emit := t.printer(stdout)
		var dropped uint64
		for {
			notices := batch(ctx, sub.C)
			if len(notices) == 0 {
				return nil
			}
			picked, err := t.pick(notices, c.FillOwners)
			if err != nil {
				return err
			}
			for i := range picked {
				if err := emit(&picked[i]); err != nil {
					return err
				}
			}
			if d := sub.Dropped(); d > dropped {
				fmt.Fprintf(stderr, "halfopen: %s not printed: they came faster than they could be\n", plural(int(d-dropped), "event"))
				dropped = d
			}
		}
	})
	return g.Wait()
}

// batch waits for a notice and takes those along that follow it at once. There is
// none when the context ends.
func batch(ctx context.Context, c <-chan collector.Notice) []collector.Notice {
	var notices []collector.Notice
	var over <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return notices
		case <-over:
			return notices
		case n := <-c:
			notices = append(notices, n)
			if over == nil {
				over = time.After(traceDelay)
			}
		}
	}
}

// pick leaves those that the filters let through, and has their owners filled in:
// the collector itself looks for them only after it has told of a connection.
func (t *trace) pick(notices []collector.Notice, fill func([]collector.Connection) error) ([]collector.Notice, error) {
	notices = slices.DeleteFunc(notices, func(n collector.Notice) bool { return !t.wanted(&n) })
	conns := make([]collector.Connection, len(notices))
	for i := range notices {
		conns[i] = notices[i].Connection
	}
	if err := fill(conns); err != nil {
		return nil, err
	}
	for i := range notices {
		n := &notices[i]
		n.Connection.Process = conns[i].Process
		if n.Death != nil {
			death := *n.Death // others have it too
			death.Process = conns[i].Process
			n.Death = &death
		}
	}
	return slices.DeleteFunc(notices, func(n collector.Notice) bool { return !t.owned(&n.Connection) }), nil
}

// wanted tells whether the filters let a notice through: within a filter any,
// between filters all. That of its owner is for later.
func (t *trace) wanted(n *collector.Notice) bool {
	c := &n.Connection
	if len(t.causes) > 0 && (n.Death == nil || !slices.Contains(t.causes, n.Death.Cause)) {
		return false
	}
	return (len(t.verdicts) == 0 || slices.Contains(t.verdicts, c.Verdict)) &&
		(len(t.ports) == 0 || slices.Contains(t.ports, c.Local.Port()) || slices.Contains(t.ports, c.Remote.Port()))
}

func (t *trace) owned(c *collector.Connection) bool {
	return len(t.pids) == 0 || c.Process != nil && slices.Contains(t.pids, c.Process.PID)
}

// printer returns what prints a notice, at once.
func (t *trace) printer(w io.Writer) func(*collector.Notice) error {
	if t.output == "json" {
		enc := json.NewEncoder(harmlessJSON{w})
		return func(n *collector.Notice) error { return enc.Encode(exporter.NewNotice(n)) }
	}
	p := paletteFor(w)
	return func(n *collector.Notice) error {
		_, err := io.WriteString(w, traceLine(n, p))
		return err
	}
}

// traceLine is a notice as text: when, what, which connection, and in words.
func traceLine(n *collector.Notice, p palette) string {
	c := exporter.NewConnection(&n.Connection)
	s := paintVerdict(n.Connection.Verdict.String())
	what, said := "solicitation", words(n)
	switch n.Kind {
	case collector.NoticeVerdict:
		what = "verdict"
		if n.Connection.Verdict == collector.Zombie {
			said += outlook(&n.Connection)
		}
	case collector.NoticeDeath:
		what, s = "death", bold
	}
	return fmt.Sprintf("%s  %s%*s  %-21s  %-21s  %s  %s\n", n.At.Local().Format("15:04:05.000"),
		p.paint(s, what), len("solicitation")-len(what), "",
		endpoint(c.Local), endpoint(c.Remote), said, owner(&c.Ownership))
}

// words say what happened.
func words(n *collector.Notice) string {
	c := &n.Connection
	switch n.Kind {
	case collector.NoticeSolicitation:
		return fmt.Sprintf("%s %d in a row%s", solicitation(evidence(c)), c.Unanswered, silent(c))
	case collector.NoticeVerdict:
		if n.First {
			return fmt.Sprintf("%s already%s: %s", c.Verdict, lasting(n), why(c, collector.Active))
		}
		return fmt.Sprintf("%s, was %s: %s", c.Verdict, n.From, why(c, n.From))
	case collector.NoticeDeath:
		return "died: " + deathWords(n.Death)
	}
	return "unknown kind of event"
}

// evidence is what kind of solicitation has just been sent. The connection's own
// Evidence is still empty for the first one, which makes nobody a suspect yet.
func evidence(c *collector.Connection) collector.Evidence {
	switch {
	case c.Evidence != collector.NoEvidence:
		return c.Evidence
	case c.Keepalive.ProbesOut > 0:
		return collector.EvidenceKeepalive
	case c.RetransmitsUnanswered > 0:
		return collector.EvidenceRetransmit
	}
	return collector.NoEvidence
}

func solicitation(e collector.Evidence) string {
	switch e {
	case collector.EvidenceKeepalive:
		return "keepalive probe"
	case collector.EvidenceRetransmit:
		return "retransmission"
	case collector.EvidenceWindowProbe:
		return "window probe"
	}
	return "solicitation"
}

func silent(c *collector.Connection) string {
	if c.Silent < 0 {
		return ", never heard from the peer"
	}
	return ", silent for " + age(c.Silent)
}

// lasting says for how long a verdict has held already, if that is known.
func lasting(n *collector.Notice) string {
	if since := n.Connection.Since; !since.IsZero() && since.Before(n.At) {
		return ", for " + age(n.At.Sub(since))
	}
	return ""
}

// outlook says when the kernel will notice.
func outlook(c *collector.Connection) string {
	if !c.GivesUp.Ever() {
		return "; the kernel never gives up"
	}
	return "; the kernel gives up in " + age(max(0, c.GivesUp.At.Sub(c.At)))
}

// why says what a verdict rests on.
func why(c *collector.Connection, from collector.Verdict) string {
	switch {
	case c.Verdict >= collector.Suspect:
		return plural(c.Unanswered, solicitation(c.Evidence)) + " unanswered" + silent(c)
	case c.Verdict == collector.Stalled:
		return "the peer answers, but its window is closed"
	case from >= collector.Suspect:
		return "the peer has answered"
	case from == collector.Stalled:
		return "the peer's window is open again"
	}
	return "no data for " + age(c.Idle)
}

// deathWords say how a connection ended: cause, what the application is told,
// and what had been known about it.
func deathWords(d *collector.Death) string {
	s := d.Cause.String()
	if d.During != collector.NoEvidence {
		s += " during " + d.During.String()
	}
	if errno := exporter.NewDeath(d).Errno; errno != nil {
		s += " (" + *errno + ")"
	}
	if d.ZombieFor > 0 {
		s += " after being a zombie for " + age(d.ZombieFor)
	}
	if d.Forecast.Ever() {
		s += ", " + punctual(d.ForecastError)
	}
	return s
}

// punctual says by how much a forecast was missed.
func punctual(miss time.Duration) string {
	switch {
	case miss <= -time.Millisecond:
		return age(-miss) + " before the forecast"
	case miss >= time.Millisecond:
		return age(miss) + " after the forecast"
	}
	return "as forecast"
}
