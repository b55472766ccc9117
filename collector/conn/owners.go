// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Ownership is the process and the control group that a connection belongs to.
type Ownership struct {
	Process *Process // nil: not found
	Cgroup  Cgroup
}

// NeedOwners returns the connections whose owners should be searched for now: their
// cookies, with the ids of their control groups. These are the connections in trouble and
// those with a row, unless their last search began within OwnersRetry, and the
// connections that died at since or later.
func (t *Tracker) NeedOwners(now, since time.Time) map[uint64]uint64 {
	wanted := make(map[uint64]uint64)
	for cookie, tc := range t.tracked {
		if tc.verdict > Unguarded && now.Sub(tc.ownerSearched) > OwnersRetry &&
			tc.conn.Flags&(abi.ConnOrphan|abi.ConnUnaccepted) == 0 {
			wanted[cookie] = tc.conn.Cgroup
		}
	}
	for d := range t.Deaths() {
		if d.DiedAt.Before(since) {
			break
		}
		if d.Process == nil && d.Held() {
			wanted[d.Cookie] = d.CgroupID
		}
	}
	t.rows.needOwners(now, wanted)
	return wanted
}

// setOwners applies the result of a search for owners that began at that time.
func (t *Tracker) setOwners(owners map[uint64]Ownership, at time.Time) {
	for cookie, o := range owners {
		t.rows.setOwner(cookie, &o, at)
		if tc := t.tracked[cookie]; tc != nil {
			tc.setOwner(&o, at)
		}
	}
	for d := range t.Deaths() {
		if o, ok := owners[d.Cookie]; ok && d.Process == nil {
			d.Process, d.Cgroup = o.Process, o.Cgroup
		}
	}
}
