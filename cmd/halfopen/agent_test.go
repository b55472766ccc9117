// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
)

func TestAgentHasTheFlagsOfTheContract(t *testing.T) {
	_, stdout, _ := halfopen(t, "agent", "--help")
	for _, flag := range []string{
		"--idle-after=5m", "--stalled-after=10s", "--unread-after=30s", "--zombie-unanswered=3", "--zombie-silence=10s",
		"--middlebox-timeout=350s", "--census-interval=15s", "--census-cpu=1%", "--web.listen-address=127.0.0.1:9839",
		`--web.config.file=""`, "--log.level=info", "--log.format=logfmt",
	} {
		if !strings.Contains(stdout, " "+flag+" ") {
			t.Errorf("no %s in\n%s", flag, stdout)
		}
	}
}

func TestUnreadAfterFollowsAShorterIdleAfter(t *testing.T) {
	for line, want := range map[string]time.Duration{
		"":                                   30 * time.Second,
		"--idle-after=1h":                    30 * time.Second,
		"--idle-after=5s":                    5 * time.Second,
		"--unread-after=1m":                  time.Minute,
		"--idle-after=5s --unread-after=30s": 30 * time.Second,
	} {
		var given thresholds
		app := kingpin.New("halfopen", "")
		given.verdictFlags(app.Command("agent", ""))
		if _, err := app.Parse(append([]string{"agent"}, strings.Fields(line)...)); err != nil {
			t.Fatal(err)
		}
		if got := given.options(nil).UnreadAfter; got != want {
			t.Errorf("with %q it is %v, expected %v", line, got, want)
		}
	}
}
