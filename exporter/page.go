// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"time"
)

// page is the live page: it is served as it is, and loads nothing from elsewhere.
//
//go:embed web
var page embed.FS

// pagePolicy lets the page load what is served beside it, and ask its own agent.
// Nothing inline: a process's name can never become a script.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"form-action 'none'; frame-ancestors 'none'; base-uri 'none'"

// servePage serves the page at / and its parts below /web/.
func servePage(mux *http.ServeMux) {
	for _, name := range pageFiles() {
		body, err := page.ReadFile(name)
		if err != nil {
			panic(err) // it is in the binary
		}
		sum := sha256.Sum256(body)
		etag, kind := `"`+hex.EncodeToString(sum[:8])+`"`, "application/octet-stream"
		switch path.Ext(name) { // a node may have a strange /etc/mime.types, or none
		case ".html":
			kind = "text/html; charset=utf-8"
		case ".js":
			kind = "text/javascript; charset=utf-8"
		case ".css":
			kind = "text/css; charset=utf-8"
		case ".svg":
			kind = "image/svg+xml"
		case "":
			kind = "text/plain; charset=utf-8"
		}
		at := "/" + name
		if name == "web/index.html" {
			at = "/{$}"
		}
		mux.HandleFunc("GET "+at, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", kind)
			h.Set("Content-Security-Policy", pagePolicy)
			h.Set("Cache-Control", "no-cache") // but what it has is still good, if the ETag says so
			h.Set("ETag", etag)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		})
	}
}

func pageFiles() (names []string) {
	err := fs.WalkDir(page, "web", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		panic(err) // it is in the binary
	}
	return names
}
