// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// BlockOutput drops the TCP packets of a port at the output hook of the namespace, which is an
// error for the TCP that sends them: they never leave. remove may be called after Close.
func (n *Namespace) BlockOutput(port uint16) (remove func() error, err error) {
	r := Rule{Port: port, Percent: 100}
	return n.addRule(nftables.ChainHookOutput, r.exprs("", nil))
}

// BlockQueue has the queue of the namespace's link to its peer drop all packets: it has no
// room. For the TCP that sends them, that is congestion of this host.
func (n *Namespace) BlockQueue() (remove func() error, err error) {
	return n.changeLink(func(index int) (func() error, error) {
		limit := make([]byte, 4) // struct tc_fifo_qopt: no packets
		req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
		req.AddData(&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(index), Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT})
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("pfifo")))
		req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, limit))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return deleteQdisc(index, netlink.MakeHandle(1, 0), netlink.HANDLE_ROOT, "pfifo"), err
	})
}

// BlockEgress has a BPF program at the egress of the namespace's link to its peer (tc) drop all
// packets. That is congestion, too.
func (n *Namespace) BlockEgress() (remove func() error, err error) {
	return n.changeLink(func(index int) (func() error, error) {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type:         ebpf.SchedCLS,
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, int32(netlink.TC_ACT_SHOT)), asm.Return()},
			License:      "GPL",
		})
		if err != nil {
			return nil, err
		}
		defer prog.Close()
		handle := netlink.MakeHandle(0xffff, 0)
		err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index, Handle: handle, Parent: netlink.HANDLE_CLSACT,
		}})
		if err != nil {
			return nil, err
		}
		return deleteQdisc(index, handle, netlink.HANDLE_CLSACT, "clsact"), netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:          prog.FD(), Name: "drop", DirectAction: true,
		})
	})
}

// changeLink changes how the namespace's link to its peer sends. change gets the link's index, and
// returns a function that undoes the change.
func (n *Namespace) changeLink(change func(index int) (undo func() error, err error)) (func() error, error) {
	var undo func() error
	err := n.Do(func() error {
		link, err := netlink.LinkByName(linkName)
		if err != nil {
			return err
		}
		undo, err = change(link.Attrs().Index)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("block what %s sends: %w", linkName, err)
	}
	return func() error { return n.Do(undo) }, nil
}

// deleteQdisc returns a function that deletes a queueing discipline.
func deleteQdisc(index int, handle, parent uint32, kind string) func() error {
	return func() error {
		return netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index, Handle: handle, Parent: parent,
		}, QdiscType: kind})
	}
}
