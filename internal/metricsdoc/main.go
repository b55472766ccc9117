// SPDX-License-Identifier: Apache-2.0

// Metricsdoc writes docs/metrics.md from the metrics that the exporter registers. `make
// generate` runs it. The queries and the meanings of label values are in queries.go and
// values.go. It fails if these lack a metric or value, or have one that does not exist.
package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	dto "github.com/prometheus/client_model/go"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: metricsdoc FILE")
	}
	families, err := registered()
	if err != nil {
		return err
	}
	text, err := reference(families)
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], text, 0o644)
}

// An example is a source with a value for each metric, also for those that otherwise need
// loaded kernel programs or a zombie.
type example struct{ exporter.Source }

func (example) Options() collector.Options { return collector.Options{} }

func (example) Stats() (collector.Stats, error) {
	tracepoints, err := bpf.Tracepoints()
	if err != nil {
		return collector.Stats{}, err
	}
	s := collector.Stats{
		TrackerStats: conn.TrackerStats{
			ZombiesByOwner: map[conn.OwnerLabel]int{{Name: "nginx.service", RemotePort: "5432"}: 1},
			TroubleByOwner: map[conn.OwnerLabel]int{
				{Name: "nginx.service", RemotePort: "5432", Verdict: conn.Blocked.String()}: 1,
				{Name: "nginx.service", RemotePort: "5432", Verdict: conn.Stuck.String()}:   1,
				{Name: "nginx.service", RemotePort: "5432", Verdict: conn.Unread.String()}:  1,
			},
		},
		AtRiskByOwner: make(map[conn.OwnerLabel]int),
		Attached:      map[string]bool{},
		EventsLost:    map[string]uint64{"undecodable": 0, "pass_failed": 0, "table_full": 0},
		Idle:          conn.Histogram{Bounds: []float64{1}, Counts: []uint64{0, 0}},
	}
	for risk := range conn.Risk(conn.Risks) {
		s.AtRiskByOwner[conn.OwnerLabel{Name: "nginx.service", Risk: risk.String()}] = 1
	}
	for _, name := range tracepoints {
		s.Attached[name] = true
	}
	return s, nil
}

// registered returns all metrics named halfopen_*, sorted by name.
func registered() ([]*dto.MetricFamily, error) {
	r := prometheus.NewPedanticRegistry()
	for _, c := range []prometheus.Collector{
		exporter.NewMetrics(example{}), exporter.NewLive(example{}, nil), exporter.NewGuard(nil, nil), exporter.NewConnLimit(nil), exporter.NewLookups(1),
		versioncollector.NewCollector("halfopen"),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return r.Gather()
}

// free has the labels whose values cannot be listed, each with its meaning.
var free = map[string]string{
	"owner":       "the first known name of the owner: a pod as NAMESPACE/NAME or else its UID, else a container's name or 12 digits of its id, else a systemd unit, else a process's name (`halfopen_tcp_at_risk_by_owner` has none of a process). It is escaped as in the table of `halfopen list`, and empty if no owner is known. At most 49 owners have a series of their own (47 of `halfopen_tcp_trouble_by_owner`, one for each verdict of an owner, and about 40 of `halfopen_tcp_at_risk_by_owner`, one for each risk; with `--alert.exclude-owner` some fewer), and an owner keeps it while it has such connections. `other` sums up the owners without one. When another owner needs a series, the agent takes that of an owner without such connections, at most 49 times an hour",
	"namespace":   "the namespace of the owner's pod in Kubernetes; empty if there is none, or it is not known",
	"pod":         "the name of the owner's pod; empty if there is none, or it is not known",
	"container":   "the name of the owner's container; empty if there is none, or it is not known",
	"excluded":    "`true` for the zombies, stuck, blocked and unread connections of owners that `--alert.exclude-owner` names, which the shipped alerts leave out; else empty. Without that flag no series has `true`",
	"remote_port": "the port of the service that the peer is; empty if the peer is a client",
	"program":     "the tracepoint, as the kernel names it",
	"version":     "", "revision": "", "branch": "", "goversion": "", "goos": "", "goarch": "", "tags": "",
}

func reference(families []*dto.MetricFamily) ([]byte, error) {
	var out bytes.Buffer
	var errs []error
	out.WriteString(preface)
	asked, told := maps.Clone(queries), maps.Clone(values)
	for _, f := range families {
		name := f.GetName()
		q, ok := asked[name]
		if !ok {
			errs = append(errs, fmt.Errorf("no query for %s in queries.go", name))
		}
		delete(asked, name)
		fmt.Fprintf(&out, "\n## %s\n\n%s\n\nType: %s. Unit: %s.", name, f.GetHelp(), strings.ToLower(f.GetType().String()), unit(name, q))
		for i, label := range labels(f) {
			fmt.Fprintf(&out, "%s `%s`", cmp.Or(strings.Repeat(",", min(i, 1)), " Labels:"), label.name)
		}
		if len(labels(f)) > 0 {
			out.WriteString(".")
		}
		out.WriteString("\n")
		for _, label := range labels(f) {
			key := name + " " + label.name
			meanings, ok := told[key]
			if text, isFree := free[label.name]; isFree {
				if text != "" {
					fmt.Fprintf(&out, "\nLabel `%s`: %s.\n", label.name, text)
				}
				continue
			}
			if !ok {
				errs = append(errs, fmt.Errorf("no meanings for label %s of %s in values.go", label.name, name))
				continue
			}
			delete(told, key)
			fmt.Fprintf(&out, "\n| `%s` | |\n|---|---|\n", label.name)
			for _, v := range meanings {
				fmt.Fprintf(&out, "| `%s` | %s |\n", cmp.Or(v.value, `""`), v.meaning)
			}
			if have := slices.Sorted(maps.Keys(label.values)); !slices.Equal(have, sorted(meanings)) {
				errs = append(errs, fmt.Errorf("label %s of %s has the values %q, values.go has %q", label.name, name, have, sorted(meanings)))
			}
		}
		fmt.Fprintf(&out, "\n%s\n\n```promql\n%s\n```\n", q.question, q.promql)
	}
	for name := range asked {
		errs = append(errs, fmt.Errorf("queries.go has %s, which the exporter does not have", name))
	}
	for key := range told {
		errs = append(errs, fmt.Errorf("values.go has %s, which the exporter does not have", key))
	}
	return out.Bytes(), errors.Join(errs...)
}

func sorted(meanings []meaning) []string {
	var names []string
	for _, m := range meanings {
		names = append(names, m.value)
	}
	slices.Sort(names)
	return names
}

// unit returns the unit at the end of the metric's name, or else the unit of its query.
func unit(name string, q query) string {
	switch {
	case q.unit != "":
		return q.unit
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	case strings.HasSuffix(name, "_bytes"):
		return "bytes"
	}
	return "none"
}

type label struct {
	name   string
	values map[string]bool
}

// labels returns the labels of a family, in the order of its series.
func labels(f *dto.MetricFamily) []label {
	var all []label
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			i := slices.IndexFunc(all, func(have label) bool { return have.name == l.GetName() })
			if i < 0 {
				i = len(all)
				all = append(all, label{l.GetName(), map[string]bool{}})
			}
			all[i].values[l.GetValue()] = true
		}
	}
	return all
}
