// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector"
)

// Whatever is asked, it is refused with one line that says why, or it is understood as
// what can be asked for again in plain words.
func FuzzQuery(f *testing.F) {
	for _, query := range []string{
		"", "limit=7", "verdict=zombie&verdict=suspect&state=established&port=5432&pid=812",
		"owner=nginx&owner=-&remote=10.0.0.2&remote=2001:db8::/32&risk=no_keepalive&netns=4026531840&all=true",
		"remote=::ffff:10.0.0.0/104&remote=fe80::1%25eth0", "limit=99999999999999999999", "port=+1", "verdict=%zz", "all=false;limit=1",
		"owner=%00%ff%1b[2J&by=owner", "&&==&%00=", "by=remote", "cause=closed&cause=unknown&limit=3",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if d, err := ParseDeathQuery(raw); err != nil {
			refuses(t, raw, err)
		} else if again, err := ParseDeathQuery(DeathParameters(&d).Encode()); err != nil || !cmp.Equal(d, again) {
			t.Fatalf("%q is asked for again as %q: %v", raw, DeathParameters(&d).Encode(), err)
		}
		q, err := ParseConnectionQuery(raw)
		if err != nil {
			refuses(t, raw, err)
		} else {
			if q.Limit < 1 {
				t.Fatalf("%q has the limit %d", raw, q.Limit)
			}
			askedAgain(t, raw, &q, ConnectionParameters(&q).Encode(), ParseConnectionQuery)
		}
		g, by, err := ParseGroupQuery(raw)
		if err != nil {
			refuses(t, raw, err)
			return
		}
		askedAgain(t, raw, &g, GroupParameters(&g, by).Encode(), func(raw string) (collector.Query, error) {
			q, again, err := ParseGroupQuery(raw)
			if again != by {
				t.Fatalf("%q is by %v, want %v", raw, again, by)
			}
			return q, err
		})
	})
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func askedAgain(t *testing.T, raw string, q *collector.Query, encoded string, parse func(string) (collector.Query, error)) {
	t.Helper()
	again, err := parse(encoded)
	if diff := cmp.Diff(*q, again, comparePrefixes); diff != "" || err != nil {
		t.Fatalf("%q is asked for again as %q: %v\n%s", raw, encoded, err, diff)
	}
}

func refuses(t *testing.T, raw string, err error) {
	t.Helper()
	var body bytes.Buffer
	if json.NewEncoder(&body).Encode(Error{Error: err.Error()}) != nil || err.Error() == "" || !utf8.Valid(body.Bytes()) || bytes.Count(body.Bytes(), []byte("\n")) != 1 {
		t.Fatalf("%q is refused with %q", raw, &body)
	}
}
