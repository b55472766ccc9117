// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestMinuteLog(t *testing.T) {
	log := &lockedBuffer{}
	m := newMinuteLog(slog.New(slog.NewTextHandler(log, nil)), "Often")
	m.first, m.every = 10*time.Millisecond, 50*time.Millisecond
	wait := func(lines int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); strings.Count(log.String(), "\n") < lines; {
			if time.Now().After(deadline) {
				t.Fatalf("want %d lines:\n%s", lines, log)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for i := range 23 {
		m.note(fmt.Sprint("number ", i))
	}
	wait(1)
	began := time.Now()
	for range 5 {
		m.note("again")
	}
	wait(2)
	if since := time.Since(began); since < m.every/2 {
		t.Errorf("the next came %v later", since)
	}
	lines := strings.Split(log.String(), "\n")
	if !strings.Contains(lines[0], `msg=Often count=23 last="number 22"`) || !strings.Contains(lines[1], "msg=Often count=5 last=again") {
		t.Errorf("the log has:\n%s", log)
	}
}

func TestServersWarningsAreBoundedButForPanics(t *testing.T) {
	log := &lockedBuffer{}
	m := newMinuteLog(slog.New(slog.NewTextHandler(log, nil)), "Clients")
	m.first = time.Hour
	l := serverLog{m}
	for _, line := range []string{"http: TLS handshake error from 10.0.0.1:1: EOF\n", "http: panic serving 10.0.0.1:1: no\ngoroutine 1\n"} {
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "no goroutine 1") || m.count != 1 {
		t.Errorf("%d are counted, and the log has:\n%s", m.count, got)
	}
	m.timer.Stop()
}
