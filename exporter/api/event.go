// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// Event is an event in the history of a connection. From and To, the verdicts before and
// after, are set for the kind verdict only.
type Event struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"` // solicitation, answer, verdict
	Evidence   string    `json:"evidence,omitempty"`
	Unanswered int       `json:"unanswered,omitempty"`
	From       string    `json:"from,omitempty"`
	To         string    `json:"to,omitempty"`
	// TookSeconds is the time from the last solicitation to the answer.
	TookSeconds *float64 `json:"took_seconds,omitempty"`
}

// Notice is an event that has just happened, for trace and the stream. A death has Death;
// other notices have Connection, as it is after the event. A verdict has From and To, the
// verdicts before and after. From is left out if the connection had the verdict already
// when the agent first saw it.
type Notice struct {
	Event      string      `json:"event"` // solicitation, verdict, death
	At         time.Time   `json:"at"`
	Connection *Connection `json:"connection,omitempty"`
	Death      *Death      `json:"death,omitempty"`
	From       string      `json:"from,omitempty"`
	To         string      `json:"to,omitempty"`
}

// NewEvent encodes an event of a connection's history.
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
