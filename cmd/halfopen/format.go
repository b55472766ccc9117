// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/humanize"
)

// none is the cell of a table that has nothing to show.
const none = "-"

// The formats of package humanize.
var (
	age     = humanize.Age
	setting = humanize.Setting
	tenths  = humanize.Tenths
	plural  = humanize.Plural
	size    = humanize.Size
)

// moment formats a duration that is usually far below a second: 847µs, 1.2ms, 450ms.
func moment(d time.Duration) string {
	switch {
	case d <= 0:
		return none
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d/time.Microsecond)
	case d < 100*time.Millisecond:
		return tenths(d/(time.Millisecond/10)) + "ms"
	}
	return age(d)
}

// keepalive formats when the kernel probes: 2h/75s×9 is after 2h, every 75s, 9 times.
func keepalive(k *api.Keepalive) string {
	if !k.Enabled {
		return "off"
	}
	return fmt.Sprintf("%s/%s×%d", setting(duration(k.TimeSeconds)), setting(duration(k.IntervalSeconds)), k.Probes)
}

// keepaliveOf is keepalive with "own" if any of it is set on the socket itself.
func keepaliveOf(k *api.Keepalive) string {
	if k.Enabled && k.PerSocket {
		return keepalive(k) + " own"
	}
	return keepalive(k)
}

// givesUp formats in how long the kernel ends a connection if it hears nothing.
func givesUp(g *api.GivesUp) string {
	if g == nil {
		return "never"
	}
	return age(max(0, duration(g.InSeconds)))
}

// commWidth is the width of a process's name in columns. The kernel keeps 15 bytes; a
// longer name has escapes.
const commWidth = 24

// owner formats the process that holds a connection, or why there is none.
func owner(o *api.Ownership) string {
	switch {
	case o.Process != nil:
		return fmt.Sprintf("%s[%d]", cut(escape.Text(o.Process.Comm), commWidth), o.Process.PID)
	case o.Accepted != nil && !*o.Accepted:
		return "(not accepted)"
	case o.UID == nil:
		return "(orphaned)"
	}
	return runsIn(o)
}

// The widths of names in columns: of a unit or a container, and of a pod with its namespace.
const (
	nameWidth = 30
	podWidth  = 60
)

// runsIn formats the best name of the pod, container or unit that a connection belongs
// to, enough for --owner.
func runsIn(o *api.Ownership) string {
	group := o.Group()
	kind, name := group.Owner()
	return ownerName(kind.String(), name)
}

// runsInAll formats a pod with its container, and the control group if there is no
// better name.
func runsInAll(o *api.Ownership) string {
	group := o.Group()
	best := runsIn(o)
	switch {
	case strings.HasPrefix(best, conn.OwnerPod.String()+" ") && group.ContainerName() != "":
		return best + " " + ownerName(conn.OwnerContainer.String(), group.ContainerName())
	case best == none && group.Path != "" && group.Path != "/":
		return cut(escape.Text(group.Path), nameWidth)
	}
	return best
}

// ownerIn formats the process that holds a connection, as owner does, and the pod or
// container that it runs in.
func ownerIn(o *api.Ownership) string {
	switch group := o.Group(); {
	case group.PodUID == "" && group.ContainerID == "":
		return owner(o)
	case o.Process == nil:
		return runsInAll(o)
	}
	return owner(o) + ", in " + runsInAll(o)
}

// podDigits is the number of digits shown of a pod's UID, if its name is not known.
const podDigits = 8

// ownerName formats an owner, given its kind and name as the API has them.
func ownerName(kind, name string) string {
	switch {
	case name == "":
		return none
	case kind == conn.OwnerPod.String() && strings.Contains(name, "/"):
		return "pod " + cut(escape.Text(name), podWidth)
	case kind == conn.OwnerPod.String():
		return "pod " + escape.Text(name[:min(len(name), podDigits)])
	case kind == conn.OwnerContainer.String():
		return "container " + cut(escape.Text(name), nameWidth)
	}
	return cut(escape.Text(name), nameWidth)
}

// columns returns how many columns of a terminal a text takes. All of it must be visible.
func columns(s string) int { return ansi.StringWidth(s) }

// cut shortens a text to a number of columns, with an ellipsis in the last.
func cut(s string, room int) string { return ansi.Truncate(s, room, "…") }

// text formats a word of an agent's answer, nil if it is missing. The agent may be
// another version, or hostile.
func text(s *string) string {
	if s == nil || *s == "" {
		return none
	}
	return cut(escape.Text(*s), 40)
}

func count(n int) string { return strconv.Itoa(n) }

// some formats a number that is usually 0.
func some(n int) string {
	if n == 0 {
		return none
	}
	return count(n)
}

func someBytes(n uint32) string {
	if n == 0 {
		return none
	}
	return size(n)
}

// listed returns names in one word.
func listed(names []string) string {
	if len(names) == 0 {
		return none
	}
	return escape.Text(strings.Join(names, ","))
}

func duration(seconds float64) time.Duration {
	return time.Duration(math.Round(seconds * float64(time.Second)))
}

func ageOf(seconds *float64) string {
	if seconds == nil {
		return none
	}
	return age(duration(*seconds))
}

func uid(id *uint32) string {
	if id == nil {
		return none
	}
	return strconv.FormatUint(uint64(*id), 10)
}

func address(s string) string {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return none
	}
	return escape.Text(ip.String())
}

func endpoint(e api.Endpoint) string {
	ip, err := netip.ParseAddr(e.IP)
	if err != nil {
		return none
	}
	return escape.Text(netip.AddrPortFrom(ip, e.Port).String()) // a zone can have any characters
}
