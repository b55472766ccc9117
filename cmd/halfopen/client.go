// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf16"

	"github.com/halfopen/halfopen/exporter"
)

// agentTimeout bounds an answer of an agent, which may have to look at very many
// connections.
const agentTimeout = time.Minute

// agentURL is where an agent can be asked.
type agentURL url.URL

func parseAgentURL(s string) (*agentURL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is not a URL such as http://127.0.0.1:9839", s)
	}
	return (*agentURL)(u), nil
}

// query asks for what is selected, without a limit if that is 0.
func (s *selection) query(limit int) url.Values {
	if limit == 0 || limit > math.MaxInt32 {
		limit = math.MaxInt32 // the agent would have one of its own, and takes no more
	}
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, v := range s.verdicts {
		q.Add("verdict", v.String())
	}
	for _, v := range s.states {
		q.Add("state", v.String())
	}
	for _, v := range s.ports {
		q.Add("port", strconv.Itoa(int(v)))
	}
	for _, v := range s.pids {
		q.Add("pid", strconv.FormatUint(uint64(v), 10))
	}
	for _, v := range s.owners {
		q.Add("owner", v)
	}
	for _, v := range s.remotes {
		q.Add("remote", v.String())
	}
	for _, v := range s.risks {
		q.Add("risk", v.String())
	}
	for _, v := range s.netns {
		q.Add("netns", strconv.FormatUint(uint64(v), 10))
	}
	if s.all {
		q.Set("all", "true")
	}
	for _, v := range s.causes {
		q.Add("cause", v.String())
	}
	return q
}

// get decodes what the agent answers.
func (a *agentURL) get(ctx context.Context, what string, query url.Values, doc any) error {
	body, err := a.ask(ctx, what, query, lists(what))
	if err != nil {
		return err
	}
	if json.Unmarshal(body, doc) != nil {
		return a.stranger()
	}
	return nil
}

// pass prints what the agent answers, be it more than we know.
func (a *agentURL) pass(ctx context.Context, what string, query url.Values, w io.Writer) error {
	body, err := a.ask(ctx, what, query, lists(what))
	if err != nil {
		return err
	}
	_, err = harmlessJSON{w}.Write(body)
	return err
}

// ask returns an answer that is one of an agent, nil if it knows no such connection.
func (a *agentURL) ask(ctx context.Context, what string, query url.Values, isAnswer func([]byte) bool) ([]byte, error) {
	status, body, err := a.fetch(ctx, "api/v1/"+what, query)
	if err != nil || status == http.StatusOK && isAnswer(body) {
		return body, err
	}
	var answer exporter.Error
	if json.Unmarshal(body, &answer) != nil || answer.Error == "" {
		return nil, a.stranger()
	}
	if status == http.StatusNotFound && strings.HasPrefix(answer.Error, exporter.NoConnection) {
		return nil, nil
	}
	return nil, fmt.Errorf("ask %s: %s", a, answer.Error)
}

// fetch returns what answers there, if that is not the way of saying that one
// has to ask otherwise.
func (a *agentURL) fetch(ctx context.Context, path string, query url.Values) (status int, body []byte, err error) {
	limited, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	u := a.url().JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(limited, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, a.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return 0, nil, a.unreachable(ctx, err)
	case resp.StatusCode == http.StatusUnauthorized && a.User != nil:
		return 0, nil, fmt.Errorf("ask %s: it refused the user or password: check them in --url", a)
	case resp.StatusCode == http.StatusUnauthorized:
		return 0, nil, fmt.Errorf("ask %s: it wants a user and a password: give them as in %s://user:password@%s", a, a.Scheme, a.Host)
	case resp.StatusCode == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"): // net/http
		return 0, nil, fmt.Errorf("ask %s: it speaks TLS: use https://%s", a, a.Host)
	}
	return resp.StatusCode, body, nil
}

// lists tells whether a body is the answer of an agent that lists such things.
func lists(what string) func(body []byte) bool {
	return func(body []byte) bool {
		var doc map[string]json.RawMessage
		var at time.Time
		var things []json.RawMessage
		return json.Unmarshal(body, &doc) == nil &&
			json.Unmarshal(doc["generated_at"], &at) == nil && !at.IsZero() &&
			json.Unmarshal(doc[what], &things) == nil && things != nil
	}
}

// unreachable says what is wrong with the way there. It wraps nothing: that a
// connection broke must not look as if our own output had.
func (a *agentURL) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	why := err.Error()
	var uerr *url.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = syscall.ECONNREFUSED.Error()
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("ask %s: nobody known here has signed its certificate: name the file of its CA in the environment variable SSL_CERT_FILE", a)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("ask %s: it does not speak TLS: use http://%s", a, a.Host)
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer within " + setting(agentTimeout)
	case errors.As(err, &uerr):
		why = uerr.Err.Error() // without the URL
	}
	return fmt.Errorf("ask %s: %s: check that the agent runs and listens there, or look without it by leaving out --url", a, why)
}

func (a *agentURL) stranger() error {
	return fmt.Errorf("what answers at %s is not a halfopen agent: check the address and port of --url", a)
}

// String is the URL without its password.
func (a *agentURL) String() string { return a.url().Redacted() }

func (a *agentURL) url() *url.URL { return (*url.URL)(a) }

// harmlessJSON writes JSON, each Write whole characters, with everything in its
// strings escaped that could do something to a terminal.
type harmlessJSON struct{ w io.Writer }

func (h harmlessJSON) Write(p []byte) (int, error) {
	var b bytes.Buffer
	for _, r := range string(p) {
		switch {
		case r < 0x7f || visible(r): // JSON has no control characters of ASCII but white space
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	if _, err := h.w.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}
