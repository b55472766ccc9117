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

// The names of a container may be found later than its id, and then they are kept.
func TestZombiesAreCountedUnderTheNamesOfTheirContainer(t *testing.T) {
	r := newReplay(t)
	zombie := conntest.KeepaliveZombie()
	zombie.Cookie, zombie.Rport = 1, 443
	r.solicit(0, zombie)
	const uid = "6f1c4a5e-0000-4000-8000-1234567890ab"
	named := OwnerLabel{Name: "shop/checkout-xhnvf", RemotePort: "443", Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"}
	for _, step := range []struct {
		found Cgroup
		want  OwnerLabel
	}{
		{Cgroup{PodUID: uid}, OwnerLabel{Name: uid, RemotePort: "443"}},
		{Cgroup{PodUID: uid, Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"}, named},
		{Cgroup{PodUID: uid}, named},
		{Cgroup{PodUID: uid, Namespace: "shop", Pod: "another", Container: "server"}, named},
	} {
		r.Apply(&Fact{Kind: FactOwners, At: r.at(time.Minute), Owners: map[uint64]Ownership{1: {Cgroup: step.found}}})
		if diff := cmp.Diff(map[OwnerLabel]int{step.want: 1}, r.Stats(r.at(time.Minute)).ZombiesByOwner); diff != "" {
			t.Errorf("%+v (-want +got)\n%s", step.found, diff)
		}
	}
}

// The connections of excluded owners are counted as before, and apart from the others.
func TestExcludedOwnersAreCountedApart(t *testing.T) {
	r := newReplay(t)
	r.ExcludeOwners(OwnerGlobs{"chaos*"})
	owners := make(map[uint64]Ownership)
	for i, unit := range []string{"chaos.service", "chaos-2.service", "api.service"} {
		zombie := conntest.KeepaliveZombie()
		zombie.Cookie, zombie.Rport = uint64(i+1), 443
		r.solicit(time.Duration(i)*time.Second, zombie)
		// A process can take any name: in a unit it does not count.
		owners[zombie.Cookie] = Ownership{Process: &Process{PID: 7, Comm: "chaos"}, Cgroup: Cgroup{Unit: unit}}
	}
	r.Apply(&Fact{Kind: FactOwners, At: r.at(time.Minute), Owners: owners})
	s := r.Stats(r.at(time.Minute))
	want := map[OwnerLabel]int{
		{Name: "chaos.service", RemotePort: "443", Excluded: "true"}: 1, {Name: "chaos-2.service", RemotePort: "443", Excluded: "true"}: 1,
		{Name: "api.service", RemotePort: "443"}: 1,
	}
	if diff := cmp.Diff(want, s.ZombiesByOwner); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if all, excluded := s.Connections[Established][Zombie], s.Excluded[Established][Zombie]; all != 3 || excluded != 2 {
		t.Errorf("%d zombies, %d of them excluded, want 3 and 2", all, excluded)
	}
	if s.ZombieOldestExcluded-s.ZombieOldest != 2*time.Second {
		t.Errorf("the oldest is %v, and %v of the excluded ones", s.ZombieOldest, s.ZombieOldestExcluded)
	}
}
