// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
	"github.com/halfopen/halfopen/internal/pagetest"
)

// newPage loads those modules of the page that need no DOM, as the agent serves them.
func newPage(t *testing.T) *pagetest.Page {
	t.Helper()
	h := newHandler(t, &fakeSource{})
	return pagetest.Load(t, func(path string) ([]byte, error) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusOK {
			return nil, fmt.Errorf("GET %s: status %d", path, w.Code)
		}
		return w.Body.Bytes(), nil
	}, "agentclock", "columns", "deaths", "figures", "filters", "format", "names", "owners", "rows", "storytext", "stream", "timelinemodel")
}

const day = 24 * time.Hour

func TestPageWritesAgesAsTheCommandLineDoes(t *testing.T) {
	page := newPage(t)
	for _, d := range []time.Duration{
		0, time.Microsecond, time.Millisecond, 450 * time.Millisecond, time.Second - 1, time.Second, 1001 * time.Millisecond,
		2449 * time.Millisecond, 4035 * time.Millisecond, 9899 * time.Millisecond, 10*time.Second - 1, 10 * time.Second, 12900 * time.Millisecond,
		time.Minute - 1, time.Minute, 2*time.Minute + 30*time.Second, 10*time.Minute - 1, 10 * time.Minute, 12*time.Minute + 59*time.Second,
		time.Hour - 1, time.Hour, 2 * time.Hour, 2*time.Hour + 11*time.Minute + 15*time.Second, day - time.Millisecond, day,
		3*day + 4*time.Hour + 59*time.Minute, 100*day - time.Second, 100 * day, 400*day + time.Hour,
	} {
		want := humanize.Age(d)
		if d > 0 && d < time.Millisecond {
			want = "0s" // the API rounds to milliseconds
		}
		if got := pagetest.Eval[string](page, "format.age(%s)", d.Seconds()); got != want {
			t.Errorf("age of %v is %s, want %s", d, got, want)
		}
		if got, want := pagetest.Eval[string](page, "format.wholeAge(%s)", d.Seconds()), humanize.Age(d.Truncate(time.Second)); got != want {
			t.Errorf("whole age of %v is %s, want %s", d, got, want)
		}
	}
	for ms := range int64(20_000) { // as a float each may be a little less than it is
		d := time.Duration(ms) * time.Millisecond
		if got, want := pagetest.Eval[string](page, "format.age(%s)", d.Seconds()), humanize.Age(d); got != want {
			t.Fatalf("age of %v is %s, want %s", d, got, want)
		}
	}
	if got := pagetest.Eval[string](page, "format.age(-3)"); got != "0s" {
		t.Errorf("an age of the future is %s", got)
	}
}

func TestPageWritesSettingsAsTheCommandLineDoes(t *testing.T) {
	page := newPage(t)
	for _, d := range []time.Duration{0, time.Millisecond, 1500 * time.Millisecond, 75 * time.Second, 5 * time.Minute, 90 * time.Minute, 2 * time.Hour, math.MaxUint32 * time.Millisecond} {
		if got, want := pagetest.Eval[string](page, "format.setting(%s)", d.Milliseconds()), humanize.Setting(d); got != want {
			t.Errorf("a setting of %v is %s, want %s", d, got, want)
		}
	}
}

func TestPageFormats(t *testing.T) {
	page := newPage(t)
	local := func(day, hour int) int64 {
		return time.Date(2025, time.November, day, hour, 5, 9, 0, time.Local).UnixMilli()
	}
	for _, tt := range []struct{ name, expression, want string }{
		{"a number without a comma", `format.count(999)`, "999"},
		{"a number with commas", `format.count(1234567)`, "1,234,567"},
		{"one thing", `format.plural(1, 'probe')`, "1 probe"},
		{"no things", `format.plural(0, 'probe')`, "0 probes"},
		{"many things", `format.plural(12000, 'retry', 'retries')`, "12,000 retries"},
		{"a name of the API", `format.spaced('window_probe_timeout')`, "window probe timeout"},
		{"bytes", `format.bytes(1023)`, "1023 B"},
		{"kibibytes", `format.bytes(1536)`, "1.5 KiB"},
		{"mebibytes", `format.bytes(3 * 1024 * 1024)`, "3.0 MiB"},
		{"a time today", fmt.Sprintf(`format.clock(%d, %d)`, local(3, 0), local(3, 23)), "00:05:09"},
		{"a time of another day", fmt.Sprintf(`format.clock(%d, %d)`, local(2, 23), local(3, 0)), "2 Nov 23:05:09"},
	} {
		if got := pagetest.Eval[string](page, tt.expression); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// hostileNames are what processes and units may call themselves, and how they are shown.
var hostileNames = []struct{ name, shown string }{
	{"nginx: worker", "nginx: worker"},
	{"grüße 世界", "grüße 世界"},
	{"<img src=x>'\u202e", `<img src=x>'\u202e`},
	{"a\tb\nc\x1b[2J", `a\tb\nc\x1b[2J`},
	{`back\slash`, `back\\slash`},
	{"e\u0301", `e\u0301`},                            // combines with the letter before
	{"\u200b\ufeff\u00ad", `\u200b\ufeff\u00ad`},      // take no room
	{"\u3164\u115f\uffa0", `\u3164\u115f\uffa0`},      // letters that are not seen
	{"\ufe0f\U000e0101", `\ufe0f\U000e0101`},          // choose a variant of the character before
	{"\u2028\u00a0\ufffd", `\u2028\u00a0` + "\ufffd"}, // separators; a byte that was not UTF-8
	{"\U0001f600", "\U0001f600"},
}

func TestPageShowsHostileNamesAsText(t *testing.T) {
	page := newPage(t)
	for _, tt := range hostileNames {
		if got := pagetest.Eval[string](page, "format.printable(%s)", tt.name); got != tt.shown {
			t.Errorf("%q is shown as %q, want %q", tt.name, got, tt.shown)
		}
		row := map[string]any{"pid": 7, "comm": tt.name, "group": tt.name}
		if got, want := pagetest.Eval[[]string](page, "owners.ownerParts(%s)", row), []string{tt.shown + "[7]", tt.shown}; got[0] != want[0] || got[1] != want[1] {
			t.Errorf("%q owns as %q, want %q", tt.name, got, want)
		}
	}
}

// The page knows every name of the collector's, and what Go says of it.
func TestPageHasTheNamesOfTheCollector(t *testing.T) {
	page := newPage(t)
	checkVerdictNames(t, pagetest.Eval[[]nameEntry](page, "names.verdicts"))
	checkRiskNames(t, pagetest.Eval[[]nameEntry](page, "names.risks"))
	checkCauseNames(t, pagetest.Eval[[]nameEntry](page, "names.causes"))
	for _, e := range []conn.Evidence{conn.EvidenceKeepalive, conn.EvidenceRetransmit, conn.EvidenceWindowProbe} {
		if got, want := pagetest.Eval[string](page, "storytext.solicitation(%s)", e.String()), e.Solicitation(); got != want || want == "solicitation" {
			t.Errorf("%v is %q, want %q", e, got, want)
		}
	}
}

// nameEntry is a verdict, a risk or a cause, as the page knows it.
type nameEntry struct {
	Name, Meaning             string
	Trouble, Timeout, Orderly bool
}

func checkVerdictNames(t *testing.T, verdicts []nameEntry) {
	t.Helper()
	if len(verdicts) != conn.Verdicts || verdicts[0].Name != "zombie" {
		t.Errorf("verdicts are %v, want %d, the worst first", verdicts, conn.Verdicts)
	}
	for _, v := range verdicts {
		verdict, err := conn.ParseVerdict(v.Name)
		if err != nil || v.Meaning == "" || v.Meaning != verdict.Meaning() || v.Trouble != slices.Contains([]string{"zombie", "stuck", "blocked", "suspect", "stalled", "unread"}, v.Name) {
			t.Errorf("%+v: %v", v, err)
		}
	}
}

func checkRiskNames(t *testing.T, risks []nameEntry) {
	t.Helper()
	if len(risks) != conn.Risks {
		t.Errorf("%d risks, want %d", len(risks), conn.Risks)
	}
	for _, r := range risks {
		risk, err := conn.ParseRisk(r.Name)
		if err != nil || r.Meaning == "" || r.Meaning != risk.Meaning() {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func checkCauseNames(t *testing.T, causes []nameEntry) {
	t.Helper()
	if len(causes) != conn.Causes {
		t.Errorf("%d causes, want %d", len(causes), conn.Causes)
	}
	for _, c := range causes {
		if _, err := conn.ParseCause(c.Name); err != nil || c.Timeout != strings.HasSuffix(c.Name, "_timeout") || c.Orderly != (c.Name == "closed") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
