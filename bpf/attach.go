// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/halfopen/halfopen/bpf/abi"
)

// Tracepoints returns the names of the tracepoints that [Load] attaches to, sorted,
// whether or not this kernel has them. [Kernel.WatchDrops] attaches to another one.
func Tracepoints() ([]string, error) {
	spec, err := readObject(nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, prog := range spec.Programs {
		if prog.AttachType == ebpf.AttachTraceRawTp && prog.AttachTo != dropsTracepoint {
			names = append(names, prog.AttachTo)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// observer is the two programs on a tracepoint: the primary, and the fallback for
// events at which the kernel skips the primary because it is running already. Timers
// need no fallback: they only run in softirq, which does not nest.
type observer struct {
	primary, fallback *ebpf.Program
	hook              int // index of Counters.Fallbacks
}

// observers returns the observers by the names of their tracepoints.
func (k *Kernel) observers() map[string]observer {
	return map[string]observer{
		"inet_sock_set_state":   {k.objs.InetSockSetState, k.objs.InetSockSetState2, abi.HookSetState},
		"tcp_retransmit_skb":    {k.objs.TcpRetransmitSkb, k.objs.TcpRetransmitSkb2, abi.HookRetransmitSkb},
		"tcp_retransmit_synack": {k.objs.TcpRetransmitSynack, k.objs.TcpRetransmitSynack2, abi.HookRetransmitSynack},
		"tcp_receive_reset":     {k.objs.TcpReceiveReset, k.objs.TcpReceiveReset2, abi.HookReceiveReset},
		"tcp_send_reset":        {k.objs.TcpSendReset, k.objs.TcpSendReset2, abi.HookSendReset},
		"timer_expire_entry":    {primary: k.objs.TimerExpireEntry},
		"timer_expire_exit":     {primary: k.objs.TimerExpireExit},
	}
}

// Attach attaches the programs to their tracepoints; after [Kernel.Detach], it attaches
// them again. It loads no program, and needs no privileges. It is not safe for concurrent use.
func (k *Kernel) Attach() error {
	if k.cookieGiver != nil {
		var l link.Link
		if l, k.cookiesErr = k.cookieGiver.attach(); k.cookiesErr == nil {
			k.links["cookies"] = append(k.links["cookies"], l)
		}
	}
	for name, o := range k.observers() {
		for _, prog := range []*ebpf.Program{o.primary, o.fallback} {
			if prog == nil {
				continue
			}
			l, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: ebpf.AttachTraceRawTp})
			if err != nil {
				return fmt.Errorf("attach to tracepoint %s: %w", name, err)
			}
			k.links[name] = append(k.links[name], l)
		}
	}
	return nil
}

// Detach detaches the programs from their tracepoints: nothing is observed until
// [Kernel.Attach]. Benchmarks use it to measure what observing costs. It is not safe for
// concurrent use.
func (k *Kernel) Detach() error {
	var errs []error
	for _, links := range k.links {
		for _, l := range links {
			errs = append(errs, l.Close())
		}
	}
	clear(k.links)
	return errors.Join(errs...)
}

// Attached reports for each tracepoint whether its programs are attached.
func (k *Kernel) Attached() map[string]bool {
	attached := make(map[string]bool)
	for name := range k.observers() {
		attached[name] = len(k.links[name]) > 0
	}
	return attached
}
