// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestVersionIsThatOfPrometheusTools(t *testing.T) {
	for _, args := range []string{"version", "--version"} {
		status, stdout, stderr := halfopen(t, args)
		if status != exitDone || stderr != "" || !strings.HasPrefix(stdout, "halfopen, version ") || !strings.Contains(stdout, "go version:") {
			t.Errorf("%s: status %d, stderr %q, stdout\n%s", args, status, stderr, stdout)
		}
		for line := range strings.Lines(stdout) {
			if f := strings.Fields(line); strings.HasSuffix(f[len(f)-1], ":") || f[len(f)-1] == "unknown" {
				t.Errorf("%s: says nothing: %q", args, line)
			}
		}
	}
}
