// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter/api"
)

// A filter that is an entry of api.Filters is a flag of list and top, and a word of top.
func TestAFilterIsOneEntry(t *testing.T) {
	via := api.Filters[slices.IndexFunc(api.Filters, func(f api.Filter[collector.Query]) bool { return f.Name == "port" })]
	via.Name, via.Help = "via", "Only connections by this port."
	for _, args := range [][]string{{"list", "--via=443", "--url=none"}, {"top", "--via=443"}} {
		if _, err := parse(args); err == nil {
			t.Fatalf("%q is known already", args)
		}
	}
	defer func(before []api.Filter[collector.Query]) { api.Filters = before }(api.Filters)
	api.Filters = append(slices.Clone(api.Filters), via)
	for _, args := range [][]string{{"list", "--via=443", "--url=none"}, {"top", "--via=443"}} {
		if _, err := parse(args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
		args[1] = "--via=0"
		if _, err := parse(args); err == nil || err.Error() != `--via: "0" is not a port from 1 to 65535` {
			t.Errorf("%q: %v", args, err)
		}
		if p, err := parse([]string{args[0], "--help"}); err != nil || !strings.Contains(strings.Join(strings.Fields(p.help), " "), "--via=PORT Only connections by this port. Repeatable.") {
			t.Errorf("the help of %s is %q, %v", args[0], p.help, err)
		}
	}
	f, err := parseFilter("via:443 nginx")
	if err != nil || !slices.Equal(f.Ports, []uint16{443}) || !slices.Equal(f.words, []string{"nginx"}) || !f.filtered() {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestASwitchIsGivenOnce(t *testing.T) {
	var s selection
	v := filterValue[collector.Query]{&api.Filters[len(api.Filters)-1], &s.Query}
	if err := v.Set("true"); err != nil || !s.All || s.filtered() || !v.IsBoolFlag() || v.IsCumulative() {
		t.Errorf("%+v, %v", s, err)
	}
}
