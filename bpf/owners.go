// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Owners returns by cookie the file descriptors that hold these sockets, of all
// processes. A socket that no process holds is not in the result.
func (k *Kernel) Owners(cookies []uint64) (map[uint64][]abi.Owner, error) {
	k.owners.Lock()
	defer k.owners.Unlock()
	found := make(map[uint64][]abi.Owner)
	room := int(k.objs.Wanted.MaxEntries())
	for chunk := range slices.Chunk(cookies, room) {
		for _, c := range chunk {
			if err := k.objs.Wanted.Put(c, uint8(1)); err != nil {
				return nil, fmt.Errorf("ask for owners: %w", err)
			}
		}
		var o abi.Owner
		err := k.pass("owners", bytesOf(&o), func() { found[o.Cookie] = append(found[o.Cookie], o) })
		for _, c := range chunk {
			if derr := k.objs.Wanted.Delete(c); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
				err = errors.Join(err, derr)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("find owners: %w", err)
		}
	}
	return found, nil
}
