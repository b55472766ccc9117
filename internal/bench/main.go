// SPDX-License-Identifier: Apache-2.0

// Command bench measures the cost of halfopen beside that of its alternatives, and
// writes docs/benchmarks.md: `make bench`. Wherever an alternative exists, the figure is
// a ratio of two measurements taken in turn in one run, because absolute times say more
// about the machine than about halfopen. No figure makes it fail.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds a whole run.
const limit = 40 * time.Minute

// bench holds the settings and results that all parts of a run share.
type bench struct {
	halfopen string // the binary
	quick    bool   // fewer rounds and sockets: tries the program, gives no reliable figures
	tmp      string
	rows     []row
	before   map[rowKey]string // what the last document says was measured
	extra    bytes.Buffer      // below the table
}

// A row is one line of the table.
type row struct {
	what, bar, measured, how string
	met                      string // empty if the row has no bar
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Printf("    %s: %s (%s)\n", r.what, r.measured, r.bar)
}

// rounds returns the number of rounds to run: n, or at most 3 in a quick run.
func (b *bench) rounds(n int) int {
	if b.quick {
		return min(n, 3)
	}
	return n
}

func main() { os.Exit(run()) }

func run() int {
	if part := os.Getenv(crowdEnv); part != "" {
		return report(playCrowd(part))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return report(benchmark(ctx))
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func benchmark(ctx context.Context) error {
	parts := []struct {
		name string
		run  func(*bench, context.Context) error
	}{
		{"http", (*bench).http},
		{"census", (*bench).census},
		{"million", (*bench).million},
		{"latency", (*bench).latency},
		{"forecast", (*bench).forecast},
		{"events", (*bench).events},
		{"timers", (*bench).timers},
		{"drops", (*bench).drops},
		{"storm", (*bench).storm},
		{"pages", (*bench).pages},
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	b := &bench{}
	flag.StringVar(&b.halfopen, "halfopen", "bin/halfopen", "the agent's binary")
	flag.BoolVar(&b.quick, "quick", false, "few rounds and few sockets: to try the program")
	out := flag.String("o", "", "write the document to this file instead of printing it")
	only := flag.String("only", strings.Join(names, ","), "parts to run")
	flag.Parse()
	wanted := strings.Split(*only, ",")
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no part %q; the parts are %s", name, strings.Join(names, ", "))
		}
	}

	var err error
	if b.halfopen, err = filepath.Abs(b.halfopen); err != nil {
		return err
	}
	if b.tmp, err = os.MkdirTemp("", "halfopen-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.tmp)
	if *out != "" {
		last, err := os.ReadFile(*out)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		b.before = measuredIn(string(last))
	}
	began := time.Now()
	for _, p := range parts {
		if !slices.Contains(wanted, p.name) {
			continue
		}
		fmt.Printf("--- %s\n", p.name)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, errors.Join(err, ctx.Err()))
		}
	}
	page := b.page(began)
	if *out == "" {
		_, err = os.Stdout.Write(page)
		return err
	}
	return os.WriteFile(*out, page, 0o644)
}
