// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/lab"
)

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	needRoot(t)
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestDemoFindsItsZombie(t *testing.T) {
	needRoot(t)
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), []string{"demo"}, &stdout, &stderr); status != exitDone || stderr.Len() > 0 {
		t.Errorf("status %d, stderr %q", status, stderr.String())
	}
	// The story, in order.
	rest := stdout.String()
	for _, want := range []string{
		`  active +0 .* never +established +10\.77\.0\.2:5432 +10\.77\.0\.1:\d+\n`,
		`\d\.\ds  The cable is cut`,
		`s  keepalive probe 1 in a row, silent for 2s\n`,
		`s  keepalive probe 3 in a row, silent for [67]`,
		`1[0-3]\.\ds  zombie, was suspect: [456] keepalive probes unanswered, silent for 10s\n        The kernel will not notice before (1[789]|20)\.\ds\.\n`,
		`  zombie +[456] +1\ds +1\ds +[78]\S* +established .*\n`,
		`(1[789]|2[01])\.\ds  died: keepalive_timeout \(ETIMEDOUT\) after being a zombie for [78].*, (as|\d+ms after the) forecast\n`,
	} {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no %s in\n%s", want, stdout.String())
		}
		rest = rest[at[1]:]
	}
	for line := range strings.Lines(stdout.String()) {
		if n := columns(strings.TrimSuffix(line, "\n")); n > demoWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// On a busy node a look at all its connections takes seconds, in which the
// client's probes are answered.
func TestDemoTellsInOrder(t *testing.T) {
	l := newLab(t)
	began := time.Now()
	var b bytes.Buffer
	d := &demo{w: &b, lab: l, began: began, cut: began.Add(10 * time.Second)} // it has no collector, and so cannot look
	notices := make(chan conn.Notice, 9)
	notice := func(after time.Duration, n conn.Notice) {
		n.At, n.Connection.At, n.Connection.Netns = began.Add(after), began.Add(after), l.Client.Inode()
		n.Connection.State, n.Connection.Evidence, n.Connection.Unanswered = conn.Established, conn.EvidenceKeepalive, 1
		notices <- n
	}
	notice(2*time.Second, conn.Notice{Kind: conn.NoticeSolicitation})
	notice(8*time.Second, conn.Notice{Kind: conn.NoticeVerdict, Connection: conn.Connection{Verdict: conn.Active}})
	notice(12*time.Second, conn.Notice{Kind: conn.NoticeSolicitation})
	notice(20*time.Second, conn.Notice{Kind: conn.NoticeVerdict, Connection: conn.Connection{Verdict: conn.Zombie}})
	notice(22*time.Second, conn.Notice{Kind: conn.NoticeDeath, Death: &conn.Death{Cause: conn.CauseKeepaliveTimeout}})
	if err := d.watch(t.Context(), notices, func() uint64 { return 0 }); err != nil {
		t.Fatal(err)
	}
	var times []string
	for _, m := range regexp.MustCompile(`(?m)^ *([0-9.]+)s  `).FindAllStringSubmatch(b.String(), -1) {
		times = append(times, m[1])
	}
	if got, want := strings.Join(times, " "), "12.0 20.0 22.0"; got != want {
		t.Errorf("told of %s, expected %s:\n%s", got, want, b.String())
	}
	if !strings.Contains(b.String(), "halfopen sees the zombie:") {
		t.Errorf("the zombie is not shown:\n%s", b.String())
	}
}

func TestDemoStopsWhenNobodyCanSeeIt(t *testing.T) {
	needRoot(t)
	began := time.Now()
	var stderr bytes.Buffer
	status := run(t.Context(), []string{"demo"}, full{}, &stderr)
	if want := "halfopen: no space left on device\n"; status != exitFailed || stderr.String() != want {
		t.Errorf("status %d, stderr %q, want %q", status, stderr.String(), want)
	}
	if took := time.Since(began); took > 15*time.Second { // the whole demo takes 20
		t.Errorf("it went on for %s", took)
	}
}

func TestDemoCanBeInterrupted(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(2*time.Second, cancel)
	var stdout, stderr bytes.Buffer
	status := run(ctx, []string{"demo"}, &stdout, &stderr)
	if want := "halfopen: interrupted before it was done\n"; status != exitFailed || stderr.String() != want {
		t.Errorf("status %d, stderr %q, want %q", status, stderr.String(), want)
	}
}

func TestDemoSaysThatNoticesWereLost(t *testing.T) {
	l := newLab(t)
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		d := &demo{w: &b, lab: l, began: time.Now(), cut: time.Now()}
		err := d.watch(t.Context(), make(chan conn.Notice), func() uint64 { return 3 })
		if err == nil || !strings.Contains(err.Error(), "3 events of this node were lost") {
			t.Errorf("the demo ended with %v", err)
		}
		if n := strings.Count(b.String(), "3 events of this node not shown"); n != 1 {
			t.Errorf("the loss is in %d lines, want one:\n%s", n, b.String())
		}
	})
}
