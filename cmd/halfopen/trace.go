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
	"github.com/halfopen/halfopen/collector/conn"
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
	peer
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
	t.peer.flags(cmd, "Watch through")
	t.thresholds.verdictFlags(cmd)
	t.thresholds.censusFlag(cmd)
	return t.run
}

// own is the error of asking an agent to watch in another way than it does, nil if the
// flags do not.
func (t *trace) own() error {
	if t.all || t.censusSet != [2]bool{} {
		return usagef("--all, --census-interval and --census-cpu are for a look of one's own: leave them out, or --url")
	}
	return t.thresholds.own()
}

func (t *trace) run(ctx context.Context, stdout, stderr io.Writer) error {
	agent, err := t.peer.agent(ctx, t.own())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if t.duration > 0 {
		defer time.AfterFunc(t.duration, stop).Stop()
	}
	if agent != nil {
		return t.through(ctx, agent, stdout, stderr)
	}
	return t.here(ctx, stdout, stderr)
}

// here watches by programs of its own.
func (t *trace) here(ctx context.Context, stdout, stderr io.Writer) error {
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
	sub := c.SubscribeOwned(traceBuffer)
	defer sub.Close()
	g, ctx := errgroup.WithContext(ctx)
	ran := make(chan struct{})
	g.Go(func() error {
		defer close(ran)
		return c.Run(ctx)
	})
	t.sayWatching(stderr, "")
	g.Go(func() error {
		emit := t.printer(stdout)
		var dropped uint64
		take := func(n *conn.Notice) error {
			notice := exporter.NewNotice(n)
			if !t.wanted(&notice) || !t.owned(&notice) {
				return nil
			}
			return emit(&notice, nil)
		}
		for {
			select {
			case <-ran:
				for range len(sub.C) {
					if err := take(new(<-sub.C)); err != nil {
						return err
					}
				}
				return nil
			case n := <-sub.C:
				if err := take(&n); err != nil {
					return err
				}
			}
			dropped = sayDropped(stderr, sub.Dropped(), dropped)
		}
	})
	return g.Wait()
}

// sayWatching says that it has begun, and through which agent.
func (t *trace) sayWatching(stderr io.Writer, through string) {
	if t.duration > 0 {
		fmt.Fprintf(stderr, "watching%s for %s\n", through, setting(t.duration))
	} else {
		fmt.Fprintf(stderr, "watching%s; press Ctrl-C to stop\n", through)
	}
}

// sayDropped says how many events were lost since before, and returns how many ever.
func sayDropped(stderr io.Writer, now, before uint64) uint64 {
	if now > before {
		fmt.Fprintf(stderr, "halfopen: %s not printed: they came faster than they could be\n", plural(int(now-before), "event"))
	}
	return now
}

// batch waits for a notice and takes those along that follow it at once. There is
// none when the context ends, or the channel is closed.
func batch[T any](ctx context.Context, c <-chan T) []T {
	var notices []T
	var over <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return notices
		case <-over:
			return notices
		case n, ok := <-c:
			if !ok {
				return notices
			}
			notices = append(notices, n)
			if over == nil {
				over = time.After(traceDelay)
			}
		}
	}
}

// wanted tells whether the filters let a notice through: within a filter any,
// between filters all. That of its owner is for later.
func (t *trace) wanted(n *exporter.Notice) bool {
	if len(t.causes) > 0 && (n.Death == nil || !slices.ContainsFunc(t.causes, func(c conn.Cause) bool { return c.String() == n.Death.Cause })) {
		return false
	}
	id := identityOf(n)
	return (len(t.verdicts) == 0 || slices.ContainsFunc(t.verdicts, func(v conn.Verdict) bool { return id.verdict != nil && v.String() == *id.verdict })) &&
		(len(t.ports) == 0 || slices.Contains(t.ports, id.local.Port) || slices.Contains(t.ports, id.remote.Port))
}

func (t *trace) owned(n *exporter.Notice) bool {
	owner := identityOf(n).owner
	return len(t.pids) == 0 || owner.Process != nil && slices.Contains(t.pids, owner.Process.PID)
}

// ownerUnknown reports whether some process holds the connection, and which is not known.
func ownerUnknown(n *exporter.Notice) bool {
	owner := identityOf(n).owner
	return owner.Process == nil && owner.Accepted == nil && owner.UID != nil
}

// identity is what notices of all kinds have.
type identity struct {
	local, remote exporter.Endpoint
	verdict       *string
	owner         *exporter.Ownership
}

func identityOf(n *exporter.Notice) identity {
	if d := n.Death; d != nil {
		return identity{d.Local, d.Remote, d.Verdict, &d.Ownership}
	}
	c := n.Connection
	return identity{c.Local, c.Remote, c.Verdict, &c.Ownership}
}

// printer returns what prints a notice, at once: as it was received, if that is not nil.
func (t *trace) printer(w io.Writer) func(n *exporter.Notice, received []byte) error {
	if t.output == "json" {
		enc := json.NewEncoder(harmlessJSON{w})
		return func(n *exporter.Notice, received []byte) error {
			if received != nil { // it may be more than we know
				return enc.Encode(json.RawMessage(received))
			}
			return enc.Encode(n)
		}
	}
	p := paletteFor(w)
	return func(n *exporter.Notice, _ []byte) error {
		_, err := io.WriteString(w, traceLine(n, p))
		return err
	}
}

// traceLine is a notice as text: when, what, which connection, and in words.
func traceLine(n *exporter.Notice, p palette) string {
	id := identityOf(n)
	s := bold
	if n.Death == nil {
		s = paintVerdict(word(id.verdict))
	}
	said := words(n)
	if n.Event == "verdict" && word(id.verdict) == conn.Zombie.String() {
		said += outlook(n.Connection)
	}
	const widest = len("solicitation")
	return fmt.Sprintf("%s  %s%*s  %-21s  %-21s  %s  %s\n", n.At.Local().Format("15:04:05.000"),
		p.paint(s, n.Event), widest-len(n.Event), "",
		endpoint(id.local), endpoint(id.remote), said, owner(id.owner))
}

// word is a word that may be missing.
func word(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// words say what happened.
func words(n *exporter.Notice) string {
	c := n.Connection
	switch n.Event {
	case "solicitation":
		return fmt.Sprintf("%s %d in a row%s", solicitation(evidence(c)), c.Unanswered, silent(c))
	case "verdict":
		if n.From == "" {
			return fmt.Sprintf("%s already%s: %s", text(c.Verdict), lasting(n), why(c, ""))
		}
		return fmt.Sprintf("%s, was %s: %s", text(c.Verdict), text(&n.From), why(c, n.From))
	}
	return "died: " + deathWords(n.Death)
}

// evidence is what kind of solicitation has just been sent. The connection's own
// Evidence is still empty for the first one, which makes nobody a suspect yet.
func evidence(c *exporter.Connection) string {
	switch {
	case c.Evidence != nil:
		return *c.Evidence
	case c.Keepalive.ProbesOut > 0:
		return conn.EvidenceKeepalive.String()
	case c.Retransmits.Unanswered > 0:
		return conn.EvidenceRetransmit.String()
	}
	return ""
}

func solicitation(evidence string) string {
	e, _ := conn.ParseEvidence(evidence) // NoEvidence if this version does not know it
	return e.Solicitation()
}

func silent(c *exporter.Connection) string {
	if c.SilentSeconds == nil {
		return ", never heard from the peer"
	}
	return ", silent for " + ageOf(c.SilentSeconds)
}

// lasting says for how long a verdict has held already, if that is known.
func lasting(n *exporter.Notice) string {
	if since := n.Connection.Since; since != nil && since.Before(n.At) {
		return ", for " + age(n.At.Sub(*since))
	}
	return ""
}

// outlook says when the kernel will notice.
func outlook(c *exporter.Connection) string {
	if c.GivesUp == nil {
		return "; the kernel never gives up"
	}
	return "; the kernel gives up in " + givesUp(c.GivesUp)
}

// why says what a verdict rests on, which was another before, "" if none is known.
func why(c *exporter.Connection, from string) string {
	troubled := func(verdict string) bool { // one of another version's agent, too
		v, err := conn.ParseVerdict(verdict)
		return verdict != "" && (err != nil || v >= conn.Suspect)
	}
	stalled := conn.Stalled.String()
	switch {
	case troubled(word(c.Verdict)):
		return plural(c.Unanswered, solicitation(word(c.Evidence))) + " unanswered" + silent(c)
	case word(c.Verdict) == stalled:
		return "the peer answers, but its window is closed"
	case troubled(from):
		return "the peer has answered"
	case from == stalled:
		return "the peer's window is open again"
	}
	return "no data for " + ageOf(c.IdleSeconds)
}

// deathWords say how a connection ended: cause, what the application is told,
// and what had been known about it.
func deathWords(d *exporter.Death) string {
	s := text(&d.Cause)
	if d.During != nil {
		s += " during " + text(d.During)
	}
	if d.Errno != nil {
		s += " (" + text(d.Errno) + ")"
	}
	if d.ZombieSeconds != nil {
		s += " after being a zombie for " + ageOf(d.ZombieSeconds)
	}
	if d.ForecastErrorSeconds != nil {
		s += ", " + punctual(duration(*d.ForecastErrorSeconds))
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
