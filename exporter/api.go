// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
)

// Source is the part of a [collector.Collector] that is shown.
type Source interface {
	Ready() bool                   // the first census is done
	Degraded() []collector.Finding // why not everything is seen
	Stats() (collector.Stats, error)
	Connections(ctx context.Context, q collector.Query) (total int, connections iter.Seq2[*conn.Connection, error], err error)
	CountConnections(ctx context.Context, q collector.Query, by conn.Grouping) (total int, counts []conn.ConnCount, err error)
	Connection(ctx context.Context, cookie uint64) (*collector.Detail, error) // nil: no such connection
	Deaths(causes []conn.Cause, limit int) (total int, deaths []conn.Death)
	Subscribe(buffer int) *collector.Subscription
	SubscribeOwned(buffer int) *collector.Subscription
	FollowRows(on bool)
	Rows() (rows []*conn.Row, complete bool)
	RowChanges() []conn.RowChange
	RowsChanged() <-chan struct{}
	Options() collector.Options
}

var _ Source = (*collector.Collector)(nil)

// defaultLimit is how many connections, groups or deaths an answer has at most, unless
// the query says otherwise.
const defaultLimit = 1000

// notReady says on one line why the numbers of this agent are not those of its node, ""
// if they are: there are none yet, or most of the node is not seen.
func notReady(src Source) string {
	if !src.Ready() {
		return "the first census is not done"
	}
	var reasons []string
	for _, f := range src.Degraded() {
		if f.Most {
			reasons = append(reasons, f.Reason.String())
		}
	}
	if len(reasons) == 0 {
		return ""
	}
	return "most of this node is not seen: " + strings.Join(reasons, ", ") + " (halfopen doctor says what to do)"
}

// NewHandler serves the live page, the API with its stream, the metrics (also those of
// the collectors), and the health of the agent. What may ask is for a [Guard] to say.
func NewHandler(src Source, live *Live, logger *slog.Logger, metrics ...prometheus.Collector) http.Handler {
	a := &api{src: src, logger: logger, large: make(chan struct{}, 1), largeLocal: make(chan struct{}, 1)}
	mux := http.NewServeMux()
	servePage(mux)
	mux.Handle("GET /metrics", metricsHandler(logger, append(metrics, NewMetrics(src), live)...))
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "healthy")
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if why := notReady(src); why != "" {
			http.Error(w, "not ready: "+why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	for path, h := range map[string]http.HandlerFunc{
		"/api/v1/connections":          a.connections,
		"/api/v1/connections/{cookie}": a.connection,
		"/api/v1/groups":               a.groups,
		"/api/v1/deaths":               a.deaths,
		"/api/v1/stream":               live.ServeHTTP,
	} {
		mux.HandleFunc("GET "+path, h)
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", "GET, HEAD")
			writeError(w, http.StatusMethodNotAllowed, fmt.Errorf("method %s is not allowed: use GET", r.Method))
		})
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, fmt.Errorf("no such path: %s", r.URL.Path))
	})
	return secure(mux)
}

// metricsHandler has its own registry. A collector that fails costs only its
// own metrics: the error is logged, and counted in
// promhttp_metric_handler_errors_total.
func metricsHandler(logger *slog.Logger, metrics ...prometheus.Collector) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(metrics...)
	reg.MustRegister(
		versioncollector.NewCollector("halfopen"),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog:          scrapeLog{logger},
		ErrorHandling:     promhttp.ContinueOnError,
		Registry:          reg,
		EnableOpenMetrics: true,
	})
}

// scrapeLog writes what promhttp has to say, which can be several lines, as one.
type scrapeLog struct{ logger *slog.Logger }

func (l scrapeLog) Println(v ...any) {
	l.logger.Error("Scrape failed", "err", oneLine(fmt.Sprintln(v...)))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

type api struct {
	src    Source
	logger *slog.Logger
	// Full while somebody has more than defaultLimit connections; the second is of the
	// machine's own socket, so that nobody who may not use that holds up who may.
	large, largeLocal chan struct{}
}

func (a *api) connections(w http.ResponseWriter, r *http.Request) {
	params, err := parameters(r.URL.RawQuery, connectionParameters...)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	q, err := connectionQuery(params)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if q.Limit > defaultLimit {
		// Anybody may ask, and each answer would take as much memory again.
		large := a.large
		if _, ok := RequestPeer(r.Context()); ok {
			large = a.largeLocal
		}
		select {
		case large <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		defer func() {
			debug.FreeOSMemory() // nobody asks for that often
			<-large
		}()
	}
	total, connections, err := a.src.Connections(r.Context(), q)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeList(a, w, r, "connections", total, connections, NewConnection)
}

func (a *api) groups(w http.ResponseWriter, r *http.Request) {
	params, err := parameters(r.URL.RawQuery, append([]string{"by"}, connectionParameters...)...)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	by, err := parseGrouping(params["by"])
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	q, err := connectionQuery(params)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	total, counts, err := a.src.CountConnections(r.Context(), q, by)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeList(a, w, r, "groups", total, Each(counts), func(t *conn.ConnCount) Group { return NewGroup(t, by) })
}

// NoConnection is how the error begins about a cookie that no connection has.
const NoConnection = "no living connection"

func (a *api) connection(w http.ResponseWriter, r *http.Request) {
	if _, err := parameters(r.URL.RawQuery); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	cookie, err := conn.ParseCookie(r.PathValue("cookie"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	d, err := a.src.Connection(r.Context(), cookie)
	switch {
	case err != nil:
		a.fail(w, r, err)
	case d == nil:
		writeError(w, http.StatusNotFound, fmt.Errorf(
			NoConnection+" has the cookie %s; if it has died, /api/v1/deaths may still know it", conn.FormatCookie(cookie)))
	default:
		writeJSON(w, http.StatusOK, NewConnectionDetail(d))
	}
}

func (a *api) deaths(w http.ResponseWriter, r *http.Request) {
	params, err := parameters(r.URL.RawQuery, "cause", "limit")
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	causes, err := each(params["cause"], conn.ParseCause)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	limit, err := parseLimit(params["limit"])
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	total, deaths := a.src.Deaths(causes, limit)
	writeList(a, w, r, "deaths", total, Each(deaths), NewDeath)
}

// fail answers that looking did not work. Nobody hears it if the client is gone.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		a.logger.Error("Request failed", "path", r.URL.Path, "err", err)
	}
	writeError(w, http.StatusInternalServerError, err)
}

// connectionParameters are those that connectionQuery understands.
var connectionParameters = []string{"verdict", "state", "port", "pid", "owner", "remote", "risk", "netns", "all", "limit"}

func connectionQuery(params url.Values) (q collector.Query, err error) {
	if q.Verdicts, err = each(params["verdict"], conn.ParseVerdict); err != nil {
		return q, err
	}
	if q.States, err = each(params["state"], conn.ParseState); err != nil {
		return q, err
	}
	if q.Ports, err = each(params["port"], parsePort); err != nil {
		return q, err
	}
	if q.PIDs, err = each(params["pid"], parsePID); err != nil {
		return q, err
	}
	if q.Owners, err = each(params["owner"], of("owner", collector.ParseOwner)); err != nil {
		return q, err
	}
	if q.Remotes, err = each(params["remote"], of("remote", collector.ParseRemote)); err != nil {
		return q, err
	}
	if q.Risks, err = each(params["risk"], conn.ParseRisk); err != nil {
		return q, err
	}
	if q.Netns, err = each(params["netns"], of("netns", collector.ParseNetns)); err != nil {
		return q, err
	}
	if q.All, err = parseSwitch("all", params["all"]); err != nil {
		return q, err
	}
	q.Limit, err = parseLimit(params["limit"])
	return q, err
}

// parameters parses a query that may have the known parameters only.
func parameters(raw string, known ...string) (url.Values, error) {
	params, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("malformed query: %w", err)
	}
	for name := range params {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown parameter %q", name)
		}
	}
	return params, nil
}

func each[T any](values []string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range values {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// of has the errors of parse name the parameter.
func of[T any](name string, parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (T, error) {
		v, err := parse(s)
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return v, err
	}
}

func parsePort(s string) (uint16, error) {
	v, err := strconv.ParseUint(s, 10, 16)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(v), nil
}

func parsePID(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 31) // the kernel's pid_t is signed
	if err != nil || v == 0 {
		return 0, fmt.Errorf("pid %q is not the number of a process", s)
	}
	return uint32(v), nil
}

func parseSwitch(name string, values []string) (bool, error) {
	switch {
	case len(values) == 0:
		return false, nil
	case len(values) > 1:
		return false, fmt.Errorf("%s is given more than once", name)
	case values[0] != "true" && values[0] != "false":
		return false, fmt.Errorf("%s %q is neither true nor false", name, values[0])
	}
	return values[0] == "true", nil
}

func parseGrouping(values []string) (conn.Grouping, error) {
	if len(values) != 1 {
		return 0, errors.New("by is to be given once: owner, remote or verdict")
	}
	return conn.ParseGrouping(values[0])
}

func parseLimit(values []string) (int, error) {
	switch len(values) {
	case 0:
		return defaultLimit, nil
	case 1:
		v, err := strconv.ParseUint(values[0], 10, 31)
		if errors.Is(err, strconv.ErrRange) {
			return 0, fmt.Errorf("limit %q is too large: at most %d", values[0], math.MaxInt32)
		}
		if err != nil || v == 0 {
			return 0, fmt.Errorf("limit %q is not a positive number", values[0])
		}
		return int(v), nil
	}
	return 0, errors.New("limit is given more than once")
}

// writeList answers with such an object. Where that fails half-way, the answer is
// cut off, so that it does not look like a whole one.
func writeList[In, Out any](a *api, w http.ResponseWriter, r *http.Request, name string, total int, items iter.Seq2[*In, error], encode func(*In) Out) {
	w.Header().Set("Content-Type", "application/json")
	b := bufio.NewWriter(w)
	if err := errors.Join(WriteList(b, name, total, items, encode), b.Flush()); err != nil {
		if r.Context().Err() == nil {
			a.logger.Error("Answer was cut off", "path", r.URL.Path, "err", oneLine(err.Error()))
		}
		panic(http.ErrAbortHandler)
	}
}

// WriteList writes the object of [Connections], [Groups] or [Deaths], an item a line
// and in a Write of its own. Items are encoded one by one: all of a large node's
// would be hundreds of MB.
func WriteList[In, Out any](w io.Writer, name string, total int, items iter.Seq2[*In, error], encode func(*In) Out) error {
	if _, err := fmt.Fprintf(w, "{\"generated_at\":%q,\"total\":%d,%q:[\n", time.Now().UTC().Format(time.RFC3339Nano), total, name); err != nil {
		return err
	}
	enc, between := json.NewEncoder(w), ""
	var out Out // one for all: Encode makes it escape
	for item, err := range items {
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, between); err != nil {
			return err
		}
		out = encode(item)
		if err := enc.Encode(&out); err != nil {
			return err
		}
		between = ","
	}
	_, err := io.WriteString(w, "]}\n")
	return err
}

// Each ranges over items for [WriteList].
func Each[T any](items []T) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		for i := range items {
			if !yield(&items[i], nil) {
				return
			}
		}
	}
}

func writeError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, Error{Error: err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails only when the client is gone
}
