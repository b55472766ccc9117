// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/collector"
)

// longAnswer is an answer with so many connections, which are not sorted, and with fields
// that this version does not know.
func longAnswer(many int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"generated_at":"2026-11-21T12:00:00Z","total":%d,"new":{"x":[1]},"order":"verdict","connections":[`+"\n", collector.SortedMost+many)
	for i := range many {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"cookie":"%x","state":"established","verdict":"idle","local":{"ip":"10.0.0.1","port":1},"remote":{"ip":"10.0.0.2","port":%d},"new":"\u00e9 é"}`+"\n", i+1, i+1)
	}
	b.WriteString(`],"after":[{}]}` + "\n")
	return b.String()
}

func TestLongListIsPrintedWhileItIsRead(t *testing.T) {
	const many = 2*tableRows + 1
	body := longAnswer(many)
	url, _ := agentWith(t, http.StatusOK, body)
	status, stdout, stderr := halfopen(t, "list", "--url", url, "-o", "json")
	if status != exitDone || stderr != "" || stdout != body {
		t.Errorf("status %d, stderr %q, %d bytes of %d: %.200s", status, stderr, len(stdout), len(body), stdout)
	}
	status, stdout, stderr = halfopen(t, "list", "--url", url)
	if n := strings.Count(stdout, "VERDICT"); status != exitDone || n != 3 {
		t.Errorf("status %d, %d tables", status, n)
	}
	for i := range many {
		if !strings.Contains(stdout, fmt.Sprintf(" 10.0.0.2:%d ", i+1)) {
			t.Fatalf("connection %d is missing", i)
		}
	}
	first, last, _ := strings.Cut(stderr, "\n")
	if want := "halfopen: 24001 connections are too many to sort: the worst verdict comes first, those with one verdict in any order"; first != want {
		t.Errorf("it begins with %q, want %q", first, want)
	}
	if want := "4001 of 24001 connections shown: 4001 idle\n"; last != want {
		t.Errorf("it ends with %q, want %q", last, want)
	}
}

// What is printed of a long list is not taken for all of it, if it is not.
func TestLongListThatIsCutOffIsAnError(t *testing.T) {
	const many = 1000
	body := longAnswer(many)
	half := body[:len(body)/2]
	for name, tc := range map[string]struct{ body, want string }{
		"in the list":  {half, "is not a halfopen agent"},
		"at its end":   {strings.TrimSuffix(body, "}\n"), "is not a halfopen agent"},
		"with more":    {body + "{}", "is not a halfopen agent"},
		"not in whole": {half, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := agentWith(t, http.StatusOK, tc.body)
			if name == "not in whole" { // the agent cuts it off
				url = serve(t, func(w http.ResponseWriter, _ *http.Request) {
					w.Write([]byte(tc.body))
					panic(http.ErrAbortHandler)
				})
			}
			for _, output := range []string{"json", "table"} {
				if status, _, stderr := halfopen(t, "list", "--url", url, "-o", output); status != exitFailed || !strings.Contains(stderr, tc.want) {
					t.Errorf("%s: status %d, stderr %q", output, status, stderr)
				}
			}
		})
	}
}

// A list that does not begin is not waited for without end.
func TestListThatDoesNotBegin(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"x":"`))
		for r.Context().Err() == nil {
			if _, err := w.Write([]byte(strings.Repeat("x", 1<<16))); err != nil {
				return
			}
		}
	})
	wantFailure(t, "what answers at "+url+" is not a halfopen agent: check the address and port of --url", "list", "--url", url)
}

// serve answers every request with f.
func serve(t *testing.T, f http.HandlerFunc) (url string) {
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv.URL
}
