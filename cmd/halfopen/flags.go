// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/helper"
)

// value is the value of a flag, or of an argument after the flags. parse parses it; Set
// adds the flag to the error.
type value[T any] struct {
	flag  string // "": an argument
	parse func(string) (T, error)
	into  *T
	text  string
}

func (v *value[T]) Set(s string) error {
	x, err := v.parse(s)
	switch {
	case err != nil && v.flag == "":
		return err
	case err != nil:
		return fmt.Errorf("--%s: %w", v.flag, err)
	}
	*v.into, v.text = x, s
	return nil
}

func (v *value[T]) String() string { return v.text }

// values is the value of a flag or an argument that can be given several times.
type values[T any] struct {
	flag  string // "": an argument
	parse func(string) (T, error)
	into  *[]T
}

func (v *values[T]) Set(s string) error {
	var x T
	one := value[T]{flag: v.flag, parse: v.parse, into: &x}
	if err := one.Set(s); err != nil {
		return err
	}
	*v.into = append(*v.into, x)
	return nil
}

func (v *values[T]) String() string     { return fmt.Sprint(*v.into) }
func (v *values[T]) IsCumulative() bool { return true }

func positiveDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 10s, 5m or 2h", s)
	}
	if d <= 0 {
		return 0, fmt.Errorf("%s is not positive", s)
	}
	return d, nil
}

func atLeast(least int) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if n > least && errors.Is(err, strconv.ErrRange) {
			return 0, fmt.Errorf("%q is too large", s)
		}
		if err != nil || n < least {
			return 0, fmt.Errorf("%q is not a number of at least %d", s, least)
		}
		return n, nil
	}
}

// parsePercent parses a percentage of one core as a share above 0, at most 1.
func parsePercent(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(n > 0 && n <= 100) {
		return 0, fmt.Errorf("%q is not a percentage of one core such as 1%% or 0.5%%", s)
	}
	return n / 100, nil
}

// oneOf returns a parser that accepts one of the words.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, w := range words {
			if s == w {
				return s, nil
			}
		}
		return "", fmt.Errorf("%q is none of %s", s, strings.Join(words, ", "))
	}
}

// thresholds are the flags that define the verdicts and the census.
type thresholds struct {
	idleAfter, stalledAfter, unreadAfter, zombieSilence, census time.Duration
	zombieUnanswered                                            int
	middleboxes                                                 conn.Middleboxes
	censusCPU                                                   float64 // of one core
	eventsBytes                                                 uint32  // 0: the default
	set                                                         [6]bool // by the user: which of verdictFlags
	censusSet                                                   [2]bool // by the user: which of censusFlags
}

// verdictFlags adds the flags that a single census needs.
func (t *thresholds) verdictFlags(cmd *kingpin.CmdClause) {
	duration := func(i int, name, def, help string, into *time.Duration) {
		cmd.Flag(name, help).Default(def).IsSetByUser(&t.set[i]).SetValue(&value[time.Duration]{flag: name, parse: positiveDuration, into: into})
	}
	duration(0, "idle-after", "5m", "How long without data makes a connection idle or unguarded.", &t.idleAfter)
	duration(1, "stalled-after", "10s", "How long the peer's window must be closed to make a connection stalled.", &t.stalledAfter)
	cmd.Flag("zombie-unanswered", "How many probes or retransmissions in a row must be unanswered to make a connection a zombie ...").
		Default("3").IsSetByUser(&t.set[2]).SetValue(&value[int]{flag: "zombie-unanswered", parse: atLeast(1), into: &t.zombieUnanswered})
	duration(3, "zombie-silence", "10s", "... and for how long the peer must have been silent.", &t.zombieSilence)
	duration(5, "unread-after", "30s", "How long an application must leave data that has arrived to make a connection unread. Unless you set it, it is not longer than --idle-after.", &t.unreadAfter)
	cmd.Flag("middlebox-timeout", "After how long a NAT or load balancer on the way forgets a silent connection: a time, the name of a well-known one ("+
		strings.Join(conn.MiddleboxPresets(), ", ")+"), or a list by destination such as 10.0.0.0/8=350s,default=azure-lb.").
		Default("350s").IsSetByUser(&t.set[4]).
		SetValue(&value[conn.Middleboxes]{flag: "middlebox-timeout", parse: conn.ParseMiddleboxes, into: &t.middleboxes})
}

// censusFlags adds the flags of commands that take censuses again and again.
func (t *thresholds) censusFlags(cmd *kingpin.CmdClause) {
	cmd.Flag("census-interval", "Time between two censuses of all connections; longer if --census-cpu requires it. Connections in trouble are watched all the time.").
		Default("15s").IsSetByUser(&t.censusSet[0]).SetValue(&value[time.Duration]{flag: "census-interval", parse: positiveDuration, into: &t.census})
	cmd.Flag("census-cpu", "Share of one core that the agent may take when little happens: --census-interval stretches to stay below it.").
		Default("1%").IsSetByUser(&t.censusSet[1]).SetValue(&value[float64]{flag: "census-cpu", parse: parsePercent, into: &t.censusCPU})
}

var errAgentDecides = usagef("--idle-after, --stalled-after, --unread-after, --zombie-unanswered, --zombie-silence and --middlebox-timeout cannot be combined with --url: the agent has its own")

// own returns errAgentDecides if the user set one of verdictFlags, else nil.
func (t *thresholds) own() error {
	if t.set != [6]bool{} {
		return errAgentDecides
	}
	return nil
}

// unread returns how long an application must leave data to make a connection unread. With a
// shorter --idle-after the default follows that: such a connection is not idle, it is not read.
func (t *thresholds) unread() time.Duration {
	if t.set[5] {
		return t.unreadAfter
	}
	return min(t.unreadAfter, t.idleAfter)
}

// lookOnce loads the programs for a command that looks once, without an agent, and has the
// collector look. unload unloads the programs.
func (t *thresholds) lookOnce(ctx context.Context) (c *collector.Collector, unload func(), err error) {
	k, err := t.load(0, nil)
	if err != nil {
		return nil, nil, err
	}
	c = collector.New(k, t.options(nil))
	if err := c.LookOnce(ctx); err != nil {
		return nil, nil, errors.Join(err, k.Close())
	}
	return c, func() { _ = k.Close() }, nil
}

// load loads the kernel programs. They send an event from that many unanswered
// solicitations on; 0: they do not observe, and a census is all they can do. With a helper
// (it may be nil) this process can give its privileges up afterwards.
func (t *thresholds) load(eventsFrom uint32, h *helper.Helper) (*bpf.Kernel, error) {
	opts := bpf.Options{
		Observe:           eventsFrom > 0,
		EventsFrom:        eventsFrom,
		IdleAfter:         t.idleAfter,
		MiddleboxTimeout:  t.middleboxes.Default,
		MiddleboxTimeouts: t.middleboxes.To,
		UnreadAfter:       t.unread(),
		IdleBounds:        collector.IdleBounds,
		EventsBytes:       t.eventsBytes,
	}
	if h != nil {
		opts.GiveCookies = h.GiveCookies
	}
	return loadPrograms(opts)
}

// eventsFrom returns from how many unanswered solicitations on the programs should send
// events. A first solicitation is nearly always answered.
func (t *thresholds) eventsFrom() uint32 { return uint32(min(t.zombieUnanswered, 2)) }

// loadPrograms loads the kernel programs. If privileges or descriptors are missing, its
// error says only that.
func loadPrograms(opts bpf.Options) (*bpf.Kernel, error) {
	k, err := bpf.Load(opts)
	switch {
	case errors.Is(err, bpf.ErrPrivileges):
		return nil, bpf.ErrPrivileges
	case errors.Is(err, syscall.EMFILE):
		return nil, errFiles
	}
	return k, err
}

var errFiles = fmt.Errorf("%w: raise the limit, for example with ulimit -n 1024", syscall.EMFILE)

func (t *thresholds) options(logger *slog.Logger) collector.Options {
	return collector.Options{
		IdleAfter:        t.idleAfter,
		StalledAfter:     t.stalledAfter,
		ZombieUnanswered: t.zombieUnanswered,
		ZombieSilence:    t.zombieSilence,
		Middleboxes:      t.middleboxes,
		UnreadAfter:      t.unread(),
		CensusInterval:   t.census,
		CensusCPU:        t.censusCPU,
		Logger:           logger,
	}
}
