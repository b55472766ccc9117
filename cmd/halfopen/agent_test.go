// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
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
