// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"net/http"
	"sync"
	"time"
)

const (
	// maxAnswerBytes bounds the answers that are written at once, together. A single one
	// may be larger. The large answers that are read while they are written do not count.
	maxAnswerBytes = 8 << 20
	// A large answer gives way to another if its client has let it wait for slowWrite at a
	// time, or, to that of another client, for slowWrites in all.
	slowWrite  = 5 * time.Second
	slowWrites = 10 * time.Second
)

var errSlow = errors.New("the client reads too slowly")

// answer is an answer of the API in memory. Several clients can get it.
type answer struct {
	status int
	body   []byte
	client lookupClient // for whom it was made

	writers map[*answerWriter]bool // guarded by the mutex of answers
}

// answers are the answers that are being written. If they take too much memory, one of the
// client with most is cut off: the one whose readers have waited longest to read on. It is
// safe for concurrent use.
type answers struct {
	mu      sync.Mutex
	written map[*answer]bool
	bytes   int // of those
}

// add has an answer written by one more writer.
func (p *answers) add(a *answer, w *answerWriter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.writers == nil {
		a.writers = make(map[*answerWriter]bool)
	}
	a.writers[w] = true
	if p.written[a] {
		return
	}
	p.written[a] = true
	p.bytes += cap(a.body)
	for p.bytes > maxAnswerBytes {
		slowest := p.slowest(a)
		if slowest == nil {
			return
		}
		for w := range slowest.writers {
			w.cutOff()
		}
		p.forget(slowest)
	}
}

// remove ends the part of a writer in an answer.
func (p *answers) remove(a *answer, w *answerWriter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(a.writers, w); len(a.writers) == 0 && p.written[a] {
		p.forget(a)
	}
}

func (p *answers) forget(a *answer) {
	delete(p.written, a)
	p.bytes -= cap(a.body)
}

// slowest returns the answer to cut off for another.
func (p *answers) slowest(newcomer *answer) (slowest *answer) {
	bytes := make(map[lookupClient]int)
	for a := range p.written {
		bytes[a.client] += cap(a.body)
	}
	var moved time.Time
	for a := range p.written {
		if a == newcomer {
			continue
		}
		last := a.moved()
		if more := 0; slowest != nil {
			more = bytes[a.client] - bytes[slowest.client]
			if more < 0 || more == 0 && !last.Before(moved) {
				continue
			}
		}
		slowest, moved = a, last
	}
	return slowest
}

// moved returns when one of its clients has last read on.
func (a *answer) moved() (last time.Time) {
	for w := range a.writers {
		if m := w.lastMoved(); m.After(last) {
			last = m
		}
	}
	return last
}

// answerWriter writes an answer to a client. It can be cut off meanwhile. All writes
// together may take writeTimeout.
type answerWriter struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	before func() // if not nil, called before each write

	mu      sync.Mutex
	isCut   bool
	begun   bool
	since   time.Time     // of the write under way; zero: there is none
	moved   time.Time     // when the last write ended
	blocked time.Duration // in the writes before
}

func newAnswerWriter(w http.ResponseWriter) *answerWriter {
	return &answerWriter{w: w, rc: http.NewResponseController(w), moved: time.Now()}
}

// Write implements io.Writer, in pieces of viewerChunk bytes.
func (w *answerWriter) Write(data []byte) (n int, err error) {
	for len(data) > n && err == nil {
		if w.before != nil {
			w.before()
		}
		if err = w.beginWrite(); err != nil {
			return n, err
		}
		var m int
		m, err = w.w.Write(data[n:min(len(data), n+viewerChunk)])
		n += m
		w.endWrite()
	}
	return n, err
}

func (w *answerWriter) beginWrite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isCut {
		return errSlow
	}
	if !w.begun { // the server's time has run since the request began
		w.begun = true
		_ = w.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	w.since = time.Now()
	return nil
}

func (w *answerWriter) endWrite() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.moved = time.Now()
	w.blocked += w.moved.Sub(w.since)
	w.since = time.Time{}
}

// cutOff makes the write under way fail, and all further writes. The caller must know that
// the handler has not returned.
func (w *answerWriter) cutOff() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut()
}

func (w *answerWriter) cut() {
	if !w.isCut {
		w.isCut = true
		_ = w.rc.SetWriteDeadline(time.Now().Add(-time.Second))
	}
}

func (w *answerWriter) wasCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isCut
}

func (w *answerWriter) lastMoved() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.moved
}

// giveWay cuts the writer off if its client is too slow for the client that waits, which may
// be another one. If not, it returns when to ask again. The caller must know that the
// handler has not returned.
func (w *answerWriter) giveWay(another bool) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	wait := time.Second
	var now time.Duration
	if !w.since.IsZero() {
		now = time.Since(w.since)
		wait = min(wait, slowWrite-now)
	}
	if another {
		wait = min(wait, slowWrites-w.blocked-now)
	}
	if wait > 0 {
		return wait
	}
	w.cut()
	return time.Second
}
