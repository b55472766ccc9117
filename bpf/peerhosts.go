// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"fmt"

	"github.com/halfopen/halfopen/bpf/abi"
)

// HostsMost is the most remote addresses to which a census counts the connections.
const HostsMost = 1024

// setHosts has the walks that follow count the connections to these remote addresses, until
// takeHosts is called. The caller holds k.census.
func (k *Kernel) setHosts(hosts []abi.PeerHostKey) error {
	for _, h := range hosts[:min(len(hosts), HostsMost)] {
		if err := k.objs.PeerHosts.Put(h, abi.PeerHost{}); err != nil {
			return fmt.Errorf("set remote addresses of zombies: %w", err)
		}
	}
	if err := k.objs.CensusHosts.Set(uint32(1)); err != nil {
		return fmt.Errorf("set remote addresses of zombies: %w", err)
	}
	return nil
}

// takeHosts returns what the walks have counted since setHosts. The caller holds k.census.
func (k *Kernel) takeHosts() (map[abi.PeerHostKey]abi.PeerHost, error) {
	if err := k.objs.CensusHosts.Set(uint32(0)); err != nil {
		return nil, fmt.Errorf("read remote addresses of zombies: %w", err)
	}
	hosts := make(map[abi.PeerHostKey]abi.PeerHost)
	var key abi.PeerHostKey
	var host abi.PeerHost
	all := k.objs.PeerHosts.Iterate()
	for all.Next(&key, &host) {
		hosts[key] = host
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read remote addresses of zombies: %w", err)
	}
	for key := range hosts {
		if err := k.objs.PeerHosts.Delete(key); err != nil {
			return nil, fmt.Errorf("forget remote addresses of zombies: %w", err)
		}
	}
	return hosts, nil
}
