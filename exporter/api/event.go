// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// Event is one thing that happened to a connection. From and To are the
// verdicts before and after, of the kind verdict only.
type Event struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"` // solicitation, answer, verdict
	Evidence   string    `json:"evidence,omitempty"`
	Unanswered int       `json:"unanswered,omitempty"`
	From       string    `json:"from,omitempty"`
	To         string    `json:"to,omitempty"`
	// TookSeconds is how long after the last solicitation an answer came.
	TookSeconds *float64 `json:"took_seconds,omitempty"`
}

// Notice is what happened just now, for trace and the stream. A death has
// Death, the others have Connection as it is after the notice. From and To are
// the verdicts before and after, of a verdict only. There is no From where the
// connection was so already when it was first seen.
type Notice struct {
	Event      string      `json:"event"` // solicitation, verdict, death
	At         time.Time   `json:"at"`
	Connection *Connection `json:"connection,omitempty"`
	Death      *Death      `json:"death,omitempty"`
	From       string      `json:"from,omitempty"`
	To         string      `json:"to,omitempty"`
}

// NewEvent encodes an event of a connection's story.
func NewEvent(e *conn.HistoryEntry) Event {
	out := Event{
		At:         e.At.UTC(),
		Kind:       e.Kind.String(),
		Evidence:   e.Evidence.String(),
		Unanswered: e.Unanswered,
	}
	if e.Kind == conn.HistoryAnswer {
		out.TookSeconds = age(e.Took)
	}
	if e.Kind == conn.HistoryVerdict {
		out.From, out.To = e.From.String(), e.To.String()
	}
	return out
}

var noticeNames = [...]string{
	conn.NoticeSolicitation: "solicitation",
	conn.NoticeVerdict:      "verdict",
	conn.NoticeDeath:        "death",
}

// NewNotice encodes a notice.
func NewNotice(n *conn.Notice) Notice {
	out := Notice{Event: noticeNames[n.Kind], At: n.At.UTC()}
	if n.Death != nil {
		out.Death = new(NewDeath(n.Death))
		return out
	}
	out.Connection = new(NewConnection(&n.Connection))
	if n.Kind == conn.NoticeVerdict {
		out.To = n.Connection.Verdict.String()
		if !n.Initial {
			out.From = n.From.String()
		}
	}
	return out
}
