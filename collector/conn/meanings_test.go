// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"os"
	"strings"
	"testing"
)

// The README says of each verdict and each risk what the page and docs/metrics.md do.
func TestReadmeHasTheMeanings(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if name, meaning, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` | "); ok {
			rows[name] = strings.ReplaceAll(strings.TrimSuffix(meaning, " |\n"), "`", "")
		}
	}
	for v := range Verdict(Verdicts) {
		if rows[v.String()] != v.Meaning() {
			t.Errorf("README.md says of %v %q, not %q", v, rows[v.String()], v.Meaning())
		}
	}
	for r := range Risk(Risks) {
		if rows[r.String()] != r.Meaning() {
			t.Errorf("README.md says of %v %q, not %q", r, rows[r.String()], r.Meaning())
		}
	}
}

func TestEveryEvidenceHasANoun(t *testing.T) {
	for name, want := range map[string]string{"keepalive": "keepalive probe", "retransmit": "retransmission", "window_probe": "window probe", "receive_queue": "receive queue", "": "solicitation", "new": "solicitation"} {
		e, err := ParseEvidence(name)
		if got := e.Solicitation(); got != want || (err == nil) != (want != "solicitation") {
			t.Errorf("%q is a %s, want %s: %v", name, got, want, err)
		}
	}
	for e, name := range evidenceNames {
		if (solicitations[e] == "solicitation") != (name == "") {
			t.Errorf("%s is a %s", name, solicitations[e])
		}
	}
}
