// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"net/netip"
	"time"
)

// Row is what the live page shows of a connection. All times are absolute, in
// milliseconds since 1970, so that a row does not change only because time passes; 0
// stands for a time that is not known. A Row is never modified: a newer one takes its
// place.
type Row struct {
	Cookie         uint64
	At             time.Time // when the connection was as the row says
	Local, Remote  netip.AddrPort
	Netns          uint32 // inode number
	State          State
	Verdict        Verdict
	Since          int64 // when the verdict began
	Evidence       Evidence
	Unanswered     int   // solicitations in a row
	DataAt         int64 // when data last moved either way
	HeardAt        int64 // when the peer was last heard
	GivesUpAt      int64 // the kernel gives up between this, 0 for never, ...
	GivesUpLatest  int64 // ... and this
	GivesUpBy      Cause
	Risks          uint32 // bit 1 << Risk for each
	Held           Held
	PID, FD        uint32 // of the process that holds the socket; 0: not known
	Comm           string // its name: any bytes
	Cgroup         Cgroup
	cgroupID       uint64
	Keepalive      bool
	KeepaliveTime  int64 // milliseconds, as are the next two
	KeepaliveIntvl int64
	UserTimeout    int64
	Probes         int
}

// Held says whether a process can hold a socket.
type Held uint8

// The values of Held.
const (
	HeldByProcess  Held = iota
	HeldByNobody        // the application has closed the socket
	HeldByListener      // no application has accepted the connection
)

var heldNames = [...]string{HeldByProcess: "", HeldByNobody: "orphaned", HeldByListener: "unaccepted"}

// String returns the name of the value, "" for HeldByProcess.
func (h Held) String() string { return heldNames[h] }

// jitter is the difference, in milliseconds, of two readings of something that has not
// changed: the kernel stamps in jiffies, and two clocks are read one after the other.
const jitter = 300

// NewRow returns the row of a connection.
func NewRow(c *Connection) *Row {
	r := &Row{
		Cookie: c.Cookie, At: c.At, Local: c.Local, Remote: c.Remote, Netns: c.Netns,
		State: c.State, Verdict: c.Verdict, Evidence: c.Evidence, Unanswered: c.Unanswered,
		Since: millis(c.Since), DataAt: ago(c.At, c.Idle), HeardAt: ago(c.At, c.Silent),
		Keepalive: c.Keepalive.Enabled, KeepaliveTime: c.Keepalive.Time.Milliseconds(),
		KeepaliveIntvl: c.Keepalive.Interval.Milliseconds(), Probes: c.Keepalive.Probes,
		UserTimeout: c.UserTimeout.Milliseconds(), cgroupID: c.CgroupID,
	}
	if c.GivesUp.Ever() {
		r.GivesUpAt, r.GivesUpLatest, r.GivesUpBy = millis(c.GivesUp.At), millis(c.GivesUp.Latest), c.GivesUp.By
	}
	for _, risk := range c.Risks {
		r.Risks |= 1 << risk
	}
	switch {
	case !c.Accepted:
		r.Held = HeldByListener
	case c.Orphaned:
		r.Held = HeldByNobody
	default:
		r.setOwner(&Ownership{Process: c.Process, Cgroup: c.Cgroup})
	}
	return r
}

func (r *Row) setOwner(o *Ownership) {
	if o.Process != nil {
		r.PID, r.Comm, r.FD = o.Process.PID, o.Process.Comm, o.Process.FD
	}
	if o.Cgroup != (Cgroup{}) {
		r.Cgroup = o.Cgroup
	}
}

// owner returns the owner that the row names; its Process is nil if that is not known.
func (r *Row) owner() Ownership {
	o := Ownership{Cgroup: r.Cgroup}
	if r.PID != 0 {
		o.Process = &Process{PID: r.PID, Comm: r.Comm, FD: r.FD}
	}
	return o
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func ago(at time.Time, age time.Duration) int64 {
	if age < 0 {
		return 0
	}
	return at.Add(-age).UnixMilli()
}

// follow makes r the row that comes after old: it keeps a time that differs by jitter
// alone, and an owner that was known.
func (r *Row) follow(old *Row) {
	steady := func(now *int64, before int64) {
		if d := *now - before; *now != 0 && before != 0 && -jitter < d && d < jitter {
			*now = before
		}
	}
	steady(&r.Since, old.Since)
	steady(&r.DataAt, old.DataAt)
	steady(&r.HeardAt, old.HeardAt)
	steady(&r.GivesUpAt, old.GivesUpAt)
	steady(&r.GivesUpLatest, old.GivesUpLatest)
	if r.Held != HeldByProcess {
		return
	}
	if r.PID == 0 {
		r.PID, r.Comm, r.FD = old.PID, old.Comm, old.FD
	}
	if r.Cgroup == (Cgroup{}) {
		r.Cgroup = old.Cgroup
	}
}

// sameAs reports whether the row says the same as old, but for when.
func (r *Row) sameAs(old *Row) bool {
	then := *old
	then.At = r.At
	return *r == then
}
