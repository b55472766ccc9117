// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// page is the live page. All but namesModule is served as it is in the source, and the
// page loads nothing from elsewhere.
//
//go:embed web
var page embed.FS

// pagePolicy lets the page load what the agent serves, and nothing else: no script and no
// style inline, so that the name of a process can never become a script.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"form-action 'none'; frame-ancestors 'none'; base-uri 'none'"

// servePage serves the page at / and its parts below /web/.
func servePage(mux *http.ServeMux) {
	for _, name := range pageFiles() {
		body, err := page.ReadFile(name)
		if err != nil {
			panic(err) // it is in the binary
		}
		pattern := "/" + name
		if name == "web/index.html" {
			pattern = "/{$}"
		}
		mux.HandleFunc("GET "+pattern, servePart(name, body))
	}
	mux.HandleFunc("GET /"+namesModule, servePart(namesModule, pageNames()))
}

func servePart(name string, body []byte) http.HandlerFunc {
	sum := sha256.Sum256(body)
	etag, kind := `"`+hex.EncodeToString(sum[:8])+`"`, "application/octet-stream"
	switch path.Ext(name) { // not by /etc/mime.types, which a node may lack
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
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("Cache-Control", "no-cache") // the browser asks each time whether the ETag is still the same
		h.Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}
}

// namesModule is the page's module of what Go defines: names with their meanings, and how
// many rows the agent sends.
const namesModule = "web/names.js"

// pageNames returns namesModule: the verdicts, worst first, the risks, the causes of death,
// what was sent to the peer, by the name of the evidence, and conn.MaxRows.
func pageNames() []byte {
	type verdict struct {
		Name    string `json:"name"`
		Meaning string `json:"meaning"`
		Trouble bool   `json:"trouble"` // the connection is in trouble
	}
	type risk struct {
		Name    string `json:"name"`
		Meaning string `json:"meaning"`
	}
	type cause struct {
		Name    string `json:"name"`
		Timeout bool   `json:"timeout"`
		Orderly bool   `json:"orderly"` // no failure
	}
	var verdicts []verdict
	for v := range conn.Verdict(conn.Verdicts) {
		verdicts = append(verdicts, verdict{v.String(), v.Meaning(), v.InTrouble()})
	}
	slices.Reverse(verdicts)
	var risks []risk
	for r := range conn.Risk(conn.Risks) {
		risks = append(risks, risk{r.String(), r.Meaning()})
	}
	var causes []cause
	for c := range conn.Cause(conn.Causes) {
		causes = append(causes, cause{c.String(), c.IsTimeout(), c.IsOrderly()})
	}
	evidence := make(map[string]string)
	for _, e := range []conn.Evidence{conn.EvidenceKeepalive, conn.EvidenceRetransmit, conn.EvidenceWindowProbe} {
		evidence[e.String()] = e.Solicitation()
	}
	b := []byte("// SPDX-License-Identifier: Apache-2.0\n\n// Made by the agent: see pageNames in exporter/page.go.\n")
	for _, export := range []struct {
		name  string
		value any
	}{{"verdicts", verdicts}, {"risks", risks}, {"causes", causes}, {"evidence", evidence}, {"maxRows", conn.MaxRows}} {
		value, err := json.Marshal(export.value)
		if err != nil {
			panic(err) // JSON can encode all of these
		}
		b = fmt.Appendf(b, "export const %s = %s;\n", export.name, value)
	}
	return b
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
