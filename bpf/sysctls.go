// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"context"
	"fmt"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Sysctls returns the TCP sysctls of all network namespaces, by inode number. It reads
// them from the kernel's memory, and enters no namespace.
func (k *Kernel) Sysctls(ctx context.Context) (map[uint32]abi.NetnsSysctls, error) {
	k.census.Lock()
	defer k.census.Unlock()
	all := make(map[uint32]abi.NetnsSysctls)
	if _, err := k.listNetns(ctx, all); err != nil {
		return nil, fmt.Errorf("read sysctls: %w", err)
	}
	return all, nil
}
