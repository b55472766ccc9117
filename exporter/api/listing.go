// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
)

// maxHead is the largest number of bytes in which a [Listing] looks for the beginning of
// its list, and the largest size of a refusal.
const maxHead = 64 << 10

var errHead = errors.New("the list does not begin soon enough")

// A Listing reads an answer of /api/v1/connections, which may have very many connections,
// piece by piece. Its errors are like those of [Client]. Read it once, with [Listing.All] or
// with [Listing.CopyTo].
type Listing struct {
	Head Connections // without the list

	client *Client
	ctx    context.Context // of the caller
	cancel context.CancelFunc
	body   io.ReadCloser
	failed error // of reading body
	dec    *json.Decoder
	keep   bool   // keep what is read in kept
	kept   []byte // and is not copied yet
}

// OpenConnections asks for connections, with the query of [ConnectionParameters], and reads
// the answer up to the list. The caller closes the listing.
func (c *Client) OpenConnections(ctx context.Context, query url.Values) (*Listing, error) {
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	resp, err := c.do(limited, "api/v1/connections", query) //nolint:bodyclose // Close does
	if err != nil {
		cancel()
		return nil, c.unreachable(ctx, err)
	}
	l := &Listing{client: c, ctx: ctx, cancel: cancel, body: resp.Body, keep: true}
	if resp.StatusCode == http.StatusOK {
		l.dec = json.NewDecoder(l)
		if err = l.readHead(); err == nil {
			return l, nil
		}
	} else if body, readErr := io.ReadAll(io.LimitReader(l.body, maxHead)); readErr != nil {
		err = c.unreachable(ctx, readErr)
	} else {
		err = c.refusal(resp.StatusCode, body)
	}
	l.Close()
	return nil, err
}

// Close ends the request.
func (l *Listing) Close() {
	l.cancel()
	l.body.Close()
}

// Read implements io.Reader for the decoder.
func (l *Listing) Read(p []byte) (n int, err error) {
	if l.Head.GeneratedAt.IsZero() && len(l.kept) > maxHead {
		return 0, errHead
	}
	n, err = l.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		l.failed = err
	}
	if l.keep {
		l.kept = append(l.kept, p[:n]...)
	}
	return n, err
}

// broken returns the error of an answer that cannot be decoded, or not be read to its end.
func (l *Listing) broken() error {
	if l.failed != nil {
		return l.client.unreachable(l.ctx, l.failed)
	}
	return l.client.NotAnAgent()
}

// readHead reads the answer up to the list.
func (l *Listing) readHead() error {
	if !l.delimiter('{') {
		return l.broken()
	}
	head := make(map[string]json.RawMessage)
	for l.dec.More() {
		name, err := l.dec.Token()
		if err != nil {
			return l.broken()
		}
		if name == "connections" {
			fields, err := json.Marshal(head)
			if err != nil || json.Unmarshal(fields, &l.Head) != nil || l.Head.GeneratedAt.IsZero() || !l.delimiter('[') {
				return l.broken()
			}
			return nil
		}
		var value json.RawMessage
		if l.dec.Decode(&value) != nil {
			return l.broken()
		}
		head[fmt.Sprint(name)] = value
	}
	return l.broken()
}

// delimiter reads a token, and reports whether it is this delimiter.
func (l *Listing) delimiter(want json.Delim) bool {
	token, err := l.dec.Token()
	return err == nil && token == want
}

// readEnd reads the answer from the end of the list to its own.
func (l *Listing) readEnd() error {
	if !l.delimiter(']') {
		return l.broken()
	}
	for l.dec.More() {
		var value json.RawMessage
		if _, err := l.dec.Token(); err != nil || l.dec.Decode(&value) != nil {
			return l.broken()
		}
	}
	if !l.delimiter('}') {
		return l.broken()
	}
	if _, err := l.dec.Token(); !errors.Is(err, io.EOF) {
		return l.broken()
	}
	return nil
}

// All ranges over the connections. An error comes last, without a connection.
func (l *Listing) All() iter.Seq2[*Connection, error] {
	l.keep, l.kept = false, nil
	return func(yield func(*Connection, error) bool) {
		for l.dec.More() {
			connection := new(Connection)
			if l.dec.Decode(connection) != nil {
				yield(nil, l.broken())
				return
			}
			if !yield(connection, nil) {
				return
			}
		}
		if err := l.readEnd(); err != nil {
			yield(nil, err)
		}
	}
}

// CopyTo writes the answer as the agent encoded it, which may have more in it than this
// version knows. Each Write is of whole lines.
func (l *Listing) CopyTo(w io.Writer) error {
	write := func(n int) error {
		_, err := w.Write(l.kept[:n])
		l.kept = l.kept[:copy(l.kept, l.kept[n:])]
		return err
	}
	var value json.RawMessage
	for l.dec.More() {
		if l.dec.Decode(&value) != nil {
			return l.broken()
		}
		if len(l.kept) > maxHead {
			if err := write(bytes.LastIndexByte(l.kept, '\n') + 1); err != nil {
				return err
			}
		}
	}
	if err := l.readEnd(); err != nil {
		return err
	}
	return write(len(l.kept))
}
