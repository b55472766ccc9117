// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"maps"
	"slices"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// riskOwnersEvery is how many censuses there are for each that counts the connections at
	// risk by owner: for that the kernel programs have to read the control group of each.
	riskOwnersEvery = 4
	// riskOwnersNamed is the most owners whose containers are searched for their names.
	riskOwnersNamed = 512
)

// riskOwners returns the numbers of connections at risk by owner and risk. The owner is the
// pod, container or unit of the control group of the socket: to search for the processes
// that hold so many sockets would take too long. It is "" if the group is none of these, and
// other for the connections that the kernel programs have counted for no group.
func (c *Collector) riskOwners(res *bpf.CensusResult) map[conn.OwnerLabel]int {
	groups := make(map[conn.Cgroup]abi.RiskCounts)
	for id, counts := range res.CgroupRisks {
		group := c.cgroups.byID(id)
		group.Path = "" // the groups below a container or a unit belong to it
		sum := groups[group]
		for risk, n := range counts.Risks {
			sum.Risks[risk] += n
		}
		groups[group] = sum
	}
	most := func(g conn.Cgroup) uint32 { counts := groups[g]; return slices.Max(counts.Risks[:]) }
	largest := slices.SortedFunc(maps.Keys(groups), func(a, b conn.Cgroup) int { return cmp.Compare(most(b), most(a)) })
	owners := make(map[conn.OwnerLabel]int)
	rest := res.Counts.Risks
	for i, group := range largest {
		counts := groups[group]
		if i < riskOwnersNamed {
			c.cgroups.containers.fill(&group)
		}
		_, name := group.Owner()
		for risk := range conn.Risk(conn.Risks) {
			if n := counts.Risks[risk]; n > 0 {
				owners[conn.OwnerLabel{Name: name, Risk: risk.String()}] += int(n)
				rest[risk] -= min(uint64(n), rest[risk])
			}
		}
	}
	for risk := range conn.Risk(conn.Risks) {
		if n := rest[risk]; n > 0 {
			owners[conn.OwnerLabel{Name: conn.OtherOwners, Risk: risk.String()}] += int(n)
		}
	}
	return owners
}
