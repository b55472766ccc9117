// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
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

// alertTimeout bounds the look for why an agent breaks a connection.
const alertTimeout = 5 * time.Second

// client asks an agent.
type client struct {
	base   *url.URL
	name   string // of the agent, for messages
	mend   string // what to do if it does not answer
	wrong  string // ... if what answers is not an agent
	config string // the file of --web.client-config, "" for none
	http   *http.Client
	tls    *tls.Config // of the file, nil: the default
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
func (c *client) get(ctx context.Context, what string, query url.Values, doc any) error {
	body, err := c.ask(ctx, what, query, lists(what))
	if err != nil {
		return err
	}
	if json.Unmarshal(body, doc) != nil {
		return c.stranger()
	}
	return nil
}

// pass prints what the agent answers, be it more than we know.
func (c *client) pass(ctx context.Context, what string, query url.Values, w io.Writer) error {
	body, err := c.ask(ctx, what, query, lists(what))
	if err != nil {
		return err
	}
	_, err = harmlessJSON{w}.Write(body)
	return err
}

// ask returns an answer that is one of an agent, nil if it knows no such connection.
func (c *client) ask(ctx context.Context, what string, query url.Values, isAnswer func([]byte) bool) ([]byte, error) {
	status, body, err := c.fetch(ctx, "api/v1/"+what, query)
	if err != nil || status == http.StatusOK && isAnswer(body) {
		return body, err
	}
	if err := c.refused(status, body); !errors.Is(err, errNoConnection) {
		return nil, err
	}
	return nil, nil
}

// errNoConnection is of a cookie that no connection has.
var errNoConnection = errors.New("no connection")

// refused is the error that an answer is.
func (c *client) refused(status int, body []byte) error {
	if err := c.otherwise(status, body); err != nil {
		return err
	}
	var answer exporter.Error
	switch {
	case json.Unmarshal(body, &answer) != nil || answer.Error == "":
		return c.stranger()
	case status == http.StatusNotFound && strings.HasPrefix(answer.Error, exporter.NoConnection):
		return errNoConnection
	}
	return fmt.Errorf("ask %s: %s", c, answer.Error)
}

// fetch returns what answers there, if that is not the way of saying that one
// has to ask otherwise.
func (c *client) fetch(ctx context.Context, path string, query url.Values) (status int, body []byte, err error) {
	limited, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	resp, err := c.do(limited, path, query)
	if err != nil {
		return 0, nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, c.unreachable(ctx, err)
	}
	return resp.StatusCode, body, nil
}

// do begins a request.
func (c *client) do(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

// otherwise is how to ask instead, where an answer says that.
func (c *client) otherwise(status int, body []byte) error {
	switch {
	case status == http.StatusUnauthorized && c.config != "":
		return fmt.Errorf("ask %s: it refused the user or password: check them in %s", c, c.config)
	case status == http.StatusUnauthorized:
		return fmt.Errorf("ask %s: it wants a user and a password: name a file that has them with --web.client-config", c)
	case status == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"): // net/http
		return fmt.Errorf("ask %s: it speaks TLS: use https://%s", c, c.base.Host)
	}
	return nil
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
func (c *client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	why := err.Error()
	var uerr *url.Error
	if errors.As(err, &uerr) {
		why = uerr.Err.Error() // without the URL
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = syscall.ECONNREFUSED.Error()
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("ask %s: nobody known here has signed its certificate: name its CA in ca_file of tls_config in a file for --web.client-config, or in the environment variable SSL_CERT_FILE", c)
	case errors.As(err, new(*fs.PathError)): // of a password, or of a certificate that has gone
		return fmt.Errorf("ask %s: %s: correct the file of --web.client-config, %s", c, why, c.config)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("ask %s: it does not speak TLS: use http://%s", c, c.base.Host)
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer within " + setting(agentTimeout)
	case c.base.Scheme == "https":
		why = cmp.Or(c.certificateAlert(ctx), why)
	}
	if wantsCertificate(why) {
		return fmt.Errorf("ask %s: it wants a client certificate that it accepts (%s): name it in cert_file and key_file of tls_config in a file for --web.client-config", c, why)
	}
	return fmt.Errorf("ask %s: %s: %s", c, why, c.mend)
}

// wantsCertificate tells whether an error is an alert of TLS about a certificate of
// ours: none, or not one that the agent accepts.
func wantsCertificate(why string) bool {
	_, alert, remote := strings.Cut(why, "remote error: tls: ")
	return remote && strings.Contains(alert, "certificate")
}

// certificateAlert returns the alert with which an agent refuses our certificate, "" if
// it does not. In TLS 1.3 that comes when we send already: it is lost where the connection
// breaks first, and HTTP/2 has another error for it. Whoever only reads gets it.
func (c *client) certificateAlert(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, alertTimeout)
	defer cancel()
	address := net.JoinHostPort(c.base.Hostname(), cmp.Or(c.base.Port(), "443"))
	connection, err := (&tls.Dialer{Config: c.tls}).DialContext(ctx, "tcp", address)
	if err == nil {
		defer connection.Close()
		deadline, _ := ctx.Deadline()
		_ = connection.SetReadDeadline(deadline)
		_, err = connection.Read(make([]byte, 1))
	}
	if err != nil && wantsCertificate(err.Error()) {
		return err.Error()
	}
	return ""
}

func (c *client) stranger() error {
	return fmt.Errorf("what answers at %s is not a halfopen agent: %s", c, c.wrong)
}

// String is the name of the agent, for messages.
func (c *client) String() string { return c.name }

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
