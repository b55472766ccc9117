// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

var benchLine = regexp.MustCompile(`(?m)^Benchmark(\w+)\S*\s+\d+\s+([0-9.]+) ns/op.*\s([0-9]+) allocs/op$`)

// events runs the Go benchmarks that an event passes through: its decoding and the tracker.
func (b *bench) events(ctx context.Context) error {
	rounds := b.rounds(5)
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(ReadEvent|Event)$", "-benchmem",
		"-cpu", "1", "-count", strconv.Itoa(rounds), "./bpf", "./collector/conn").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	nanoseconds := make(map[string]sample)
	allocs := 0
	for _, m := range benchLine.FindAllStringSubmatch(string(out), -1) {
		ns, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(m[3])
		if err != nil {
			return err
		}
		nanoseconds[m[1]] = append(nanoseconds[m[1]], ns)
		allocs = max(allocs, n)
	}
	read, update := nanoseconds["ReadEvent"], nanoseconds["Event"]
	if len(read) != rounds || len(update) != rounds {
		return fmt.Errorf("want %d results of each benchmark: %s", rounds, out)
	}
	rate := 1e9 / (read.median() + update.median())
	b.add(row{
		what: "ring-buffer decode and table update", bar: "≥ 1,000,000 events/s on one core, 0 allocations",
		measured: fmt.Sprintf("%.2f million/s, %d allocations", rate/1e6, allocs), met: met(rate >= 1e6 && allocs == 0),
		how: fmt.Sprintf("Go benchmarks, median of %d: %.0f ns to decode an event, %.0f ns to update the table", rounds, read.median(), update.median()),
	})
	return nil
}
