// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/halfopen/halfopen/collector/conn"
)

// Errors that a [Reader] returns for a file that is not a recording, or that lacks its end.
var (
	ErrNoRecording = errors.New("this is not a recording of halfopen")
	ErrNoEnd       = errors.New("the end of the recording is missing")
)

// Reader reads a recording. It is not safe for concurrent use.
type Reader struct {
	Header Header
	// Lost is the number of facts lost up to here, because the recorder did not keep up.
	Lost uint64
	// End is the reason why the recording ended. It is set when Next returns io.EOF.
	End string

	in      *json.Decoder
	entries int
}

// NewReader reads the header, and returns a Reader for the facts that follow. Its error
// wraps ErrNoRecording, or names the version that can read the recording.
func NewReader(r io.Reader) (*Reader, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	if begin, _ := b.Peek(len(magic)); string(begin) != magic {
		return nil, ErrNoRecording
	}
	reader := &Reader{in: json.NewDecoder(b)}
	h := &reader.Header
	if err := reader.in.Decode(h); err != nil {
		return nil, fmt.Errorf("%w: its first line cannot be read: %w", ErrNoRecording, err)
	}
	if h.Format != Format {
		return nil, fmt.Errorf("it is a recording of format %d, and this halfopen reads format %d: use halfopen %.60q, which wrote it", h.Format, Format, h.Halfopen)
	}
	if err := h.Rules.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoRecording, err)
	}
	reader.in.DisallowUnknownFields()
	return reader, nil
}

// Next returns the next fact, which the caller may keep. At the end of the recording it
// returns io.EOF, or ErrNoEnd if the end is missing. For a line that it cannot read it
// returns an error with the line's number.
func (r *Reader) Next() (*conn.Fact, error) {
	for {
		e, f, err := r.next()
		switch {
		case err != nil:
			return nil, err
		case f != nil:
			return f, nil
		case e.End != "":
			r.End = e.End
			return nil, io.EOF
		}
		r.Lost += e.Lost
	}
}

// next returns the next line, and its fact if the line is a fact.
func (r *Reader) next() (e *entry, f *conn.Fact, err error) {
	e = new(entry)
	r.entries++
	switch err := r.in.Decode(e); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, nil, ErrNoEnd
	case err != nil:
		return nil, nil, r.wrong(err)
	case e.Lost > 0 || e.End != "":
		return e, nil, nil
	}
	if f, err = e.fact(); err != nil {
		return nil, nil, r.wrong(err)
	}
	return e, f, nil
}

// wrong adds the line's number to an error, and the version to use if the error is a field
// that only newer versions know.
func (r *Reader) wrong(err error) error {
	err = fmt.Errorf("line %d of the recording cannot be read: %w", r.entries+1, err)
	if errors.As(err, new(unknownFieldError)) || strings.Contains(err.Error(), "unknown field") {
		return fmt.Errorf("%w: use halfopen %.60q, which wrote it", err, r.Header.Halfopen)
	}
	return err
}
