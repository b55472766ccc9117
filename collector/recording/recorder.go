// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// maxBytes is the largest size of a file.
	maxBytes = 1 << 30
	// maxQueued is the largest number of facts that wait to be written. More are lost, and counted.
	maxQueued = 1 << 17
)

// Reasons why a recording ends: the values of Reader.End.
const (
	endStopped = "the recorder was stopped"
	endFull    = "the recording has reached the size limit"
)

// Recorder writes facts to a file in the background. If a write fails or the file reaches
// its size limit, the recording ends and the Recorder logs one line. Its methods are safe
// for concurrent use.
type Recorder struct {
	path string
	log  *slog.Logger
	out  *writer
	file io.Closer
	most int64 // bytes
	room int   // facts in the queue

	wake chan struct{} // the queue has facts, or the recorder was closed
	done chan struct{}

	mu     sync.Mutex // protects the fields below
	queue  []conn.Fact
	lost   uint64 // facts lost since the writer last emptied the queue
	closed bool   // Record does nothing any more
}

// Create begins a recording in a new file that only its owner can read. It replaces an
// earlier recording of the same name. Any other file of that name is an error, and stays.
func Create(path string, header Header, logger *slog.Logger) (*Recorder, error) {
	file, replaced, err := createFile(path)
	if err != nil {
		return nil, err
	}
	if replaced {
		logger.Warn("The recording replaces an earlier one", "file", path)
	}
	r, err := start(file, path, header, logger, maxBytes, maxQueued)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

func start(file io.WriteCloser, path string, header Header, logger *slog.Logger, most int64, room int) (*Recorder, error) {
	out, err := newWriter(file, header)
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		path: path, log: logger, out: out, file: file, most: most, room: room,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go r.run()
	return r, nil
}

// Record adds a fact to the recording, and never blocks. It copies *f.Event and *f.Conn;
// the caller must not change the rest of the fact afterwards.
func (r *Recorder) Record(f *conn.Fact) {
	recorded := *f
	if f.Event != nil {
		recorded.Event = new(*f.Event)
	}
	if f.Conn != nil {
		recorded.Conn = new(*f.Conn)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return
	case len(r.queue) >= r.room:
		r.lost++
		return
	}
	r.queue = append(r.queue, recorded)
	r.wakeUp()
}

// Close writes the waiting facts and the end of the recording, and closes the file.
func (r *Recorder) Close() {
	r.mu.Lock()
	r.closed = true
	r.wakeUp()
	r.mu.Unlock()
	<-r.done
}

// wakeUp makes run look at the queue.
func (r *Recorder) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default: // run has not yet seen the last wake-up
	}
}

func (r *Recorder) run() {
	defer close(r.done)
	err := r.write()
	r.mu.Lock()
	r.closed, r.queue = true, nil
	r.mu.Unlock()
	if err = errors.Join(err, r.file.Close()); err != nil {
		r.log.Error("The recording has ended", "file", r.path, "err", err)
	}
}

// write writes facts until the recording is closed or reaches its size limit, and then
// returns nil; or until a write fails.
func (r *Recorder) write() error {
	var facts []conn.Fact
	for range r.wake {
		r.mu.Lock()
		facts, r.queue = r.queue, facts[:0]
		lost, closed := r.lost, r.closed
		r.lost = 0
		r.mu.Unlock()
		for i := range facts {
			if r.out.written > r.most {
				r.log.Error("The recording has ended", "file", r.path, "err", endFull)
				return r.out.end(endFull)
			}
			if err := r.out.fact(&facts[i]); err != nil {
				return err
			}
		}
		clear(facts) // so that the queue keeps no fact alive
		if lost > 0 {
			if err := r.out.entry(&entry{Lost: lost}); err != nil {
				return err
			}
		}
		if closed {
			return r.out.end(endStopped)
		}
		if err := r.out.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// writer writes a recording.
type writer struct {
	*bufio.Writer
	lines   *json.Encoder
	written int64
}

func newWriter(w io.Writer, header Header) (*writer, error) {
	out := new(writer)
	out.Writer = bufio.NewWriterSize(w, 1<<16)
	out.lines = json.NewEncoder(out)
	out.lines.SetEscapeHTML(false)
	header.Format = Format
	header.MonotonicZero = header.MonotonicZero.UTC()
	if err := out.lines.Encode(&header); err != nil {
		return nil, err
	}
	return out, out.Flush()
}

// Write counts the bytes written.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.written += int64(n)
	return n, err
}

func (w *writer) fact(f *conn.Fact) error {
	e, err := entryOf(f)
	if err != nil {
		return err
	}
	return w.entry(e)
}

func (w *writer) entry(e *entry) error { return w.lines.Encode(e) }

// end writes the reason why the recording ends.
func (w *writer) end(why string) error {
	if err := w.entry(&entry{End: why}); err != nil {
		return err
	}
	return w.Flush()
}

// CreateFile creates a file for a recording, which only its owner can read. It replaces an
// existing recording; any other existing file is an error.
func CreateFile(path string) (*os.File, error) {
	file, _, err := createFile(path)
	return file, err
}

// createFile is CreateFile, and also reports whether it has replaced a recording.
func createFile(path string) (file *os.File, replaced bool, err error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL | unix.O_NOFOLLOW
	file, err = os.OpenFile(path, flags, 0o600)
	if !errors.Is(err, os.ErrExist) {
		return file, false, err
	}
	is, err := isRecording(path)
	if err != nil {
		return nil, false, err
	}
	if !is {
		return nil, false, fmt.Errorf("%s exists and is not a recording of halfopen: remove it, or choose another name", path)
	}
	// Remove it instead of writing over it: another process may have it open, or another user own it.
	if err := os.Remove(path); err != nil {
		return nil, false, err
	}
	file, err = os.OpenFile(path, flags, 0o600)
	return file, true, err
}

// isRecording reports whether the path is a recording itself, not a link to one.
func isRecording(path string) (bool, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	begin := make([]byte, len(magic))
	n, err := io.ReadFull(file, begin)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	return string(begin[:n]) == magic, nil
}
