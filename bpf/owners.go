// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/halfopen/halfopen/bpf/abi"
)

// wantedBits is WANTED_BITS of the programs. If it differs, their variable has another size,
// and cannot be set.
const wantedBits = 65536

// FDHolders calls visit with each file descriptor, of any process, that holds one of these
// sockets; with nil for cookies, one of all TCP sockets. It reads all descriptors of the
// machine once, however many sockets there are: above the size of its map it asks for
// all sockets and leaves out the others.
func (k *Kernel) FDHolders(cookies []uint64, visit func(*abi.FDHolder)) error {
	k.owners.Lock()
	defer k.owners.Unlock()
	wanted := cookies
	if cookies != nil && len(cookies) > int(k.objs.Wanted.MaxEntries()) {
		set := make(map[uint64]struct{}, len(cookies))
		for _, c := range cookies {
			set[c] = struct{}{}
		}
		given := visit
		visit = func(h *abi.FDHolder) {
			if _, ok := set[h.Cookie]; ok {
				given(h)
			}
		}
		wanted = nil
	}
	all := uint32(0)
	if wanted == nil {
		all = 1
	}
	var bits [wantedBits / 64]uint64
	for _, c := range wanted {
		bits[c/64%uint64(len(bits))] |= 1 << (c % 64)
	}
	err := errors.Join(k.objs.AllWanted.Set(all), k.objs.WantedBits.Set(bits))
	var asked int
	for _, c := range wanted {
		if err != nil {
			break
		}
		if err = k.objs.Wanted.Put(c, uint8(1)); err == nil {
			asked++
		}
	}
	if err != nil {
		err = fmt.Errorf("ask for owners: %w", err)
	}
	if err == nil {
		var h abi.FDHolder
		err = k.pass("owners", bytesOf(&h), func() { visit(&h) })
	}
	for _, c := range wanted[:asked] {
		if derr := k.objs.Wanted.Delete(c); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, derr)
		}
	}
	if err != nil {
		return fmt.Errorf("find owners: %w", err)
	}
	return nil
}
