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

// median is 0 for an empty sample.
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

// over returns the ratio of each pair.
func (s sample) over(t sample) sample {
	ratios := make(sample, min(len(s), len(t)))
	for i := range ratios {
		ratios[i] = s[i] / t[i]
	}
	return ratios
}

// between returns the 95 % confidence interval of the median, that is, of the median
// that infinitely many rounds would have. Its bounds are the samples at the ranks
// (n ± 1.96·√n)/2, as for the number of heads in n tosses of a coin. For fewer than six
// samples it returns their whole range, whose confidence is lower.
func (s sample) between() (low, high float64) {
	sorted := slices.Sorted(slices.Values(s))
	n := float64(len(s))
	rank := max(int((n-1.96*math.Sqrt(n))/2), 0)
	return sorted[rank], sorted[len(s)-1-rank]
}

// String returns the median and, for three samples or more, its confidence interval.
func (s sample) String() string {
	if len(s) < 3 {
		return significant(s.median())
	}
	low, high := s.between()
	return fmt.Sprintf("%s (%s to %s)", significant(s.median()), significant(low), significant(high))
}

// significant formats a ratio with at least three digits.
func significant(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.3f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// Whether a bar is met. It is unclear if the confidence interval contains the bar.
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

// measuredIn returns the measured figures of a document that page has written.
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

// page returns the text of docs/benchmarks.md.
func (b *bench) page(began time.Time) []byte {
	var p bytes.Buffer
	fmt.Fprint(&p, "<!-- Written by `make bench`; do not edit. -->\n\n# Benchmarks\n\n")
	fmt.Fprintf(&p, "%s: %s, kernel %s. The run took %s.\n", began.UTC().Format("2 January 2006"), machine(), kernel(), time.Since(began).Round(time.Second))
	if b.quick {
		fmt.Fprint(&p, "\n**This was a quick run, to try the program. It has too few rounds for reliable figures.**\n")
	}
	fmt.Fprint(&p, `
Most figures are ratios, because ratios depend less on the machine than times do. Each
round measures both sides of a ratio, one after the other; the figure is the median of
the rounds' ratios. Rounds differ, because the load uses the same cores and the host has
other guests. The brackets hold the 95 % confidence interval of the median. A bar is a
promise, not a test: nothing fails if it is not met. If the bar lies inside the brackets,
the run was too noisy to decide, and the column "met" says unclear. The
column "before" has the figure of the last run whose document was kept.

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
