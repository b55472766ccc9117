// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/halfopen/halfopen/exporter/api"
)

func TestWhatCanGoWrongWithAnAgent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   string // after "halfopen: ask URL: "
	}{
		{"it wants a password", http.StatusUnauthorized, "Unauthorized", "it wants a user and a password: name a file that has them with --web.client-config"},
		{"it says why not", http.StatusBadRequest, `{"error":"unknown\nparameter"}`, "unknown; parameter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := agentWith(t, tt.status, tt.body)
			want := "ask " + url + ": " + strings.ReplaceAll(tt.want, "HOST", strings.TrimPrefix(url, "http://"))
			wantFailure(t, want, "list", "--url", url)
			wantFailure(t, want, "list", "--url", url, "-o", "json")
		})
	}
}

func wantFailure(t *testing.T, want string, args ...string) {
	t.Helper()
	status, stdout, stderr := halfopen(t, args...)
	if want = "halfopen: " + want + "\n"; status != exitFailed || stdout != "" || stderr != want {
		t.Errorf("%q: status %d, stdout %q, stderr\n%s\nwant\n%s", args, status, stdout, stderr, want)
	}
}

func TestABusyAgentIsAskedAgain(t *testing.T) {
	for _, tt := range []struct {
		name       string
		busy       int    // how often
		retryAfter string // in seconds
		asked      int
		waits      int
	}{
		{"once", 1, "1", 2, 1},
		{"always", 9, "1", 3, 2},
		{"for long", 9, "17", 1, 0},
		{"and does not say for how long", 9, "", 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{{"list"}, {"list", "--by=verdict"}} {
				asked := 0
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if asked++; asked > tt.busy {
						_, list := path.Split(r.URL.Path)
						fmt.Fprintf(w, `{"generated_at":"2026-11-21T12:00:00Z","total":0,%q:[]}`, list)
						return
					}
					w.Header().Set("Retry-After", tt.retryAfter)
					w.WriteHeader(http.StatusTooManyRequests)
					fmt.Fprintln(w, `{"error":"too much"}`)
				}))
				status, _, stderr := halfopen(t, append(args, "--url", server.URL)...)
				server.Close()
				if waits := strings.Count(stderr, "halfopen: "+server.URL+" is busy: asking again in 1s\n"); asked != tt.asked || waits != tt.waits {
					t.Errorf("%v: asked %d times, waited %d times, want %d, %d: %s", args, asked, waits, tt.asked, tt.waits, stderr)
				}
				if fails := strings.HasSuffix(stderr, "halfopen: ask "+server.URL+": too much\n"); fails != (status != 0) || fails != (tt.busy > tt.asked) {
					t.Errorf("%v: status %d, %s", args, status, stderr)
				}
			}
		})
	}
}

func TestWhatIsNoAgent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
	}{
		{"a page that is not there", http.StatusNotFound, "<html>"},
		{"a page that is there", http.StatusOK, "<html>"},
		{"nothing at all", http.StatusOK, ""},
		{"an empty object", http.StatusOK, "{}"},
		{"an empty list", http.StatusOK, "[]"},
		{"a list without a date", http.StatusOK, `{"total":0,"connections":[],"deaths":[]}`},
		{"a date without a list", http.StatusOK, `{"generated_at":"2026-11-21T12:00:00Z","total":0}`},
		{"a date that is none", http.StatusOK, `{"generated_at":null,"total":0,"connections":[],"deaths":[]}`},
		{"a list that is none", http.StatusOK, `{"generated_at":"2026-11-21T12:00:00Z","total":0,"connections":null,"deaths":{}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := agentWith(t, tt.status, tt.body)
			want := "what answers at " + url + " is not a halfopen agent: check the address and port of --url"
			wantFailure(t, want, "list", "--url", url)
			wantFailure(t, want, "list", "--url", url, "-o", "json")
			wantFailure(t, want, "list", "--url", url, "--cause=reset_by_peer")
		})
	}
}

func TestAPasswordIsNotForTheCommandLine(t *testing.T) {
	for _, url := range []string{"http://me:secret@127.0.0.1:1", "https://me@h", "http://me:secret@[::1"} {
		for _, args := range [][]string{{"list"}, {"explain", "1"}, {"top"}, {"trace"}} {
			status, stdout, stderr := halfopen(t, append(args, "--url", url)...)
			if status != exitUsage || stdout != "" || strings.Contains(stderr, "secret") || !strings.Contains(stderr, "--web.client-config") {
				t.Errorf("%s %s: status %d, stdout %q, stderr %q", args, url, status, stdout, stderr)
			}
		}
	}
}

func TestTLSWhereThereIsNoneAndTheOtherWayRound(t *testing.T) {
	encrypted := httptest.NewUnstartedServer(http.NotFoundHandler())
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0)
	encrypted.StartTLS()
	defer encrypted.Close()
	host := encrypted.Listener.Addr().String()
	wantFailure(t, "ask http://"+host+": it speaks TLS: use https://"+host, "list", "--url", "http://"+host)
	wantFailure(t, "ask https://"+host+": this machine does not trust the signer of its certificate: name its CA in ca_file of tls_config in a file for --web.client-config, or in the environment variable SSL_CERT_FILE",
		"list", "--url", "https://"+host)

	url, _ := agentWith(t, http.StatusOK, "{}")
	host = strings.TrimPrefix(url, "http://")
	wantFailure(t, "ask https://"+host+": it does not speak TLS: use http://"+host, "list", "--url", "https://"+host)
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := ln.Addr().String()
	ln.Close()
	wantFailure(t, "ask http://"+host+": connection refused: check that the agent runs and listens there, or look without it with --url=none",
		"list", "--url", "http://"+host)
}

// A server at --url could otherwise make us send our password to another server.
func TestNoRedirectIsFollowed(t *testing.T) {
	asked := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer other.Close()
	first := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	defer first.Close()
	config := filepath.Join(t.TempDir(), "client.yml")
	if err := os.WriteFile(config, []byte("basic_auth:\n  username: a\n  password: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"list"}, {"list", "--web.client-config=" + config}, {"trace"}} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), append(args, "--url="+first.URL), &stdout, &stderr)
		if status != 1 || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 || asked {
			t.Errorf("%q: status %d, the other was asked: %v, %s%s", args, status, asked, &stdout, &stderr)
		}
	}
}

// clientOf is a client of the agent at a URL.
func clientOf(t *testing.T, address string) *api.Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.NewClient(u, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}
