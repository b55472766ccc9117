// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/explain"
)

// Connection is the connection object of the API.
type Connection struct {
	Cookie             string       `json:"cookie"` // as `ss -e` prints it after sk:
	Family             string       `json:"family"` // ipv4, ipv6
	Local              Endpoint     `json:"local"`
	Remote             Endpoint     `json:"remote"`
	Netns              uint32       `json:"netns"` // inode number
	State              string       `json:"state"`
	Verdict            *string      `json:"verdict"`  // null: the state has none
	Since              *time.Time   `json:"since"`    // null: not known
	Evidence           *string      `json:"evidence"` // null: none
	Unanswered         int          `json:"unanswered"`
	IdleSeconds        *float64     `json:"idle_seconds"`   // null: no data ever
	SilentSeconds      *float64     `json:"silent_seconds"` // null: never heard
	Keepalive          Keepalive    `json:"keepalive"`
	UserTimeoutSeconds float64      `json:"user_timeout_seconds"` // 0: off
	Retransmits        Retransmits  `json:"retransmits"`
	UnackedSegments    uint32       `json:"unacked_segments"`
	SendQueueBytes     uint32       `json:"send_queue_bytes"`
	SendWindowBytes    uint32       `json:"send_window_bytes"`
	SRTTSeconds        float64      `json:"srtt_seconds"`
	RTOSeconds         float64      `json:"rto_seconds"` // the retransmission timeout, with its backoff
	GivesUp            *GivesUp     `json:"gives_up"`    // null: the kernel never will
	Risks              []string     `json:"risks"`
	AcceptQueue        *AcceptQueue `json:"accept_queue,omitempty"` // of a listener, or left out
	Ownership
}

// AcceptQueue is a listener's queue of connections that wait to be accepted.
type AcceptQueue struct {
	Length uint32 `json:"length"`
	Limit  uint32 `json:"limit"`
}

// Endpoint is one end of a connection.
type Endpoint struct {
	IP   string `json:"ip"`
	Port uint16 `json:"port"`
}

// Keepalive is what applies to a connection, see [collector.Keepalive].
type Keepalive struct {
	Enabled         bool    `json:"enabled"`
	TimeSeconds     float64 `json:"time_seconds"`
	IntervalSeconds float64 `json:"interval_seconds"`
	Probes          int     `json:"probes"`
	ProbesOut       int     `json:"probes_out"`
	PerSocket       bool    `json:"per_socket"`
}

// GivesUp is when the kernel gives a connection up if nothing more is heard:
// between At and LatestInSeconds. The seconds count from when it was looked at.
type GivesUp struct {
	At              time.Time `json:"at"`
	InSeconds       float64   `json:"in_seconds"`
	LatestInSeconds float64   `json:"latest_in_seconds"`
	By              string    `json:"by"` // a cause
}

// Retransmits are a connection's retransmissions.
type Retransmits struct {
	Unanswered int `json:"unanswered"`
	Total      int `json:"total"`
}

// Ownership is who holds a socket. All is null where nothing can: closed by its
// application, or not yet accepted. Process alone is null where no process was
// found, or none was looked for.
type Ownership struct {
	Accepted    *bool    `json:"accepted,omitempty"` // false, or left out
	Process     *Process `json:"process"`
	UID         *uint32  `json:"uid"`
	Cgroup      *string  `json:"cgroup"`       // null: not known
	ContainerID *string  `json:"container_id"` // null: none
	PodUID      *string  `json:"pod_uid"`      // null: none
	Unit        *string  `json:"unit"`         // of systemd; null: none
}

// Process is one that holds a socket. A byte of Comm that is not UTF-8 is
// encoded as U+FFFD.
type Process struct {
	PID  uint32 `json:"pid"`
	Comm string `json:"comm"`
	FD   uint32 `json:"fd"`
}

// Death is the death object of the API.
type Death struct {
	Cookie string   `json:"cookie"`
	Family string   `json:"family"`
	Local  Endpoint `json:"local"`
	Remote Endpoint `json:"remote"`
	Netns  uint32   `json:"netns"`
	Ownership
	At            time.Time `json:"at"`
	Cause         string    `json:"cause"`
	During        *string   `json:"during"` // null but for user_timeout
	State         string    `json:"state"`  // before death
	Errno         *string   `json:"errno"`  // null: none
	Unanswered    int       `json:"unanswered"`
	Evidence      *string   `json:"evidence"`       // null: none
	SilentSeconds *float64  `json:"silent_seconds"` // null: never heard
	Verdict       *string   `json:"verdict"`        // the last one; null: the state has none
	ZombieSeconds *float64  `json:"zombie_seconds"` // null: it was none
	// By how much a timeout came before (negative) or after what was forecast when
	// the peer was last heard; null: no timeout, or nothing was forecast.
	ForecastErrorSeconds *float64 `json:"forecast_error_seconds"`
}

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

// Connections is the answer of /api/v1/connections. Total is how many there
// are, whatever the limit.
type Connections struct {
	GeneratedAt time.Time    `json:"generated_at"`
	Total       int          `json:"total"`
	Connections []Connection `json:"connections"`
}

// Group is connections that have something in common, counted. What it is, is in
// the field of that name; all are left out where there is none.
type Group struct {
	Owner    *Owner         `json:"owner,omitempty"`
	Remote   *Remote        `json:"remote,omitempty"`
	Verdict  *string        `json:"verdict,omitempty"`
	Total    int            `json:"total"`
	Verdicts map[string]int `json:"verdicts"` // how many have each
}

// Owner is whose a connection is: see [collector.Connection.Owner].
type Owner struct {
	Kind string `json:"kind"` // process, unit, container, pod
	Name string `json:"name"`
}

// Remote is where connections go to.
type Remote struct {
	IP   string  `json:"ip"`
	Port *uint16 `json:"port"` // null: not that of a service
}

// Groups is the answer of /api/v1/groups. Total is how many groups there are,
// whatever the limit.
type Groups struct {
	GeneratedAt time.Time `json:"generated_at"`
	Total       int       `json:"total"`
	Groups      []Group   `json:"groups"`
}

// ConnectionDetail is the answer of /api/v1/connections/{cookie}: the
// connection, its recent events, oldest first, and what `halfopen explain` says.
type ConnectionDetail struct {
	Connection
	Events      []Event     `json:"events"`
	Explanation Explanation `json:"explanation"`
}

// Explanation is a connection in plain sentences, see [collector.Explanation].
type Explanation struct {
	At         time.Time `json:"at"` // of the look; what is relative counts from here
	Doing      []string  `json:"doing"`
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
	Then    string `json:"then"`  // what it does then, or why it is not running
}

// Fires is when a timer does: between At and LatestInSeconds. The seconds count
// from when it was looked at.
type Fires struct {
	At              time.Time `json:"at"`
	InSeconds       float64   `json:"in_seconds"`
	LatestInSeconds float64   `json:"latest_in_seconds"`
}

// Setting is what a timer is set to, in the setting's own unit.
type Setting struct {
	Option *string `json:"option"` // of setsockopt(2); null: there is none
	Sysctl *string `json:"sysctl"` // of the connection's network namespace; null: there is none
	Value  int64   `json:"value"`
	Unit   string  `json:"unit"`   // seconds, milliseconds, probes, retransmissions, switch
	Source string  `json:"source"` // socket, sysctl, default
	Means  string  `json:"means"`
}

// Advice is one thing that would make a dead peer be noticed sooner.
type Advice struct {
	Text string   `json:"text"`
	How  []string `json:"how"` // the exact calls or commands
	// GivesUp is when the kernel would give the connection up if that were done
	// at once, and nothing more were heard; null: it would change nothing now.
	GivesUp *GivesUp `json:"gives_up"`
}

// Deaths is the answer of /api/v1/deaths. Total is how many are kept, whatever
// the limit.
type Deaths struct {
	GeneratedAt time.Time `json:"generated_at"`
	Total       int       `json:"total"`
	Deaths      []Death   `json:"deaths"`
}

// Error is the answer of the API to what it cannot do.
type Error struct {
	Error string `json:"error"`
}

// NewConnection encodes a connection.
func NewConnection(c *conn.Connection) Connection {
	out := Connection{
		Cookie:        conn.FormatCookie(c.Cookie),
		Family:        family(c),
		Local:         endpoint(c.Local),
		Remote:        endpoint(c.Remote),
		Netns:         c.Netns,
		State:         c.State.String(),
		Verdict:       verdict(c),
		Evidence:      nonEmpty(c.Evidence.String()),
		Unanswered:    c.Unanswered,
		IdleSeconds:   age(c.Idle),
		SilentSeconds: age(c.Silent),
		Keepalive: Keepalive{
			Enabled:         c.Keepalive.Enabled,
			TimeSeconds:     seconds(c.Keepalive.Time),
			IntervalSeconds: seconds(c.Keepalive.Interval),
			Probes:          c.Keepalive.Probes,
			ProbesOut:       c.Keepalive.ProbesOut,
			PerSocket:       c.Keepalive.PerSocket,
		},
		UserTimeoutSeconds: seconds(c.UserTimeout),
		Retransmits:        Retransmits{Unanswered: c.RetransmitsUnanswered, Total: c.RetransmitsTotal},
		UnackedSegments:    c.UnackedSegments,
		SendQueueBytes:     c.SendQueue,
		SendWindowBytes:    c.SendWindow,
		SRTTSeconds:        float64(c.SRTT.Microseconds()) / 1e6,
		RTOSeconds:         seconds(c.RTO),
		Risks:              make([]string, 0, len(c.Risks)),
		Ownership:          ownership(c),
	}
	if !c.Since.IsZero() {
		out.Since = new(c.Since.UTC())
	}
	out.GivesUp = givesUp(c.GivesUp, c.At)
	if c.State == conn.Listen {
		out.AcceptQueue = &AcceptQueue{Length: c.AcceptQueue, Limit: c.AcceptLimit}
	}
	for _, r := range c.Risks {
		out.Risks = append(out.Risks, r.String())
	}
	return out
}

// NewGroup encodes a group of that grouping.
func NewGroup(t *conn.Count, by conn.Grouping) Group {
	out := Group{Total: t.Total, Verdicts: make(map[string]int, conn.Verdicts)}
	for v, n := range t.Verdicts {
		out.Verdicts[conn.Verdict(v).String()] = n
	}
	switch {
	case by == conn.ByOwner && t.OwnerKind != conn.NoOwner:
		out.Owner = &Owner{Kind: t.OwnerKind.String(), Name: t.Owner}
	case by == conn.ByRemote && t.Remote.IsValid():
		out.Remote = &Remote{IP: t.Remote.Addr().String()}
		if port := t.Remote.Port(); port != 0 {
			out.Remote.Port = &port
		}
	case by == conn.ByVerdict && t.Judged:
		out.Verdict = new(t.Verdict.String())
	}
	return out
}

// NewDeath encodes a death.
func NewDeath(d *conn.Death) Death {
	c := &d.Connection
	out := Death{
		Cookie:        conn.FormatCookie(c.Cookie),
		Family:        family(c),
		Local:         endpoint(c.Local),
		Remote:        endpoint(c.Remote),
		Netns:         c.Netns,
		Ownership:     ownership(c),
		At:            d.DiedAt.UTC(),
		Cause:         d.Cause.String(),
		During:        nonEmpty(d.During.String()),
		State:         c.State.String(),
		Errno:         nonEmpty(errnoName(d.Errno)),
		Unanswered:    c.Unanswered,
		Evidence:      nonEmpty(c.Evidence.String()),
		SilentSeconds: age(c.Silent),
		Verdict:       verdict(c),
	}
	if d.ZombieFor > 0 {
		out.ZombieSeconds = age(d.ZombieFor)
	}
	if d.Forecast.Ever() {
		out.ForecastErrorSeconds = new(seconds(d.ForecastError))
	}
	return out
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

// NewConnectionDetail encodes everything known of a connection.
func NewConnectionDetail(d *collector.Detail) ConnectionDetail {
	out := ConnectionDetail{
		Connection:  NewConnection(&d.Connection),
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
		At: e.At.UTC(), Doing: e.Doing, Next: e.Next, Assessment: e.Assessment,
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
		out.Advice = append(out.Advice, Advice{Text: a.Text, How: a.How, GivesUp: givesUp(a.Then, e.At)})
	}
	return out
}

// givesUp encodes a forecast made at that time; nil: never.
func givesUp(f conn.Forecast, at time.Time) *GivesUp {
	if !f.Ever() {
		return nil
	}
	return &GivesUp{
		At:              f.At.UTC(),
		InSeconds:       seconds(f.At.Sub(at)),
		LatestInSeconds: seconds(f.Latest.Sub(at)),
		By:              f.By.String(),
	}
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

func family(c *conn.Connection) string {
	if c.IPv6() {
		return "ipv6"
	}
	return "ipv4"
}

func endpoint(a netip.AddrPort) Endpoint {
	return Endpoint{IP: a.Addr().String(), Port: a.Port()}
}

func verdict(c *conn.Connection) *string {
	if !c.Judged() {
		return nil
	}
	return new(c.Verdict.String())
}

func ownership(c *conn.Connection) Ownership {
	var o Ownership
	if !c.Accepted {
		o.Accepted = new(false)
	}
	if c.Orphaned || !c.Accepted {
		return o
	}
	o.UID = new(c.UID)
	o.Cgroup = nonEmpty(c.Cgroup.Path)
	o.Unit = nonEmpty(c.Cgroup.Unit)
	o.ContainerID = nonEmpty(c.Cgroup.ContainerID)
	o.PodUID = nonEmpty(c.Cgroup.PodUID)
	if p := c.Process; p != nil {
		o.Process = &Process{PID: p.PID, Comm: p.Comm, FD: p.FD}
	}
	return o
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// seconds rounds to the millisecond.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1e3 // Duration.Seconds is not the nearest float64
}

// age is nil for the negative duration of what never happened.
func age(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	return new(seconds(d))
}

// errnoName is "" for no error.
func errnoName(errno uint16) string {
	if errno == 0 {
		return ""
	}
	if name := unix.ErrnoName(syscall.Errno(errno)); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", errno)
}
