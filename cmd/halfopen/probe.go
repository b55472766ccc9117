// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"golang.org/x/term"
	"golang.org/x/time/rate"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/ask"
	"github.com/halfopen/halfopen/internal/escape"
)

// probe has the flags and the arguments of the command.
type probe struct {
	targets []target
	output  string
	rate    int
	peer
	selection
	thresholds
}

func probeFlags(cmd *kingpin.CmdClause) action {
	var p probe
	cmd.Arg("connection", "The connections: each by its cookie, or its local address and port, as for halfopen explain. Without any, the filters select them.").
		SetValue(&values[target]{parse: parseTarget, into: &p.targets})
	cmd.Flag("output", "How to print: text, or json (one object a line).").Short('o').Default("text").
		SetValue(&value[string]{flag: "output", parse: oneOf("text", "json"), into: &p.output})
	p.selection.addFilters(cmd, func(f *api.Filter[collector.Query]) bool { return !f.Switch })
	cmd.Flag("rate", "Ask at most so many connections a second.").Default("50").
		SetValue(&value[int]{flag: "rate", parse: atLeast(1), into: &p.rate})
	cmd.Flag("limit", "Ask at most so many connections, those with the worst verdict.").Default("1000").
		SetValue(&value[int]{flag: "limit", parse: atLeast(1), into: &p.Limit})
	p.peer.flags(cmd, "Find the connections by")
	p.thresholds.verdictFlags(cmd)
	return p.run
}

func (p *probe) run(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case len(p.targets) > 0 && p.filtered():
		return usagef("name connections, or select them by filters, but not both")
	case len(p.targets) == 0 && !p.filtered():
		return usagef("no connection given, and no filter such as --verdict unguarded")
	case !p.place.here():
		return usagef("probe asks from this machine: run it on the other one, or name an agent of this one with --url unix:///PATH or a loopback address")
	}
	agent, err := p.peer.agentSaying(ctx, p.thresholds.own(), stderr)
	if err != nil {
		return err
	}
	var look finder = asked{agent}
	if agent == nil {
		c, unload, err := p.thresholds.lookOnce(ctx)
		if err != nil {
			return err
		}
		defer unload()
		look = here{c}
	}
	total, connections, err := p.find(ctx, look)
	if err != nil {
		return err
	}
	prober, err := ask.Start()
	if err != nil {
		return err
	}
	defer prober.Close()
	restored, failed, err := prober.Recover(ctx, finderOf(look))
	if err != nil {
		return fmt.Errorf("nothing is asked without a journal: %w", err)
	}
	for _, text := range recovery(restored, failed) {
		fmt.Fprintln(stderr, "halfopen:", text)
	}
	if total == 0 {
		_, err := fmt.Fprintln(stderr, p.nothing("connection"))
		return err
	}
	r := &probing{p: p, look: look, prober: prober, stdout: stdout, stderr: stderr, total: total, connections: connections}
	return r.run(ctx)
}

// finder finds connections, by an agent or by itself.
type finder interface {
	looker
	connections(ctx context.Context, q collector.Query) (total int, connections []api.Connection, err error)
	// obstacle returns what keeps this host from sending on a connection; "": nothing is known.
	obstacle(ctx context.Context, c *api.Connection) string
}

func (a asked) connections(ctx context.Context, q collector.Query) (total int, connections []api.Connection, err error) {
	doc, err := a.Connections(ctx, api.ConnectionParameters(&q))
	if err != nil {
		return 0, nil, err
	}
	return doc.Total, doc.Connections, nil
}

// hostReasons are the reasons for which a host sends nothing.
var hostReasons = []conn.ReasonCode{conn.ReasonNoRoute, conn.ReasonLocalAddressGone, conn.ReasonInterfaceDown, conn.ReasonOutputFilter, conn.ReasonEgressDrop}

func (a asked) obstacle(ctx context.Context, c *api.Connection) string {
	d, err := detailOf(ctx, a, c.Cookie)
	if err != nil || d == nil || d.Reason == nil || !slices.Contains(hostReasons, conn.ReasonCode(d.Reason.Code)) {
		return ""
	}
	return d.Reason.Detail
}

func (h here) obstacle(ctx context.Context, c *api.Connection) string {
	cookie, err := conn.ParseCookie(c.Cookie)
	local, errLocal := netip.ParseAddr(c.Local.IP)
	remote, errRemote := netip.ParseAddr(c.Remote.IP)
	if errors.Join(err, errLocal, errRemote) != nil {
		return ""
	}
	o, err := h.c.Obstacle(ctx, c.Netns, conn.Flow{
		Cookie: cookie, Local: netip.AddrPortFrom(local, c.Local.Port), Remote: netip.AddrPortFrom(remote, c.Remote.Port),
	})
	if err != nil || !slices.Contains(hostReasons, o.Code) {
		return ""
	}
	return o.Detail
}

// find returns the connections to ask, and how many the user means without the limit.
func (p *probe) find(ctx context.Context, look finder) (total int, connections []api.Connection, err error) {
	if len(p.targets) == 0 {
		return look.connections(ctx, p.Query)
	}
	known := make(map[string]bool)
	for i := range p.targets {
		t := &p.targets[i]
		cookie := t.cookie
		if t.port != 0 {
			some, err := look.withPort(ctx, t.port)
			if err != nil {
				return 0, nil, err
			}
			if cookie, err = t.choose(some); err != nil {
				return 0, nil, err
			}
		}
		d, err := detailOf(ctx, look, conn.FormatCookie(cookie))
		switch {
		case err != nil:
			return 0, nil, err
		case d == nil:
			return 0, nil, t.unknown()
		case !known[d.Cookie]:
			known[d.Cookie] = true
			connections = append(connections, d.Connection)
		}
	}
	return len(connections), connections[:min(len(connections), p.Limit)], nil
}

func targetOf(cookie uint64, c *api.Connection) ask.Target {
	return ask.Target{Cookie: cookie, Netns: c.Netns, PID: int(c.Process.PID), FD: int(c.Process.FD)}
}

// probing is the asking of connections.
type probing struct {
	p              *probe
	look           finder
	prober         *ask.Prober
	stdout, stderr io.Writer
	total          int
	connections    []api.Connection // that are asked

	results   map[string]int
	done      int
	shown     bool              // a line of progress
	obstacles map[string]string // by the ends of connections
}

// run asks, and prints the answers as they come. It returns errNotAnswered unless all have
// answered.
func (r *probing) run(ctx context.Context) error {
	r.results, r.obstacles = make(map[string]int), make(map[string]string)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	byCookie := make(map[uint64]*api.Connection)
	var targets []ask.Target
	for i := range r.connections {
		c := &r.connections[i]
		cookie, err := conn.ParseCookie(c.Cookie)
		if err != nil {
			return err
		}
		if why := notHeld(c); why != "" {
			if err := r.print(c, &ask.Answer{Result: ask.NotAsked, Why: why}); err != nil {
				return err
			}
			continue
		}
		byCookie[cookie] = c
		targets = append(targets, targetOf(cookie, c))
	}
	go func() {
		limit := rate.NewLimiter(rate.Limit(r.p.rate), 1)
		for _, t := range targets {
			if err := limit.Wait(ctx); err != nil {
				return
			}
			if err := r.prober.Ask(t); err != nil {
				cancel(err)
			}
		}
	}()
	for range targets {
		a, err := r.prober.Answer(ctx)
		if err != nil {
			_ = r.summary(false)
			return err
		}
		c := byCookie[a.Cookie]
		if c == nil {
			continue
		}
		if a.Result == ask.Silent {
			r.excuse(ctx, c, a)
		}
		if err := r.print(c, a); err != nil {
			return err
		}
	}
	return r.summary(true)
}

// notHeld returns why there is no descriptor to duplicate, "" if there is one.
func notHeld(c *api.Connection) string {
	switch {
	case c.Process != nil:
		return ""
	case c.Accepted != nil && !*c.Accepted:
		return "its application has not accepted it yet, so that no descriptor holds it"
	case c.UID == nil:
		return "its application has closed it, so that no descriptor holds it; the kernel ends it by itself"
	}
	return "no process holds it by a descriptor that was found, so that there is nothing to duplicate: it may belong to the kernel, to io_uring, to MPTCP, or be on its way between two processes"
}

// obstaclesMost is the most paths that are looked at.
const obstaclesMost = 50

// excuse says of a silent peer that it was not asked, if this host sends nothing to it.
func (r *probing) excuse(ctx context.Context, c *api.Connection, a *ask.Answer) {
	ends := fmt.Sprint(c.Netns, c.Local.IP, c.Remote.IP)
	obstacle, ok := r.obstacles[ends]
	if !ok && len(r.obstacles) < obstaclesMost {
		obstacle = r.look.obstacle(ctx, c)
		r.obstacles[ends] = obstacle
	}
	if obstacle != "" {
		a.Result, a.Why = ask.NotAsked, "nothing leaves this host: "+strings.TrimSuffix(lowerFirst(obstacle), ".")
	}
}

// probed is what the command says of a connection, as JSON.
type probed struct {
	Cookie           string       `json:"cookie"`
	Local            api.Endpoint `json:"local"`
	Remote           api.Endpoint `json:"remote"`
	Netns            uint32       `json:"netns"`
	Result           string       `json:"result"`
	Probes           int          `json:"probes"`
	RoundTripSeconds *float64     `json:"round_trip_seconds"` // null: no probe was answered
	Why              *string      `json:"why"`                // null: it was asked
}

// print prints what came of asking a connection.
func (r *probing) print(c *api.Connection, a *ask.Answer) error {
	r.clear()
	r.results[a.Result]++
	r.done++
	var err error
	if r.p.output == "json" {
		line := probed{Cookie: c.Cookie, Local: c.Local, Remote: c.Remote, Netns: c.Netns, Result: a.Result, Probes: a.Probes}
		if a.RoundTrip > 0 {
			line.RoundTripSeconds = new(float64(a.RoundTrip.Microseconds()) / 1e6)
		}
		if a.Why != "" {
			line.Why = &a.Why
		}
		err = json.NewEncoder(escape.Writer{W: r.stdout}).Encode(line)
	} else {
		_, err = fmt.Fprintf(r.stdout, "%s → %s  %s\n", endpoint(c.Local), endpoint(c.Remote), outcome(a, paletteFor(r.stdout)))
	}
	r.progress()
	return err
}

// outcome says what came of asking a connection.
func outcome(a *ask.Answer, p palette) string {
	switch {
	case a.Result == ask.Answered && a.RoundTrip == 0:
		return "answered: it was heard, though not in answer to a probe"
	case a.Result == ask.Answered:
		return "answered in " + roundTrip(a.RoundTrip)
	case a.Result == ask.Silent:
		return p.paint(paintVerdict(conn.Zombie.String()), "silent") + fmt.Sprintf(": %s in %d s", plural(a.Probes, "probe"), ask.JudgedAfter/time.Second)
	case a.Result == ask.Reset:
		return p.paint(paintVerdict(conn.Zombie.String()), "reset") + ": the peer no longer knows it"
	}
	return "not asked: " + escape.Text(a.Why)
}

// roundTrip formats the time that an answer took.
func roundTrip(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return strconv.FormatFloat(ms, 'g', 2, 64) + " ms"
	case ms < 1000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
	}
	return strconv.FormatFloat(ms/1000, 'f', 1, 64) + " s"
}

// progress shows on a terminal how many connections have been asked.
func (r *probing) progress() {
	if f, ok := r.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) && r.done < len(r.connections) {
		fmt.Fprintf(r.stderr, "\r%d of %s", r.done, plural(len(r.connections), "connection"))
		r.shown = true
	}
}

// clear removes the line of progress.
func (r *probing) clear() {
	if r.shown {
		fmt.Fprint(r.stderr, "\r\x1b[K")
		r.shown = false
	}
}

// summary prints how many connections there were of each result. It returns errNotAnswered
// unless all have answered.
func (r *probing) summary(complete bool) error {
	r.clear()
	var parts []string
	for _, result := range []string{ask.Answered, ask.Silent, ask.Reset, ask.NotAsked} {
		if n := r.results[result]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, strings.ReplaceAll(result, "_", " ")))
		}
	}
	text := shown(r.done, r.total, "connection")
	if r.done < r.total {
		text = fmt.Sprintf("%d of %s", r.done, plural(r.total, "connection"))
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	if complete && len(r.connections) < r.total {
		text += "; the others are beyond --limit"
	}
	if _, err := fmt.Fprintln(r.stderr, text); err != nil {
		return err
	}
	if r.results[ask.Answered] < r.total {
		return errNotAnswered
	}
	return nil
}
