// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// writeFunc writes an object of the API that has a list.
type writeFunc = func(io.Writer) error

// list answers a request for at most limit items with what look finds: the number of the
// items without the limit, and what writes the list.
func (a *apiHandler) list(w http.ResponseWriter, r *http.Request, limit int, look func(context.Context) (total int, write writeFunc, err error)) {
	if limit > api.DefaultLimit {
		a.large(w, r, look)
		return
	}
	a.small(w, r, func(ctx context.Context) *answer {
		_, write, err := look(ctx)
		if err != nil {
			return a.failed(ctx, r.URL.Path, err)
		}
		return a.listAnswer(ctx, r.URL.Path, write)
	})
}

// small answers with a look-up that equal requests can share.
func (a *apiHandler) small(w http.ResponseWriter, r *http.Request, look func(context.Context) *answer) {
	g, _ := a.lookups.of(r)
	l := a.join(w, r, &lookup{
		lane: laneSmall, key: r.URL.Path + "?" + r.URL.Query().Encode(),
		run: func(l *lookup) {
			defer close(l.ready)
			defer g.end(l)
			defer g.measure(l).end()
			defer func() {
				if p := recover(); p != nil {
					l.answer = a.failed(l.ctx, r.URL.Path, fmt.Errorf("panic: %v", p))
					a.logger.Error("Request failed", "path", r.URL.Path, "stack", oneLine(string(debug.Stack())))
				}
				l.answer.client = l.payer
			}()
			l.answer = look(l.ctx)
		},
	})
	if l != nil {
		a.send(w, r, l.answer)
	}
}

// large answers with a look-up of a request alone, whose answer is written while the
// connections are read if it has more than api.DefaultLimit items.
func (a *apiHandler) large(w http.ResponseWriter, r *http.Request, look func(context.Context) (int, writeFunc, error)) {
	out := newAnswerWriter(w)
	if l := a.join(w, r, &lookup{lane: laneLarge, out: out, run: func(l *lookup) { close(l.ready) }}); l != nil {
		if small := a.stream(r, l, out, look); small != nil {
			a.send(w, r, small)
		}
	}
}

// stream writes a large answer, or returns one that is not large.
func (a *apiHandler) stream(r *http.Request, l *lookup, out *answerWriter, look func(context.Context) (int, writeFunc, error)) *answer {
	g, client := a.lookups.of(r)
	defer g.end(l)
	meter := g.measure(l)
	defer meter.end()
	total, write, err := look(r.Context())
	if err != nil {
		return a.failed(r.Context(), r.URL.Path, err)
	}
	if total <= api.DefaultLimit {
		small := a.listAnswer(r.Context(), r.URL.Path, write)
		small.client = client
		return small
	}
	defer debug.FreeOSMemory()
	out.before = meter.charge
	out.w.Header().Set("Content-Type", "application/json")
	b := bufio.NewWriterSize(out, viewerChunk)
	if err := errors.Join(write(b), b.Flush()); err != nil {
		a.cutOff(r, out, err)
	}
	return nil
}

// join returns the look-up that a request gets when it is ready. If the request gets none,
// join answers why, and returns nil.
func (a *apiHandler) join(w http.ResponseWriter, r *http.Request, l *lookup) *lookup {
	g, client := a.lookups.of(r)
	l, refused, wait := g.join(r.Context(), client, l)
	if refused != nil {
		seconds := max(1, int(math.Ceil(wait.Seconds())))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
		writeError(w, refused.status, fmt.Errorf("%w: ask again in %d s, or start the agent with a larger --web.lookup-cpu", refused.err, seconds))
	}
	return l
}

// send writes an answer.
func (a *apiHandler) send(w http.ResponseWriter, r *http.Request, of *answer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(of.body)))
	w.WriteHeader(of.status)
	out := newAnswerWriter(w)
	a.answers.add(of, out)
	defer a.answers.remove(of, out)
	if _, err := out.Write(of.body); err != nil {
		a.cutOff(r, out, err)
	}
}

// cutOff ends an answer half-way, so that the client does not take it for complete.
func (a *apiHandler) cutOff(r *http.Request, out *answerWriter, err error) {
	switch {
	case out.wasCut(), errors.Is(err, os.ErrDeadlineExceeded):
		a.lookups.metrics.cut.Inc()
		a.slow.note(fmt.Sprintf("%.100s of %s", r.URL.Path, r.RemoteAddr))
	case r.Context().Err() == nil:
		a.logger.Error("Answer was cut off", "path", r.URL.Path, "err", oneLine(err.Error()))
	}
	panic(http.ErrAbortHandler)
}

// listAnswer returns the answer with the list that write writes.
func (a *apiHandler) listAnswer(ctx context.Context, path string, write writeFunc) *answer {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return a.failed(ctx, path, err)
	}
	return &answer{status: http.StatusOK, body: b.Bytes()}
}

// jsonAnswer returns the answer with an object.
func jsonAnswer(status int, v any) *answer {
	var b bytes.Buffer
	_ = json.NewEncoder(escape.Writer{W: &b}).Encode(v) // JSON can encode all objects of the API
	return &answer{status: status, body: b.Bytes()}
}
