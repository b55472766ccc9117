// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// streaming is an agent whose stream is that text, after which it goes on in silence
// or ends.
func streaming(t *testing.T, text string, ends bool) (url string, asked *string) {
	t.Helper()
	asked = new(string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = r.URL.String()
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, text)
		w.(http.Flusher).Flush()
		if !ends {
			<-r.Context().Done()
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}

// told has notices in the form in which an agent sends them.
func told(t *testing.T, notices ...*conn.Notice) string {
	t.Helper()
	var b strings.Builder
	for _, n := range notices {
		wire := api.NewNotice(n)
		data, err := json.Marshal(wire)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", wire.Event, data)
	}
	return b.String()
}

// traced runs trace until it has printed so many lines, and returns them.
func traced(t *testing.T, lines int, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs strings.Builder
	status := run(ctx, append([]string{"trace"}, args...), writerFunc(func(p []byte) (int, error) {
		out.Write(p)
		if strings.Count(out.String(), "\n") >= lines {
			cancel()
		}
		return len(p), nil
	}), &errs)
	if status != exitDone {
		t.Errorf("%q: status %d, stderr %q", args, status, errs.String())
	}
	return out.String(), errs.String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestTraceThroughAnAgentPrintsWhatItWouldByItself(t *testing.T) {
	later := func(n *conn.Notice) { n.At = n.At.Add(time.Second); n.From = conn.Suspect }
	probe := notice(conn.NoticeSolicitation, nil)
	zombie := notice(conn.NoticeVerdict, later)
	death := notice(conn.NoticeDeath, func(n *conn.Notice) {
		n.At = n.At.Add(2 * time.Second)
		n.Death = &conn.Death{Cause: conn.CauseKeepaliveTimeout, Errno: 110, ZombieFor: 50 * time.Second, Forecast: conns[0].GivesUp}
	})
	// Sorted by kind, as the agent sends them, with the other data of its stream.
	url, asked := streaming(t, "retry: 2000\n\n:\n\nevent: summary\ndata: {\"at\":\"2026-11-21T12:00:00Z\",\"missed\":3}\n\n"+
		told(t, zombie, death, probe)+"event: novelty\ndata: {\"event\":\"novelty\"}\n\n"+
		"event: summary\ndata: {\"at\":\"2026-11-21T12:00:03Z\",\"missed\":5}\n\n", false)
	var want, wantJSON strings.Builder
	tr := trace{output: "json"}
	for _, n := range []*conn.Notice{probe, zombie, death} {
		wire := api.NewNotice(n)
		want.WriteString(traceLine(&wire, false))
		if err := tr.printer(&wantJSON)(&wire, nil); err != nil {
			t.Fatal(err)
		}
	}
	stdout, stderr := traced(t, 3, "--url", url)
	if stdout != want.String() {
		t.Errorf("\n%s\nwant\n%s", stdout, want.String())
	}
	if !strings.HasPrefix(stderr, "watching through "+url+"; press Ctrl-C to stop\n") || !strings.Contains(stderr, "halfopen: 2 events not printed") {
		t.Errorf("stderr %q", stderr)
	}
	if *asked != "/api/v1/stream?event=verdict&event=death&event=solicitation&event=summary&owners=true" {
		t.Errorf("asked for %s", *asked)
	}
	if stdout, _ := traced(t, 3, "--url", url, "-o", "json"); stdout != wantJSON.String() {
		t.Errorf("\n%s\nwant\n%s", stdout, wantJSON.String())
	}
	for args, lines := range map[string]int{"--cause=keepalive_timeout": 1, "--port=5432 --pid=812": 3, "--verdict=zombie --port=37024": 3} {
		if stdout, _ := traced(t, lines, append(strings.Fields(args), "--url", url)...); strings.Count(stdout, "\n") != lines {
			t.Errorf("%s:\n%s", args, stdout)
		}
	}
	if stdout, _ := traced(t, 1, "--url", url, "--duration=300ms", "--pid=813"); stdout != "" {
		t.Errorf("of another process:\n%s", stdout)
	}
}

func TestTraceShowsWhatAnotherVersionSays(t *testing.T) {
	url, _ := streaming(t, `event: verdict
data: {"event":"verdict","at":"2026-11-21T12:00:00Z","connection":{"cookie":"1","local":{"ip":"10.0.0.1","port":1},"remote":{"ip":"10.0.0.2","port":2},"verdict":"st\u001buck","evidence":"a","unanswered":4,"silent_seconds":12,"news":1},"from":"active","to":"stuck"}

`, false)
	stdout, _ := traced(t, 1, "--url", url)
	if want := `st\x1buck, was active: 4 solicitations unanswered, silent for 12s; the`; strings.Contains(stdout, "\x1b") || !strings.Contains(stdout, strings.TrimSuffix(want, "; the")) {
		t.Errorf("%q", stdout)
	}
	if stdout, _ := traced(t, 1, "--url", url, "-o", "json"); !strings.Contains(stdout, `"news":1`) {
		t.Errorf("%q", stdout)
	}
}

func TestTraceSaysWhatIsWrongWithTheAgent(t *testing.T) {
	url, _ := streaming(t, "event: verdict\ndata: {\n\nevent: death\ndata: {\"event\":\"death\"}\n\n", true)
	status, stdout, stderr := halfopen(t, "trace", "--url", url)
	want := "watching through " + url + "; press Ctrl-C to stop\nhalfopen: trace through " + url +
		": the stream has ended (the agent has ended it): check that the agent runs and listens there, or look without it with --url=none\n"
	if status != exitFailed || stdout != "" || stderr != want {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{http.StatusServiceUnavailable, `{"error":"256 clients have the stream already: close some"}`, "ask URL: 256 clients have the stream already: close some"},
		{http.StatusUnauthorized, "Unauthorized", "ask URL: it wants a user and a password: name a file that has them with --web.client-config"},
		{http.StatusOK, "<html>", "what answers at URL is not a halfopen agent: check the address and port of --url"},
		{http.StatusBadRequest, `{"error":"unknown parameter \"owners\""}`, `ask URL: unknown parameter "owners"`},
	} {
		url, _ := agentWith(t, tt.status, tt.body)
		wantFailure(t, strings.ReplaceAll(tt.want, "URL", url), "trace", "--url", url)
	}
	for _, args := range []string{"--all", "--census-cpu=2%", "--census-interval=5s", "--idle-after=1m"} {
		if status, _, stderr := halfopen(t, "trace", "--url", url, args); status != exitUsage || !strings.Contains(stderr, strings.Split(args, "=")[0]) {
			t.Errorf("%s: status %d, stderr %q", args, status, stderr)
		}
	}
}

func TestTraceThroughAnAgentEndsWhenNobodyReads(t *testing.T) {
	url, _ := streaming(t, told(t, notice(conn.NoticeSolicitation, nil)), false)
	var stderr strings.Builder
	if status := run(t.Context(), []string{"trace", "--url", url}, full{}, &stderr); status != exitFailed || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("status %d, stderr %q", status, stderr.String())
	}
}
