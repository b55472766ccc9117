// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

var aMoment = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// enterError returns the error of a census that could not enter a namespace.
func enterError(err error) error { return fmt.Errorf("enter network namespace 4026532317: %w", err) }

func TestReasonsFollowFromTheSituation(t *testing.T) {
	const most = "!" // after a reason: most of the node is not seen
	census := func(results ...bpf.CensusResult) situation {
		s := situation{now: aMoment}
		for i := range results {
			s.census(&results[i])
		}
		return s
	}
	ago := func(d time.Duration) time.Time { return aMoment.Add(-d) }
	for _, tt := range []struct {
		name      string
		situation situation
		want      string
	}{
		{"nothing is known yet", situation{}, ""},
		{"every namespace was visited", census(bpf.CensusResult{Namespaces: 20}), ""},
		{"a few namespaces are refused", census(bpf.CensusResult{Namespaces: 20, Unvisited: 3, Refused: 3, Err: enterError(unix.EPERM)}), "namespaces_refused"},
		{"half of them are refused", census(bpf.CensusResult{Namespaces: 20, Unvisited: 10, Refused: 10, Err: enterError(unix.EACCES)}), "namespaces_refused"},
		{"most of them are refused", census(bpf.CensusResult{Namespaces: 20, Unvisited: 19, Refused: 19, Err: enterError(unix.EACCES)}), "namespaces_refused!"},
		{"they are no longer refused", census(bpf.CensusResult{Namespaces: 20, Unvisited: 19, Refused: 19, Err: enterError(unix.EPERM)}, bpf.CensusResult{Namespaces: 20}), ""},
		{"one went away during the census", census(bpf.CensusResult{Namespaces: 20, Unvisited: 1, Hidden: 1}), ""},
		{"another went away during the next", census(bpf.CensusResult{Namespaces: 20}, bpf.CensusResult{Namespaces: 20, Unvisited: 1, Hidden: 1}), ""},
		{"two censuses find a namespace that nothing leads into", census(bpf.CensusResult{Namespaces: 20, Unvisited: 2, Hidden: 2}, bpf.CensusResult{Namespaces: 20, Unvisited: 1, Hidden: 1}), "namespaces_hidden"},
		{"nothing leads into most of them", census(bpf.CensusResult{Namespaces: 5, Unvisited: 4, Hidden: 4}, bpf.CensusResult{Namespaces: 5, Unvisited: 3, Hidden: 3}), "namespaces_hidden!"},
		{"some are refused, nothing leads into others: together most", census(bpf.CensusResult{Namespaces: 5, Hidden: 1}, bpf.CensusResult{Namespaces: 5, Hidden: 1, Refused: 2, Err: enterError(unix.EPERM)}), "namespaces_refused! namespaces_hidden!"},
		{"a hash table takes too long", census(bpf.CensusResult{Namespaces: 5, OwnTables: []uint32{7, 8}, Unwalked: []uint32{8}, Late: 1}), "tables_late"},
		{"a census goes on with a hash table later", census(bpf.CensusResult{Namespaces: 5, OwnTables: []uint32{7, 8}, Unwalked: []uint32{8}}), ""},
		{"a list left out a hash table just now", situation{now: aMoment, unlisted: 1, unlistedAt: ago(time.Second)}, "tables_late"},
		{"a list left out a hash table long ago", situation{now: aMoment, unlisted: 1, unlistedAt: ago(time.Hour)}, ""},
		{"this host drops too much", situation{dropsErr: errors.New("this host drops 200000 packets a second")}, "drops_unwatched"},
		{"sockets of a namespace get no cookies", census(bpf.CensusResult{Namespaces: 20, Err: errors.New("give sockets cookies: no memory")}), "pass_fails"},
		{"a pid namespace of its own that holds most", situation{environment: environment{privatePIDs: true, threads: 60, allThreads: 100}}, "processes_hidden"},
		{"a pid namespace of its own that holds little", situation{environment: environment{privatePIDs: true, threads: 9, allThreads: 100}}, "processes_hidden!"},
		{"a pid namespace of its own on a machine that does not say more", situation{environment: environment{privatePIDs: true}}, "processes_hidden"},
		{"descriptors are refused", situation{environment: environment{descriptorsErr: unix.EPERM}}, "descriptors_refused"},
		{"control groups are refused", situation{environment: environment{cgroupsErr: unix.EPERM}}, "cgroups_refused"},
		{"no cookies", situation{environment: environment{cookiesErr: unix.EPERM}}, "cookies_missing"},
		{"a pass is under way", situation{now: aMoment, passes: [passes]passState{passCensus: {began: ago(29 * time.Second)}}}, ""},
		{"a pass is under way that always takes so long", situation{now: aMoment, passes: [passes]passState{passWatch: {began: ago(time.Minute), took: 7 * time.Second}}}, ""},
		{"the first census hangs", situation{now: aMoment, passes: [passes]passState{passCensus: {began: ago(31 * time.Second)}}}, "pass_hangs!"},
		{"the search for owners hangs", situation{now: aMoment, passes: [passes]passState{passOwners: {began: ago(2 * time.Minute), took: 7 * time.Second}}}, "pass_hangs!"},
		{"the search for sockets without a cookie hangs", situation{now: aMoment, environment: environment{searchHangs: ago(time.Minute)}}, "pass_hangs"},
		{"a pass fails", situation{passes: [passes]passState{passWatch: {failed: 1, err: unix.EMFILE}}}, "pass_fails"},
		{"a pass keeps failing", situation{passes: [passes]passState{passWatch: {failed: 2, err: unix.EMFILE}}}, "pass_fails!"},
		{"several hold", situation{environment: environment{privatePIDs: true, allThreads: 100, cgroupsErr: unix.EPERM}}, "processes_hidden! cgroups_refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, f := range tt.situation.findings() {
				name := f.Reason.String()
				if f.Most {
					name += most
				}
				if strings.ContainsAny(f.Detail, "\n") || f.Detail == "" {
					t.Errorf("%s: its detail is %q", name, f.Detail)
				}
				got = append(got, name)
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("%q, want %q: %+v", got, tt.want, tt.situation.findings())
			}
		})
	}
}

func TestDetailHasTheNumbersAndTheError(t *testing.T) {
	f := situation{}
	f.census(&bpf.CensusResult{Namespaces: 20, Unvisited: 19, Refused: 19, Err: enterError(unix.EPERM)})
	f.privatePIDs, f.threads, f.allThreads = true, 7, 834
	want := []string{
		"19 of 20 network namespaces cannot be entered: enter network namespace 4026532317: operation not permitted",
		"the agent is in a pid namespace of its own, with 7 of the machine's 834 threads",
	}
	var got []string
	for _, found := range f.findings() {
		got = append(got, found.Detail)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A reason is logged when it begins and when it ends, however often it holds between,
// and one that comes and goes with every pass is one.
func TestEachReasonIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	d := degradation{log: slog.New(slog.NewTextHandler(&log, nil))}
	now := aMoment
	lines := func() (begun, ended int) {
		return strings.Count(log.String(), "Not everything is seen"), strings.Count(log.String(), "seen again")
	}
	expect := func(begun, ended, holding int) {
		t.Helper()
		if b, e := lines(); b != begun || e != ended || len(d.findings()) != holding {
			t.Fatalf("%d lines of a begin and %d of an end, %d reasons hold; want %d, %d and %d\n%s", b, e, len(d.findings()), begun, ended, holding, &log)
		}
	}
	take := func(p pass, err error) {
		d.begin(p, now)
		now = now.Add(time.Second)
		d.end(p, err, now)
	}

	expect(0, 0, 0)
	for range 20 {
		take(passWatch, unix.EMFILE)
	}
	expect(1, 0, 1)
	for range 20 { // it fails every other time
		take(passWatch, nil)
		take(passWatch, unix.EMFILE)
	}
	expect(1, 0, 1)
	for range 12 {
		take(passWatch, nil)
	}
	expect(1, 1, 0)
	for range 3 {
		d.change(now, func(s *situation) { s.cgroupsErr = unix.EPERM })
	}
	expect(2, 1, 1)
	if text := log.String(); strings.Count(text, "level=WARN") != 2 ||
		!strings.Contains(text, `reason=cgroups_refused lost="`+ReasonCgroupsRefused.Lost()+`"`) || !strings.Contains(text, ReasonCgroupsRefused.Mend()) {
		t.Errorf("the log lacks what is lost or what to do:\n%s", text)
	}

	// A pass that hangs does not report anything: only time passes.
	d.begin(passCensus, now)
	d.change(now.Add(20*time.Second), func(*situation) {})
	expect(2, 1, 1)
	d.change(now.Add(40*time.Second), func(*situation) {})
	expect(3, 1, 2)
	now = now.Add(50 * time.Second)
	d.end(passCensus, nil, now)
	d.change(now.Add(endsAfter), func(*situation) {})
	expect(3, 2, 1)
}

// The alert leads to the runbook.
func TestRunbookHasEveryReason(t *testing.T) {
	page, err := os.ReadFile("../docs/runbooks/HalfopenDegraded.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]bool)
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `") {
			rows[strings.TrimSpace(line)] = true
		}
	}
	codes := make(map[string]bool)
	for r := range Reason(Reasons) {
		if codes[r.String()] || r.String() == "" || r.Lost() == "" || r.Mend() == "" {
			t.Errorf("reason %d (%q) has no code of its own, or no text of what is lost or what to do", r, r)
		}
		codes[r.String()] = true
		row := fmt.Sprintf("| `%s` | %s | %s |", r, r.Lost(), r.Mend())
		if !rows[row] {
			t.Errorf("the runbook has no line\n%s", row)
		}
		delete(rows, row)
	}
	if len(rows) > 0 {
		t.Errorf("the runbook has lines that are not reasons: %q", slices.Collect(maps.Keys(rows)))
	}
}

func TestPassThatHangsOrFailsIsAReason(t *testing.T) {
	c := &Collector{degraded: degradation{log: slog.New(slog.DiscardHandler)}}
	reasons := func(after time.Duration) string {
		c.degraded.change(time.Now().Add(after), func(*situation) {})
		var codes []string
		for _, f := range c.Degraded() {
			codes = append(codes, f.Reason.String())
		}
		return strings.Join(codes, " ")
	}
	began, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		c.runPass(t.Context(), passCensus, func() error {
			close(began)
			<-release
			return nil
		})
	}()
	<-began
	if got := reasons(0); got != "" {
		t.Errorf("%q hold as it begins", got)
	}
	if got := reasons(2 * hangsAfter); got != "pass_hangs" {
		t.Errorf("%q hold while it hangs", got)
	}
	close(release)
	<-ended
	if got := reasons(2*hangsAfter + endsAfter); got != "" {
		t.Errorf("%q hold after it has ended", got)
	}

	fail := func() error { return unix.EMFILE }
	c.runPass(t.Context(), passWatch, fail)
	if got := reasons(0); got != "pass_fails" || c.failed.Load() != 1 {
		t.Errorf("%q hold, %d passes failed", got, c.failed.Load())
	}
	c.runPass(t.Context(), passWatch, func() error { return nil })
	if got := reasons(endsAfter); got != "" {
		t.Errorf("%q hold after a pass that worked", got)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	c.runPass(over, passWatch, fail)
	if got := reasons(0); got != "" || c.failed.Load() != 1 {
		t.Errorf("%q hold, %d passes failed after the context ended", got, c.failed.Load())
	}
}
