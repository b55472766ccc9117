// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/containers"
)

// fakeGroups has control groups by their ids.
type fakeGroups struct {
	*fakeRuntime
	paths map[uint64]string
}

func (f *fakeGroups) CgroupPath(id uint64) (string, error) {
	if path, ok := f.paths[id]; ok {
		return path, nil
	}
	return "", os.ErrNotExist
}

// risks returns the numbers of connections without keepalive and of those with slow keepalive.
func risks(off, slow uint32) (r abi.RiskCounts) {
	r.Risks[abi.RiskNoKeepalive], r.Risks[abi.RiskKeepaliveSlowerThanMiddlebox] = off, slow
	return r
}

func TestRisksAreCountedByOwner(t *testing.T) {
	id := strings.Repeat("3f2a9c8d", 8)
	f, _ := newFakeRuntime()
	f.Privileged = NewDirect()
	f.set(id, containers.Names{Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"})
	c := New(newFakeKernel(), Options{Privileged: &fakeGroups{f, map[uint64]string{
		1: "/system.slice/web.service", 2: "/system.slice/web.service/worker", 3: "/",
		4: "/kubepods.slice/kubepods-pod0f1e2d3c_1111_2222_3333_444444444444.slice/cri-containerd-" + id + ".scope",
		5: "/system.slice/mended.service", 6: "/user.slice/\x1b[2J.service", 7: "/system.slice/other.service", 8: "/x.slice/other",
	}}})
	res := bpf.CensusResult{CgroupRisks: map[uint64]abi.RiskCounts{
		0: risks(1, 0), 1: risks(3, 5), 2: risks(7, 0), 3: risks(11, 0), 4: risks(13, 17), 5: risks(0, 0), 6: risks(19, 0), 404: risks(23, 0), 7: risks(29, 0),
	}}
	res.Counts.Risks[abi.RiskNoKeepalive] = 1 + 3 + 7 + 11 + 13 + 19 + 23 + 29 + 31 // 31 of groups that the kernel did not count
	res.Counts.Risks[abi.RiskKeepaliveSlowerThanMiddlebox] = 22
	res.Counts.Risks[abi.RiskCloseWaitLeak] = 2
	off, slow := conn.RiskNoKeepalive.String(), conn.RiskKeepaliveSlowerThanMiddlebox.String()
	want := map[conn.OwnerLabel]int{
		{Name: "web.service", Risk: off}: 10, {Name: "web.service", Risk: slow}: 5,
		{Name: "shop/checkout-xhnvf", Risk: off}: 13, {Name: "shop/checkout-xhnvf", Risk: slow}: 17,
		{Name: "\x1b[2J.service", Risk: off}: 19, {Name: "other.service", Risk: off}: 29,
		{Risk: off}:                35, // of the root group, of none, and of one that is gone
		{Name: "other", Risk: off}: 31, {Name: "other", Risk: conn.RiskCloseWaitLeak.String()}: 2,
	}
	if diff := cmp.Diff(want, c.riskOwners(&res)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// A connection that has come since the census's count: nothing is below zero.
	res.Counts.Risks = [len(res.Counts.Risks)]uint64{}
	if n := c.riskOwners(&res)[conn.OwnerLabel{Name: "other", Risk: off}]; n != 0 {
		t.Errorf("others have %d", n)
	}
}

// Every fourth census counts by owner, the first among them, and what it counted stays until
// the next.
func TestOwnersOfRisksComeWithEveryFourthCensus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFakeRuntime()
		f.Privileged = NewDirect()
		k := newFakeKernel()
		k.result.CgroupRisks = map[uint64]abi.RiskCounts{1: risks(3, 0)}
		c := collect(t, k, Options{CensusInterval: time.Minute, Privileged: &fakeGroups{f, map[uint64]string{1: "/system.slice/web.service"}}})
		of := conn.OwnerLabel{Name: "web.service", Risk: conn.RiskNoKeepalive.String()}
		check := func(want int) {
			t.Helper()
			s, err := c.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if got := s.AtRiskByOwner[of]; got != want {
				t.Errorf("%d at risk, want %d", got, want)
			}
		}
		check(3)
		k.set(func() { k.result.CgroupRisks = map[uint64]abi.RiskCounts{1: risks(5, 0)} })
		for range 3 {
			time.Sleep(time.Minute)
			synctest.Wait()
			check(3)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		check(5)
	})
}
