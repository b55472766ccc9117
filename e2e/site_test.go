// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// A web site that a user of the agent visits, in a real browser, reads nothing of it:
// neither when the site's own name leads to the agent's address (DNS rebinding), nor
// from its own address. A link to the agent works.
func TestPageIsClosedToOtherSites(t *testing.T) {
	t.Parallel()
	a := startAgent(t)
	u, err := url.Parse(a.url)
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!DOCTYPE html><a id="link" href="%s/">the agent</a>`, a.url)
	}))
	defer site.Close()
	_, sitePort, err := net.SplitHostPort(site.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b := newRoom(t).start(1440, 900)

	rebound := "http://evil.example:" + u.Port()
	b.do(chromedp.Navigate(rebound + "/"))
	b.is("it says what to do", `document.body.innerText.includes('"evil.example" is not a name of this agent')`)

	// A page that came from the site's own server before its name led here. What the
	// agent answers has a policy against that, which the site's would not.
	if _, err := chromedp.Call(b.ctx, page.SetBypassCSP, page.SetBypassCSPParams{Enabled: true}); err != nil {
		t.Fatal(err)
	}
	paths := []string{"/", "/web/main.js", "/api/v1/connections", "/api/v1/connections/1", "/api/v1/groups?by=owner", "/api/v1/deaths", "/api/v1/stream"}
	for from, readable := range map[string]bool{a.url: true, rebound: false} {
		b.do(chromedp.Navigate(from + "/-/healthy"))
		for _, path := range paths {
			got := eval[struct {
				Status int
				Text   string
			}](b, fmt.Sprintf(`fetch(%s).then(async (r) => {
				const { value } = await r.body.getReader().read();
				return { Status: r.status, Text: new TextDecoder().decode(value) };
			})`, quoted(path)))
			if refused := got.Status == http.StatusMisdirectedRequest; refused == readable {
				t.Errorf("%s from %s: status %d", path, from, got.Status)
			}
			if told := !strings.Contains(got.Text, "is not a name of this agent"); told != readable {
				t.Errorf("%s from %s: %.200s", path, from, got.Text)
			}
		}
	}

	// A site is all ports of a host, so that what is served on another port of this
	// machine is the same site, but not the same origin.
	for _, from := range []string{"http://site.example:" + sitePort, "http://127.0.0.1:" + sitePort} {
		b.do(chromedp.Navigate(from + "/"))
		for _, path := range append(paths, "/metrics", "/-/healthy", "/web/icon.svg") {
			for what, js := range map[string]string{
				"fetch":         `fetch(%s).then(() => 'open', () => 'closed')`,
				"opaque fetch":  `fetch(%s, { mode: 'no-cors' }).then(() => 'open', () => 'closed')`,
				"script":        `new Promise((done) => { const s = document.createElement('script'); s.onload = () => done('open'); s.onerror = () => done('closed'); s.src = %s; document.head.append(s); })`,
				"image":         `new Promise((done) => { const i = new Image(); i.onload = () => done('open'); i.onerror = () => done('closed'); i.src = %s; })`,
				"event stream":  `new Promise((done) => { const e = new EventSource(%s); e.onopen = () => done('open'); e.onerror = () => { e.close(); done('closed'); }; })`,
				"style sheet":   `new Promise((done) => { const l = document.createElement('link'); l.rel = 'stylesheet'; l.onload = () => done('open'); l.onerror = () => done('closed'); l.href = %s; document.head.append(l); })`,
				"script module": `import(%s).then(() => 'open', () => 'closed')`,
			} {
				if got := eval[string](b, fmt.Sprintf(js, quoted(a.url+path))); got != "closed" {
					t.Errorf("%s from %s by %s: %s", path, from, what, got)
				}
			}
		}
	}
	b.do(chromedp.Navigate("http://site.example:"+sitePort+"/"), chromedp.Click(chromedp.CSS("#link")))
	b.is("the page is live", `document.getElementById('link')?.dataset.state === 'live'`)

	m := a.metrics()
	if n := m.value("halfopen_http_requests_refused_total", "reason", "host"); n < float64(len(paths)) {
		t.Errorf("%v requests are counted as refused by their host", n)
	}
	if n := m.value("halfopen_http_requests_refused_total", "reason", "cross_site"); n < float64(len(paths)) {
		t.Errorf("%v requests are counted as refused by where they came from", n)
	}
}

// What the command line says of names, and whom a client without a browser can ask.
func TestAllowedHosts(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "--web.allowed-host=Proxy.Example.", "--web.allowed-host=other")
	for host, want := range map[string]int{"proxy.example": 200, "OTHER:80": 200, "another": 421, "[::1]": 200} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.url+"/api/v1/deaths", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", host, resp.StatusCode, want)
		}
	}
}
