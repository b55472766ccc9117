// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// securityHeaders are on every answer, unless the web config file or the page has set
// another value.
var securityHeaders = map[string]string{
	"Cache-Control":                "no-store",
	"Content-Security-Policy":      "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy":           "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), midi=(), payment=(), usb=()",
	"Referrer-Policy":              "no-referrer",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
}

// secure adds the securityHeaders to the answers of next.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range securityHeaders {
			if w.Header().Get(name) == "" {
				w.Header().Set(name, value)
			}
		}
		next.ServeHTTP(w, r)
	})
}

// The reasons for which a Guard refuses a request.
const (
	refusedHost      = "host"
	refusedCrossSite = "cross_site"
)

// A Guard refuses requests that another web site makes through a user's browser:
// requests whose Host is not a name of this agent, since a site can make its own name
// resolve to the agent's address (DNS rebinding), and requests that the browser marks
// as not from the agent's own page. It is a prometheus.Collector of the refused
// requests.
type Guard struct {
	names    map[string]bool // as hostOf returns them
	hostname func() (string, error)
	refused  *prometheus.CounterVec
}

// NewGuard makes a Guard that accepts IP addresses, localhost, the node's name, the
// hosts of the listen addresses, and the allowed host names, which must be as
// [ParseHostName] returns them.
func NewGuard(listenAddresses, allowed []string) *Guard {
	g := &Guard{
		names:    map[string]bool{"localhost": true},
		hostname: os.Hostname,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "halfopen_http_requests_refused_total",
			Help: "HTTP requests refused because a web site may have made them through a user's browser.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{refusedHost, refusedCrossSite} {
		g.refused.WithLabelValues(reason)
	}
	for _, address := range listenAddresses {
		if host := hostOf(address); host != "" { // :9839 has none
			g.names[host] = true
		}
	}
	for _, name := range allowed {
		g.names[name] = true
	}
	return g
}

// Describe implements prometheus.Collector.
func (g *Guard) Describe(ch chan<- *prometheus.Desc) { g.refused.Describe(ch) }

// Collect implements prometheus.Collector.
func (g *Guard) Collect(ch chan<- prometheus.Metric) { g.refused.Collect(ch) }

// Wrap returns a handler that passes accepted requests on to next. A refused request
// gets 421 (its Host) or 403 (another site), with one line that says what to do.
func (g *Guard) Wrap(next http.Handler) http.Handler {
	return secure(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !fromOwnPage(r) {
			g.refuse(w, r, refusedCrossSite, http.StatusForbidden, fmt.Errorf(
				"pages of other sites may not use this agent (Sec-Fetch-Site is %.20q): open it in a tab of its own", r.Header.Get("Sec-Fetch-Site")))
			return
		}
		if host := hostOf(r.Host); !anyHost(r) && !g.accepts(host) && (host != socketHost || !overSocket(r)) {
			g.refuse(w, r, refusedHost, http.StatusMisdirectedRequest, errHost(host))
			return
		}
		next.ServeHTTP(w, r)
	}))
}

func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, reason string, status int, err error) {
	g.refused.WithLabelValues(reason).Inc()
	if strings.HasPrefix(r.URL.Path, "/api/") {
		writeError(w, status, err)
		return
	}
	http.Error(w, err.Error(), status)
}

// errHost returns the error for a host that is refused. The host is hostile input.
func errHost(host string) error {
	flag := "--web.allowed-host"
	if name, err := ParseHostName(host); err == nil {
		flag += "=" + name
	}
	return fmt.Errorf("%.253q is not a name of this agent: use its address or the node's name, or start the agent with %s", host, flag)
}

// socketHost is the Host of our commands' requests over an agent's Unix socket. Other
// names need the same check there: a forwarded port (ssh -L) can lead a browser to the
// socket.
const socketHost = "halfopen"

func overSocket(r *http.Request) bool {
	_, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return ok
}

// anyHost reports whether the agent answers a request whatever its Host: health checks
// and scrapes use aliases. A request without a Host (HTTP/1.0) is not from a browser.
func anyHost(r *http.Request) bool {
	if r.Host == "" {
		return true
	}
	switch r.URL.Path {
	case "/metrics", "/-/healthy", "/-/ready":
		return true
	}
	return false
}

// accepts reports whether a host, as hostOf returns it, is a name of this agent.
func (g *Guard) accepts(host string) bool {
	if g.names[host] {
		return true
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return !strings.Contains(addr.Zone(), ".") // a zone with a dot could be taken for a name
	}
	node, err := g.hostname() // read each time, since it can change
	label := firstLabel(strings.ToLower(node))
	// Anyone can guess these, and register a domain that begins with one.
	common := label == "" || label == "localhost" || strings.Trim(label, "0123456789") == ""
	return err == nil && !common && firstLabel(host) == label
}

func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}

// hostOf returns the host of an address that may have a port, in lower case, without
// brackets and without a final dot.
func hostOf(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil { // no port
		host = hostport
		if inner, ok := strings.CutPrefix(host, "["); ok {
			host = strings.TrimSuffix(inner, "]")
		}
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// fromOwnPage reports whether a request may be from the user, the agent's own page, or
// a program. Only browsers say where a request comes from (Fetch Metadata). Other pages
// of the same site do not count: a site is all ports of a host. A link to this agent on
// another site works.
func fromOwnPage(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

var errHostName = errors.New("is not a host name such as node.example.com, without scheme and port")

// ParseHostName parses a host name for a Guard, and returns it in lower case without a
// final dot.
func ParseHostName(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	valid := len(name) <= 253
	for label := range strings.SplitSeq(name, ".") {
		valid = valid && label != "" && len(label) <= 63 && strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
	}
	if !valid {
		return "", fmt.Errorf("%q %w", s, errHostName)
	}
	return name, nil
}
