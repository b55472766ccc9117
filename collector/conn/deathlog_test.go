// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// reset applies the end of a connection in use that the peer at 10.0.0.peer reset.
func (r *replay) reset(after time.Duration, cookie, cgroup uint64, peer byte) {
	c := healthy(cookie, after)
	c.Cgroup, c.Raddr = cgroup, [16]uint8{10, 0, 0, peer}
	r.die(after, CauseResetByPeer, &c)
}

// remembered returns the remembered deaths, newest first, as text.
func (r *replay) remembered() (deaths []string) {
	for d := range r.Deaths() {
		s := fmt.Sprintf("%x %v", d.Cookie, d.Cause)
		if d.Similar > 0 {
			s += fmt.Sprintf(" and %d since %v", d.Similar, d.SimilarSince.Sub(r.start))
		}
		deaths = append(deaths, s)
	}
	return deaths
}

// Deaths that are alike are counted when the tracker forgets them, and others are not.
func TestForgottenResetsAreCounted(t *testing.T) {
	const second = time.Second
	r := newReplay(t)
	r.reset(1*second, 1, 7, 1)
	r.reset(2*second, 2, 7, 2) // another peer
	r.reset(3*second, 3, 8, 1) // another owner
	r.reset(4*second, 4, 7, 1)
	idle := healthy(5, 5*second)
	idle.Cgroup, idle.Raddr, idle.Class = 7, [16]uint8{10, 0, 0, 1}, abi.ClassUnguarded
	r.die(5*second, CauseResetByPeer, &idle)
	zombie := conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
	zombie.Cookie, zombie.Cgroup, zombie.Raddr = 6, 7, [16]uint8{10, 0, 0, 1}
	r.solicit(6*second, zombie)
	r.reset(6*second, 6, 7, 1)
	for i := range maxDeaths {
		r.reset(7*second, uint64(i+1000), 7, 1)
	}
	deaths := r.remembered()
	if len(deaths) != maxDeaths {
		t.Errorf("%d deaths are remembered, expected %d", len(deaths), maxDeaths)
	}
	for i, cookie := 0, 1000+maxDeaths-1; i < len(deaths); i, cookie = i+1, cookie-1 {
		want := fmt.Sprintf("%x reset_by_peer", cookie)
		if i == 0 {
			want += " and 2 since 1s" // connections 1 and 4
		}
		if deaths[i] != want {
			t.Fatalf("death %d is %s, expected %s", i, deaths[i], want)
		}
	}
}

// Many deaths of one cause push out none of another.
func TestEveryCauseKeepsItsDeaths(t *testing.T) {
	r := newReplay(t)
	first := conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
	first.Cookie = 1
	r.die(0, CauseKeepaliveTimeout, first)
	for i := range maxDeaths + 23 { // each of another owner
		r.reset(time.Second, uint64(i+2), uint64(i), 1)
	}
	deaths := r.remembered()
	if len(deaths) != maxDeaths || !slices.Contains(deaths, "1 keepalive_timeout") {
		t.Errorf("%d deaths are remembered, the last is %s", len(deaths), deaths[len(deaths)-1])
	}
	if len(r.deaths.routine) != maxDeaths-1 {
		t.Errorf("%d routine resets are remembered, expected %d", len(r.deaths.routine), maxDeaths-1)
	}
}
