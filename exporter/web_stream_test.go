// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"strings"
	"testing"

	"github.com/halfopen/halfopen/internal/pagetest"
)

// streamEnv is a browser whose time passes only in pass. sources are the streams that were
// opened, log is what the stream called of the page's handlers.
const streamEnv = `
	let time = 0, timers = [];
	const sources = [], log = [];
	const env = {
		connect(url) {
			const source = { url, open: true, on: {}, addEventListener(kind, f) { this.on[kind] = f; }, close() { this.open = false; } };
			sources.push(source);
			return source;
		},
		now: () => time,
		random: () => 0.5, // in the middle: the wait as it is
		after(ms, f) { const timer = { at: time + ms, f }; timers.push(timer); return timer; },
		cancel(timer) { timers = timers.filter((other) => other !== timer); },
	};
	function pass(ms) {
		for (const end = time + ms; ;) {
			const due = timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
			if (!due) { time = end; return; }
			timers = timers.filter((timer) => timer !== due);
			time = due.at;
			due.f();
		}
	}
	const s = new stream.Stream(['rows', 'death'], {
		rows: (data) => log.push('rows ' + (data.n ?? '')), death: (data) => log.push('death ' + data.n),
		state: (state, at) => log.push(at === undefined ? state : state + ' until ' + at),
	}, env);
	const last = () => sources.at(-1);
	const send = (source, kind, data) => source.on[kind]({ data: JSON.stringify(data) });
	s.open();
`

func TestPageFollowsTheStream(t *testing.T) {
	for _, tt := range []struct {
		name, steps string
		log         string // one a line
		open        string // of each stream that was opened, whether it is open
	}{
		{"it begins", `send(last(), 'rows', { all: true, n: 1 }); send(last(), 'death', { n: 2 })`, "connecting, live, rows 1, death 2", "true"},
		{"it is lost, and begins again", `send(last(), 'rows', { all: true }); last().onerror(); pass(1000); send(last(), 'rows', { all: true })`,
			"connecting, live, rows , lost until 1000, live, rows ", "false,true"},
		{"it waits longer after each failure", `for (const wait of [1000, 2000, 4000, 8000, 15000, 15000]) { last().onerror(); pass(wait - 1); log.push(sources.length); pass(1); }`,
			"connecting, lost until 1000, 1, lost until 3000, 2, lost until 7000, 3, lost until 15000, 4, lost until 30000, 5, lost until 45000, 6", "false,false,false,false,false,false,true"},
		{"it has failed only once since it began", `last().onerror(); pass(1000); last().onerror(); pass(2000); send(last(), 'rows', { all: true }); last().onerror()`,
			"connecting, lost until 1000, lost until 3000, live, rows , lost until 4000", "false,false,false"},
		{"what is not everything does not begin it", `send(last(), 'rows', { n: 5 })`, "connecting, rows 5", "true"},
		{"it is silent", `send(last(), 'rows', { all: true }); pass(35000); log.push(last().open); pass(5000)`,
			"connecting, live, rows , true, lost until 41000", "false"},
		{"it is not silent", `for (let i = 0; i < 10; i++) { pass(10000); send(last(), 'death', { n: i }); }`,
			"connecting, death 0, death 1, death 2, death 3, death 4, death 5, death 6, death 7, death 8, death 9", "true"},
		{"the user does not wait", `last().onerror(); s.retryNow(); pass(60000 - 30000)`, "connecting, lost until 1000, lost until 0", "false,true"},
		{"the page is hidden", `send(last(), 'rows', { all: true }); s.pause(); pass(100000); log.push(sources.length)`, "connecting, live, rows , paused, 1", "false"},
		{"the page is seen again", `s.pause(); s.resume()`, "connecting, paused, connecting", "false,true"},
		{"the page is seen all the time", `s.resume(); s.resume()`, "connecting", "true"},
		{"the page is hidden while it is lost", `last().onerror(); s.pause(); pass(100000); log.push(sources.length); s.resume()`, "connecting, lost until 1000, paused, 1, connecting", "false,true"},
		{"an event of a stream that was closed comes late", `const old = last(); old.onerror(); pass(1000); send(old, 'death', { n: 1 }); old.onerror(); send(last(), 'rows', { all: true, n: 2 })`,
			"connecting, lost until 1000, live, rows 2", "false,true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			page := newPage(t)
			page.Run(streamEnv)
			page.Run("{" + tt.steps + "}")
			if got := pagetest.Eval[string](page, "log.join(', ')"); got != tt.log {
				t.Errorf("the handlers got\n%s\nwant\n%s", got, tt.log)
			}
			if got := pagetest.Eval[string](page, "sources.map((source) => source.open).join()"); got != tt.open {
				t.Errorf("open streams are %s, want %s", got, tt.open)
			}
			for _, url := range pagetest.Eval[[]string](page, "sources.map((source) => source.url)") {
				if want := "/api/v1/stream?event=rows&event=death"; url != want {
					t.Errorf("the stream is %s, want %s", url, want)
				}
			}
		})
	}
}

// The wait varies, so that pages that lost the same agent do not come back all at once.
func TestPageSpreadsItsRetries(t *testing.T) {
	for random, want := range map[string]string{"0": "750", "0.5": "1000", "0.999999": "1249"} {
		page := newPage(t)
		page.Run(strings.Replace(streamEnv, "random: () => 0.5", "random: () => "+random, 1))
		page.Run("last().onerror()")
		if got := pagetest.Eval[string](page, "log.at(-1)"); !strings.HasPrefix(got, "lost until "+want) {
			t.Errorf("with %s the page is %s, want until %s", random, got, want)
		}
	}
}
