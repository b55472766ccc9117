// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api/apitest"
)

// A list says before its connections how they are ordered, if that is not worst first.
func TestListSaysItsOrder(t *testing.T) {
	for _, tc := range []struct {
		name         string
		total, limit int
		order        string
	}{
		{"as many as are sorted", collector.SortedMost, 1 << 20, ""},
		{"more", collector.SortedMost + 1, 1 << 20, OrderVerdict},
		{"more, without a limit", collector.SortedMost + 1, 0, OrderVerdict},
		{"more, of which a few are wanted", collector.SortedMost + 1, collector.SortedMost, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			connections := []conn.Connection{apitest.Connection()}
			if err := WriteList(&b, "connections", tc.total, OrderOf(&collector.Query{Limit: tc.limit}, tc.total), Values(connections), NewConnection); err != nil {
				t.Fatal(err)
			}
			var doc Connections
			if err := json.Unmarshal([]byte(b.String()), &doc); err != nil || doc.Total != tc.total || doc.Order != tc.order || len(doc.Connections) != 1 {
				t.Fatalf("total %d, order %q, %d connections, error %v", doc.Total, doc.Order, len(doc.Connections), err)
			}
			head, _, _ := strings.Cut(b.String(), `"connections"`)
			if said := strings.Contains(head, `"order"`); said != (tc.order != "") {
				t.Errorf("it begins with %s", head)
			}
		})
	}
}
