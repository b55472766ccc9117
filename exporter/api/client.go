// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/config"

	"github.com/halfopen/halfopen/internal/humanize"
)

// answerTimeout is the longest time for an answer: the agent may have to read very
// many connections.
const answerTimeout = time.Minute

// A request to a busy agent is made at most busyTries times, and not again after busyTimeout.
const (
	busyTries   = 3
	busyTimeout = 10 * time.Second
)

// alertTimeout is the longest time of the second connection, which finds out why an agent broke the first.
const alertTimeout = 5 * time.Second

// Advice for errors: no answer, or the answer of another server.
const (
	checkURL     = "check the address and port of --url"
	withoutAgent = "look without it with --url=none"
	checkAgent   = "check that the agent runs and listens there, or " + withoutAgent
)

// A Client asks an agent. Its errors are for a user of the command line: one line, which
// says what to do and names the flags. It is safe for concurrent use.
type Client struct {
	// OnBusy, if not nil, is called when the agent is busy, before the client waits to ask
	// again.
	OnBusy func(wait time.Duration)

	base   *url.URL
	name   string // name of the agent in messages
	wrong  string // advice if the server is not an agent
	config string // path of the file of --web.client-config; "": none
	http   *http.Client
	tls    *tls.Config // from that file; nil: the default
}

// NewClient makes a client of the agent at an http or https URL. configFile is the path of a
// file in the format of Prometheus's http_config; "": none.
func NewClient(u *url.URL, configFile string) (*Client, error) {
	c := &Client{base: u, name: u.String(), config: configFile, http: &http.Client{CheckRedirect: noRedirect}, wrong: checkURL}
	if configFile == "" {
		return c, nil
	}
	failed := func(err error) error {
		return fmt.Errorf("web client config %s: %s: correct it or do without --web.client-config", configFile, strings.TrimSpace(err.Error()))
	}
	cfg, _, err := config.LoadHTTPConfigFile(configFile)
	if err != nil {
		return nil, failed(err)
	}
	if c.http, err = config.NewClientFromConfig(*cfg, "halfopen"); err != nil {
		return nil, failed(err)
	}
	c.http.CheckRedirect = noRedirect
	if c.tls, err = config.NewTLSConfig(&cfg.TLSConfig); err != nil {
		return nil, failed(err)
	}
	return c, nil
}

// A DialFunc connects to an agent.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// NewSocketClient makes a client of the agent that listens on a Unix socket. It connects
// with dial.
func NewSocketClient(path string, dial DialFunc) *Client {
	return &Client{
		base: &url.URL{Scheme: "http", Host: "halfopen"}, name: path, wrong: withoutAgent,
		http: &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, "unix", path)
		}}},
	}
}

// noRedirect follows no redirect. An agent sends none, and another server could make us
// send our password to a third.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// String returns the agent's URL or socket, for messages.
func (c *Client) String() string { return c.name }

// Health asks the agent whether it is alive, and returns the status of the answer. Its
// error is that of the HTTP client.
func (c *Client) Health(ctx context.Context) (status int, err error) {
	resp, err := c.do(ctx, "-/healthy", nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	return resp.StatusCode, err
}

// Connections asks for connections, with the query of [ConnectionParameters].
func (c *Client) Connections(ctx context.Context, query url.Values) (*Connections, error) {
	l, err := c.OpenConnections(ctx, query)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for connection, err := range l.All() {
		if err != nil {
			return nil, err
		}
		l.Head.Connections = append(l.Head.Connections, *connection)
	}
	return &l.Head, nil
}

// Groups asks for groups of connections, with the query of [GroupParameters].
func (c *Client) Groups(ctx context.Context, query url.Values) (*Groups, error) {
	return get[Groups](ctx, c, "groups", query)
}

// Deaths asks for deaths, with the query of [DeathParameters].
func (c *Client) Deaths(ctx context.Context, query url.Values) (*Deaths, error) {
	return get[Deaths](ctx, c, "deaths", query)
}

// Status asks for the status of the node and its agent.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	body, err := c.ask(ctx, "status", nil, func(body []byte) bool {
		var s Status
		return json.Unmarshal(body, &s) == nil && !s.At.IsZero() && s.Verdicts != nil
	})
	if err != nil {
		return nil, err
	}
	s := new(Status)
	return s, json.Unmarshal(body, s)
}

// Detail asks for everything known of one connection. It returns the [ConnectionDetail]
// as the agent encoded it, nil if the agent knows no connection of that cookie.
func (c *Client) Detail(ctx context.Context, cookie string) ([]byte, error) {
	body, err := c.ask(ctx, "connections/"+cookie, nil, func(body []byte) bool {
		var doc struct{ Explanation *Explanation }
		return json.Unmarshal(body, &doc) == nil && doc.Explanation != nil && !doc.Explanation.At.IsZero()
	})
	if errors.Is(err, errNoConnection) {
		return nil, nil
	}
	return body, err
}

// Raw asks for groups or deaths, and returns the answer as the agent encoded
// it, which may have more in it than this version knows.
func (c *Client) Raw(ctx context.Context, what string, query url.Values) ([]byte, error) {
	return c.ask(ctx, what, query, func(body []byte) bool { return isList(what, body) })
}

func get[T any](ctx context.Context, c *Client, what string, query url.Values) (*T, error) {
	body, err := c.Raw(ctx, what, query)
	if err != nil {
		return nil, err
	}
	doc := new(T)
	if json.Unmarshal(body, doc) != nil {
		return nil, c.NotAnAgent()
	}
	return doc, nil
}

// isList reports whether a body is the answer of an agent that lists such things.
func isList(what string, body []byte) bool {
	var doc map[string]json.RawMessage
	var at time.Time
	var things []json.RawMessage
	return json.Unmarshal(body, &doc) == nil &&
		json.Unmarshal(doc["generated_at"], &at) == nil && !at.IsZero() &&
		json.Unmarshal(doc[what], &things) == nil && things != nil
}

// ask returns the answer to a GET below /api/v1, if isAnswer holds for it.
func (c *Client) ask(ctx context.Context, what string, query url.Values, isAnswer func([]byte) bool) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(limited, "api/v1/"+what, query)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, c.unreachable(ctx, err)
	case resp.StatusCode == http.StatusOK && isAnswer(body):
		return body, nil
	}
	return nil, c.refusal(resp.StatusCode, body)
}

// do begins a request. If the agent is busy, it asks again when the agent says, within
// busyTries and busyTimeout.
func (c *Client) do(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	for tries, ends := 1, time.Now().Add(busyTimeout); ; tries++ {
		resp, err := c.doOnce(ctx, path, query)
		if err != nil {
			return nil, err
		}
		wait := retryAfter(resp)
		if wait == 0 || tries == busyTries || time.Now().Add(wait).After(ends) {
			return resp, nil
		}
		resp.Body.Close()
		if c.OnBusy != nil {
			c.OnBusy(wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// retryAfter returns after how long a busy agent wants to be asked again, 0 if it is not
// busy.
func retryAfter(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	seconds, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func (c *Client) doOnce(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

// errNoConnection says that no connection has the cookie that was asked for.
var errNoConnection = errors.New("no connection")

// refusal returns the error that an answer stands for.
func (c *Client) refusal(status int, body []byte) error {
	var answer Error
	switch {
	case status == http.StatusUnauthorized && c.config != "":
		return fmt.Errorf("ask %s: it refused the user or password: check them in %s", c, c.config)
	case status == http.StatusUnauthorized:
		return fmt.Errorf("ask %s: it wants a user and a password: name a file that has them with --web.client-config", c)
	case status == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"): // net/http
		return fmt.Errorf("ask %s: it speaks TLS: use https://%s", c, c.base.Host)
	case json.Unmarshal(body, &answer) != nil || answer.Error == "":
		return c.NotAnAgent()
	case status == http.StatusNotFound && strings.HasPrefix(answer.Error, NoConnection):
		return errNoConnection
	}
	return fmt.Errorf("ask %s: %s", c, answer.Error)
}

// NotAnAgent returns the error of an answer that is not one of an agent.
func (c *Client) NotAnAgent() error {
	return fmt.Errorf("what answers at %s is not a halfopen agent: %s", c, c.wrong)
}

// unreachable returns the error of a request that got no answer. It wraps nothing: the
// caller must not take a connection that broke for a broken output of its own.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	why := err.Error()
	if uerr, ok := errors.AsType[*url.Error](err); ok {
		why = uerr.Err.Error() // without the URL
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = syscall.ECONNREFUSED.Error()
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("ask %s: this machine does not trust the signer of its certificate: name its CA in ca_file of tls_config in a file for --web.client-config, or in the environment variable SSL_CERT_FILE", c)
	case errors.As(err, new(*fs.PathError)): // a file with the password, or a certificate that no longer exists
		return fmt.Errorf("ask %s: %s: correct the file of --web.client-config, %s", c, why, c.config)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("ask %s: it does not speak TLS: use http://%s", c, c.base.Host)
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer within " + humanize.Setting(answerTimeout)
	case c.base.Scheme == "https":
		why = cmp.Or(c.certificateAlert(ctx), why)
	}
	if wantsCertificate(why) {
		return fmt.Errorf("ask %s: it wants a client certificate that it accepts (%s): name it in cert_file and key_file of tls_config in a file for --web.client-config", c, why)
	}
	return fmt.Errorf("ask %s: %s: %s", c, why, checkAgent)
}

// wantsCertificate reports whether an error is a TLS alert about our certificate: we sent
// none, or one that the agent does not accept.
func wantsCertificate(why string) bool {
	_, alert, remote := strings.Cut(why, "remote error: tls: ")
	return remote && strings.Contains(alert, "certificate")
}

// certificateAlert returns the alert with which an agent refuses our certificate, "" if
// it sends none. In TLS 1.3 the alert comes when we already send our request. It is lost
// if the connection breaks first, and HTTP/2 reports another error. A connection that
// only reads receives it.
func (c *Client) certificateAlert(ctx context.Context) string {
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
