// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func TestPageServesAllItsParts(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	seen := make(map[string]bool)
	references := regexp.MustCompile(`(?:src|href)="(/web/[^"]+)"|from '(/[^']+)'`)
	var visit func(path string)
	visit = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		w := request(t, h, "GET", path)
		if w.Code != http.StatusOK {
			t.Errorf("%s: status %d", path, w.Code)
		}
		if got := w.Header().Get("Content-Security-Policy"); got != pagePolicy {
			t.Errorf("%s: policy %q", path, got)
		}
		for _, m := range references.FindAllStringSubmatch(w.Body.String(), -1) {
			visit(m[1] + m[2])
		}
		again := httptest.NewRequest("GET", path, nil)
		again.Header.Set("If-None-Match", w.Header().Get("ETag"))
		second := httptest.NewRecorder()
		h.ServeHTTP(second, again)
		if second.Code != http.StatusNotModified {
			t.Errorf("%s: status %d for a client that has it already", path, second.Code)
		}
	}
	visit("/")
	for _, name := range pageFiles() {
		if !seen["/"+name] && name != "web/index.html" && !strings.Contains(name, "LICENSE") {
			t.Errorf("%s is not a part of the page", name)
		}
	}
}

// A browser refuses what the policy forbids, but only where it is used. Names of processes
// are hostile: none may become markup or a script.
func TestPageHasNothingInline(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|<script>|<style|\bstyle="|\son[a-z]+="|https?://`)
	for _, name := range pageFiles() {
		if strings.HasPrefix(name, "web/uplot/") || strings.HasSuffix(name, ".svg") {
			continue
		}
		body, err := page.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range forbidden.FindAllString(strings.ReplaceAll(string(body), "'http://www.w3.org/2000/svg'", ""), -1) {
			t.Errorf("%s: %s", name, found)
		}
	}
}
