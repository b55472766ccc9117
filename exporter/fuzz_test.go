// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

// Whatever is asked, it is refused with one line that says why, or it is understood as
// what can be asked for again in plain words.
func FuzzQuery(f *testing.F) {
	for _, query := range []string{
		"", "limit=7", "verdict=zombie&verdict=suspect&state=established&port=5432&pid=812",
		"owner=nginx&owner=-&remote=10.0.0.2&remote=2001:db8::/32&risk=no_keepalive&netns=4026531840&all=true",
		"remote=::ffff:10.0.0.0/104&remote=fe80::1%25eth0", "limit=99999999999999999999", "port=+1", "verdict=%zz", "all=false;limit=1",
		"owner=%00%ff%1b[2J&by=owner", "&&==&%00=", "by=remote",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		params, err := parameters(raw, append([]string{"by", "cause"}, connectionParameters...)...)
		if err != nil {
			refuses(t, raw, err)
			return
		}
		if by, err := parseGrouping(params["by"]); err != nil {
			refuses(t, raw, err)
		} else if by.String() != params["by"][0] {
			t.Fatalf("%q is by %v", raw, by)
		}
		if _, err := each(params["cause"], conn.ParseCause); err != nil {
			refuses(t, raw, err)
		}
		q, err := connectionQuery(params)
		if err != nil {
			refuses(t, raw, err)
			return
		}
		if q.Limit < 1 {
			t.Fatalf("%q has the limit %d", raw, q.Limit)
		}
		again, err := connectionQuery(parametersOf(q))
		if diff := cmp.Diff(q, again, comparePrefixes); diff != "" || err != nil {
			t.Fatalf("%q is asked for again as %q: %v\n%s", raw, parametersOf(q).Encode(), err, diff)
		}
	})
}

func refuses(t *testing.T, raw string, err error) {
	t.Helper()
	var body bytes.Buffer
	if json.NewEncoder(&body).Encode(Error{Error: err.Error()}) != nil || err.Error() == "" || !utf8.Valid(body.Bytes()) || bytes.Count(body.Bytes(), []byte("\n")) != 1 {
		t.Fatalf("%q is refused with %q", raw, &body)
	}
}

// parametersOf is what asks for a query.
func parametersOf(q collector.Query) url.Values {
	params := url.Values{"limit": {strconv.Itoa(q.Limit)}, "all": {strconv.FormatBool(q.All)}}
	for _, v := range q.Verdicts {
		params.Add("verdict", v.String())
	}
	for _, v := range q.States {
		params.Add("state", v.String())
	}
	for _, v := range q.Ports {
		params.Add("port", strconv.Itoa(int(v)))
	}
	for _, v := range q.PIDs {
		params.Add("pid", strconv.Itoa(int(v)))
	}
	for _, v := range q.Owners {
		params.Add("owner", v)
	}
	for _, v := range q.Remotes {
		params.Add("remote", v.String())
	}
	for _, v := range q.Risks {
		params.Add("risk", v.String())
	}
	for _, v := range q.Netns {
		params.Add("netns", strconv.Itoa(int(v)))
	}
	return params
}

// Processes and control groups have any bytes for a name. They come out of the API, the
// stream and the metrics as text, in the place that they belong to, and nothing else.
func FuzzNames(f *testing.F) {
	f.Add(hostileComm, "/system.slice/nginx.service")
	f.Add("x\u2028\x00\x1b[2J", "/\",\"pid\":1}\n\nevent: death\ndata: .service")
	f.Add("\\\"", "/</script>\xff\xfe.scope")
	f.Fuzz(func(t *testing.T, comm, path string) {
		c := contractConnection()
		c.Process.Comm, c.Cgroup = comm, conn.ParseCgroup(path)
		wantComm, wantPath := string([]rune(comm)), string([]rune(path)) // as encoding/json says what is no text

		var list bytes.Buffer
		if err := WriteList(&list, "connections", 1, Each([]conn.Connection{c}), NewConnection); err != nil {
			t.Fatal(err)
		}
		embeds(t, list.Bytes(), 3)
		var doc Connections
		if err := json.Unmarshal(list.Bytes(), &doc); err != nil || len(doc.Connections) != 1 {
			t.Fatalf("%v: %s", err, &list)
		}
		if got := doc.Connections[0]; got.Process.Comm != wantComm || path != "" && *got.Cgroup != wantPath || got.Process.PID != 812 {
			t.Fatalf("%q in %q is %+v", comm, path, got)
		}

		// In the stream a run of what is no text is one character.
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
				if n != 23 || !strings.Contains(name, " owner="+strconv.Quote(strings.ToValidUTF8(owner, "\uFFFD"))) {
					t.Fatalf("%q has the metric %s = %v", owner, name, n)
				}
			}
		}
		if found != 1 {
			t.Fatalf("%q has %d metrics", owner, found)
		}
	})
}

// embeds fails unless what was written is text of so many lines, and safe within HTML.
func embeds(t *testing.T, out []byte, lines int) {
	t.Helper()
	if !utf8.Valid(out) || bytes.ContainsAny(out, "<>\u2028\u2029\r\x00\x1b") || bytes.Count(out, []byte("\n")) != lines {
		t.Fatalf("%q", out)
	}
}
