// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// Source is the part of a [collector.Collector] that the exporter uses.
type Source interface {
	Ready() bool                   // the first census is done
	Degraded() []collector.Finding // why not everything is seen
	Stats() (collector.Stats, error)
	Connections(ctx context.Context, q collector.Query) (total int, connections iter.Seq2[*conn.Connection, error], err error)
	CountConnections(ctx context.Context, q collector.Query, by conn.Grouping) (total int, counts []conn.Count, err error)
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

// notReady returns why the agent is not ready, on one line, "" if it is: the first
// census is not done, or the agent does not see most of the node.
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

// NewHandler serves the live page, the API with its stream, the metrics (of the source,
// the stream, the look-ups and the given collectors), and the health of the agent. The
// lookups bound what the API takes. NewHandler answers every request: wrap it in a
// [Guard].
func NewHandler(src Source, live *Live, lookups *Lookups, logger *slog.Logger, metrics ...prometheus.Collector) http.Handler {
	a := &apiHandler{
		src: src, logger: logger, started: time.Now(), lookups: lookups,
		answers: answers{written: make(map[*answer]bool)},
		slow:    newMinuteLog(logger, "Answers were cut off: their clients read too slowly"),
	}
	mux := http.NewServeMux()
	servePage(mux)
	mux.Handle("GET /metrics", metricsHandler(logger, append(metrics, NewMetrics(src), live, lookups)...))
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
		"/api/v1/status":               a.status,
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

// metricsHandler serves the metrics of its own registry. If a collector fails, only its
// metrics are missing; the handler logs the error and counts it in
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

// scrapeLog logs an error of promhttp, which can have several lines, as one.
type scrapeLog struct{ logger *slog.Logger }

func (l scrapeLog) Println(v ...any) {
	l.logger.Error("Scrape failed", "err", oneLine(fmt.Sprintln(v...)))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// apiHandler answers the paths below /api/v1.
type apiHandler struct {
	src     Source
	logger  *slog.Logger
	started time.Time // the agent
	lookups *Lookups
	answers answers
	slow    *minuteLog
}

func (a *apiHandler) connections(w http.ResponseWriter, r *http.Request) {
	q, err := api.ParseConnectionQuery(r.URL.RawQuery)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	a.list(w, r, q.Limit, func(ctx context.Context) (int, writeFunc, error) {
		total, connections, err := a.src.Connections(ctx, q)
		return total, func(b io.Writer) error {
			return api.WriteList(b, "connections", total, api.OrderOf(&q, total), connections, api.NewConnection)
		}, err
	})
}

func (a *apiHandler) groups(w http.ResponseWriter, r *http.Request) {
	q, by, err := api.ParseGroupQuery(r.URL.RawQuery)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	a.list(w, r, q.Limit, func(ctx context.Context) (int, writeFunc, error) {
		total, counts, err := a.src.CountConnections(ctx, q, by)
		return total, func(b io.Writer) error {
			return api.WriteList(b, "groups", total, "", api.Values(counts), func(t *conn.Count) api.Group { return api.NewGroup(t, by) })
		}, err
	})
}

func (a *apiHandler) deaths(w http.ResponseWriter, r *http.Request) {
	q, err := api.ParseDeathQuery(r.URL.RawQuery)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	a.list(w, r, q.Limit, func(context.Context) (int, writeFunc, error) {
		total, deaths := a.src.Deaths(q.Causes, q.Limit)
		return total, func(b io.Writer) error {
			return api.WriteList(b, "deaths", total, "", api.Values(deaths), api.NewDeath)
		}, nil
	})
}

func (a *apiHandler) connection(w http.ResponseWriter, r *http.Request) {
	if _, err := api.ParseParameters(r.URL.RawQuery); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	cookie, err := conn.ParseCookie(r.PathValue("cookie"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	a.small(w, r, func(ctx context.Context) *answer {
		d, err := a.src.Connection(ctx, cookie)
		switch {
		case err != nil:
			return a.failed(ctx, r.URL.Path, err)
		case d == nil:
			return jsonAnswer(http.StatusNotFound, api.Error{Error: fmt.Sprintf(
				api.NoConnection+" has the cookie %s; if it has died, /api/v1/deaths may still know it", conn.FormatCookie(cookie))})
		}
		return jsonAnswer(http.StatusOK, api.NewConnectionDetail(d))
	})
}

// failed returns the answer that the source failed. If the clients have gone, it logs
// nothing.
func (a *apiHandler) failed(ctx context.Context, path string, err error) *answer {
	if ctx.Err() == nil {
		a.logger.Error("Request failed", "path", path, "err", err)
	}
	return jsonAnswer(http.StatusInternalServerError, api.Error{Error: err.Error()})
}

func writeError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, api.Error{Error: err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(escape.Writer{W: w}).Encode(v) // fails only when the client is gone
}
