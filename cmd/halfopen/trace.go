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
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/helper"
	"github.com/halfopen/halfopen/internal/sandbox"
)

// traceBuffer is how many events can wait to be printed.
const traceBuffer = 65536

// traceDelay is how long a notice may wait for others, so that the owners of many
// are looked for at once.
const traceDelay = 100 * time.Millisecond

// trace has the flags of the command.
type trace struct {
	output   string
	all      bool
	duration time.Duration
	peer
	selection
	thresholds
}

// traceFilters are the filters of connections that trace applies to events.
var traceFilters = []string{"verdict", "port", "pid"}

func traceFlags(cmd *kingpin.CmdClause) action {
	var t trace
	cmd.Flag("output", "How to print: text, or json with one object a line.").Short('o').Default("text").
		SetValue(&value[string]{flag: "output", parse: oneOf("text", "json"), into: &t.output})
	cmd.Flag("duration", "Stop after this long, instead of when interrupted.").PlaceHolder("DURATION").
		SetValue(&value[time.Duration]{flag: "duration", parse: positiveDuration, into: &t.duration})
	cmd.Flag("all", "Print also the first unanswered probe or retransmission in a row, which the peer nearly always answers at once.").BoolVar(&t.all)
	t.selection.addFilters(cmd, func(f *api.Filter[collector.Query]) bool { return slices.Contains(traceFilters, f.Name) })
	t.causeFlag(cmd, "Only deaths, and only of this cause, such as keepalive_timeout.")
	t.peer.flags(cmd, "Watch through")
	t.thresholds.verdictFlags(cmd)
	t.thresholds.censusFlags(cmd)
	return t.run
}

// own returns an error if a flag asks for what an agent does not do, else nil.
func (t *trace) own() error {
	if t.all || t.censusSet != [2]bool{} {
		return usagef("--all, --census-interval and --census-cpu cannot be combined with --url: the agent has its own settings")
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

// here traces with programs that this process loads.
func (t *trace) here(ctx context.Context, stdout, stderr io.Writer) error {
	from := t.thresholds.eventsFrom()
	if t.all {
		from = 1
	}
	h, err := helper.Start("")
	if err != nil {
		return err
	}
	defer h.Close()
	k, err := t.thresholds.load(from, h)
	if err != nil {
		return err
	}
	defer k.Close()
	opts := t.thresholds.options(nil)
	opts.Privileged = h
	c := collector.New(k, opts)
	_ = sandbox.Enter(sandbox.Agent()) // as far as possible here; halfopen doctor prints the steps that fail
	sub := c.SubscribeOwned(traceBuffer)
	defer sub.Close()
	g, ctx := errgroup.WithContext(ctx)
	ran := make(chan struct{})
	g.Go(func() error {
		defer close(ran)
		return c.Run(ctx)
	})
	g.Go(func() error { return h.Wait(ctx) })
	t.sayWatching(stderr, "")
	g.Go(func() error {
		emit := t.printer(stdout)
		var dropped uint64
		take := func(n *conn.Notice) error {
			notice := api.NewNotice(n)
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

// sayWatching prints that the trace has begun, and through which agent.
func (t *trace) sayWatching(stderr io.Writer, through string) {
	if t.duration > 0 {
		fmt.Fprintf(stderr, "watching%s for %s\n", through, setting(t.duration))
	} else {
		fmt.Fprintf(stderr, "watching%s; press Ctrl-C to stop\n", through)
	}
}

// sayDropped prints how many events were lost since before, and returns how many were
// ever.
func sayDropped(stderr io.Writer, now, before uint64) uint64 {
	if now > before {
		fmt.Fprintf(stderr, "halfopen: %s not printed: they came faster than they could be\n", plural(int(now-before), "event"))
	}
	return now
}

// batch waits for a notice, and returns it with those that follow within traceDelay. It
// returns none if the context ends or the channel is closed.
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

// wanted reports whether a notice matches the filters: any value of a filter, and all
// filters. It does not check the process, see owned.
func (t *trace) wanted(n *api.Notice) bool {
	if len(t.deaths.Causes) > 0 && (n.Death == nil || !slices.ContainsFunc(t.deaths.Causes, func(c conn.Cause) bool { return c.String() == n.Death.Cause })) {
		return false
	}
	id := identityOf(n)
	return (len(t.Verdicts) == 0 || slices.ContainsFunc(t.Verdicts, func(v conn.Verdict) bool { return id.verdict != nil && v.String() == *id.verdict })) &&
		(len(t.Ports) == 0 || slices.Contains(t.Ports, id.local.Port) || slices.Contains(t.Ports, id.remote.Port))
}

func (t *trace) owned(n *api.Notice) bool {
	owner := identityOf(n).owner
	return len(t.PIDs) == 0 || owner.Process != nil && slices.Contains(t.PIDs, owner.Process.PID)
}

// ownerUnknown reports whether a process holds the connection, but which one is not
// known.
func ownerUnknown(n *api.Notice) bool {
	owner := identityOf(n).owner
	return owner.Process == nil && owner.Accepted == nil && owner.UID != nil
}

// identity is what notices of all kinds have in common.
type identity struct {
	local, remote api.Endpoint
	verdict       *string
	owner         *api.Ownership
}

func identityOf(n *api.Notice) identity {
	if d := n.Death; d != nil {
		return identity{d.Local, d.Remote, d.Verdict, &d.Ownership}
	}
	c := n.Connection
	return identity{c.Local, c.Remote, c.Verdict, &c.Ownership}
}

// printer returns a function that prints a notice at once; as JSON it prints received,
// if that is not nil.
func (t *trace) printer(w io.Writer) func(n *api.Notice, received []byte) error {
	if t.output == "json" {
		enc := json.NewEncoder(escape.Writer{W: w})
		return func(n *api.Notice, received []byte) error {
			if received != nil { // it may have fields that this version does not know
				return enc.Encode(json.RawMessage(received))
			}
			return enc.Encode(n)
		}
	}
	p := paletteFor(w)
	return func(n *api.Notice, _ []byte) error {
		_, err := io.WriteString(w, traceLine(n, p))
		return err
	}
}

// traceLine formats a notice as a line: when, what, which connection, and in words.
func traceLine(n *api.Notice, p palette) string {
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
		endpoint(id.local), endpoint(id.remote), said, ownerIn(id.owner))
}

// word returns a word that may be nil, as "".
func word(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// words returns a sentence on what happened.
func words(n *api.Notice) string {
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

// evidence returns the kind of the solicitation that was sent. The connection has no
// evidence yet after the first solicitation, which does not make it a suspect.
func evidence(c *api.Connection) string {
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

func silent(c *api.Connection) string {
	if c.SilentSeconds == nil {
		return ", never heard from the peer"
	}
	return ", silent for " + ageOf(c.SilentSeconds)
}

// lasting returns for how long a verdict has held, if that is known.
func lasting(n *api.Notice) string {
	if since := n.Connection.Since; since != nil && since.Before(n.At) {
		return ", for " + age(n.At.Sub(*since))
	}
	return ""
}

// outlook returns when the kernel will give up.
func outlook(c *api.Connection) string {
	if c.GivesUp == nil {
		return "; the kernel never gives up"
	}
	return "; the kernel gives up in " + givesUp(c.GivesUp)
}

// why returns the reason for a verdict. from is the verdict before it, "" if none is
// known.
func why(c *api.Connection, from string) string {
	troubled := func(verdict string) bool { // or a verdict that this version does not know
		v, err := conn.ParseVerdict(verdict)
		return verdict != "" && (err != nil || v >= conn.Suspect)
	}
	stuck, blocked, stalled, unread := conn.Stuck.String(), conn.Blocked.String(), conn.Stalled.String(), conn.Unread.String()
	switch {
	case word(c.Verdict) == stuck:
		return plural(c.Unanswered, solicitation(word(c.Evidence))) + " not acknowledged, the peer last heard " + ageOf(c.SilentSeconds) + " ago" + inBrackets(c.Reason)
	case word(c.Verdict) == blocked, troubled(word(c.Verdict)) && c.Unanswered == 0 && c.Attempts > 0:
		return "this host failed to send " + plural(c.Attempts, solicitation(word(c.Evidence))) + " in a row" + inBrackets(c.Reason)
	case troubled(word(c.Verdict)):
		return plural(c.Unanswered, solicitation(word(c.Evidence))) + " unanswered" + silent(c)
	case word(c.Verdict) == stalled:
		return "the peer answers, but its window is closed"
	case word(c.Verdict) == unread:
		return size(c.ReceiveQueueBytes) + " bytes wait, and its application does not read"
	case from == stuck:
		return "the peer has acknowledged something"
	case from == blocked:
		return "this host sends again"
	case troubled(from):
		return "the peer has answered"
	case from == stalled:
		return "the peer's window is open again"
	case from == unread:
		return "its application has read"
	}
	return "no data for " + ageOf(c.IdleSeconds)
}

// inBrackets returns the code of a reason, in brackets; "" if it is not known.
func inBrackets(r *api.Reason) string {
	if r == nil {
		return ""
	}
	return " (" + text(&r.Code) + ")"
}

// deathWords returns how a connection ended: the cause, what the application gets, and
// what was known before.
func deathWords(d *api.Death) string {
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

// punctual returns by how much a forecast was missed.
func punctual(miss time.Duration) string {
	switch {
	case miss <= -time.Millisecond:
		return age(-miss) + " before the forecast"
	case miss >= time.Millisecond:
		return age(miss) + " after the forecast"
	}
	return "as forecast"
}
