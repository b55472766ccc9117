// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

// Format is the version of the format. A file of another version cannot be read. Raise it
// by one when the meaning of a field changes; a new field needs no new version.
const Format = 1

// magic is the first bytes of each recording.
const magic = `{"halfopen_recording":`

// Header describes the agent, the kernel and the rules that a recording was made with.
type Header struct {
	Format   int    `json:"halfopen_recording"` // set by Create
	Halfopen string `json:"halfopen"`           // version of the agent that recorded
	Kernel   string `json:"kernel"`             // the kernel's release, as uname -r prints it
	// MonotonicZero is the time at which the kernel's clock was 0. The field "at" of a
	// record is in nanoseconds of that clock.
	MonotonicZero time.Time `json:"monotonic_zero"`
	Masked        bool      `json:"masked,omitempty"` // whether Mask has copied it
	Rules         Rules     `json:"rules"`
}

// Rules are the [conn.Rules] of a recording, in the units of its header.
type Rules struct {
	HZ               int     `json:"hz"`
	IdleAfter        seconds `json:"idle_after_seconds"`
	StalledAfter     seconds `json:"stalled_after_seconds"`
	ZombieUnanswered int     `json:"zombie_unanswered"`
	ZombieSilence    seconds `json:"zombie_silence_seconds"`
	MiddleboxTimeout seconds `json:"middlebox_timeout_seconds"`
	// MiddleboxTimeouts are exceptions by destination. A masked recording has none.
	MiddleboxTimeouts map[netip.Prefix]seconds `json:"middlebox_timeouts_seconds,omitempty"`
	UnreadAfter       seconds                  `json:"unread_after_seconds,omitempty"` // 0: of an older version
}

type seconds float64

func secondsOf(d time.Duration) seconds   { return seconds(d.Seconds()) }
func (s seconds) duration() time.Duration { return time.Duration(float64(s)*1e9 + 0.5) }

// NewRules returns the rules in the form that a header has.
func NewRules(r *conn.Rules) Rules {
	rules := Rules{
		HZ: r.HZ, IdleAfter: secondsOf(r.IdleAfter), StalledAfter: secondsOf(r.StalledAfter), ZombieUnanswered: r.ZombieUnanswered,
		ZombieSilence: secondsOf(r.ZombieSilence), MiddleboxTimeout: secondsOf(r.Middleboxes.Default),
		UnreadAfter: secondsOf(r.UnreadAfter),
	}
	for prefix, timeout := range r.Middleboxes.To {
		if rules.MiddleboxTimeouts == nil {
			rules.MiddleboxTimeouts = make(map[netip.Prefix]seconds)
		}
		rules.MiddleboxTimeouts[prefix] = secondsOf(timeout)
	}
	return rules
}

// Conn returns the rules in the form that a tracker needs. It is the reverse of NewRules.
func (r *Rules) Conn() conn.Rules {
	rules := conn.Rules{
		IdleAfter: r.IdleAfter.duration(), StalledAfter: r.StalledAfter.duration(), ZombieUnanswered: r.ZombieUnanswered,
		ZombieSilence: r.ZombieSilence.duration(), Middleboxes: conn.Middleboxes{Default: r.MiddleboxTimeout.duration()},
		UnreadAfter: r.UnreadAfter.duration(), HZ: r.HZ,
	}
	for prefix, timeout := range r.MiddleboxTimeouts {
		if rules.Middleboxes.To == nil {
			rules.Middleboxes.To = make(map[netip.Prefix]time.Duration)
		}
		rules.Middleboxes.To[prefix] = timeout.duration()
	}
	return rules
}

// check returns an error for rules that no kernel or agent can have.
func (r *Rules) check() error {
	const longest = 100 * 365 * 24 * 3600
	if r.HZ < 1 || r.HZ > 100000 {
		return fmt.Errorf("its rules have %d jiffies per second", r.HZ)
	}
	if r.ZombieUnanswered < 1 {
		return fmt.Errorf("its rules call a connection a zombie after %d unanswered solicitations", r.ZombieUnanswered)
	}
	durations := []seconds{r.IdleAfter, r.StalledAfter, r.ZombieSilence, r.MiddleboxTimeout}
	for _, s := range slices.AppendSeq(durations, maps.Values(r.MiddleboxTimeouts)) {
		if !(s > 0 && s < longest) {
			return fmt.Errorf("its rules have a duration of %v s", float64(s))
		}
	}
	if !(r.UnreadAfter >= 0 && r.UnreadAfter < longest) {
		return fmt.Errorf("its rules have a duration of %v s", float64(r.UnreadAfter))
	}
	return nil
}

// entry is any line but the first: a fact, the number of facts lost before the next one,
// or the reason why the recording ends.
type entry struct {
	Fact      string     `json:"fact,omitempty"`
	At        time.Time  `json:"at,omitzero"`
	Event     *event     `json:"event,omitempty"`
	Conn      *record    `json:"conn,omitempty"`
	Census    *census    `json:"census,omitempty"`
	Owners    []owner    `json:"owners,omitempty"`
	Obstacles []obstacle `json:"obstacles,omitempty"`

	Lost uint64 `json:"lost,omitempty"`
	End  string `json:"end,omitempty"`
}

// kinds has the value of entry.Fact for each [conn.FactKind].
var kinds = []string{
	conn.FactEvent: "event", conn.FactWatch: "watch", conn.FactSweep: "sweep", conn.FactCensus: "census",
	conn.FactOwners: "owners", conn.FactObstacles: "obstacles",
}

type event struct {
	Type   uint8  `json:"type"`
	Cause  uint8  `json:"cause,omitempty"`
	During uint8  `json:"during,omitempty"`
	Err    uint16 `json:"err,omitempty"`
	Conn   record `json:"conn"`
}

type census struct {
	Began    time.Time        `json:"began"`
	Counts   abi.CensusCounts `json:"counts"`
	Troubled []observation    `json:"troubled,omitempty"`
	Unwalked []uint32         `json:"unwalked,omitempty"`
	Hosts    []host           `json:"hosts,omitempty"`
}

type host struct {
	Netns       uint32     `json:"netns"`
	Addr        netip.Addr `json:"addr"`
	Connections int        `json:"connections"`
	Exposed     int        `json:"exposed,omitempty"`
	HeardAt     time.Time  `json:"heard_at,omitzero"`
}

type observation struct {
	At   time.Time `json:"at"`
	Conn record    `json:"conn"`
}

type owner struct {
	Cookie  uint64   `json:"cookie"`
	Process *process `json:"process,omitempty"`
	Cgroup  cgroup   `json:"cgroup,omitzero"`
}

type obstacle struct {
	Cookie uint64 `json:"cookie"`
	Code   string `json:"code,omitempty"`
	Detail string `json:"detail,omitempty"`
	Failed bool   `json:"failed,omitempty"` // the look
}

type process struct {
	PID  uint32 `json:"pid"`
	Comm string `json:"comm"`
	FD   uint32 `json:"fd"`
}

type cgroup struct {
	Path        string `json:"path,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	PodUID      string `json:"pod_uid,omitempty"`
	Unit        string `json:"unit,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Pod         string `json:"pod,omitempty"`
	Container   string `json:"container,omitempty"`
}

// entryOf returns the entry of a fact.
func entryOf(f *conn.Fact) (*entry, error) {
	if int(f.Kind) >= len(kinds) {
		return nil, fmt.Errorf("a fact of kind %d cannot be recorded", f.Kind)
	}
	e := &entry{Fact: kinds[f.Kind], At: f.At.UTC()}
	switch f.Kind {
	case conn.FactEvent:
		e.Event = &event{f.Event.Type, f.Event.Cause, f.Event.During, f.Event.Err, record(f.Event.Conn)}
	case conn.FactWatch:
		e.Conn = (*record)(f.Conn)
	case conn.FactCensus:
		e.Census = &census{Began: f.Census.Began.UTC(), Counts: *f.Census.Counts, Unwalked: f.Census.Unwalked}
		for i := range f.Census.Troubled {
			o := &f.Census.Troubled[i]
			e.Census.Troubled = append(e.Census.Troubled, observation{o.At.UTC(), record(o.Conn)})
		}
		for k, n := range f.Census.Hosts {
			e.Census.Hosts = append(e.Census.Hosts, host{k.Netns, k.Addr, n.Connections, n.Exposed, n.HeardAt.UTC()})
		}
		slices.SortFunc(e.Census.Hosts, func(a, b host) int { return cmp.Or(cmp.Compare(a.Netns, b.Netns), a.Addr.Compare(b.Addr)) })
	case conn.FactOwners:
		for cookie, o := range f.Owners {
			e.Owners = append(e.Owners, owner{cookie, (*process)(o.Process), cgroup(o.Cgroup)})
		}
		slices.SortFunc(e.Owners, func(a, b owner) int { return cmp.Compare(a.Cookie, b.Cookie) })
	case conn.FactObstacles:
		for cookie, o := range f.Obstacles {
			recorded := obstacle{Cookie: cookie, Failed: o == nil}
			if o != nil {
				recorded.Code, recorded.Detail = string(o.Code), o.Detail
			}
			e.Obstacles = append(e.Obstacles, recorded)
		}
		slices.SortFunc(e.Obstacles, func(a, b obstacle) int { return cmp.Compare(a.Cookie, b.Cookie) })
	}
	return e, nil
}

var errNotWhole = errors.New("the object that belongs to its kind is missing")

// fact returns the fact of an entry. It is the reverse of entryOf.
func (e *entry) fact() (*conn.Fact, error) {
	kind := slices.Index(kinds, e.Fact)
	if kind < 0 {
		return nil, fmt.Errorf("the kind %q of the fact is unknown", e.Fact)
	}
	if e.At.IsZero() {
		return nil, errNotWhole
	}
	f := &conn.Fact{Kind: conn.FactKind(kind), At: e.At}
	switch f.Kind {
	case conn.FactEvent:
		if e.Event == nil {
			return nil, errNotWhole
		}
		f.Event = &abi.Event{Type: e.Event.Type, Cause: e.Event.Cause, During: e.Event.During, Err: e.Event.Err, Conn: abi.Conn(e.Event.Conn)}
	case conn.FactWatch:
		if e.Conn == nil {
			return nil, errNotWhole
		}
		f.Conn = (*abi.Conn)(e.Conn)
	case conn.FactCensus:
		if e.Census == nil {
			return nil, errNotWhole
		}
		f.Census = &conn.Census{Began: e.Census.Began, Counts: &e.Census.Counts, Unwalked: e.Census.Unwalked}
		for i := range e.Census.Troubled {
			o := &e.Census.Troubled[i]
			f.Census.Troubled = append(f.Census.Troubled, conn.Observation{Conn: abi.Conn(o.Conn), At: o.At})
		}
		for _, h := range e.Census.Hosts {
			if f.Census.Hosts == nil {
				f.Census.Hosts = make(map[conn.HostKey]conn.HostCount)
			}
			f.Census.Hosts[conn.HostKey{Netns: h.Netns, Addr: h.Addr}] = conn.HostCount{Connections: h.Connections, Exposed: h.Exposed, HeardAt: h.HeardAt}
		}
	case conn.FactOwners:
		f.Owners = make(map[uint64]conn.Ownership, len(e.Owners))
		for _, o := range e.Owners {
			f.Owners[o.Cookie] = conn.Ownership{Process: (*conn.Process)(o.Process), Cgroup: conn.Cgroup(o.Cgroup)}
		}
	case conn.FactObstacles:
		f.Obstacles = make(map[uint64]*conn.Reason, len(e.Obstacles))
		for _, o := range e.Obstacles {
			f.Obstacles[o.Cookie] = nil
			if !o.Failed {
				f.Obstacles[o.Cookie] = &conn.Reason{Code: conn.ReasonCode(o.Code), Detail: o.Detail}
			}
		}
	}
	return f, nil
}
