// SPDX-License-Identifier: Apache-2.0

package main

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
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/halfopen/halfopen/exporter"
)

const (
	// streamSilence is after how long of nothing an agent is lost: it sends a comment
	// every 15 seconds.
	streamSilence = time.Minute
	// streamLine bounds a line of the stream.
	streamLine = 1 << 20
)

// received is an event of an agent's stream.
type received struct {
	exporter.Notice
	text   []byte // as it came
	missed uint64 // of a summary: how many events the agent has not told us
}

// through watches through an agent.
func (t *trace) through(ctx context.Context, agent *client, stdout, stderr io.Writer) error {
	ended := ctx // by the user, or by --duration
	g, ctx := errgroup.WithContext(ctx)
	body, err := agent.stream(ctx)
	switch {
	case ended.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	defer body.Close()
	t.sayWatching(stderr, " through "+agent.String())
	events := make(chan received, traceBuffer)
	g.Go(func() error {
		defer close(events)
		err := readStream(body, func(e received) {
			select {
			case events <- e:
			case <-ctx.Done(): // nobody prints any more
			}
		})
		if ended.Err() != nil {
			return nil
		}
		return fmt.Errorf("trace through %s: the stream has ended (%s): %s", agent, oneLine(err), agent.mend)
	})
	g.Go(func() error {
		emit := t.printer(stdout)
		var missed uint64
		unowned := 0
		defer func() {
			if unowned > 0 {
				fmt.Fprintf(stderr, "halfopen: %d events whose process was not known in time were not printed: leave out --pid, or use --url=none\n", unowned)
			}
		}()
		begun := false
		for {
			batch := batch(ended, events)
			if len(batch) == 0 {
				return nil
			}
			// An agent tells them by kind.
			slices.SortStableFunc(batch, func(a, b received) int { return a.At.Compare(b.At) })
			for i := range batch {
				switch e := &batch[i]; {
				case e.Event == "" && !begun: // what it missed before
					begun, missed = true, e.missed
				case e.Event == "":
					missed = sayDropped(stderr, e.missed, missed)
				case t.wanted(&e.Notice) && len(t.pids) > 0 && ownerUnknown(&e.Notice):
					unowned++
				case t.wanted(&e.Notice) && t.owned(&e.Notice):
					if err := emit(&e.Notice, e.text); err != nil {
						return err
					}
				}
			}
		}
	})
	return g.Wait()
}

// stream asks for what happens, told when the owners are known. It is for the caller to
// close.
func (c *client) stream(ctx context.Context) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	silence := time.AfterFunc(greetingTimeout, cancel)
	resp, err := c.do(ctx, "api/v1/stream", url.Values{"event": {"verdict", "death", "solicitation", "summary"}, "owners": {"true"}})
	if err != nil {
		if !silence.Stop() {
			err = fmt.Errorf("no answer within %s", setting(greetingTimeout))
		}
		cancel()
		return nil, c.unreachable(context.Background(), err)
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
		defer cancel()
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, streamLine))
		if err != nil {
			return nil, c.unreachable(ctx, err)
		}
		return nil, c.refused(resp.StatusCode, body)
	}
	return &streamBody{resp.Body, silence, cancel}, nil
}

// streamBody is a stream that ends when nothing comes for streamSilence.
type streamBody struct {
	io.ReadCloser
	silence *time.Timer
	cancel  context.CancelFunc
}

func (s *streamBody) Read(p []byte) (int, error) {
	s.silence.Reset(streamSilence)
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !s.silence.Stop() {
		err = fmt.Errorf("nothing came for %s", setting(streamSilence))
	}
	return n, err
}

func (s *streamBody) Close() error {
	s.silence.Stop()
	s.cancel()
	return s.ReadCloser.Close()
}

// readStream reads server-sent events until the stream ends, of which it returns the
// reason. It passes over what it does not know.
func readStream(r io.Reader, emit func(received)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, streamLine)
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

func parseEvent(event string, data []byte) (e received, ok bool) {
	if event == "summary" {
		var s struct {
			At     time.Time
			Missed uint64
		}
		if json.Unmarshal(data, &s) != nil {
			return e, false
		}
		e.At, e.missed = s.At, s.Missed
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
	e.text = bytes.Clone(data)
	return e, ok
}
