// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// A minuteLog logs, at most once a minute, a warning about something that clients can
// cause very often, with a count and the last detail. It is safe for concurrent use.
type minuteLog struct {
	logger  *slog.Logger
	message string
	first   time.Duration // how long the first warning waits for more occurrences
	every   time.Duration

	mu     sync.Mutex
	count  int
	last   string
	timer  *time.Timer // nil: no warning is due
	warned time.Time
}

func newMinuteLog(logger *slog.Logger, message string) *minuteLog {
	return &minuteLog{logger: logger, message: message, first: time.Second, every: time.Minute}
}

// note counts an occurrence, with its detail, for the next warning.
func (m *minuteLog) note(last string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	m.last = last
	if m.timer == nil {
		m.timer = time.AfterFunc(max(m.first, time.Until(m.warned.Add(m.every))), m.warn)
	}
}

func (m *minuteLog) warn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logger.Warn(m.message, "count", m.count, "last", m.last)
	m.count, m.last, m.timer, m.warned = 0, "", nil, time.Now()
}

// serverLog is the ErrorLog of an http.Server. Most messages are about mistakes of
// clients, such as a TLS handshake that failed.
type serverLog struct{ *minuteLog }

// Write takes one message.
func (l serverLog) Write(message []byte) (int, error) {
	line := oneLine(string(message))
	if strings.Contains(line, ": panic serving ") { // a mistake of this program
		l.logger.Error("Request failed", "err", line)
	} else {
		l.note(line)
	}
	return len(message), nil
}
