// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one thing measured several times.
type sample []float64

// median is 0 of nothing.
func (s sample) median() float64 { return s.quantile(0.5) }

func (s sample) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// over is the ratio of each pair.
func (s sample) over(t sample) sample {
	ratios := make(sample, min(len(s), len(t)))
	for i := range ratios {
		ratios[i] = s[i] / t[i]
	}
	return ratios
}

// between is where the median of ever more rounds would be, with a confidence of
// 95 % (of all that there are, where they are fewer than six): so many ranks up and
// down as heads and tails differ.
func (s sample) between() (low, high float64) {
	sorted := slices.Sorted(slices.Values(s))
	n := float64(len(s))
	rank := max(int((n-1.96*math.Sqrt(n))/2), 0)
	return sorted[rank], sorted[len(s)-1-rank]
}

// String is the median and, where there are several, how certain it is.
func (s sample) String() string {
	if len(s) < 3 {
		return significant(s.median())
	}
	low, high := s.between()
	return fmt.Sprintf("%s (%s to %s)", significant(s.median()), significant(low), significant(high))
}

// significant writes three digits of a ratio.
func significant(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.3f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// What there is to say of a bar. A run that is not certain on which side of it
// the median is cannot tell.
const (
	yes     = "yes"
	no      = "**no**"
	unclear = "unclear"
)

func met(is bool) string {
	if is {
		return yes
	}
	return no
}

func (s sample) atLeast(bar float64) string { return s.beside(bar, s.median() >= bar) }
func (s sample) atMost(bar float64) string  { return s.beside(bar, s.median() <= bar) }

func (s sample) beside(bar float64, is bool) string {
	if len(s) >= 3 {
		if low, high := s.between(); low < bar && bar < high {
			return unclear
		}
	}
	return met(is)
}

// rowKey names a row: what it measures, and the number of rows before it that say the same.
type rowKey struct {
	what  string
	above int
}

func keyOf(above []row, what string) rowKey {
	k := rowKey{what: what}
	for _, r := range above {
		if r.what == what {
			k.above++
		}
	}
	return k
}

// measuredIn returns what a document that page has written says was measured.
func measuredIn(document string) map[rowKey]string {
	figures := make(map[rowKey]string)
	var rows []row
	for line := range strings.Lines(document) {
		cells := strings.Split(line, " | ")
		if what, ok := strings.CutPrefix(cells[0], "| "); ok && len(cells) >= 5 {
			figures[keyOf(rows, what)] = cells[2]
			rows = append(rows, row{what: what})
		}
	}
	return figures
}

// page is the document.
func (b *bench) page(began time.Time) []byte {
	var p bytes.Buffer
	fmt.Fprint(&p, "<!-- Written by `make bench`; do not edit. -->\n\n# Benchmarks\n\n")
	fmt.Fprintf(&p, "%s: %s, kernel %s. The run took %s.\n", began.UTC().Format("2 January 2006"), machine(), kernel(), time.Since(began).Round(time.Second))
	if b.quick {
		fmt.Fprint(&p, "\n**A quick run, to try the program: too few rounds to mean much.**\n")
	}
	fmt.Fprint(&p, `
Ratios are what lasts: both sides of one are measured in turn, in this run, and
the figure is the median of the rounds' ratios. The load runs on the same cores,
and other guests on the same host, so that rounds differ; in brackets is where the
median of ever more of them would be, with 95 % confidence. A bar is a promise, not
a test: nothing fails by it. Where it is inside the brackets the run was too noisy
to tell, and says unclear. Before is what the last run that was kept has measured.

| what | bar | measured | met | before | how |
|---|---|---|---|---|---|
`)
	for i, r := range b.rows {
		fmt.Fprintf(&p, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.bar, r.measured, r.met, b.before[keyOf(b.rows[:i], r.what)], r.how)
	}
	p.Write(b.extra.Bytes())
	return p.Bytes()
}

func machine() string {
	model := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return model
	}
	return fmt.Sprintf("%d cores (%s), %d GiB", runtime.NumCPU(), model, (si.Totalram*uint64(si.Unit)+1<<29)>>30)
}

func kernel() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(uts.Release[:])
}
