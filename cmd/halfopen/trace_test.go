// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector"
)

// notice is one about the first of conns.
func notice(kind collector.NoticeKind, change func(*collector.Notice)) *collector.Notice {
	n := &collector.Notice{Kind: kind, At: noon, Connection: conns[0]}
	if change != nil {
		change(n)
	}
	if kind == collector.NoticeDeath {
		n.Death.Connection = n.Connection
	}
	return n
}

func TestWords(t *testing.T) {
	for _, tt := range []struct {
		name string
		n    *collector.Notice
		want string
	}{
		{"a probe", notice(collector.NoticeSolicitation, nil), "keepalive probe 3 in a row, silent for 12s"},
		{"a first probe makes no suspect yet", notice(collector.NoticeSolicitation, func(n *collector.Notice) {
			n.Connection.Verdict, n.Connection.Evidence, n.Connection.Unanswered = collector.Active, collector.NoEvidence, 1
		}), "keepalive probe 1 in a row, silent for 12s"},
		{"a retransmission", notice(collector.NoticeSolicitation, func(n *collector.Notice) {
			n.Connection.Evidence = collector.EvidenceRetransmit
		}), "retransmission 3 in a row, silent for 12s"},
		{"a SYN again", notice(collector.NoticeSolicitation, func(n *collector.Notice) {
			n.Connection.Evidence, n.Connection.Silent = collector.EvidenceRetransmit, -1
		}), "retransmission 3 in a row, never heard from the peer"},
		{"a zombie", notice(collector.NoticeVerdict, func(n *collector.Notice) { n.From = collector.Suspect }),
			"zombie, was suspect: 3 keepalive probes unanswered, silent for 12s"},
		{"a suspect", notice(collector.NoticeVerdict, func(n *collector.Notice) {
			n.Connection.Verdict, n.Connection.Unanswered, n.Connection.Evidence = collector.Suspect, 1, collector.EvidenceWindowProbe
		}), "suspect, was active: 1 window probe unanswered, silent for 12s"},
		{"one that came back", notice(collector.NoticeVerdict, func(n *collector.Notice) {
			n.From, n.Connection.Verdict = collector.Zombie, collector.Active
		}), "active, was zombie: the peer has answered"},
		{"a closed window", notice(collector.NoticeVerdict, func(n *collector.Notice) { n.Connection.Verdict = collector.Stalled }),
			"stalled, was active: the peer answers, but its window is closed"},
		{"a window open again", notice(collector.NoticeVerdict, func(n *collector.Notice) {
			n.From, n.Connection.Verdict = collector.Stalled, collector.Active
		}), "active, was stalled: the peer's window is open again"},
		{"a zombie's death", notice(collector.NoticeDeath, func(n *collector.Notice) {
			n.Death = &collector.Death{Cause: collector.CauseKeepaliveTimeout, Errno: uint16(unix.ETIMEDOUT), ZombieFor: 50 * time.Second}
		}), "died: keepalive_timeout (ETIMEDOUT) after being a zombie for 50s"},
		{"a death by the user's timeout", notice(collector.NoticeDeath, func(n *collector.Notice) {
			n.Death = &collector.Death{Cause: collector.CauseUserTimeout, During: collector.EvidenceRetransmit, Errno: uint16(unix.ETIMEDOUT)}
		}), "died: user_timeout during retransmit (ETIMEDOUT)"},
		{"a death in order", notice(collector.NoticeDeath, func(n *collector.Notice) {
			n.Death = &collector.Death{Cause: collector.CauseAborted}
		}), "died: aborted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := words(tt.n); got != tt.want {
				t.Errorf("%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestTraceLine(t *testing.T) {
	want := noon.Local().Format("15:04:05.000") +
		"  solicitation  10.0.0.1:37024         10.0.0.2:5432          keepalive probe 3 in a row, silent for 12s  postgres[812]\n"
	if got := traceLine(notice(collector.NoticeSolicitation, nil), false); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestTraceFilters(t *testing.T) {
	verdict := notice(collector.NoticeVerdict, nil)
	death := notice(collector.NoticeDeath, func(n *collector.Notice) { n.Death = &collector.Death{Cause: collector.CauseAborted} })
	unowned := notice(collector.NoticeVerdict, func(n *collector.Notice) { n.Connection.Process = nil })
	for _, tt := range []struct {
		name string
		s    selection
		n    *collector.Notice
		want bool
	}{
		{"without filters everything", selection{}, verdict, true},
		{"the local port", selection{ports: []uint16{1, 37024}}, verdict, true},
		{"the remote port", selection{ports: []uint16{5432}}, verdict, true},
		{"another port", selection{ports: []uint16{1}}, verdict, false},
		{"its verdict", selection{verdicts: []collector.Verdict{collector.Zombie}}, verdict, true},
		{"another verdict", selection{verdicts: []collector.Verdict{collector.Idle}}, verdict, false},
		{"its process", selection{pids: []uint32{812}}, verdict, true},
		{"another process", selection{pids: []uint32{1}}, verdict, false},
		{"no process at all", selection{pids: []uint32{812}}, unowned, false},
		{"its cause", selection{causes: []collector.Cause{collector.CauseAborted}}, death, true},
		{"another cause", selection{causes: []collector.Cause{collector.CauseClosed}}, death, false},
		{"a cause where there is no death", selection{causes: []collector.Cause{collector.CauseAborted}}, verdict, false},
		{"filters must all let it through", selection{ports: []uint16{5432}, pids: []uint32{1}}, verdict, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := (&trace{selection: tt.s}).wanted(tt.n); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func TestTraceJSONIsOneObjectALine(t *testing.T) {
	var b bytes.Buffer
	emit := (&trace{output: "json"}).printer(&b)
	for range 2 {
		if err := emit(notice(collector.NoticeSolicitation, func(n *collector.Notice) {
			n.Connection.Process = &collector.Process{Comm: "a\n\u202e\u009b"}
		})); err != nil {
			t.Fatal(err)
		}
	}
	lines := bytes.SplitAfter(b.Bytes(), []byte("\n"))
	if len(lines) != 3 || bytes.ContainsAny(b.Bytes(), "\u202e\u009b") {
		t.Fatalf("%d lines in\n%s", len(lines), b.String())
	}
	var got struct{ Event string }
	if err := json.Unmarshal(lines[0], &got); err != nil || got.Event != "solicitation" {
		t.Errorf("error %v, event %q", err, got.Event)
	}
}
