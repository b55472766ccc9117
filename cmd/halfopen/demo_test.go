// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestDemoFindsItsZombie(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), []string{"demo"}, &stdout, &stderr); status != exitDone || stderr.Len() > 0 {
		t.Errorf("status %d, stderr %q", status, stderr.String())
	}
	// The story, in order.
	rest := stdout.String()
	for _, want := range []string{
		`  active +0 .* established +10\.77\.0\.2:5432 .* off\n`,
		`\d\.\ds  The cable is cut`,
		`s  keepalive probe 1 in a row, silent for 2s\n`,
		`s  keepalive probe 3 in a row, silent for [67]`,
		`10\.\ds  zombie, was suspect: [45] keepalive probes unanswered, silent for 10s\n`,
		`  zombie +[45] .* 2s/2s×8\n  active +0 `,
		`1[78]\.\ds  died: keepalive_timeout \(ETIMEDOUT\) after being a zombie for [78]`,
	} {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no %s in\n%s", want, stdout.String())
		}
		rest = rest[at[1]:]
	}
	for line := range strings.Lines(stdout.String()) {
		if n := columns(strings.TrimSuffix(line, "\n")); n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestDemoCanBeInterrupted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(2*time.Second, cancel)
	var stdout, stderr bytes.Buffer
	status := run(ctx, []string{"demo"}, &stdout, &stderr)
	if want := "halfopen: interrupted before it was done\n"; status != exitFailed || stderr.String() != want {
		t.Errorf("status %d, stderr %q, want %q", status, stderr.String(), want)
	}
}
