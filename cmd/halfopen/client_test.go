// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestWhatCanGoWrongWithAnAgent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   string // after "halfopen: ask URL: "
	}{
		{"it wants a password", http.StatusUnauthorized, "Unauthorized", "it wants a user and a password: give them as in http://user:password@host:9839"},
		{"it says why not", http.StatusBadRequest, `{"error":"unknown\nparameter"}`, "unknown; parameter"},
		{"it is something else", http.StatusNotFound, "<html>", "what answers there is not halfopen: check the address and port of --url"},
		{"it is something else that finds the path", http.StatusOK, "<html>", "what answers there is not halfopen: check the address and port of --url"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := agentWith(t, tt.status, tt.body)
			for _, output := range []string{"table", "json"} {
				status, stdout, stderr := halfopen(t, "list", "--url", url, "-o", output)
				if want := "halfopen: ask " + url + ": " + tt.want + "\n"; status != exitFailed || stdout != "" || stderr != want {
					t.Errorf("status %d, stdout %q, stderr\n%s\nwant\n%s", status, stdout, stderr, want)
				}
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := ln.Addr().String()
	ln.Close()
	status, _, stderr := halfopen(t, "list", "--url", "http://me:secret@"+host)
	if status != exitFailed || !strings.HasPrefix(stderr, "halfopen: ask http://me:xxxxx@"+host+": connection refused: check that") ||
		strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "secret") {
		t.Errorf("status %d, stderr\n%s", status, stderr)
	}
}
