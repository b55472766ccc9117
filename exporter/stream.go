// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/halfopen/halfopen/exporter/api"
)

// The times and sizes of writes to a viewer.
const (
	// The stream of a viewer ends if a write of viewerChunk bytes takes longer than
	// viewerWriteTimeout.
	viewerWriteTimeout = 10 * time.Second
	viewerChunk        = 64 << 10
	// After viewerHeartbeat without a frame, the agent sends a comment.
	viewerHeartbeat = 15 * time.Second
)

// kind is a kind of events that a client of the stream can ask for.
type kind uint8

const (
	kindVerdict kind = iota
	kindDeath
	kindSolicitation
	kindSummary
	kindHistory
	kindRows
	// kindOwned is the first of the three kinds of notices with owners, which have the same
	// names. Clients that ask for owners get these, after the search for the owner.
	kindOwned
	kinds = kindOwned + 3
)

var kindNames = [kinds]string{"verdict", "death", "solicitation", "summary", "history", "rows", "verdict", "death", "solicitation"}

// noticeKinds are the three kinds of notices, one bit for each.
const noticeKinds = 1<<kindVerdict | 1<<kindDeath | 1<<kindSolicitation

// defaultKinds are the kinds for a client that asks for none.
const defaultKinds = noticeKinds | 1<<kindSummary

func parseKind(s string) (kind, error) {
	names := kindNames[:kindOwned]
	if k := slices.Index(names, s); k >= 0 {
		return kind(k), nil
	}
	return 0, fmt.Errorf("unknown event %q: there are %s", s, strings.Join(names, ", "))
}

// frame has the server-sent events of one moment, by kind. All viewers share it.
type frame [kinds][]byte

func (f *frame) add(k kind, data []byte) {
	f[k] = fmt.Appendf(f[k], "event: %s\ndata: %s\n\n", kindNames[k], data)
}

// has reports whether the frame has events of one of these kinds.
func (f *frame) has(wants uint16) bool {
	for k, data := range f {
		if wants&(1<<k) != 0 && len(data) > 0 {
			return true
		}
	}
	return false
}

func (f *frame) empty() bool {
	return !slices.ContainsFunc(f[:], func(b []byte) bool { return len(b) > 0 })
}

// wantedKinds returns the kinds that a query asks for, one bit for each.
func wantedKinds(query string) (wants uint16, err error) {
	params, err := api.ParseParameters(query, "event", "owners")
	if err != nil {
		return 0, err
	}
	asked, err := api.ParseAll(params["event"], parseKind)
	if err != nil {
		return 0, err
	}
	owners, err := api.ParseSwitch("owners", params["owners"])
	if err != nil {
		return 0, err
	}
	for _, k := range asked {
		wants |= 1 << k
	}
	if len(asked) == 0 {
		wants = defaultKinds
	}
	if owners {
		wants = wants&^noticeKinds | wants&noticeKinds<<kindOwned
	}
	return wants, nil
}

var errEnding = errors.New("the agent is ending")

// ServeHTTP serves the stream: the kinds of events that the client asks for, until the client
// disconnects or falls behind, or the agent ends.
func (l *Live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	wants, err := wantedKinds(r.URL.RawQuery)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	v := &viewer{client: clientOf(r.RemoteAddr), joined: time.Now(), wants: wants, frames: make(chan *frame, viewerFrames)}
	first, refused := l.joinAs(r.Context(), v)
	defer l.leaveAs(v)
	switch {
	case refused != nil:
		writeError(w, refused.status, refused.err)
	case first != nil:
		l.stream(r.Context(), w, v, first)
	}
}

// joinAs asks Run to serve a viewer. It returns the first frame, or the reason why Run refuses
// the viewer, or neither if the client has disconnected.
func (l *Live) joinAs(ctx context.Context, v *viewer) (first *frame, refused *refusal) {
	ending := &refusal{status: http.StatusServiceUnavailable, err: errEnding}
	select {
	case l.join <- v:
	case <-l.ended:
		return nil, ending
	case <-ctx.Done():
		return nil, nil
	}
	select {
	case first, ok := <-v.frames:
		if !ok {
			return nil, cmp.Or(v.refused, ending)
		}
		return first, nil
	case <-ctx.Done():
		return nil, nil
	}
}

// leaveAs asks Run to drop the viewer of joinAs. Run may have dropped the viewer before.
func (l *Live) leaveAs(v *viewer) {
	select {
	case l.leave <- v:
	case <-l.ended:
	}
}

// stream writes frames to a client until the client disconnects, a write fails, or Run drops
// the viewer.
func (l *Live) stream(ctx context.Context, w http.ResponseWriter, v *viewer, first *frame) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // asks a proxy not to buffer the stream
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w), timeout: l.writeTimeout}
	// The server's read deadline for the request would end a longer stream.
	_ = out.rc.SetReadDeadline(time.Time{})
	if !out.write([]byte("retry: 2000\n\n")) || !out.frame(first, v.wants) {
		return
	}
	heartbeat := time.NewTimer(viewerHeartbeat)
	defer heartbeat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f, ok := <-v.frames:
			if !ok {
				return
			}
			if !f.has(v.wants) {
				continue // without a write the heartbeat stays due
			}
			if !out.frame(f, v.wants) {
				return
			}
		case <-heartbeat.C:
			if !out.write([]byte(":\n\n")) || !out.flush() {
				return
			}
		}
		heartbeat.Reset(viewerHeartbeat)
	}
}

// deadlineWriter writes to a client. A write fails if it takes longer than timeout.
type deadlineWriter struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
}

func (t *deadlineWriter) frame(f *frame, wants uint16) bool {
	for k, data := range f {
		if wants&(1<<k) != 0 && !t.write(data) {
			return false
		}
	}
	return t.flush()
}

func (t *deadlineWriter) write(data []byte) bool {
	for len(data) > 0 {
		n := min(len(data), viewerChunk)
		if t.rc.SetWriteDeadline(time.Now().Add(t.timeout)) != nil {
			return false
		}
		if _, err := t.w.Write(data[:n]); err != nil {
			return false
		}
		data = data[n:]
	}
	return true
}

// flush sends the buffered data and then removes the deadline: an HTTP/2 stream whose deadline
// passes ends, even if there is nothing more to write.
func (t *deadlineWriter) flush() bool {
	return t.rc.Flush() == nil && t.rc.SetWriteDeadline(time.Time{}) == nil
}
