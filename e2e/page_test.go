// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	console "github.com/chromedp/cdproto/log"
	web "github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// axe is axe-core, which finds what keeps people from using a page.
//
//go:embed testdata/axe-core/axe.min.js
var axe string

// A browser is a tab of a real one, with the live page of an agent.
type browser struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex
	host     string
	said     []string // errors on its console
	strayed  []string // requests to others
	mayBreak bool     // the agent is stopped: requests fail
}

// browsers has room for so many browsers: each takes much of the machine.
var browsers = make(chan struct{}, 4)

// A browserRoom is room for the browser of a test, which waits for it before it begins
// anything that does not wait.
type browserRoom struct{ t testing.TB }

func newRoom(t testing.TB) browserRoom {
	t.Helper()
	browsers <- struct{}{}
	t.Cleanup(func() { <-browsers })
	return browserRoom{t}
}

// chromium is Debian's, for all tests: to start it takes much longer than to open a page.
var chromium struct {
	once sync.Once
	ctx  context.Context
	err  error
	stop func()
}

// startChromium starts it. It runs until stopChromium.
func startChromium() {
	dir, err := os.MkdirTemp("", "halfopen-chromium-")
	if err != nil {
		chromium.err = err
		return
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"),
		chromedp.NoSandbox, // it does not work for root; the pages are our own
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.UserDataDir(dir),
		chromedp.Flag("host-resolver-rules", "MAP *.example 127.0.0.1")) // the sites of TestPageIsClosedToOtherSites
	allocator, end := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(allocator)
	chromium.ctx = ctx
	chromium.stop = func() {
		cancel()
		end()
		os.RemoveAll(dir)
	}
	_, chromium.err = chromedp.Call(ctx, web.Enable, web.EnableParams{}) // which starts it
}

func stopChromium() {
	if chromium.stop != nil {
		chromium.stop()
	}
}

// start opens a window with a profile of its own for as long as the test runs.
func (r browserRoom) start(width, height int64) *browser {
	t := r.t
	t.Helper()
	chromium.once.Do(startChromium)
	if chromium.err != nil {
		t.Fatal(chromium.err)
	}
	ctx, cancel := chromedp.NewContext(chromium.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	if _, err := chromedp.Call(ctx, web.Enable, web.EnableParams{}); err != nil { // which opens it
		t.Fatal(err)
	}
	b := &browser{t: t, ctx: ctx}
	b.do(chromedp.EmulateViewport(width, height))
	return b
}

// browse starts a browser for the live page, in which nothing may go wrong.
func (r browserRoom) browse(width, height int64) *browser {
	t := r.t
	t.Helper()
	b := r.start(width, height)
	ctx := b.ctx
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	for _, enable := range []func() error{
		func() error { _, err := chromedp.Call(ctx, console.Enable, cdp.Empty{}); return err },
		func() error { _, err := chromedp.Call(ctx, runtime.Enable, cdp.Empty{}); return err },
	} {
		if err := enable(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, s := range b.said {
			t.Errorf("on the console: %s", s)
		}
		for _, u := range b.strayed {
			t.Errorf("a request to another origin: %s", u)
		}
	})
	return b
}

func (b *browser) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, fmt.Sprintf("%+v", e.ExceptionDetails))
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning || e.Type == runtime.ConsoleAPICalledTypeAssert {
			b.said = append(b.said, fmt.Sprintf("%s: %s", e.Type, e.Args[0].Description+string(e.Args[0].Value)))
		}
	case *console.EventEntryAdded:
		if strings.Contains(e.Entry.URL, "/api/v1/connections/") && strings.Contains(e.Entry.Text, "404") {
			return // it died while it was asked for
		}
		if e.Entry.Level == console.EntryLevelError && (e.Entry.Source != console.EntrySourceNetwork || !b.mayBreak) {
			b.said = append(b.said, fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	case *web.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Scheme != "data" && u.Scheme != "about" && u.Host != b.host {
			b.strayed = append(b.strayed, e.Request.URL)
		}
	}
}

// do runs browser actions with a time limit.
func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, generous)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// open goes to the live page of an agent, and waits until it is.
func (b *browser) open(a *agent, query string) {
	b.t.Helper()
	b.mu.Lock()
	b.host = a.url[strings.LastIndexAny(a.url, "/@")+1:]
	b.mu.Unlock()
	b.do(chromedp.Navigate(a.url + "/" + query))
	b.is("the page is live", `document.getElementById('link').dataset.state === 'live'`)
}

// eval is what an expression is in the page, once it is resolved.
func eval[T any](b *browser, js string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, generous)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", js, err)
	}
	return v
}

// is waits until an expression is true in the page.
func (b *browser) is(what, js string) {
	b.t.Helper()
	eventually(b.t, what, func() error {
		if !eval[bool](b, "Boolean("+js+")") {
			return errors.New(js)
		}
		return nil
	})
}

// when waits until an expression is true, and returns when it became so: by the
// page's clock, which is this machine's.
func (b *browser) when(what, js string) time.Time {
	b.t.Helper()
	ms := eval[float64](b, fmt.Sprintf(`new Promise((done) => {
		const look = () => ((%s) ? done(Date.now()) : Date.now() < %d ? setTimeout(look, 100) : done(0));
		look();
	})`, js, time.Now().Add(generous).UnixMilli()))
	if ms == 0 {
		b.t.Fatalf("not within %v: %s: %s", generous, what, js)
	}
	return time.UnixMilli(int64(ms))
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func rowIs(cookie, verdict string) string {
	return fmt.Sprintf(`document.querySelector('#table tr[data-cookie="%s"][data-verdict="%s"]')`, cookie, verdict)
}

var keepaliveEach = func(idle, interval, probes int) [][3]int {
	return [][3]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, interval}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, probes},
	}
}

// Ports that no other test uses: the page shows connections of the whole node.
const (
	anyAddressPort  = 7971
	passwordPort    = 7972
	refusedPort     = 7973
	streamPort      = 7974
	tenThousandPort = 7975
)

// hostile is a name that does something where it is not taken for text, or not all of
// it is shown: its end would turn around what comes after it. And how it is shown.
const (
	hostile      = "<img src=x>'\u202e"
	hostileShown = `<img src=x>'\u202e`
)

func TestPageShowsAZombieComeAndGo(t *testing.T) { // not parallel: it looks at the clock
	room := newRoom(t)
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	b := room.browse(1440, 900)
	n.serve(droppedPort, echo)
	client := newController(t).start(hostile, n.Client.Path())
	cookie := client.must(command{Do: "connect", Addr: n.server(droppedPort), Options: keepaliveEach(2, 1, 15)}).Cookie
	b.open(a, "?verdict=zombie&verdict=suspect&cause=refused")
	n.cut(droppedPort)

	appeared := b.when("the zombie is there", rowIs(cookie, "zombie"))
	var since time.Time
	for _, c := range a.connections(n, droppedPort, "") {
		if c.Cookie == cookie && c.Since != nil {
			since = *c.Since
		}
	}
	if late := appeared.Sub(since); since.IsZero() || late > 10*time.Second {
		t.Errorf("the zombie is on the page %v after its verdict, of %v", late, since)
	}
	t.Logf("on the page %v after its verdict", appeared.Sub(since))

	// Its owner's name is text, wherever it is shown.
	who := fmt.Sprintf("%s[%d]", hostileShown, client.PID)
	b.is("its owner is there", fmt.Sprintf(`document.querySelector('tr[data-cookie="%s"] .c-owner').textContent.startsWith(%s)`, cookie, quoted(who)))
	b.do(chromedp.Click(chromedp.CSS(fmt.Sprintf(`tr[data-cookie="%s"] .c-state`, cookie))))
	b.is("its story tells of the owner", fmt.Sprintf(`document.querySelector('#story .who')?.textContent.includes(%s)`, quoted(who)))
	b.is("the kernel counts down", `/in \d+s|any moment/.test(document.querySelector('#story .facts').textContent)`)

	vanished := b.when("the zombie is gone", "!"+rowIs(cookie, "zombie"))
	eventually(t, "its death is told", func() error {
		deaths := a.deaths(n, droppedPort)
		if len(deaths) == 0 {
			return errors.New("no death")
		}
		if late := vanished.Sub(deaths[0].At); late > 10*time.Second {
			t.Errorf("the zombie is still on the page %v after its death", late)
		}
		return nil
	})
	b.is("its story has an end", `document.querySelector('#story .banner')?.textContent.includes('keepalive timeout')`)
	b.is("the feed does not have it, as was asked", fmt.Sprintf(`!document.querySelector('#feed li[data-cookie="%s"]')`, cookie))
	b.do(chromedp.Click(chromedp.CSS(`#story .close`)), chromedp.Click(chromedp.CSS(`#causes [data-cause="refused"]`)))
	b.is("the feed has it", fmt.Sprintf(`document.querySelector('#feed li[data-cookie="%s"]')?.textContent.includes('keepalive timeout')`, cookie))
	b.is("its owner is in the feed", fmt.Sprintf(`document.querySelector('#feed li[data-cookie="%s"]')?.textContent.includes(%s)`, cookie, quoted(who)))
	if n := eval[int](b, `document.querySelectorAll('img').length`); n != 0 {
		t.Errorf("%d images on the page", n)
	}
}

func TestPageFiltersAreInItsAddress(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--idle-after=2s")
	n.serve(droppedPort, echo)
	h := newController(t)
	zombies, others := h.start("zombies", n.Client.Path()), h.start("others", n.Client.Path())
	for range many {
		zombies.must(command{Do: "connect", Addr: n.server(droppedPort), Options: keepaliveEach(2, 3, 120)})
	}
	n.serve(servedPort, echo)
	for range many {
		others.must(command{Do: "connect", Addr: n.server(servedPort)})
	}
	n.cut(droppedPort)
	eventually(t, "all zombies", func() error { return all(a.connections(n, droppedPort, ""), many, "zombie") })

	b := room.browse(1440, 900)
	b.open(a, "")
	verdicts := `[...new Set([...document.querySelectorAll('#table tr[data-cookie]')].map((r) => r.dataset.verdict))].join()`
	search := "location.search"
	shown := `document.getElementById('shown').textContent`
	b.is("worst first", `document.querySelector('#table tr[data-cookie]')?.dataset.verdict === 'zombie'`)
	b.do(chromedp.Click(chromedp.CSS(`.tile[data-name="zombie"]`)))
	b.is("only zombies", verdicts+` === 'zombie'`)
	b.is("the address has it", search+` === '?verdict=zombie'`)
	b.is("the tile is pressed", `document.querySelector('.tile[data-name="zombie"]').ariaPressed === 'true'`)
	b.do(chromedp.Click(chromedp.CSS(`.tile[data-name="unguarded"]`)))
	b.is("both", `[...new URLSearchParams(location.search).getAll('verdict')].join() === 'zombie,unguarded'`)
	b.do(chromedp.Click(chromedp.CSS(`.tile[data-name="zombie"]`)))
	b.is("only unguarded", verdicts+` === 'unguarded'`)
	b.do(chromedp.NavigateBack(), chromedp.NavigateBack())
	b.is("back to zombies", search+` === '?verdict=zombie' && `+verdicts+` === 'zombie'`)

	// Search, from the keyboard.
	b.do(chromedp.KeyEvent("/"), chromedp.KeyEvent("nobody has this name"))
	b.is("nothing is found", `document.querySelectorAll('#table tr[data-cookie]').length === 0 && !document.getElementById('none').hidden`)
	b.do(chromedp.KeyEvent(kb.Escape), chromedp.KeyEvent(fmt.Sprintf(":%d zombies", droppedPort)))
	b.is("all are found", fmt.Sprintf("%s.startsWith('%d of ')", shown, many))
	b.is("the address has the words", fmt.Sprintf(`new URLSearchParams(location.search).get('q') === ':%d zombies'`, droppedPort))
	b.do(chromedp.Click(chromedp.CSS(`#table .c-silent button`)))
	b.is("sorted", search+`.includes('sort=silent') && document.querySelector('#table th.c-silent').ariaSort === 'descending'`)

	// The keyboard alone gets to a story and back.
	b.do(chromedp.Focus(chromedp.CSS("#scroll")), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowDown))
	b.is("the second row", `document.activeElement.closest('tr')?.ariaRowIndex === '3'`)
	b.do(chromedp.KeyEvent(kb.Enter))
	b.is("the story", `document.getElementById('storytitle')?.textContent.includes('→') && location.search.includes('conn=')`)
	b.do(chromedp.KeyEvent(kb.Escape))
	b.is("back in the table", `document.getElementById('story').hidden && document.activeElement.closest('tr')?.ariaRowIndex === '3'`)

	// What is in the address is on the page, from the start.
	b.open(a, "?risk=no_keepalive&sort=-remote&q=others")
	b.is("as the address says", fmt.Sprintf("%s.startsWith('%d of ') && document.querySelector('#table th.c-remote').ariaSort === 'descending'", shown, many))
}

// An address that means nothing does no harm.
func TestPageTakesAnyAddress(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	n.serve(anyAddressPort, echo)
	n.dial(anyAddressPort, many)
	b := room.browse(1440, 900)
	for _, query := range []string{
		"?sort=constructor", "?sort=-", "?sort=--silent", "?verdict=constructor", "?risk=toString", "?cause=nothing", "?cause=constructor", "?conn=%3Cb%3E", "?verdict=%00&q=%20&nothing=1",
	} {
		b.open(a, query)
		b.is("all are shown: "+query, `document.querySelectorAll('#table tr[data-cookie]').length > 1`)
	}
}

// A page that was left has no connection to the agent any more, of which the browser
// has few: the next could not be loaded.
func TestPageIsLeft(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	a := startAgent(t)
	b := room.browse(1440, 900)
	const often = 10
	for i := range often {
		b.open(a, fmt.Sprintf("?q=%d", i))
	}
	for i := range often - 1 {
		b.do(chromedp.Evaluate[chromedp.Void](`void setTimeout(() => history.back());`)) // NavigateBack waits for what does not come
		query := fmt.Sprintf("?q=%d", often-2-i)
		eventually(t, "it is back, and live", func() error { // or under way: then nothing can be asked
			back, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](fmt.Sprintf(
				`location.search === '%s' && document.getElementById('link')?.dataset.state === 'live' && '?q=' + document.getElementById('search').value === '%s'`, query, query)))
			if err == nil && !back {
				err = errors.New(query)
			}
			return err
		})
	}
}

// A password in the address must not keep the page from asking the agent.
func TestPageHasAPassword(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	n := newNetwork(t, "ipv6")
	config := filepath.Join(t.TempDir(), "web.yml")
	// It is "secret", at bcrypt's lowest cost.
	if err := os.WriteFile(config, []byte("basic_auth_users:\n  prometheus: $2a$04$y927JXmOaBp0qsUa5VQsAO9OGZySGiPt6Spxe5Z44eQyidQ6xtiPO\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := launchAgent(t, "--web.config.file="+config)
	a.url = strings.Replace(a.url, "http://", "http://prometheus:secret@", 1)
	t.Cleanup(func() { a.stop() })
	a.ready()
	n.serve(passwordPort, echo)
	n.dial(passwordPort, 1)
	if c, err := n.Client.Dial(t.Context(), n.server(refusedPort)); err == nil {
		c.Close()
		t.Fatal("nobody listens, and yet it is connected")
	}
	eventually(t, "a death", func() error {
		if len(a.deaths(n, refusedPort)) == 0 {
			return errors.New("none")
		}
		return nil
	})
	b := room.browse(1440, 900)
	b.open(a, "?conn="+a.connections(n, passwordPort, "")[0].Cookie)
	b.is("there is a story", `document.querySelector('#story .settings')`)
	b.is("there are deaths", `document.getElementById('feed').textContent.includes('refused')`)
}

func TestPageTellsTheStoryOfAConnection(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	n.serve(droppedPort, echo)
	conns := n.dial(droppedPort, 1)
	n.greet(conns)
	n.cut(droppedPort)
	n.write(conns[0])
	eventually(t, "a zombie", func() error { return all(a.connections(n, droppedPort, ""), 1, "zombie") })
	cookie := a.connections(n, droppedPort, "")[0].Cookie

	b := room.browse(1440, 900)
	b.open(a, "?conn="+cookie)
	text := `document.getElementById('story').textContent`
	b.is("it is a zombie", `document.querySelector('#story .badge')?.textContent === 'zombie'`)
	var said struct {
		Explanation struct {
			Doing, Next []string
			Assessment  string
			Advice      []struct {
				Text string
				How  []string
			}
			Settings []struct{ Option, Means string }
		}
		Risks []string
	}
	if err := a.get("/api/v1/connections/"+cookie, &said); err != nil {
		t.Fatal(err)
	}
	for _, advice := range said.Explanation.Advice {
		b.is("the advice's words are there", text+".includes("+quoted(advice.Text)+")")
		for _, how := range advice.How {
			b.is("the advice is there", text+".includes("+quoted(how)+")")
		}
	}
	b.is("the assessment is there", text+".includes("+quoted(said.Explanation.Assessment)+")")
	for _, s := range said.Explanation.Settings {
		b.is("the setting is there", text+".includes("+quoted(s.Means)+")")
	}
	for _, risk := range said.Risks {
		b.is("the risk is there", text+".includes("+quoted(strings.ReplaceAll(risk, "_", " "))+")")
	}
	if len(said.Explanation.Advice) == 0 || len(said.Explanation.Settings) == 0 || len(said.Risks) == 0 {
		t.Errorf("there is little to tell: %+v", said)
	}
	asked := eval[int](b, `document.querySelectorAll('#story .timeline .asked').length`)
	if asked < 3 {
		t.Errorf("%d solicitations drawn of a zombie", asked)
	}
	// A reader of the advice keeps the focus while the page is updated.
	b.do(chromedp.Focus(chromedp.CSS("#story .advice pre")), chromedp.Evaluate[chromedp.Void](`window.reading = document.activeElement;`))
	b.is("what was asked is drawn as it happens", fmt.Sprintf(`document.querySelectorAll('#story .timeline .asked').length > %d`, asked))
	b.is("it is listed", fmt.Sprintf(`document.querySelectorAll('#story .events [data-kind="solicitation"]').length > %d`, asked))
	b.is("time goes by", `document.querySelector('#story .facts .figure').textContent === document.querySelector('#table tr.opened .c-silent').textContent`)
	b.is("the focus is where it was", `reading.matches('.advice pre') && document.activeElement === reading`)
	b.is("the end is drawn", `document.querySelector('#story .timeline .end') && document.querySelector('#story .timeline .silence')`)
	b.do(chromedp.Click(chromedp.CSS("#story .close")))
	b.is("it closes", `document.getElementById('story').hidden && location.search === ''`)

	b.open(a, "?conn=ffffffffffff")
	b.is("it tells that there is none", text+".includes('no living connection')")
}

func TestPageSaysWhenTheStreamIsLost(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	n := newNetwork(t, "ipv4")
	a := startAgent(t)
	n.serve(streamPort, echo)
	n.dial(streamPort, many)
	b := room.browse(1440, 900)
	b.open(a, fmt.Sprintf("?q=:%d", streamPort))
	rows := `document.querySelectorAll('#table tr[data-cookie]').length`
	b.is("there are rows", rows+" > 0")
	b.mu.Lock()
	b.mayBreak = true
	b.mu.Unlock()
	began := time.Now()
	if code := a.stop(); code != 0 {
		t.Errorf("the agent's exit status is %d", code)
	}
	if took := time.Since(began); took > 5*patience*time.Second {
		t.Errorf("the agent took %v to stop, with a page open", took)
	}
	b.is("it says so", `document.getElementById('link').dataset.state === 'lost' && !document.getElementById('notice').hidden`)
	b.is("it says so aloud", `document.getElementById('announcement').textContent.includes('does not answer')`)
	b.is("what was known is still there", rows+" > 0")

	n.dial(streamPort, 1) // while no page is connected
	restartAgent(t, a)
	b.is("it is live again", `document.getElementById('link').dataset.state === 'live' && document.getElementById('notice').hidden`)
	want := 2 * (many + 1) // both ends
	b.is("everything is there", fmt.Sprintf(`document.getElementById('shown').textContent.startsWith('%d of')`, want))
}

// Of ten thousand connections only those in sight are in the document, and every one
// can be got to.
func TestPageShowsTenThousand(t *testing.T) {
	t.Parallel()
	room := newRoom(t)
	n := newNetwork(t, "ipv4")
	clients := newController(t).start("bulk", "")
	each := scaled(4500) // two ends each, with some room for what else this machine has
	clients.must(command{Do: "connect many", Addr: n.server(tenThousandPort), Paths: []string{n.Client.Path(), n.Server.Path()}, Count: each})
	a := startAgent(t)
	b := room.browse(1440, 900)
	b.open(a, fmt.Sprintf("?q=:%d", tenThousandPort))
	b.is("all are there", fmt.Sprintf(`document.getElementById('table').ariaRowCount === '%d' || document.getElementById('table').getAttribute('aria-rowcount') === '%d'`, 2*each+1, 2*each+1))
	b.do(chromedp.Evaluate[chromedp.Void](`
		window.longest = 0;
		new PerformanceObserver((list) => list.getEntries().forEach((e) => { longest = Math.max(longest, e.duration); })).observe({ type: 'longtask' });`))
	few := `document.querySelectorAll('#table tbody tr').length < 100`
	b.is("few are in the document", few)
	b.do(chromedp.Focus(chromedp.CSS("#scroll")), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.End))
	b.is("the last has the focus", fmt.Sprintf(`document.activeElement.closest('tr')?.ariaRowIndex === '%d' && `, 2*each+1)+few)
	b.do(chromedp.KeyEvent(kb.PageUp), chromedp.KeyEvent(kb.ArrowUp))
	b.is("one above has it", fmt.Sprintf(`Number(document.activeElement.closest('tr')?.ariaRowIndex) < %d`, 2*each))
	b.do(chromedp.Click(chromedp.CSS(`#table .c-local button`)), chromedp.Click(chromedp.CSS(`#table .c-local button`)))
	b.is("sorted the other way", `document.querySelector('#table th.c-local').ariaSort === 'descending' && `+few)
	t.Logf("the longest task took %v ms", eval[float64](b, "longest"))
}

// restartAgent starts another agent where one was.
func restartAgent(t testing.TB, old *agent) {
	t.Helper()
	a := launchAgentAt(t, strings.TrimPrefix(old.url, "http://"))
	t.Cleanup(func() {
		if a.stop(); a.late {
			t.Error("the agent did not end after SIGTERM")
		}
	})
	a.ready()
}

// With $HALFOPEN_SCREENSHOTS this also takes the pictures of the README, into that folder.
func TestPageIsAccessible(t *testing.T) {
	room := newRoom(t)
	pictures := os.Getenv("HALFOPEN_SCREENSHOTS")
	if pictures == "" {
		t.Parallel() // else what other tests do would be on them
	}
	n := newNetwork(t, "ipv4")
	a := startAgent(t, "--idle-after=25s")
	scene(t, n)
	// Those of 6379 have data in flight: the kernel keeps them for a quarter of an hour.
	eventually(t, "zombies", func() error {
		return all(a.connections(n, 6379, ""), 3, "zombie")
	})
	if pictures != "" {
		eventually(t, "all that the pictures are to show", func() error {
			if len(a.connections(n, 27017, "verdict=suspect")) == 0 || len(a.connections(n, 9092, "verdict=unguarded")) == 0 {
				return errors.New("no suspect, or nothing unguarded yet")
			}
			return all(a.connections(n, 5432, "verdict=zombie"), 5, "zombie")
		})
	}
	cookie := a.connections(n, 6379, "")[0].Cookie
	b := room.browse(1440, 900)
	for _, view := range []struct {
		name, theme, query string
		width, height      int64
		scale              float64
		picture            string
	}{
		{"light", "light", "", 1440, 900, 1, "page-light"},
		{"dark", "dark", "", 1440, 900, 1, "page-dark"},
		{"story", "light", "?conn=" + cookie, 1440, 1000, 1, "story-light"},
		{"dark story", "dark", "?conn=" + cookie, 1440, 1000, 1, "story-dark"},
		{"dark story, filtered", "dark", "?verdict=zombie&risk=any&conn=" + cookie, 1440, 900, 1, ""},
		{"phone", "light", "", 390, 844, 2, "page-phone"},
		{"phone story", "light", "?conn=" + cookie, 390, 844, 2, ""},
	} {
		t.Run(view.name, func(t *testing.T) {
			b.t = t
			b.do(chromedp.EmulateViewport(view.width, view.height, chromedp.EmulateScale(view.scale)))
			b.theme(view.theme)
			b.open(a, view.query)
			b.is("what is covered cannot have the focus", fmt.Sprintf("document.querySelector('main').inert === %v", view.name == "phone story"))
			b.is("there are rows", `document.querySelectorAll('#table tr[data-cookie]').length > 0`)
			b.is("there are deaths", `document.querySelectorAll('#feed li').length > 0`)
			if strings.Contains(view.query, "conn=") {
				b.is("there is a story", `document.querySelector('#story .advice')`)
			}
			if view.picture != "" {
				b.takePicture(view.picture, view.width, view.scale, pictures)
			}
			b.accessible()
		})
	}
	b.t = t
}

// accessible holds the page against the rules of axe-core.
func (b *browser) accessible() {
	b.t.Helper()
	type finding struct {
		ID, Impact, Help string
		Nodes            []struct{ HTML, FailureSummary string }
	}
	// Not by the page, whose policy would not let it.
	if res, err := chromedp.Call(b.ctx, runtime.Evaluate, runtime.EvaluateParams{Expression: axe}); err != nil || res.ExceptionDetails != nil {
		b.t.Fatal(err, res.ExceptionDetails)
	}
	found := eval[struct {
		Violations []finding
		Passes     int
	}](b, `axe.run().then((r) => ({violations: r.violations, passes: r.passes.length}))`)
	for _, v := range found.Violations {
		b.t.Logf("%s (%s): %s", v.ID, v.Impact, v.Help)
		if v.Impact == "serious" || v.Impact == "critical" {
			for _, node := range v.Nodes {
				b.t.Errorf("%s: %s\n%s", v.ID, node.HTML, node.FailureSummary)
			}
		}
	}
	if found.Passes < 20 {
		b.t.Errorf("only %d rules had anything to look at", found.Passes)
	}
}

// takePicture takes a picture of what can be seen of the page, and keeps it in a folder, if
// there is one.
func (b *browser) takePicture(name string, width int64, scale float64, dir string) {
	b.t.Helper()
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if img, err := png.DecodeConfig(bytes.NewReader(picture)); err != nil || img.Width != int(float64(width)*scale) {
		b.t.Errorf("%s: %v, %v", name, img, err)
	}
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) theme(name string) {
	b.t.Helper()
	features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
		b.t.Fatal(err)
	}
}

// scene is a node on a bad day: of each kind of trouble some.
func scene(t testing.TB, n *network) {
	t.Helper()
	h := newController(t)
	actor := func(name string) *helperProcess { return h.start(name, n.Client.Path()) }
	listen := func(name string, port int) (*helperProcess, int) {
		p := h.start(name, n.Server.Path())
		return p, p.must(command{Do: "listen", Addr: n.server(port)}).FD
	}
	connect := func(p *helperProcess, server *helperProcess, listener, port, count int, options [][3]int) (fds []int) {
		for range count {
			fds = append(fds, p.must(command{Do: "connect", Addr: n.server(port), Options: options}).FD)
			server.must(command{Do: "accept", FD: listener})
		}
		return fds
	}
	postgres, pl := listen("postgres", 5432)
	redis, rl := listen("redis-server", 6379)
	kafka, kl := listen("kafka", 9092)
	nginx, nl := listen("nginx", 443)
	payments, cart, worker := actor("payments-api"), actor("cart"), actor("report-worker")

	connect(worker, kafka, kl, 9092, 11, nil)
	connect(payments, nginx, nl, 443, 31, keepaliveEach(60, 10, 6))
	connect(payments, postgres, pl, 5432, 4, keepaliveEach(2, 2, 60))
	connect(cart, postgres, pl, 5432, 1, keepaliveEach(3, 3, 9))
	written := connect(cart, redis, rl, 6379, 3, keepaliveEach(7200, 75, 9))

	// Some end at once.
	reset, tl := listen("legacy", 8443)
	for range 3 {
		payments.must(command{Do: "connect", Addr: n.server(8443)})
		reset.must(command{Do: "accept", FD: tl})
	}
	reset.exit() // its last words are unread: resets, or closes in order
	if _, err := payments.do(command{Do: "connect", Addr: n.server(8444)}); err == nil {
		t.Error("nobody listens, and yet it is connected")
	}
	impatient := append(keepaliveEach(1, 1, 2), [3]int{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0})
	mysql, ml := listen("mysqld", 3306)
	connect(cart, mysql, ml, 3306, 2, impatient)
	slow, sl := listen("mongod", 27017)
	connect(worker, slow, sl, 27017, 2, keepaliveEach(3, 90, 9))

	for _, port := range []int{5432, 6379, 3306, 27017} {
		n.cut(port)
	}
	for _, fd := range written {
		cart.must(command{Do: "write", FD: fd})
	}
	stall(t, n)
}

// stall makes a connection whose server does not read.
func stall(t testing.TB, n *network) {
	t.Helper()
	n.serve(8080, func(*net.TCPConn) {})
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	c, err := n.Client.Dial(ctx, n.server(8080))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := lab.SetKeepalive(c, time.Minute, 10*time.Second, 6); err != nil {
		t.Fatal(err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = c.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
}
