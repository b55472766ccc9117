// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/halfopen/halfopen/bpf/abi"
)

// takeCgroupRisks returns the numbers of connections at risk that the last walk has counted,
// by the id of their control group, and forgets them. The caller holds k.census.
func (k *Kernel) takeCgroupRisks() (map[uint64]abi.RiskCounts, error) {
	all := make(map[uint64]abi.RiskCounts)
	ids, counts := make([]uint64, 256), make([]abi.RiskCounts, 256)
	var cursor ebpf.MapBatchCursor
	for end := false; !end; {
		n, err := k.objs.CgroupRisks.BatchLookup(&cursor, ids, counts, nil)
		end = errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return nil, fmt.Errorf("read risks by control group: %w", err)
		}
		for i := range n {
			all[ids[i]] = counts[i]
		}
	}
	for id := range all {
		if err := k.objs.CgroupRisks.Delete(id); err != nil {
			return nil, fmt.Errorf("forget risks by control group: %w", err)
		}
	}
	return all, nil
}
