// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// notice is one about the first of conns.
func notice(kind conn.NoticeKind, change func(*conn.Notice)) *conn.Notice {
	n := &conn.Notice{Kind: kind, At: noon, Connection: conns[0]}
	if change != nil {
		change(n)
	}
	if kind == conn.NoticeDeath {
		n.Death.Connection = n.Connection
	}
	return n
}

func TestWords(t *testing.T) {
	for _, tt := range []struct {
		name string
		n    *conn.Notice
		want string
	}{
		{"a probe", notice(conn.NoticeSolicitation, nil), "keepalive probe 3 in a row, silent for 12s"},
		{"a first probe makes no suspect yet", notice(conn.NoticeSolicitation, func(n *conn.Notice) {
			n.Connection.Verdict, n.Connection.Evidence, n.Connection.Unanswered = conn.Active, conn.NoEvidence, 1
		}), "keepalive probe 1 in a row, silent for 12s"},
		{"a retransmission", notice(conn.NoticeSolicitation, func(n *conn.Notice) {
			n.Connection.Evidence = conn.EvidenceRetransmit
		}), "retransmission 3 in a row, silent for 12s"},
		{"a SYN again", notice(conn.NoticeSolicitation, func(n *conn.Notice) {
			n.Connection.Evidence, n.Connection.Silent = conn.EvidenceRetransmit, -1
		}), "retransmission 3 in a row, never heard from the peer"},
		{"a zombie", notice(conn.NoticeVerdict, func(n *conn.Notice) { n.From = conn.Suspect }),
			"zombie, was suspect: 3 keepalive probes unanswered, silent for 12s"},
		{"what was a zombie already", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Initial, n.From, n.Connection.Since = true, conn.Suspect, noon.Add(-284*time.Second)
			n.Connection.Unanswered, n.Connection.Evidence, n.Connection.Silent = 10, conn.EvidenceRetransmit, 284*time.Second
		}), "zombie already, for 4m44s: 10 retransmissions unanswered, silent for 4m44s"},
		{"what was one for nobody knows how long", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Initial, n.Connection.Since = true, time.Time{}
		}), "zombie already: 3 keepalive probes unanswered, silent for 12s"},
		{"what was stalled already, as of now", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Initial, n.From, n.Connection.Verdict, n.Connection.Since = true, conn.Zombie, conn.Stalled, n.At
		}), "stalled already: the peer answers, but its window is closed"},
		{"a suspect", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Connection.Verdict, n.Connection.Unanswered, n.Connection.Evidence = conn.Suspect, 1, conn.EvidenceWindowProbe
		}), "suspect, was active: 1 window probe unanswered, silent for 12s"},
		{"one that came back", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.From, n.Connection.Verdict = conn.Zombie, conn.Active
		}), "active, was zombie: the peer has answered"},
		{"a closed window", notice(conn.NoticeVerdict, func(n *conn.Notice) { n.Connection.Verdict = conn.Stalled }),
			"stalled, was active: the peer answers, but its window is closed"},
		{"a window open again", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.From, n.Connection.Verdict = conn.Stalled, conn.Active
		}), "active, was stalled: the peer's window is open again"},
		{"data that is not read", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Connection.Verdict, n.Connection.ReceiveQueue = conn.Unread, 11584
		}), "unread, was active: 11K bytes wait, and its application does not read"},
		{"data that is read late", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.From, n.Connection.Verdict = conn.Unread, conn.Active
		}), "active, was unread: its application has read"},
		{"stuck", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.From, n.Connection.Verdict, n.Connection.Evidence = conn.Suspect, conn.Stuck, conn.EvidenceRetransmit
			n.Connection.Unanswered, n.Connection.Silent, n.Connection.Reason = 5, 400*time.Millisecond, conn.Reason{Code: conn.ReasonPathMTU, Detail: "…"}
		}), "stuck, was suspect: 5 retransmissions not acknowledged, the peer last heard 400ms ago (path_mtu)"},
		{"no longer stuck", notice(conn.NoticeVerdict, func(n *conn.Notice) { n.From, n.Connection.Verdict = conn.Stuck, conn.Active }),
			"active, was stuck: the peer has acknowledged something"},
		{"a stuck connection whose peer falls silent", notice(conn.NoticeVerdict, func(n *conn.Notice) { n.From = conn.Stuck }),
			"zombie, was stuck: 3 keepalive probes unanswered, silent for 12s"},
		{"blocked", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Connection.Verdict, n.Connection.Unanswered, n.Connection.Attempts = conn.Blocked, 0, 4
		}), "blocked, was active: this host failed to send 4 keepalive probes in a row"},
		{"no longer blocked", notice(conn.NoticeVerdict, func(n *conn.Notice) { n.From, n.Connection.Verdict = conn.Blocked, conn.Active }),
			"active, was blocked: this host sends again"},
		{"a zombie's death", notice(conn.NoticeDeath, func(n *conn.Notice) {
			n.Death = &conn.Death{Cause: conn.CauseKeepaliveTimeout, Errno: uint16(unix.ETIMEDOUT), ZombieFor: 50 * time.Second}
		}), "died: keepalive_timeout (ETIMEDOUT) after being a zombie for 50s"},
		{"a death that was forecast", notice(conn.NoticeDeath, func(n *conn.Notice) {
			n.Death = &conn.Death{Cause: conn.CauseKeepaliveTimeout, Forecast: conns[0].GivesUp, ForecastError: -time.Microsecond}
		}), "died: keepalive_timeout, as forecast"},
		{"a death that was forecast for later", notice(conn.NoticeDeath, func(n *conn.Notice) {
			n.Death = &conn.Death{Cause: conn.CauseKeepaliveTimeout, Forecast: conns[0].GivesUp, ForecastError: -2400 * time.Millisecond}
		}), "died: keepalive_timeout, 2.4s before the forecast"},
		{"a death that was forecast for earlier", notice(conn.NoticeDeath, func(n *conn.Notice) {
			n.Death = &conn.Death{Cause: conn.CauseKeepaliveTimeout, Forecast: conns[0].GivesUp, ForecastError: 400 * time.Millisecond}
		}), "died: keepalive_timeout, 400ms after the forecast"},
		{"a death by the user's timeout", notice(conn.NoticeDeath, func(n *conn.Notice) {
			n.Death = &conn.Death{Cause: conn.CauseUserTimeout, During: conn.EvidenceRetransmit, Errno: uint16(unix.ETIMEDOUT)}
		}), "died: user_timeout during retransmit (ETIMEDOUT)"},
		{"a death in order", notice(conn.NoticeDeath, func(n *conn.Notice) {
			n.Death = &conn.Death{Cause: conn.CauseAborted}
		}), "died: aborted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := words(new(api.NewNotice(tt.n))); got != tt.want {
				t.Errorf("%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestTraceLine(t *testing.T) {
	const who = "10.0.0.1:37024         10.0.0.2:5432          "
	for _, tt := range []struct {
		name string
		n    *conn.Notice
		want string // after the time
	}{
		{"a probe", notice(conn.NoticeSolicitation, nil),
			"solicitation  " + who + "keepalive probe 3 in a row, silent for 12s  postgres[812]"},
		{"a zombie that the kernel will notice", notice(conn.NoticeVerdict, func(n *conn.Notice) { n.From = conn.Suspect }),
			"verdict       " + who + "zombie, was suspect: 3 keepalive probes unanswered, silent for 12s; the kernel gives up in 7m30s  postgres[812]"},
		{"a zombie that it will not", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.Initial, n.Connection.GivesUp = true, conn.Forecast{}
		}), "verdict       " + who + "zombie already, for 2.4s: 3 keepalive probes unanswered, silent for 12s; the kernel never gives up  postgres[812]"},
		{"one that is healthy has no end", notice(conn.NoticeVerdict, func(n *conn.Notice) {
			n.From, n.Connection.Verdict = conn.Zombie, conn.Active
		}), "verdict       " + who + "active, was zombie: the peer has answered  postgres[812]"},
		{"a death", notice(conn.NoticeDeath, func(n *conn.Notice) { n.Death = &conn.Death{Cause: conn.CauseAborted} }),
			"death         " + who + "died: aborted  postgres[812]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := noon.Local().Format("15:04:05.000") + "  " + tt.want + "\n"
			if got := traceLine(new(api.NewNotice(tt.n)), false); got != want {
				t.Errorf("%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestTraceFilters(t *testing.T) {
	verdict := notice(conn.NoticeVerdict, nil)
	death := notice(conn.NoticeDeath, func(n *conn.Notice) { n.Death = &conn.Death{Cause: conn.CauseAborted} })
	unowned := notice(conn.NoticeVerdict, func(n *conn.Notice) { n.Connection.Process = nil })
	for _, tt := range []struct {
		name string
		s    selection
		n    *conn.Notice
		want bool
	}{
		{"without filters everything", selection{}, verdict, true},
		{"the local port", selection{Query: collector.Query{Ports: []uint16{1, 37024}}}, verdict, true},
		{"the remote port", selection{Query: collector.Query{Ports: []uint16{5432}}}, verdict, true},
		{"another port", selection{Query: collector.Query{Ports: []uint16{1}}}, verdict, false},
		{"its verdict", selection{Query: collector.Query{Verdicts: []conn.Verdict{conn.Zombie}}}, verdict, true},
		{"another verdict", selection{Query: collector.Query{Verdicts: []conn.Verdict{conn.Idle}}}, verdict, false},
		{"its process", selection{Query: collector.Query{PIDs: []uint32{812}}}, verdict, true},
		{"another process", selection{Query: collector.Query{PIDs: []uint32{1}}}, verdict, false},
		{"no process at all", selection{Query: collector.Query{PIDs: []uint32{812}}}, unowned, false},
		{"its cause", selection{deaths: api.DeathQuery{Causes: []conn.Cause{conn.CauseAborted}}}, death, true},
		{"another cause", selection{deaths: api.DeathQuery{Causes: []conn.Cause{conn.CauseClosed}}}, death, false},
		{"a cause where there is no death", selection{deaths: api.DeathQuery{Causes: []conn.Cause{conn.CauseAborted}}}, verdict, false},
		{"filters must all let it through", selection{Query: collector.Query{Ports: []uint16{5432}, PIDs: []uint32{1}}}, verdict, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := api.NewNotice(tt.n)
			filters := &trace{selection: tt.s}
			if got := filters.wanted(&n) && filters.owned(&n); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := make(chan conn.Notice, 8)
		got := make(chan int)
		go func() {
			for {
				b := batch(ctx, c)
				got <- len(b)
				if len(b) == 0 {
					return
				}
			}
		}()
		send := func(n int) {
			for range n {
				c <- conn.Notice{}
			}
		}
		began := time.Now()
		time.Sleep(time.Hour) // nothing happens
		send(2)
		time.Sleep(traceDelay - 1)
		send(3)
		if n := <-got; n != 5 || time.Since(began) != time.Hour+traceDelay {
			t.Errorf("%d notices after %s", n, time.Since(began))
		}
		send(1)
		if n := <-got; n != 1 {
			t.Errorf("then %d", n)
		}
		send(2)
		synctest.Wait()
		cancel()
		if n := <-got; n != 2 {
			t.Errorf("%d notices at the end", n)
		}
		if n := <-got; n != 0 {
			t.Errorf("%d notices after the end", n)
		}
	})
}

func TestTraceJSONIsOneObjectALine(t *testing.T) {
	var b bytes.Buffer
	emit := (&trace{output: "json"}).printer(&b)
	for range 2 {
		n := api.NewNotice(notice(conn.NoticeSolicitation, func(n *conn.Notice) {
			n.Connection.Process = &conn.Process{Comm: "a\n\u202e\u009b"}
		}))
		if err := emit(&n, nil); err != nil {
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
