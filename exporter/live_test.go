// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// broadcast serves a source with its stream, until the test or the context ends.
func broadcast(ctx context.Context, t *testing.T, src Source, change func(*Live)) *httptest.Server {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	live := NewLive(src, logger)
	if change != nil {
		change(live)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		live.Run(ctx)
		close(done)
	}()
	server := httptest.NewServer(NewHandler(src, live, NewLookups(1), logger))
	t.Cleanup(func() {
		cancel()
		<-done
		server.Close()
	})
	return server
}

// An sse is one server-sent event.
type sse struct{ name, data string }

// listen reads a stream; events ends with it.
func listen(t *testing.T, server *httptest.Server, query string) (events <-chan sse) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/api/v1/stream"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("status %d, %s", resp.StatusCode, kind)
	}
	c := make(chan sse, 100000)
	go func() {
		defer close(c)
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 64<<20)
		var e sse
		for lines.Scan() {
			switch key, value, _ := strings.Cut(lines.Text(), ": "); key {
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				if e.name != "" {
					c <- e
				}
				e = sse{}
			}
		}
	}()
	return c
}

func next(t *testing.T, events <-chan sse, name string) string {
	t.Helper()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the stream ended before a %s", name)
			}
			if e.name == name {
				return e.data
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no %s within 20 s", name)
		}
	}
}

func verdictNotice(c conn.Connection) conn.Notice {
	return conn.Notice{Kind: conn.NoticeVerdict, At: c.At, Connection: c, From: conn.Suspect}
}

func TestStreamTellsWhatHappens(t *testing.T) {
	src := &fakeSource{stats: fullStats(), notices: make(chan conn.Notice, 10)}
	server := broadcast(t.Context(), t, src, nil)
	events := listen(t, server, "")
	var summary api.StreamSummary
	if err := json.Unmarshal([]byte(next(t, events, "summary")), &summary); err != nil {
		t.Fatal(err)
	}
	zombies := 0
	for _, verdicts := range src.stats.Connections {
		zombies += int(verdicts[conn.Zombie])
	}
	if summary.Verdicts["zombie"] != zombies || summary.AtRisk["no_keepalive"] != 50 || summary.Settings.MiddleboxTimeoutSeconds != 350 {
		t.Errorf("summary is %+v, expected %d zombies", summary, zombies)
	}
	died := contractDeath()
	notices := []conn.Notice{
		verdictNotice(contractConnection()),
		{Kind: conn.NoticeSolicitation, At: noon, Connection: contractConnection()},
		{Kind: conn.NoticeDeath, At: noon, Connection: died.Connection, Death: &died},
	}
	for _, n := range notices {
		src.notices <- n
	}
	for i, name := range []string{"verdict", "death", "solicitation"} { // by kind within a frame
		want, err := json.Marshal(api.NewNotice(&notices[[]int{0, 2, 1}[i]]))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), next(t, events, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRowsAreAllAndThenWhatChanges(t *testing.T) {
	row := contractRow()
	row.PID, row.Comm, row.Cgroup = 0, "", conn.Cgroup{}
	src := &fakeSource{rows: []*conn.Row{row}, changes: make(chan []conn.RowChange, 1), changed: make(chan struct{})}
	server := broadcast(t.Context(), t, src, nil)
	events := listen(t, server, "?event=rows")
	all := next(t, events, "rows")
	const whole = `"all":true,"rows":[{"cookie":"1a2b","local":"10.0.0.1:37024","remote":"10.0.0.2:5432","netns":4026531840,"state":"established","verdict":"zombie"`
	if !strings.Contains(all, whole) {
		t.Errorf("all rows are %s", all)
	}
	type change struct {
		Rows []map[string]any `json:"rows"`
		Gone []string         `json:"gone"`
	}
	changes := func(want change) {
		t.Helper()
		var got change
		if err := json.Unmarshal([]byte(next(t, events, "rows")), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	fourth := *row
	fourth.Unanswered = 4
	src.change(conn.RowChange{Cookie: row.Cookie, Old: row, New: &fourth})
	changes(change{Rows: []map[string]any{{"cookie": "1a2b", "unanswered": 4.0}}, Gone: []string{}})
	owned := fourth
	owned.PID, owned.Comm, owned.Cgroup = 7, hostileComm, conn.Cgroup{Path: "/x.service", Unit: "x.service"}
	src.change(conn.RowChange{Cookie: row.Cookie, Old: &fourth, New: &owned})
	changes(change{Rows: []map[string]any{{"cookie": "1a2b", "pid": 7.0, "comm": "<img src=x>\"\n\uFFFD", "group": "x.service"}}, Gone: []string{}})
	src.rows = nil
	src.change(conn.RowChange{Cookie: row.Cookie, Old: &owned})
	changes(change{Rows: []map[string]any{}, Gone: []string{"1a2b"}})

	// Who joins now is sent everything there is.
	if all := next(t, listen(t, server, "?event=rows"), "rows"); !strings.Contains(all, `"all":true,"rows":[],`) {
		t.Errorf("all rows are %s", all)
	}
}

// The page uses the agent's clock, which it learns from its first event.
func TestWhoJoinsIsToldTheTimeOfNow(t *testing.T) {
	src := &fakeSource{notices: make(chan conn.Notice)}
	l := NewLive(src, slog.New(slog.DiscardHandler))
	l.allRows = rowsEvent(nil)
	l.remember(time.Now())
	before := time.Now().Add(-summaryLatest / 2)
	l.summarise(before)
	v := &viewer{wants: 1<<kindSummary | 1<<kindRows, frames: make(chan *frame, viewerFrames)}
	l.begin(v)
	if !l.sentAt.Equal(before) {
		t.Fatal("the counts were told to all again, though they are the same")
	}
	first := <-v.frames
	_, data, _ := strings.Cut(string(first[kindSummary]), "data: ")
	var told struct {
		At time.Time `json:"at"`
	}
	if err := json.Unmarshal([]byte(data), &told); err != nil {
		t.Fatal(err)
	}
	if late := time.Since(told.At); late > summaryLatest/4 {
		t.Errorf("it is told the time of %v ago", late)
	}
	if rows := string(first[kindRows]); !strings.Contains(rows, `"all":true`) || strings.Contains(rows, `"at":`) {
		t.Errorf("rows, which are kept, are %s", rows)
	}
}

// A viewer that does not read is dropped, without an effect on other viewers.
func TestWhoDoesNotReadIsDropped(t *testing.T) {
	src := &fakeSource{notices: make(chan conn.Notice, noticeBuffer)}
	server := broadcast(t.Context(), t, src, func(l *Live) { l.writeTimeout = 300 * time.Millisecond })
	connection, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if err := connection.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(connection, "GET /api/v1/stream?event=verdict HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	events := listen(t, server, "?event=verdict")
	const each = 2000
	told := 0
	for range 8 { // a frame each, together far more than the kernel keeps for who does not read
		for range each {
			src.notices <- verdictNotice(contractConnection())
		}
		for range each {
			next(t, events, "verdict")
			told++
		}
	}
	// It has been cut off: what had been sent can be read, and then it ends.
	if err := connection.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, connection)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Errorf("it is still being served after %d bytes", n)
	}
	if whole := int64(told) * 900; n > whole/2 {
		t.Errorf("it was sent %d bytes, about all of it", n)
	}
}

// What bounds a write must not end a stream on which nothing happens, of HTTP/2
// neither.
func TestAQuietStreamStays(t *testing.T) {
	src := &fakeSource{notices: make(chan conn.Notice, 1)}
	patience := 100 * time.Millisecond
	plain := broadcast(t.Context(), t, src, func(l *Live) { l.writeTimeout = patience })
	server := httptest.NewUnstartedServer(plain.Config.Handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	resp, err := server.Client().Get(server.URL + "/api/v1/stream?event=verdict")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Fatal(resp.Proto)
	}
	time.AfterFunc(5*patience, func() { src.notices <- verdictNotice(contractConnection()) })
	for lines := bufio.NewScanner(resp.Body); ; {
		if !lines.Scan() {
			t.Fatalf("it ended: %v", lines.Err())
		}
		if lines.Text() == "event: verdict" {
			return
		}
	}
}

func TestAFullViewerIsDropped(t *testing.T) {
	l := NewLive(&fakeSource{}, slog.New(slog.DiscardHandler))
	stuck, well := &viewer{frames: make(chan *frame, viewerFrames)}, &viewer{frames: make(chan *frame, viewerFrames)}
	l.viewers[stuck], l.viewers[well] = true, true
	var f frame
	f.add(kindSummary, []byte("{}"))
	for range viewerFrames + 1 {
		l.send(&f)
		if got := <-well.frames; got != &f {
			t.Fatal("a frame of its own was made")
		}
	}
	if l.viewers[stuck] || !l.viewers[well] {
		t.Errorf("viewers are %v", l.viewers)
	}
}

func TestStreamEndsWithTheAgent(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancel(t.Context())
	src := &fakeSource{notices: make(chan conn.Notice)}
	t.Run("", func(t *testing.T) {
		server := broadcast(ctx, t, src, nil)
		events := listen(t, server, "?event=summary")
		next(t, events, "summary")
		cancel()
		for range events { // until it ends
			continue
		}
		for {
			resp, err := http.Get(server.URL + "/api/v1/stream")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusServiceUnavailable {
				break
			}
		}
		http.DefaultClient.CloseIdleConnections()
	})
}

func TestUnknownEventsAreRefused(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	for _, query := range []string{"?event=nothing", "?event=", "?events=death"} {
		wantError(t, request(t, h, "GET", "/api/v1/stream"+query), http.StatusBadRequest)
	}
}

func BenchmarkFrameOfRows(b *testing.B) {
	src := &fakeSource{notices: make(chan conn.Notice), changes: make(chan []conn.RowChange, 1)}
	l := NewLive(src, slog.New(slog.DiscardHandler))
	l.rows, l.wanted = true, 1<<kindRows
	const zombies = 500
	changes := make([]conn.RowChange, zombies)
	for i := range changes {
		old, row := contractRow(), contractRow()
		old.Cookie, row.Cookie, row.Unanswered = uint64(i+1), uint64(i+1), 4
		changes[i] = conn.RowChange{Cookie: row.Cookie, Old: old, New: row}
	}
	b.ReportAllocs()
	for b.Loop() {
		src.changes <- changes
		l.flush()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/zombies, "ns/connection")
}

// streamWriter is a response whose connection accepts all writes.
type streamWriter struct {
	bytes.Buffer
	header http.Header
}

func (w *streamWriter) Header() http.Header              { return w.header }
func (w *streamWriter) WriteHeader(int)                  {}
func (w *streamWriter) Flush()                           {}
func (w *streamWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *streamWriter) SetWriteDeadline(time.Time) error { return nil }

// A viewer gets a comment after viewerHeartbeat without an event for it, however many
// frames have events for others.
func TestFramesForOthersPutOffNoHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLive(&fakeSource{}, slog.New(slog.DiscardHandler))
		v := &viewer{wants: 1 << kindDeath, frames: make(chan *frame, viewerFrames)}
		w := &streamWriter{header: make(http.Header)}
		ctx, cancel := context.WithTimeout(t.Context(), 2*viewerHeartbeat+time.Second)
		defer cancel()
		var others sync.WaitGroup
		others.Go(func() {
			var f frame
			f.add(kindRows, []byte("{}"))
			for ctx.Err() == nil {
				v.frames <- &f
				time.Sleep(frameSpacing)
			}
		})
		l.stream(ctx, w, v, new(frame))
		if n := strings.Count(w.String(), ":\n\n"); n != 2 {
			t.Errorf("%d comments in %v:\n%s", n, 2*viewerHeartbeat, w)
		}
		others.Wait()
	})
}
