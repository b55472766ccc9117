// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// viewersOf makes viewers of a Live, so many of each client, the first the oldest.
func viewersOf(l *Live, count int, client string) (viewers []*viewer) {
	began := time.Now().Add(-time.Hour)
	for i := range count {
		v := &viewer{client: clientOf(client), joined: began.Add(time.Duration(i) * time.Second), frames: make(chan *frame, viewerFrames)}
		l.viewers[v] = true
		viewers = append(viewers, v)
	}
	return viewers
}

func TestStreamsAreSharedAmongClients(t *testing.T) {
	const here = "127.0.0.1:1"
	hosts := func(l *Live, n int) {
		for i := range n {
			viewersOf(l, 1, fmt.Sprintf("10.0.%d.%d:1", i/200, i%200))
		}
	}
	for name, tc := range map[string]struct {
		viewers func(*Live) (gone *viewer)
		status  int
		said    string
		reason  string
	}{
		"a client with some gets one more": {
			func(l *Live) *viewer { viewersOf(l, maxClientViewers-1, here); return nil }, http.StatusOK, "", "",
		},
		"a client with its share gets no more, though there is room": {
			func(l *Live) *viewer { viewersOf(l, maxClientViewers, here); return nil },
			http.StatusTooManyRequests, fmt.Sprintf("%d streams already", maxClientViewers), "client",
		},
		"all addresses of this host are one client": {
			func(l *Live) *viewer {
				viewersOf(l, maxClientViewers/2, "127.9.9.9:1")
				viewersOf(l, maxClientViewers/2, "[::1]:1")
				return nil
			},
			http.StatusTooManyRequests, fmt.Sprintf("%d streams already", maxClientViewers), "client",
		},
		"a client with fewer gets the oldest of the client with most": {
			func(l *Live) *viewer {
				hosts(l, maxViewers-3)
				return viewersOf(l, 3, "192.0.2.1:1")[0]
			}, http.StatusOK, "", "all",
		},
		"where all have as many, there is no more": {
			func(l *Live) *viewer { hosts(l, maxViewers); return nil },
			http.StatusServiceUnavailable, fmt.Sprintf("%d clients", maxViewers), "all",
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := &fakeSource{notices: make(chan conn.Notice)}
			var gone *viewer
			server := broadcast(t.Context(), t, src, func(l *Live) { gone = tc.viewers(l) })
			resp, err := http.Get(server.URL + "/api/v1/stream")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tc.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tc.status)
			}
			if tc.status != http.StatusOK {
				body, err := io.ReadAll(resp.Body)
				if err != nil || !strings.Contains(string(body), tc.said) || strings.Count(string(body), "\n") != 1 {
					t.Errorf("it says %s, %v", body, err)
				}
			}
			if gone != nil {
				if _, ok := <-gone.frames; ok || gone.refused != refusedAll {
					t.Error("the oldest of the client with most is still served")
				}
			}
			scraped, err := http.Get(server.URL + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			defer scraped.Body.Close()
			text, err := io.ReadAll(scraped.Body)
			if err != nil {
				t.Fatal(err)
			}
			for _, reason := range []string{"client", "all"} {
				want := 0.0
				if reason == tc.reason {
					want = 1
				}
				if got := parseText(t, text)[fmt.Sprintf("halfopen_http_streams_refused_total reason=%q", reason)]; got != want {
					t.Errorf("%v refused by %s, want %v", got, reason, want)
				}
			}
		})
	}
}
