// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Middleboxes says for how long the NATs and load balancers on the way to a destination
// remember a silent connection.
type Middleboxes struct {
	Default time.Duration                  // of destinations in none of the prefixes
	To      map[netip.Prefix]time.Duration // masked prefixes; the longest that contains an address counts
}

// Timeout returns the timeout of the middleboxes on the way to an address.
func (m *Middleboxes) Timeout(remote netip.Addr) time.Duration {
	timeout, longest := m.Default, -1
	for prefix, t := range m.To {
		if prefix.Bits() > longest && prefix.Contains(remote) {
			timeout, longest = t, prefix.Bits()
		}
	}
	return timeout
}

// Least returns the shortest timeout that a destination can have.
func (m *Middleboxes) Least() time.Duration {
	least := m.Default
	for _, t := range m.To {
		least = min(least, t)
	}
	return least
}

// String formats m as ParseMiddleboxes parses it.
func (m *Middleboxes) String() string {
	if len(m.To) == 0 {
		return m.Default.String()
	}
	var b strings.Builder
	for _, prefix := range slices.SortedFunc(maps.Keys(m.To), netip.Prefix.Compare) {
		fmt.Fprintf(&b, "%v=%v,", prefix, m.To[prefix])
	}
	fmt.Fprintf(&b, "default=%v", m.Default)
	return b.String()
}

// DefaultMiddleboxTimeout is the timeout of destinations that have none.
const DefaultMiddleboxTimeout = 350 * time.Second

// middleboxPresets are the timeouts of well-known middleboxes, unless their users have set
// others. docs/settings.md has the sources.
var middleboxPresets = map[string]time.Duration{
	"aws-nlb":  350 * time.Second,
	"azure-lb": 240 * time.Second,
	"gcp":      600 * time.Second,
	"ipvs":     900 * time.Second,
}

// MiddleboxPresets returns the names of the presets, sorted.
func MiddleboxPresets() []string { return slices.Sorted(maps.Keys(middleboxPresets)) }

var errMiddleboxes = errors.New("is neither a time such as 350s, nor a preset (" + strings.Join(MiddleboxPresets(), ", ") +
	"), nor a list such as 10.0.0.0/8=350s,default=azure-lb")

// ParseMiddleboxes parses a timeout, which is a positive duration or the name of a preset,
// or a list of them by destination: PREFIX=TIMEOUT,default=TIMEOUT. Without a default, that
// is DefaultMiddleboxTimeout.
func ParseMiddleboxes(s string) (m Middleboxes, err error) {
	if !strings.ContainsAny(s, "=,") {
		m.Default, err = parseMiddleboxTimeout(s)
		return m, err
	}
	for entry := range strings.SplitSeq(s, ",") {
		destination, text, ok := strings.Cut(entry, "=")
		if !ok {
			return m, fmt.Errorf("%q has no destination: write PREFIX=TIMEOUT such as 10.0.0.0/8=350s, or default=TIMEOUT", entry)
		}
		timeout, err := parseMiddleboxTimeout(text)
		if err != nil {
			return m, err
		}
		if destination == "default" {
			if m.Default != 0 {
				return m, errors.New("default is given twice")
			}
			m.Default = timeout
			continue
		}
		prefix, err := ParsePrefix(destination)
		if err != nil {
			return m, fmt.Errorf("%w, nor default", err)
		}
		if _, twice := m.To[prefix]; twice {
			return m, fmt.Errorf("%v is given twice", prefix)
		}
		if m.To == nil {
			m.To = make(map[netip.Prefix]time.Duration)
		}
		m.To[prefix] = timeout
	}
	if m.Default == 0 {
		m.Default = DefaultMiddleboxTimeout
	}
	return m, nil
}

func parseMiddleboxTimeout(s string) (time.Duration, error) {
	if timeout, ok := middleboxPresets[s]; ok {
		return timeout, nil
	}
	timeout, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q %w", s, errMiddleboxes)
	case timeout <= 0:
		return 0, fmt.Errorf("%s is not positive", s)
	}
	return timeout, nil
}

// ParsePrefix parses an address, or a prefix in CIDR notation, and masks it.
func ParsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8", s)
	}
	if bits := p.Bits() - 96; p.Addr().Is4In6() && bits >= 0 {
		p = netip.PrefixFrom(p.Addr().Unmap(), bits)
	}
	return p.Masked(), nil
}
