// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"time"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/internal/lab"
)

const (
	censusRounds = 9
	readyRounds  = 7
	restSeconds  = 120
)

// A look reads all sockets in one of several ways, and returns how many it has read.
type look func() (sockets int, err error)

func measure(l look) (seconds float64, sockets int, err error) {
	began := time.Now()
	sockets, err = l()
	return time.Since(began).Seconds(), sockets, err
}

// view has the looks at a crowd as methods.
type view struct {
	*crowd
	kernel     *bpf.Kernel
	bare       func() error
	namespaces int // visited by the last census
}

// census measures the cost of reading a growing crowd of idle connections.
func (b *bench) census(ctx context.Context) (err error) {
	c, err := newCrowd()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := c.Close(); err == nil {
			err = cerr
		}
	}()
	k, err := bpf.Load(bpf.Options{IdleAfter: time.Second, IdleBounds: collector.IdleBounds})
	if err != nil {
		return err
	}
	defer k.Close()
	bare, stop, err := bareIterator()
	if err != nil {
		return err
	}
	defer stop()
	v := view{crowd: c, kernel: k, bare: bare}

	many := 200_000
	if b.quick {
		many = 20_000
	}
	fmt.Fprint(&b.extra, "\n## The census as the node grows\n\n| sockets | census | bare pass | census, for each socket |\n|---|---|---|---|\n")
	var none float64
	for _, sockets := range []int{0, 2000, 10_000, 20_000, many} {
		if err := c.grow(ctx, sockets); err != nil {
			return err
		}
		if sockets == 10_000 {
			if err := b.startToReady(ctx, sockets); err != nil {
				return err
			}
			continue
		}
		// With few sockets, rounds differ by more than the sockets cost: run more rounds.
		rounds := max(censusRounds, 201_000/(1000+sockets/10))
		census, bare, err := v.compare(b.rounds(rounds), v.census, v.pass)
		if err != nil {
			return err
		}
		per := "–"
		if sockets == 0 {
			none = census.median()
		} else {
			per = fmt.Sprintf("%.0f ns", (census.median()-none)/float64(sockets)*1e9)
		}
		fmt.Fprintf(&b.extra, "| %d | %.2f ms | %.2f ms | %s |\n", sockets, census.median()*1e3, bare.median()*1e3, per)
	}
	fmt.Fprintf(&b.extra, "\nThe last column excludes the time of a census without the crowd. The census covers all\nnetwork namespaces (%d at the end) in one pass; the bare pass visits two of them, those of\nthe crowd and of the agent.\n", v.namespaces)
	time.Sleep(2 * time.Second) // until the sockets are idle and no longer new
	if err := b.lookAtMany(&v, many); err != nil {
		return err
	}
	return b.rest(ctx, &v, many)
}

// compare runs two looks in turn, and returns the seconds that each took in each round.
func (v *view) compare(rounds int, a, b look) (as, bs sample, err error) {
	for round := range rounds {
		for i := range 2 {
			if (round+i)%2 == 0 {
				err = as.take(a, 2*v.pairs)
			} else {
				err = bs.take(b, 2*v.pairs)
			}
			if err != nil {
				return nil, nil, err
			}
		}
	}
	return as, bs, nil
}

func (s *sample) take(l look, atLeast int) error {
	seconds, sockets, err := measure(l)
	if err == nil && sockets >= 0 && sockets < atLeast {
		err = fmt.Errorf("only %d sockets were seen", sockets)
	}
	*s = append(*s, seconds)
	return err
}

// census is the look that the agent takes every 15 s.
func (v *view) census() (int, error) {
	res, err := v.kernel.Census(context.Background(), bpf.Select(abi.ClassTrouble, abi.ClassUnread), func(*abi.Conn) {})
	v.namespaces = res.Namespaces
	return int(res.Counts.Total()), err
}

// pass is a bare iterator pass over the namespaces of the crowd and of this program. It
// does not count the sockets.
func (v *view) pass() (int, error) { return -1, errors.Join(v.bare(), v.ns.Do(v.bare)) }

// ss returns a look that runs ss with the given flags.
func (v *view) ss(flags string) look {
	return func() (int, error) {
		cmd := exec.Command("ss", flags)
		if err := v.ns.Start(cmd); err != nil {
			return 0, err
		}
		return -1, cmd.Wait()
	}
}

// everybody finds every connection and the process that holds it, as `ss -p` does.
func (v *view) everybody() (int, error) {
	var cookies []uint64
	everything := bpf.Select(abi.ClassTrouble, abi.ClassUnread, abi.ClassActive, abi.ClassIdle, abi.ClassUnguarded)
	if _, err := v.kernel.Census(context.Background(), everything, func(c *abi.Conn) {
		cookies = append(cookies, c.Cookie)
	}); err != nil {
		return 0, err
	}
	return v.held(cookies)
}

// held returns the number of sockets that a process holds.
func (v *view) held(cookies []uint64) (int, error) {
	held := make(map[uint64]bool)
	err := v.kernel.FDHolders(cookies, func(h *abi.FDHolder) { held[h.Cookie] = true })
	return len(held), err
}

// list does the work of `halfopen list` and of the API: it judges all connections, and
// finds the owners of the worst 1000. Each connection of the crowd must have an owner.
// Others on the node may have none, such as those that their process has closed.
func (v *view) list() (int, error) {
	n, conns, err := collector.New(v.kernel, collector.Options{IdleAfter: time.Second}).
		Connections(context.Background(), collector.Query{Limit: 1000})
	if err != nil {
		return 0, err
	}
	for conn, err := range conns {
		if err != nil {
			return 0, err
		}
		if conn.Process == nil && conn.Netns == v.ns.Inode() {
			return 0, fmt.Errorf("the connection %v of the crowd has no owner", conn)
		}
	}
	return n, nil
}

// censusAndOwners returns a look that runs the census and then searches for the owners
// of the given connections, all of which must have one.
func (v *view) censusAndOwners(cookies []uint64) look {
	return func() (int, error) {
		n, err := v.census()
		if err != nil {
			return 0, err
		}
		held, err := v.held(cookies)
		if err == nil && held != len(cookies) {
			err = fmt.Errorf("found the owners of %d connections, not of %d", held, len(cookies))
		}
		return n, err
	}
}

func (b *bench) lookAtMany(v *view, many int) error {
	census, bare, err := v.compare(b.rounds(censusRounds), v.census, v.pass)
	if err != nil {
		return err
	}
	ratio := census.over(bare)
	what := fmt.Sprintf("census of %d sockets", many)
	b.add(row{what, "≤ 0.6 × a bare iter/tcp pass", ratio.String() + " ×",
		fmt.Sprintf("%d rounds; the bare pass runs an empty program in the same network namespaces; census %.0f ms, bare pass %.0f ms; slowest round %.2f ×",
			len(ratio), census.median()*1e3, bare.median()*1e3, ratio.quantile(1)), ratio.atMost(0.6)})

	ss, census, err := v.compare(b.rounds(7), v.ss("-tanoi"), v.census)
	if err != nil {
		return err
	}
	ratio = ss.over(census)
	b.add(row{what, "≥ 20 × faster than `ss -tanoi`", ratio.String() + " ×",
		fmt.Sprintf("%d rounds; ss takes %.2f s, with its output to /dev/null", len(ratio), ss.median()), ratio.atLeast(20)})

	if err := b.inManyNamespaces(v); err != nil {
		return err
	}

	var cookies []uint64
	if _, err := v.kernel.Census(context.Background(), bpf.Select(abi.ClassIdle), func(c *abi.Conn) {
		if len(cookies) < 1000 && c.Netns == v.ns.Inode() {
			cookies = append(cookies, c.Cookie)
		}
	}); err != nil {
		return err
	}
	var all, ours, listed, every sample
	for range min(2, b.rounds(2)) {
		for _, l := range []struct {
			into *sample
			look look
		}{{&all, v.ss("-tanoipe")}, {&ours, v.censusAndOwners(cookies)}, {&listed, v.list}, {&every, v.everybody}} {
			if err := l.into.take(l.look, many/2); err != nil {
				return err
			}
		}
	}
	how := fmt.Sprintf("%d rounds; ss takes %.1f s", len(all), all.median())
	ratio = all.over(ours)
	b.add(row{"…, with the owners of 1000", "≥ 80 × faster than `ss -tanoipe`", ratio.String() + " ×",
		fmt.Sprintf("%s, this %.0f ms; the agent does this while 1000 connections are in trouble", how, ours.median()*1e3), ratio.atLeast(80)})
	b.add(row{"…, with a verdict for each, and the owners of the worst 1000", "none", all.over(listed).String() + " ×",
		fmt.Sprintf("%s, this %.0f ms; `halfopen list` and the API do this", how, listed.median()*1e3), ""})
	b.add(row{"…, with the owners of all", "none", all.over(every).String() + " ×",
		fmt.Sprintf("%s, this %.2f s, in one pass over the descriptors; `halfopen list --by owner` does this", how, every.median()), ""})
	return nil
}

// inManyNamespaces measures the cost of many empty network namespaces. The kernel's own
// iterator goes through the whole hash table once for each namespace.
func (b *bench) inManyNamespaces(v *view) error {
	const many = 100
	var spaces []*lab.Namespace
	defer func() {
		for _, n := range spaces {
			n.Close()
		}
	}()
	for range b.rounds(many) {
		n, err := lab.NewNamespace()
		if err != nil {
			return err
		}
		spaces = append(spaces, n)
	}
	if _, err := v.census(); err != nil { // finds the new namespaces
		return err
	}
	bare := func() (int, error) {
		errs := []error{v.bare(), v.ns.Do(v.bare)}
		for _, n := range spaces {
			errs = append(errs, n.Do(v.bare))
		}
		return -1, errors.Join(errs...)
	}
	census, all, err := v.compare(b.rounds(5), v.census, bare)
	if err != nil {
		return err
	}
	ratio := all.over(census)
	b.add(row{fmt.Sprintf("…, with %d more network namespaces, all empty", len(spaces)), "none; compared with a bare iter/tcp pass in each", ratio.String() + " ×",
		fmt.Sprintf("%d rounds; the passes take %.2f s, this %.0f ms", len(ratio), all.median(), census.median()*1e3), ""})
	return nil
}

// startToReady measures the time from the start of the agent to the end of its first census.
func (b *bench) startToReady(ctx context.Context, sockets int) error {
	var took sample
	for range b.rounds(readyRounds) {
		a, err := b.startAgent(ctx)
		if err != nil {
			return err
		}
		took = append(took, a.ready.Seconds())
		a.stop()
	}
	b.add(row{fmt.Sprintf("start to ready with %d sockets", sockets), "≤ 0.4 s", took.String() + " s",
		fmt.Sprintf("%d starts of the process, until /-/ready answers 200", len(took)), took.atMost(0.4)})
	return b.listByItself(sockets)
}

// listByItself is a `halfopen list` that asks no agent, and loads the programs itself.
func (b *bench) listByItself(sockets int) error {
	var took sample
	for range b.rounds(readyRounds) {
		began := time.Now()
		if out, err := exec.Command(b.halfopen, "list", "--url=none", "--limit=20").CombinedOutput(); err != nil {
			return fmt.Errorf("list: %w: %s", err, out)
		}
		took = append(took, time.Since(began).Seconds())
	}
	b.add(row{fmt.Sprintf("`list` by itself with %d sockets", sockets), "≤ 0.4 s", took.String() + " s",
		fmt.Sprintf("%d times the whole process, without an agent: it judges all connections and prints the worst 20", len(took)), took.atMost(0.4)})
	return nil
}

// rest measures the memory and CPU time of an agent on a node without traffic.
func (b *bench) rest(ctx context.Context, v *view, sockets int) error {
	a, err := b.startAgent(ctx, "--idle-after=1s")
	if err != nil {
		return err
	}
	defer a.stop()
	before, err := a.cpu()
	if err != nil {
		return err
	}
	length := restSeconds * time.Second
	if b.quick {
		length /= 3
	}
	began := time.Now()
	for tick := time.NewTicker(length / 3); time.Since(began) < length-time.Second; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if _, err := a.get("/metrics"); err != nil {
			return err
		}
	}
	after, err := a.cpu()
	if err != nil {
		return err
	}
	share := (after - before).Seconds() / time.Since(began).Seconds() * 100

	resident, err := a.peak()
	if err != nil {
		return err
	}
	maps, err := a.maps()
	if err != nil {
		return err
	}
	var asked [2]int64 // largest resident size after each of the two queries
	for i, limit := range []int{1000, math.MaxInt32} {
		if err := a.getInto(io.Discard, fmt.Sprintf("/api/v1/connections?limit=%d", limit)); err != nil {
			return err
		}
		if asked[i], err = a.peak(); err != nil {
			return err
		}
	}
	const mb = 1e6
	b.add(row{fmt.Sprintf("memory with %d idle sockets", sockets), "≤ 45 MB resident, also while all are asked for", fmt.Sprintf("%.1f MB", float64(asked[1])/mb),
		fmt.Sprintf("peak of the whole process, after a query for all connections; in the %.0f s before %.1f MB, after a query for the worst 1000 connections %.1f MB; the BPF maps take another %.1f MB of kernel memory",
			length.Seconds(), float64(resident)/mb, float64(asked[0])/mb, float64(maps)/mb), met(float64(asked[1])/mb <= 45)})

	ss := exec.Command("ss", "-tanoi")
	if err := v.ns.Start(ss); err != nil {
		return err
	}
	if err := ss.Wait(); err != nil {
		return err
	}
	once := (ss.ProcessState.UserTime() + ss.ProcessState.SystemTime()).Seconds()
	b.add(row{fmt.Sprintf("share of a core at rest, with %d idle sockets", sockets), "about 1 % for the census", fmt.Sprintf("%.2f %%", share),
		fmt.Sprintf("CPU time of the process in %.0f s, with a scrape every %.0f s; running `ss -tanoi` at the census interval would take %.1f %%",
			length.Seconds(), length.Seconds()/3, once/15*100), ""})
	return nil
}
