// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
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
	Reason             *Reason      `json:"reason"`   // null: not known
	Unanswered         int          `json:"unanswered"`
	Attempts           int          `json:"attempts"`       // that this host failed to send
	IdleSeconds        *float64     `json:"idle_seconds"`   // null: no data ever
	SilentSeconds      *float64     `json:"silent_seconds"` // null: never heard
	SegmentsIn         uint32       `json:"segments_in"`
	Keepalive          Keepalive    `json:"keepalive"`
	UserTimeoutSeconds float64      `json:"user_timeout_seconds"` // 0: off
	Retransmits        Retransmits  `json:"retransmits"`
	UnackedSegments    uint32       `json:"unacked_segments"`
	SendQueueBytes     uint32       `json:"send_queue_bytes"`
	ReceiveQueueBytes  uint32       `json:"receive_queue_bytes"`
	SendWindowBytes    uint32       `json:"send_window_bytes"`
	SRTTSeconds        float64      `json:"srtt_seconds"`
	RTOSeconds         float64      `json:"rto_seconds"` // the retransmission timeout, with its backoff
	GivesUp            *GivesUp     `json:"gives_up"`    // null: the kernel never will
	Risks              []string     `json:"risks"`
	Also               []string     `json:"also"`         // verdicts other than Verdict whose conditions hold
	AcceptQueue        *AcceptQueue `json:"accept_queue"` // of a listener; null: it is none
	PeerHost           *PeerHost    `json:"peer_host"`    // of a zombie; null: it is none, or not counted yet
	Ownership
}

// PeerHost is what the last census found of all connections to the remote address of a zombie,
// in its network namespace.
type PeerHost struct {
	Connections  int      `json:"connections"`
	Zombies      int      `json:"zombies"`
	HeardSeconds *float64 `json:"heard_seconds"` // since anything was heard on any of them; null: never
}

// AcceptQueue is a listener's queue of connections that wait to be accepted. It is full if
// Length is above Limit.
type AcceptQueue struct {
	Length    uint32 `json:"length"`
	Limit     uint32 `json:"limit"`
	Overflows uint32 `json:"overflows"` // SYNs, and ACKs that end a handshake, that it has dropped
}

// Reason is why a connection has its verdict. A client shows a code that it does not know
// as text.
type Reason struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Endpoint is one end of a connection.
type Endpoint struct {
	IP   string `json:"ip"`
	Port uint16 `json:"port"`
}

// Keepalive is the keepalive setting that applies to a connection, see [collector.Keepalive].
type Keepalive struct {
	Enabled         bool    `json:"enabled"`
	TimeSeconds     float64 `json:"time_seconds"`
	IntervalSeconds float64 `json:"interval_seconds"`
	Probes          int     `json:"probes"`
	ProbesOut       int     `json:"probes_out"`
	PerSocket       bool    `json:"per_socket"`
}

// GivesUp is the time at which the kernel gives up a connection if the peer sends nothing
// more: between At and LatestInSeconds. The seconds count from when the agent read it.
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

// Ownership is the owner of a socket. All fields are null if no process can hold it, because
// its application has closed it or not accepted it yet. Only Process is null if the agent has
// not found the process, or has not searched for it.
type Ownership struct {
	Accepted    *bool    `json:"accepted,omitempty"` // false, or left out
	Process     *Process `json:"process"`
	UID         *uint32  `json:"uid"`
	Cgroup      *string  `json:"cgroup"`       // null: not known
	Namespace   *string  `json:"namespace"`    // of Kubernetes; null: none, or not known
	Pod         *string  `json:"pod"`          // null: none, or not known
	Container   *string  `json:"container"`    // null: none, or not known
	ContainerID *string  `json:"container_id"` // null: none
	PodUID      *string  `json:"pod_uid"`      // null: none
	Unit        *string  `json:"unit"`         // of systemd; null: none
}

// Group returns the known parts of the control group in which the socket was made.
func (o *Ownership) Group() conn.Cgroup {
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	return conn.Cgroup{
		Path: text(o.Cgroup), ContainerID: text(o.ContainerID), PodUID: text(o.PodUID), Unit: text(o.Unit),
		Namespace: text(o.Namespace), Pod: text(o.Pod), Container: text(o.Container),
	}
}

// Process is a process that holds a socket. A byte of Comm that is not UTF-8 is
// encoded as U+FFFD.
type Process struct {
	PID  uint32 `json:"pid"`
	Comm string `json:"comm"`
	FD   uint32 `json:"fd"`
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
		Reason:        reason(c),
		Unanswered:    c.Unanswered,
		Attempts:      c.Attempts,
		IdleSeconds:   age(c.Idle),
		SilentSeconds: age(c.Silent),
		SegmentsIn:    c.SegmentsIn,
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
		ReceiveQueueBytes:  c.ReceiveQueue,
		SendWindowBytes:    c.SendWindow,
		SRTTSeconds:        float64(c.SRTT.Microseconds()) / 1e6,
		RTOSeconds:         seconds(c.RTO),
		Risks:              make([]string, 0, len(c.Risks)),
		Also:               make([]string, 0, len(c.Also)),
		Ownership:          ownership(c),
	}
	if !c.Since.IsZero() {
		out.Since = new(c.Since.UTC())
	}
	out.GivesUp = givesUp(c.GivesUp, c.At)
	if c.State == conn.Listen {
		out.AcceptQueue = &AcceptQueue{Length: c.AcceptQueue, Limit: c.AcceptLimit, Overflows: c.ListenDrops}
	}
	if h := c.PeerHost; h != nil {
		out.PeerHost = &PeerHost{Connections: h.Connections, Zombies: h.Zombies, HeardSeconds: age(h.Heard)}
	}
	for _, r := range c.Risks {
		out.Risks = append(out.Risks, r.String())
	}
	for _, v := range c.Also {
		out.Also = append(out.Also, v.String())
	}
	return out
}

// reason encodes the reason of a connection's verdict; nil: not known.
func reason(c *conn.Connection) *Reason {
	if c.Reason.Code == "" {
		return nil
	}
	return &Reason{Code: string(c.Reason.Code), Detail: c.Reason.Detail}
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
	o.Namespace, o.Pod, o.Container = nonEmpty(c.Cgroup.Namespace), nonEmpty(c.Cgroup.Pod), nonEmpty(c.Cgroup.Container)
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

// seconds returns d in seconds, rounded to a millisecond.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1e3 // Duration.Seconds is not the nearest float64
}

// age returns d in seconds; nil if d is negative, that is, if the event never happened.
func age(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	return new(seconds(d))
}
