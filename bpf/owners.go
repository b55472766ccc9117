// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/halfopen/halfopen/bpf/abi"
)

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
		all := visit
		visit = func(h *abi.FDHolder) {
			if _, ok := set[h.Cookie]; ok {
				all(h)
			}
		}
		wanted = nil
	}
	if wanted == nil {
		wanted = []uint64{0} // every TCP socket
	}
	var asked int
	var err error
	for _, c := range wanted {
		if err = k.objs.Wanted.Put(c, uint8(1)); err != nil {
			err = fmt.Errorf("ask for owners: %w", err)
			break
		}
		asked++
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
