// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/halfopen/halfopen/internal/humanize"
)

const (
	// GreetingTimeout bounds how long an agent may take to begin its answer. An agent
	// that systemd starts for the request loads its programs first.
	GreetingTimeout = 10 * time.Second
	// streamTimeout is after how long without a byte the stream has failed: the agent
	// sends a comment every 15 seconds.
	streamTimeout = time.Minute
	// maxStreamLine bounds a line of the stream, in bytes.
	maxStreamLine = 1 << 20
)

// StreamEvent is an event of an agent's stream: a notice, or a summary, which has no
// Event.
type StreamEvent struct {
	Notice
	Data   []byte // of a notice, as it was received
	Missed uint64 // of a summary: how many events the agent has not sent us
}

// A Stream is the stream of an agent. Close it when it is done with.
type Stream struct {
	body   io.ReadCloser
	client *Client
	silent *time.Timer
	cancel context.CancelFunc
}

// Stream asks for the notices and summaries of the agent, from now until the context
// ends. The agent sends a notice when it knows the owner of the connection.
func (c *Client) Stream(ctx context.Context) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	silent := time.AfterFunc(GreetingTimeout, cancel)
	resp, err := c.do(ctx, "api/v1/stream", url.Values{"event": {"verdict", "death", "solicitation", "summary"}, "owners": {"true"}})
	if err != nil {
		if !silent.Stop() {
			err = fmt.Errorf("no answer within %s", humanize.Setting(GreetingTimeout))
		}
		cancel()
		return nil, c.unreachable(context.Background(), err)
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
		defer cancel()
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxStreamLine))
		if err != nil {
			return nil, c.unreachable(ctx, err)
		}
		return nil, c.refusal(resp.StatusCode, body)
	}
	return &Stream{resp.Body, c, silent, cancel}, nil
}

// Receive calls emit for each event until the stream ends, and returns why it did: an
// error, always.
func (s *Stream) Receive(emit func(StreamEvent)) error {
	err := readStream(s, emit)
	return fmt.Errorf("trace through %s: the stream has ended (%s): %s", s.client, err.Error(), checkAgent) // wrapping nothing, as unreachable
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	s.silent.Reset(streamTimeout)
	n, err := s.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !s.silent.Stop() {
		err = fmt.Errorf("nothing came for %s", humanize.Setting(streamTimeout))
	}
	return n, err
}

// Close ends the stream.
func (s *Stream) Close() error {
	s.silent.Stop()
	s.cancel()
	return s.body.Close()
}

// readStream reads server-sent events until the stream ends, and returns why it did. It
// ignores events that it does not know.
func readStream(r io.Reader, emit func(StreamEvent)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxStreamLine)
	var event string
	for lines.Scan() {
		key, value, _ := bytes.Cut(lines.Bytes(), []byte(": "))
		switch string(key) {
		case "":
			event = ""
		case "event":
			event = string(value)
		case "data":
			if e, ok := parseEvent(event, value); ok {
				emit(e)
			}
		}
	}
	if lines.Err() == nil {
		return errors.New("the agent has ended it")
	}
	return lines.Err()
}

func parseEvent(event string, data []byte) (e StreamEvent, ok bool) {
	if event == "summary" {
		var s struct {
			At     time.Time
			Missed uint64
		}
		if json.Unmarshal(data, &s) != nil {
			return e, false
		}
		e.At, e.Missed = s.At, s.Missed
		return e, true
	}
	if json.Unmarshal(data, &e.Notice) != nil || e.Event != event {
		return e, false
	}
	switch event {
	case "death":
		ok = e.Death != nil
	case "verdict", "solicitation":
		ok = e.Connection != nil
	}
	e.Data = bytes.Clone(data)
	return e, ok
}
