// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// Processes and control groups have any bytes for a name. They come out of the API, the
// stream and the metrics as text, in the place that they belong to, and nothing else.
func FuzzNames(f *testing.F) {
	f.Add(hostileComm, "/system.slice/nginx.service")
	f.Add("x\u2028\x00\x1b[2J", "/\",\"pid\":1}\n\nevent: death\ndata: .service")
	f.Add("\\\"", "/</script>\xff\xfe.scope")
	f.Fuzz(func(t *testing.T, comm, path string) {
		c := contractConnection()
		c.Process.Comm, c.Cgroup = comm, conn.ParseCgroup(path)
		wantComm, wantPath := string([]rune(comm)), string([]rune(path)) // as encoding/json writes bytes that are not UTF-8

		var list bytes.Buffer
		if err := api.WriteList(&list, "connections", 1, "", api.Values([]conn.Connection{c}), api.NewConnection); err != nil {
			t.Fatal(err)
		}
		embeds(t, list.Bytes(), 3)
		var doc api.Connections
		if err := json.Unmarshal(list.Bytes(), &doc); err != nil || len(doc.Connections) != 1 {
			t.Fatalf("%v: %s", err, &list)
		}
		if got := doc.Connections[0]; got.Process.Comm != wantComm || path != "" && *got.Cgroup != wantPath || got.Process.PID != 812 {
			t.Fatalf("%q in %q is %+v", comm, path, got)
		}

		// In the stream, a run of bytes that are not UTF-8 is one character.
		row := contractRow()
		row.Comm, row.Cgroup = comm, c.Cgroup
		var one frame
		one.add(kindRows, appendRow(nil, row, nil))
		embeds(t, one[kindRows], 3)
		_, data, _ := bytes.Cut(one[kindRows], []byte("data: "))
		var shown struct {
			Cookie, Comm string
			PID          int
		}
		if err := json.Unmarshal(data, &shown); err != nil || shown.Cookie != "1a2b" || shown.PID != 812 ||
			shown.Comm != strings.ToValidUTF8(comm, "\uFFFD") {
			t.Fatalf("%q: %v, %+v: %s", comm, err, shown, data)
		}

		owner := c.Owner()
		samples := parseText(t, scrape(t, collector.Stats{TrackerStats: conn.TrackerStats{ZombiesByOwner: map[conn.OwnerLabel]int{{Name: owner, RemotePort: "5432"}: 23}}}))
		found := 0
		for name, n := range samples {
			if strings.HasPrefix(name, "halfopen_tcp_zombies_by_owner ") {
				found++
				if n != 23 || !strings.Contains(name, " owner="+strconv.Quote(escape.Text(owner))) {
					t.Fatalf("%q has the metric %s = %v", owner, name, n)
				}
			}
		}
		if found != 1 {
			t.Fatalf("%q has %d metrics", owner, found)
		}
	})
}

// embeds fails unless the output is text of that many lines, safe within HTML and on a terminal.
func embeds(t *testing.T, out []byte, lines int) {
	t.Helper()
	invisible := bytes.ContainsFunc(out, func(r rune) bool { return !escape.Visible(r) && r != '\n' })
	if !utf8.Valid(out) || bytes.ContainsAny(out, "<>") || invisible || bytes.Count(out, []byte("\n")) != lines {
		t.Fatalf("%q", out)
	}
}
