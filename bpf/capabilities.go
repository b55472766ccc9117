// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Capability is a Linux capability that halfopen uses.
type Capability struct {
	Bit  int    // unix.CAP_...
	Name string // as capabilities(7) has it
	For  string // what halfopen needs it for, an infinitive
	// Lost is what does not work without the capability; "" if nothing works, because
	// the programs cannot be loaded.
	Lost string
	// Included is true if CAP_SYS_ADMIN includes it.
	Included bool
	// until is the first kernel version that does not need it; the zero value if all do.
	until version
	// demo is true if only `halfopen demo` needs it.
	demo bool
}

// version is a kernel version: 5.11 is {5, 11}.
type version struct{ major, minor uint32 }

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// Capabilities are all capabilities that halfopen uses. The doctor's report,
// [ErrPrivileges] and the README's table follow from it.
var Capabilities = []Capability{
	{
		Bit: unix.CAP_BPF, Name: "CAP_BPF", Included: true,
		For: "to load programs",
	},
	{
		Bit: unix.CAP_PERFMON, Name: "CAP_PERFMON", Included: true,
		For: "to attach programs that read the kernel's memory",
	},
	{
		Bit: unix.CAP_SYS_ADMIN, Name: "CAP_SYS_ADMIN",
		For:  "to enter the network namespaces of sockets that have no cookie yet and that no process holds, and before Linux 5.12 to give new connections cookies",
		Lost: "no other network namespace can be entered: connections there that are older than the agent and that no process holds are not listed or followed; before Linux 5.12 new ones only from a census on",
	},
	{
		Bit: unix.CAP_SYS_PTRACE, Name: "CAP_SYS_PTRACE",
		For:  "to open the network namespaces and descriptors of other processes, for the same purpose",
		Lost: "no network namespace of another process can be entered: connections there that are older than the agent and that no process holds are not listed or followed",
	},
	{
		Bit: unix.CAP_DAC_READ_SEARCH, Name: "CAP_DAC_READ_SEARCH",
		For:  "to find a control group's name by its id (open_by_handle_at)",
		Lost: "the unit, container and pod of a connection are those of the process that holds it, and unknown once that has ended",
	},
	{
		Bit: unix.CAP_SYS_RESOURCE, Name: "CAP_SYS_RESOURCE", until: version{5, 11},
		For: "before Linux 5.11 to lock the memory of the maps (LimitMEMLOCK=infinity or ulimit -l unlimited will do instead)",
	},
	{
		Bit: unix.CAP_NET_ADMIN, Name: "CAP_NET_ADMIN", demo: true,
		For:  "to make network namespaces for the demo, and to enter one that only a socket of another process leads to",
		Lost: "halfopen demo cannot run, and a network namespace that only a socket of another process leads to cannot be entered",
	},
}

// Needed reports whether the running kernel requires the capability. It returns true if
// the kernel's version is unknown.
func (c *Capability) Needed() bool {
	if c.until == (version{}) {
		return true
	}
	code, err := features.LinuxVersionCode()
	return err != nil || code < c.until.major<<16|c.until.minor<<8
}

// NotNeeded returns from which version on the kernel does not require the capability,
// such as "since Linux 5.11"; "" if all versions do.
func (c *Capability) NotNeeded() string {
	if c.until == (version{}) {
		return ""
	}
	return "since Linux " + c.until.String()
}

// ErrPrivileges is the error of [Load] if the kernel does not permit it.
var ErrPrivileges = errors.New("not permitted to load BPF programs: run as root, or with " + agentCapabilities())

// agentCapabilities returns a list of the capabilities that the agent needs. Those that
// only older kernels require are last.
func agentCapabilities() string {
	var names []string
	older := ""
	for i := range Capabilities {
		switch c := &Capabilities[i]; {
		case c.demo:
		case c.until != (version{}):
			older += fmt.Sprintf(" and, before Linux %s, %s", c.until, c.Name)
		default:
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ") + older
}
