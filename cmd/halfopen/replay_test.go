// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
	"github.com/halfopen/halfopen/collector/recording"
)

// recorded writes a recording of a zombie that dies, and returns its name.
func recorded(t *testing.T) string {
	t.Helper()
	time.Local = time.UTC
	name := filepath.Join(t.TempDir(), "recording")
	rules := collector.Options{}.Rules(conntest.HZ)
	r, err := recording.Create(name, recording.Header{Halfopen: "v0.2.0", Kernel: "6.12.1", Rules: recording.NewRules(&rules)}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	record := func(after time.Duration) *abi.Conn {
		c := conntest.KeepaliveZombie()
		c.At, c.Family, c.Laddr, c.Raddr, c.Lport, c.Rport = uint64(time.Hour+after), 2, [16]uint8{192, 168, 3, 4}, [16]uint8{192, 168, 3, 5}, 37024, 5432
		return c
	}
	whose := conn.Ownership{Process: &conn.Process{PID: 812, Comm: "<img>\x1b[31m\xff", FD: 9}, Cgroup: conn.ParseCgroup("/system.slice/payroll.service")}
	counts := new(abi.CensusCounts)
	counts.Sockets[abi.StateEstablished][abi.ClassActive] = 3
	r.Record(&conn.Fact{Kind: conn.FactCensus, At: noon, Census: &conn.Census{Began: noon, Counts: counts}})
	r.Record(&conn.Fact{Kind: conn.FactWatch, At: noon, Conn: record(0)})
	r.Record(&conn.Fact{Kind: conn.FactSweep, At: noon})
	r.Record(&conn.Fact{Kind: conn.FactOwners, At: noon, Owners: map[uint64]conn.Ownership{record(0).Cookie: whose}})
	r.Record(&conn.Fact{Kind: conn.FactEvent, At: noon.Add(time.Minute), Event: &abi.Event{
		Type: abi.EventDeath, Cause: abi.CauseKeepaliveTimeout, Err: 110, Conn: *record(time.Minute),
	}})
	return name
}

const replayed = `12:00:00.000  verdict       192.168.3.4:37024      192.168.3.5:5432       zombie, was active: 4 keepalive probes unanswered, silent for 2h3m; the kernel gives up in 7m30s  -
12:01:00.000  death         192.168.3.4:37024      192.168.3.5:5432       died: keepalive_timeout (ETIMEDOUT) after being a zombie for 1m, 6m30s before the forecast  <img>\x1b[31m\ufffd[812]

DIED                 CAUSE              VERDICT  ZOMBIE-FOR  UNANSWERED  SILENT  STATE        LOCAL              REMOTE            OWNER
2026-11-21 12:01:00  keepalive_timeout  zombie           1m           4    2h3m  established  192.168.3.4:37024  192.168.3.5:5432  <img>\x1b[31m\ufffd[812]

TOTAL  VERDICT
    2  active
`

func TestReplay(t *testing.T) {
	name := recorded(t)
	status, stdout, stderr := halfopen(t, "replay", name)
	if status != exitDone || stderr != "recorded by halfopen v0.2.0 on Linux 6.12.1\nended, since the recorder was stopped\n" {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	if want := strings.ReplaceAll(replayed, `\ufffd`, "\ufffd"); stdout != want {
		t.Errorf("stdout\n%s\nwant\n%s", stdout, want)
	}

	status, stdout, stderr = halfopen(t, "replay", "-o", "json", name)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	var told []string
	for _, line := range lines {
		var event struct {
			Event    string
			Verdicts map[string]int
			Deaths   map[string]int
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		told = append(told, event.Event)
		if event.Event == "counts" && (event.Verdicts["active"] != 2 || event.Deaths["keepalive_timeout"] != 1) {
			t.Errorf("counts %s", line)
		}
	}
	if got := fmt.Sprint(told); status != exitDone || stderr != "" || got != "[verdict death counts]" {
		t.Errorf("status %d, stderr %q, events %s", status, stderr, got)
	}
}

func TestReplayOfARecordingWithoutItsEnd(t *testing.T) {
	name := recorded(t)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text[:len(text)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := halfopen(t, "replay", name)
	if want := "halfopen: the end of " + name + " is missing, since the agent was killed or the disk was full: what there is is whole\n"; status != exitDone || !strings.HasSuffix(stderr, want) {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	if strings.Count(stdout, " verdict ") != 1 || strings.Contains(stdout, "death") || !strings.HasSuffix(stdout, "    1  zombie\n    2  active\n") {
		t.Errorf("stdout\n%s", stdout)
	}
	for name, want := range map[string]string{
		"replay_test.go": "halfopen: replay_test.go: this is not a recording of halfopen\n",
		"nothing":        "halfopen: open nothing: no such file or directory\n",
		".":              "halfopen: .: this is not a recording of halfopen\n",
	} {
		if status, stdout, stderr := halfopen(t, "replay", name); status != exitFailed || stdout != "" || stderr != want {
			t.Errorf("status %d, stdout %q, stderr %q, want %q", status, stdout, stderr, want)
		}
	}
}

func TestReplayMasks(t *testing.T) {
	name := recorded(t)
	masked := filepath.Join(t.TempDir(), "masked")
	status, stdout, stderr := halfopen(t, "replay", name, "--mask="+masked)
	if want := "5 facts written to " + masked + "; ports, process ids, user ids and times are as they were\n"; status != exitDone || stdout != "" || stderr != want {
		t.Errorf("status %d, stdout %q, stderr %q, want %q", status, stdout, stderr, want)
	}
	text, err := os.ReadFile(masked)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"192.168", "payroll", "system.slice", "img"} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s is left in\n%s", secret, text)
		}
	}
	_, before, _ := halfopen(t, "replay", name)
	if _, after, _ := halfopen(t, "replay", masked); strings.Count(after, "\n") != strings.Count(before, "\n") || !strings.Contains(after, "10.128.0.1:37024") {
		t.Errorf("the copy says\n%s\nthe original\n%s", after, before)
	}
	status, _, stderr = halfopen(t, "replay", name, "--mask="+name)
	if want := "halfopen: " + name + ": --mask: the copy cannot be the recording itself, try 'halfopen replay --help'\n"; status != exitUsage || stderr != want {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	status, _, stderr = halfopen(t, "replay", name, "--mask=replay_test.go")
	if status != exitFailed || !strings.Contains(stderr, "replay_test.go exists and is not a recording of halfopen") {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	if _, again, _ := halfopen(t, "replay", name); again != before {
		t.Error("the recording was changed")
	}
}

// histories are what kernels said about connections of the lab, as internal/histories has
// recorded it.
const histories = "../../collector/testdata/recordings"

func TestReplayOfHistories(t *testing.T) {
	time.Local = time.UTC
	names, err := filepath.Glob(histories + "/*.jsonl")
	if err != nil || len(names) == 0 {
		t.Fatalf("no recordings in %s, error %v", histories, err)
	}
	// What each has to end in, whatever its golden file says.
	ends := map[string]string{
		"keepalive":     "died: keepalive_timeout (ETIMEDOUT) after being a zombie for",
		"user-timeout":  "died: user_timeout during retransmit (ETIMEDOUT) after being a zombie for",
		"retransmit":    "died: retransmit_timeout (ETIMEDOUT) after being a zombie for",
		"recovery":      "active, was zombie: the peer has answered",
		"closed-window": "active, was stalled: the peer's window is open again",
		"orphan":        "died: orphan_timeout (ETIMEDOUT) after being a zombie for",
		"reset":         "died: reset_by_peer (ECONNRESET)",
	}
	seen := make(map[string][]string)
	for _, name := range names {
		base := strings.TrimSuffix(filepath.Base(name), ".jsonl")
		t.Run(base, func(t *testing.T) {
			kernel, history, _ := strings.Cut(base, "-")
			seen[history] = append(seen[history], kernel)
			status, got, stderr := halfopen(t, "replay", name)
			if status != exitDone || !strings.HasSuffix(stderr, "\nended, since the recorder was stopped\n") || !strings.Contains(stderr, "on Linux "+kernel) {
				t.Errorf("status %d, stderr %q", status, stderr)
			}
			if end := ends[history]; end == "" || strings.Count(got, end) != 1 {
				t.Errorf("it does not end with %q once:\n%s", end, got)
			}
			golden(t, strings.TrimSuffix(name, ".jsonl")+".golden", got)
		})
	}
	for history := range ends {
		for _, kernel := range []string{"5.10", "6.1", "6.12", "6.18", "7.2"} {
			if !slices.Contains(seen[history], kernel) {
				t.Errorf("there is no recording of %s on Linux %s", history, kernel)
			}
		}
	}
}
