// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

// A Filter narrows a query Q down. `halfopen list` has it as the flag --Name, the filter
// line of `halfopen top` as Name:VALUE, and the API as the parameter Name.
type Filter[Q any] struct {
	Name        string
	Short       rune   // of the flag; 0: it has none
	Placeholder string // for the value, in the help of the flag
	Help        string // of the flag, in sentences
	// A switch is off, or on: its values are false and true, and it is given once. All
	// other filters can be given several times, up to [MaxValues]: any of the values may
	// match.
	Switch bool

	add    func(q *Q, value string) error
	values func(q *Q) []string
}

// Add adds a value to the filter's field of the query. Its error does not name the
// filter.
func (f *Filter[Q]) Add(q *Q, value string) error { return f.add(q, value) }

// Values returns the values that Add would make the filter's field of: none if the query
// is not filtered by it.
func (f *Filter[Q]) Values(q *Q) []string { return f.values(q) }

// MaxValues is the most values that a filter takes.
const MaxValues = 64

var errValues = fmt.Errorf("a filter takes at most %d values", MaxValues)

// Filters are the filters of connections. The flags of list, check, probe and top, the filter line
// of top, the client and the API follow from an entry here. "Add a filter" in CONTRIBUTING.md
// lists the other places that a new filter needs.
var Filters = []Filter[collector.Query]{
	repeated("verdict", "VERDICT", "Only connections of this verdict: "+strings.Join(conn.VerdictNames(), ", ")+".",
		conn.ParseVerdict, conn.Verdict.String, func(q *collector.Query) *[]conn.Verdict { return &q.Verdicts }),
	repeated("state", "STATE", "Only connections in this TCP state, such as established or close_wait.",
		conn.ParseState, conn.State.String, func(q *collector.Query) *[]conn.State { return &q.States }),
	repeated("port", "PORT", "Only connections with this port, local or remote.",
		collector.ParsePort, decimal[uint16], func(q *collector.Query) *[]uint16 { return &q.Ports }),
	repeated("pid", "PID", "Only connections of this process.",
		collector.ParsePID, decimal[uint32], func(q *collector.Query) *[]uint32 { return &q.PIDs }),
	repeated("owner", "NAME", "Only connections of this owner: a process by its name, a systemd unit, a container or pod by its name, its id or the first 8 digits of it; - for those without.",
		collector.ParseOwner, asIs, func(q *collector.Query) *[]string { return &q.Owners }),
	repeated("namespace", "NAME", "Only connections of pods in this namespace of Kubernetes.",
		collector.ParseName, asIs, func(q *collector.Query) *[]string { return &q.Namespaces }),
	repeated("pod", "NAME", "Only connections of the pods with this name.",
		collector.ParseName, asIs, func(q *collector.Query) *[]string { return &q.Pods }),
	repeated("remote", "ADDRESS", "Only connections to this address, or to an address in this prefix, such as 10.0.0.0/8.",
		conn.ParsePrefix, netip.Prefix.String, func(q *collector.Query) *[]netip.Prefix { return &q.Remotes }),
	repeated("risk", "RISK", "Only connections at this risk: "+strings.Join(conn.RiskNames(), ", ")+".",
		conn.ParseRisk, conn.Risk.String, func(q *collector.Query) *[]conn.Risk { return &q.Risks }),
	repeated("netns", "INODE", "Only connections in the network namespace of this inode number.",
		collector.ParseNetns, decimal[uint32], func(q *collector.Query) *[]uint32 { return &q.Netns }),
	onOff("all", 'a', "Also sockets that are not connections: listen, time_wait, syn_recv.",
		func(q *collector.Query) *bool { return &q.All }),
}

// DeathFilters are the filters of deaths.
var DeathFilters = []Filter[DeathQuery]{
	repeated("cause", "CAUSE", "Only deaths of this cause, such as keepalive_timeout.",
		conn.ParseCause, conn.Cause.String, func(q *DeathQuery) *[]conn.Cause { return &q.Causes }),
}

// repeated makes a filter that can be given several times, of a field that has its values.
func repeated[Q, T any](name, placeholder, help string, parse func(string) (T, error), format func(T) string, field func(*Q) *[]T) Filter[Q] {
	return Filter[Q]{
		Name: name, Placeholder: placeholder, Help: help,
		add: func(q *Q, value string) error {
			v, err := parse(value)
			if err != nil {
				return err
			}
			into := field(q)
			if len(*into) == MaxValues {
				return errValues
			}
			*into = append(*into, v)
			return nil
		},
		values: func(q *Q) (values []string) {
			for _, v := range *field(q) {
				values = append(values, format(v))
			}
			return values
		},
	}
}

// onOff makes a switch.
func onOff[Q any](name string, short rune, help string, field func(*Q) *bool) Filter[Q] {
	return Filter[Q]{
		Name: name, Short: short, Help: help, Switch: true,
		add: func(q *Q, value string) (err error) {
			*field(q), err = parseSwitch(value)
			return err
		},
		values: func(q *Q) []string {
			if !*field(q) {
				return nil
			}
			return []string{"true"}
		},
	}
}

func asIs(name string) string { return name }

func decimal[T uint16 | uint32](v T) string { return strconv.FormatUint(uint64(v), 10) }

// filtersOf returns the values by which a query is filtered, by the names of filters.
func filtersOf[Q any](filters []Filter[Q], q *Q) url.Values {
	params := make(url.Values)
	for i := range filters {
		if values := filters[i].Values(q); len(values) > 0 {
			params[filters[i].Name] = values
		}
	}
	return params
}

// addFilters adds the parameters that are filters to a query.
func addFilters[Q any](filters []Filter[Q], params url.Values, q *Q) error {
	for i := range filters {
		f := &filters[i]
		values := params[f.Name]
		if f.Switch && len(values) > 1 {
			return fmt.Errorf("%s is given more than once", f.Name)
		}
		for _, value := range values {
			if err := f.Add(q, value); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
		}
	}
	return nil
}

// names returns the names of filters.
func names[Q any](filters []Filter[Q]) (names []string) {
	for i := range filters {
		names = append(names, filters[i].Name)
	}
	return slices.Clip(names)
}
