// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// A zombie is counted under one owner while it lives, however its process is renamed.
func TestOwnerOfAZombieIsCountedUnderOneName(t *testing.T) {
	r := newReplay(t)
	zombie := conntest.KeepaliveZombie()
	zombie.Cookie, zombie.Rport = 1, 443
	r.solicit(0, zombie)
	found := func(o Ownership, want string) {
		t.Helper()
		r.Apply(&Fact{Kind: FactOwners, At: r.at(time.Minute), Owners: map[uint64]Ownership{1: o}})
		if diff := cmp.Diff(map[OwnerLabel]int{{Name: want, RemotePort: "443"}: 1}, r.Stats(r.at(time.Minute)).ZombiesByOwner); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	found(Ownership{}, "")
	for i := range 10000 {
		found(Ownership{Process: &Process{PID: 7, Comm: fmt.Sprint("name", i)}}, "name0")
	}
	found(Ownership{}, "name0")
	found(Ownership{Cgroup: Cgroup{Unit: "x.service"}}, "x.service")
	found(Ownership{Process: &Process{PID: 7, Comm: "other"}}, "x.service")
}
