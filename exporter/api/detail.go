// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/explain"
)

// ConnectionDetail is the answer of /api/v1/connections/{cookie}: the connection, its recent
// events, oldest first, and the explanation that `halfopen explain` prints.
type ConnectionDetail struct {
	Connection
	Path        *Path       `json:"path"` // null: not known, and Explanation.Path says why
	Events      []Event     `json:"events"`
	Explanation Explanation `json:"explanation"`
}

// Explanation explains a connection in plain sentences, see [collector.Explanation].
type Explanation struct {
	At         time.Time `json:"at"` // when the agent read the connection; relative times count from here
	Doing      []string  `json:"doing"`
	Path       []string  `json:"path"` // nil: of an agent that does not have it yet
	Timers     []Timer   `json:"timers"`
	Settings   []Setting `json:"settings"`
	Next       []string  `json:"next"`
	Assessment string    `json:"assessment"`
	Advice     []Advice  `json:"advice"`
}

// Timer is one of the kernel's timers of a connection.
type Timer struct {
	Name    string `json:"name"`
	Purpose string `json:"purpose"`
	Fires   *Fires `json:"fires"` // null: it is not running
	Then    string `json:"then"`  // its effect when it fires, or why it is not running
}

// Fires is the time at which a timer fires: between At and LatestInSeconds. The seconds
// count from when the agent read the connection.
type Fires struct {
	At              time.Time `json:"at"`
	InSeconds       float64   `json:"in_seconds"`
	LatestInSeconds float64   `json:"latest_in_seconds"`
}

// Setting is a setting of a timer, in the setting's own unit.
type Setting struct {
	Option *string `json:"option"` // of setsockopt(2); null: there is none
	Sysctl *string `json:"sysctl"` // of the connection's network namespace; null: there is none
	Value  int64   `json:"value"`
	Unit   string  `json:"unit"`   // seconds, milliseconds, probes, retransmissions, switch
	Source string  `json:"source"` // socket, sysctl, default
	Means  string  `json:"means"`
}

// Advice is a change that would make the kernel notice a dead peer sooner.
type Advice struct {
	Text string   `json:"text"`
	How  []string `json:"how"` // the exact calls or commands; empty: none is safe to paste
	// GivesUp is when the kernel would give up the connection if the change were made at
	// once and the peer sent nothing more; null: it would change nothing now.
	GivesUp *GivesUp `json:"gives_up"`
}

// NewConnectionDetail encodes everything known of a connection.
func NewConnectionDetail(d *collector.Detail) ConnectionDetail {
	out := ConnectionDetail{
		Connection:  NewConnection(&d.Connection),
		Path:        newPath(d.Path),
		Events:      make([]Event, 0, len(d.History)),
		Explanation: newExplanation(&d.Explanation),
	}
	for i := range d.History {
		out.Events = append(out.Events, NewEvent(&d.History[i]))
	}
	return out
}

func newExplanation(e *explain.Explanation) Explanation {
	out := Explanation{
		At: e.At.UTC(), Doing: e.Doing, Path: e.Path, Next: e.Next, Assessment: e.Assessment,
		Timers: make([]Timer, 0, len(e.Timers)), Settings: make([]Setting, 0, len(e.Settings)), Advice: make([]Advice, 0, len(e.Advice)),
	}
	for _, t := range e.Timers {
		timer := Timer{Name: t.Name, Purpose: t.Purpose, Then: t.Then}
		if t.Pending() {
			timer.Fires = &Fires{At: t.At.UTC(), InSeconds: seconds(t.At.Sub(e.At)), LatestInSeconds: seconds(t.Latest.Sub(e.At))}
		}
		out.Timers = append(out.Timers, timer)
	}
	for _, s := range e.Settings {
		out.Settings = append(out.Settings, Setting{
			Option: nonEmpty(s.Option), Sysctl: nonEmpty(s.Sysctl), Value: s.Value, Unit: s.Unit, Source: s.Source.String(), Means: s.Means,
		})
	}
	for _, a := range e.Advice {
		out.Advice = append(out.Advice, Advice{Text: a.Text, How: append([]string{}, a.How...), GivesUp: givesUp(a.Then, e.At)})
	}
	return out
}
