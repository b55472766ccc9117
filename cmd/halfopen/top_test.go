// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// topReading is of a node that has everything, hostile names among it.
func topReading() *reading {
	r := &reading{at: noon, total: 245, node: node{
		verdicts: map[string]int{"zombie": 2, "suspect": 1, "unguarded": 12, "idle": 30, "active": 200},
		status:   api.Status{StartedAt: noon.Add(-76 * time.Hour), Summary: api.Summary{Census: api.CensusSummary{At: &noon}}},
	}}
	for i := range conns {
		r.conns = append(r.conns, api.NewConnection(&conns[i]))
	}
	for i := range 40 {
		c := conn.Connection{
			Cookie: 0x100 + uint64(i), At: noon, Netns: 4026531840, State: conn.Established, Accepted: true,
			Local:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, 0, 1}), uint16(40000+i)),
			Remote:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, byte(i % 3), 200}), 5432),
			Verdict: conn.Active, Idle: time.Duration(i) * 7 * time.Second, Silent: time.Duration(40-i) * time.Second,
			Process: &conn.Process{PID: uint32(900 + i%4), Comm: []string{"nginx", "tmux: server", "漢字漢字", "python3"}[i%4]},
		}
		if i%2 == 0 {
			c.Keepalive = conn.Keepalive{Enabled: true, Time: 2 * time.Hour, Interval: 75 * time.Second, Probes: 9}
			c.GivesUp = conn.Forecast{At: noon.Add(time.Duration(i+1) * time.Minute), Latest: noon.Add(time.Duration(i+2) * time.Minute), By: conn.CauseKeepaliveTimeout}
		}
		r.conns = append(r.conns, api.NewConnection(&c))
	}
	for i, cause := range []string{"reset_by_peer", "keepalive_timeout", "reset_by_peer", "refused"} {
		r.deaths = append(r.deaths, api.Death{At: noon.Add(-time.Duration(i) * 25 * time.Minute), Cause: cause, Cookie: fmt.Sprint(i)})
	}
	return r
}

// topScreen is the screen after its first look, of that size.
func topScreen(t *testing.T, width, height int) screen {
	t.Helper()
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	m := newScreen(t.Context(), asked{clientOf(t, "http://127.0.0.1:9839")}, false, "")
	m.now = noon
	m = m.take(lookMsg{at: noon, reading: topReading()})
	return sent(m, tea.WindowSizeMsg{Width: width, Height: height})
}

// sent returns the screen after some messages. It does not run the commands that they cause.
func sent(m screen, msgs ...tea.Msg) screen {
	for _, msg := range msgs {
		next, _ := m.Update(msg)
		m = next.(screen)
	}
	return m
}

// keys returns the messages of typed keys: a name in angle brackets is one key.
func keys(s string) (msgs []tea.Msg) {
	named := map[string]rune{
		"enter": tea.KeyEnter, "esc": tea.KeyEscape, "up": tea.KeyUp, "down": tea.KeyDown, "pgdown": tea.KeyPgDown,
		"pgup": tea.KeyPgUp, "home": tea.KeyHome, "end": tea.KeyEnd, "backspace": tea.KeyBackspace,
	}
	for s != "" {
		if name, rest, ok := strings.Cut(s[1:], ">"); ok && s[0] == '<' {
			msgs, s = append(msgs, tea.KeyPressMsg{Code: named[name]}), rest
			continue
		}
		r := []rune(s)[0]
		msgs, s = append(msgs, tea.KeyPressMsg{Code: r, Text: string(r)}), s[len(string(r)):]
	}
	return msgs
}

// answered is what the look brings that the screen waits for.
func answered(m screen, r *reading) lookMsg { return lookMsg{seq: m.seq, at: m.now, reading: r} }

func opened(t *testing.T, m screen) screen {
	t.Helper()
	m = sent(m, keys("<enter>")...)
	d := detail()
	d.Events = []api.Event{
		{At: noon.Add(-4 * time.Second), Kind: "solicitation", Evidence: "keepalive", Unanswered: 3},
		{At: noon.Add(-3 * time.Second), Kind: "verdict", From: "suspect", To: "zombie"},
	}
	msg := answered(m, topReading())
	msg.cookie, msg.detail = "1a2b", &d
	return sent(m, msg)
}

func TestTopViews(t *testing.T) {
	for _, size := range []struct{ width, height int }{{80, 24}, {120, 40}, {40, 10}} {
		for name, make := range map[string]func(screen) screen{
			"table":  func(m screen) screen { return m },
			"detail": func(m screen) screen { return opened(t, m) },
			"help":   func(m screen) screen { return sent(m, keys("?")...) },
			"filter": func(m screen) screen { return sent(m, keys("/nginx s")...) },
			"lost": func(m screen) screen {
				m = sent(m, tickMsg(noon.Add(2*time.Second)))
				return sent(m, lookMsg{seq: m.seq, at: noon.Add(2 * time.Second), err: errors.New("ask http://127.0.0.1:9839: connection refused: check that the agent runs and listens there")})
			},
		} {
			t.Run(fmt.Sprintf("%s-%dx%d", name, size.width, size.height), func(t *testing.T) {
				m := make(topScreen(t, size.width, size.height))
				golden(t, fmt.Sprintf("testdata/top-%s-%dx%d.golden", name, size.width, size.height), ansi.Strip(strings.Join(m.lines(), "\n"))+"\n")
			})
		}
	}
}

// golden compares with a file, which -update writes.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("if this is meant: go test ./cmd/halfopen -update (-want +got)\n%s", diff)
	}
}

func TestTopFitsWhateverTheSize(t *testing.T) {
	for name, make := range map[string]func(screen) screen{
		"the table":         func(m screen) screen { return sent(m, keys("<end>")...) },
		"sorted":            func(m screen) screen { return sent(m, keys("ssr")...) },
		"nothing":           func(m screen) screen { return sent(m, keys("/nothing has that<enter>")...) },
		"typing":            func(m screen) screen { return sent(m, keys("/verdict:zombie owner:nginx verdict:undead")...) },
		"a long filter":     func(m screen) screen { return sent(m, keys("/"+strings.Repeat("a", 200)+"<enter>")...) },
		"the detail":        func(m screen) screen { return sent(opened(t, m), keys("<pgdown>")...) },
		"the detail to be":  func(m screen) screen { return sent(m, keys("<enter>")...) },
		"the help, its end": func(m screen) screen { return sent(m, keys("?<end>")...) },
		"lost": func(m screen) screen {
			return sent(m, lookMsg{at: noon, err: errors.New(strings.Repeat("it is gone ", 50))})
		},
		"many deaths and troubles": func(m screen) screen {
			r := topReading()
			for _, cause := range conn.CauseNames() {
				r.deaths = append(r.deaths, api.Death{At: noon, Cause: cause, Similar: 1e9, SimilarSince: &noon})
			}
			slices.SortFunc(r.deaths, func(a, b api.Death) int { return b.At.Compare(a.At) })
			status := &r.node.status
			status.EventsLost = map[string]uint64{"death": 1e9}
			status.Degraded = []api.Degraded{{Reason: "namespaces_refused"}, {Reason: "pass_hangs\x1b[2J"}}
			status.Detached = []string{"set_state", "retransmit_skb\x1b[2J"}
			return sent(m, answered(m, r))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range []palette{false, true} {
				m := make(topScreen(t, 80, 24))
				m.p = p
				for _, width := range []int{0, 1, 2, 7, 20, 40, 59, 80, 81, 100, 130} {
					for _, height := range []int{0, 1, 2, 3, 4, 5, 6, 9, 12, 24, 31} {
						m = sent(m, tea.WindowSizeMsg{Width: width, Height: height})
						checkScreen(t, m)
						if t.Failed() {
							return
						}
					}
				}
			}
		})
	}
}

func checkScreen(t *testing.T, m screen) {
	t.Helper()
	lines := m.lines()
	if want := m.height; m.width > 0 && len(lines) != want {
		t.Errorf("%dx%d: %d lines", m.width, m.height, len(lines))
	}
	_ = m.View() // does not panic
	inverted := 0
	for i, l := range lines {
		plain := ansi.Strip(l)
		if w := ansi.StringWidth(l); w > m.width || columns(plain) > m.width {
			t.Errorf("%dx%d: line %d takes %d columns: %q", m.width, m.height, i, w, l)
		}
		if strings.ContainsFunc(plain, unicode.IsControl) {
			t.Errorf("%dx%d: control characters in %q", m.width, m.height, l)
		}
		inverted += strings.Count(l, "\x1b[7m")
		if !bool(m.p) && strings.Contains(strings.NewReplacer("\x1b[7m", "", "\x1b[0m", "").Replace(l), "\x1b") {
			t.Errorf("%dx%d: colours, and there are to be none: %q", m.width, m.height, l)
		}
	}
	table := !m.help && m.open == "" && len(m.rows) > 0
	if want := truth(table); m.width > 0 && m.height > 3 && inverted != want {
		t.Errorf("%dx%d: the cursor is in %d lines, expected %d:\n%s", m.width, m.height, inverted, want, strings.Join(lines, "\n"))
	}
}

func TestTopCursorStaysWithItsConnection(t *testing.T) {
	m := topScreen(t, 80, 24)
	worse := func(n int) *reading {
		r := topReading()
		c := r.conns[len(r.conns)-1]
		c.Cookie = "worst"
		r.conns = slices.Insert(r.conns, 0, c)
		r.conns = slices.Delete(r.conns, n, n+1)
		return r
	}
	if m = sent(m, answered(m, worse(40))); m.rows[m.cursor].Cookie != "worst" {
		t.Errorf("untouched, the cursor is at %s, not at the worst", m.rows[m.cursor].Cookie)
	}
	m = sent(topScreen(t, 80, 24), keys("<down><down>")...)
	chosen := m.rows[2].Cookie
	if m = sent(m, answered(m, worse(40))); m.cursor != 3 || m.rows[m.cursor].Cookie != chosen {
		t.Errorf("the cursor is at %d, %s; expected 3, %s", m.cursor, m.rows[m.cursor].Cookie, chosen)
	}
	next := m.rows[4].Cookie
	if m = sent(m, answered(m, func() *reading { r := worse(40); r.conns = slices.Delete(r.conns, 3, 4); return r }())); m.cursor != 3 || m.rows[3].Cookie != next {
		t.Errorf("its connection gone, the cursor is at %d, %s; expected 3, %s", m.cursor, m.rows[m.cursor].Cookie, next)
	}
	if m = sent(m, answered(m, &reading{at: noon})); m.cursor != 0 || len(m.rows) != 0 {
		t.Errorf("no connections, and the cursor is at %d of %d", m.cursor, len(m.rows))
	}
	if m = sent(m, keys("<down><enter><end><up>")...); m.open != "" {
		t.Errorf("nothing to open, and %q is", m.open)
	}
}

func TestTopSorts(t *testing.T) {
	first := func(m screen) [2]string {
		return [2]string{m.rows[0].Cookie, m.rows[len(m.rows)-1].Cookie}
	}
	m := topScreen(t, 80, 24)
	for _, tt := range []struct {
		keys  string
		title string
		want  [2]string
	}{
		{"", "VERDICT", [2]string{"1a2b", "127"}},
		{"r", "VERDICT▴", [2]string{"127", "1a2b"}},
		{"rs", "UNANSWERED▾", [2]string{"1a2b", "127"}},
		{"s", "SILENT▾", [2]string{"3", "4"}},
		{"s", "IDLE▾", [2]string{"3", "4"}},
		{"s", "GIVES UP▾", [2]string{"100", "127"}},
		{"s", "LOCAL▾", [2]string{"4", "3"}},
		{"s", "REMOTE▾", [2]string{"1a2b", "3"}},
		{"s", "OWNER▾", [2]string{"4", "126"}},
		{"s", "VERDICT", [2]string{"1a2b", "127"}},
		{"S", "OWNER▾", [2]string{"4", "126"}},
	} {
		m = sent(m, keys(tt.keys)...)
		wide := sent(m, tea.WindowSizeMsg{Width: 200, Height: 60})
		if got := first(m); got != tt.want {
			t.Errorf("%q: by %s: from %s to %s, expected %s", tt.keys, tt.title, got[0], got[1], tt.want)
		}
		if !slices.ContainsFunc(wide.lines(), func(l string) bool { return strings.Contains(l, tt.title+" ") }) {
			t.Errorf("%q: no %s in\n%s", tt.keys, tt.title, strings.Join(wide.lines(), "\n"))
		}
	}
}

func TestTopCountsDown(t *testing.T) {
	m := topScreen(t, 80, 24)
	row := func(m screen) string { return ansi.Strip(m.table(3)[1]) }
	has := func(what string, m screen, silent, givesUp string) {
		t.Helper()
		if f := strings.Fields(row(m)); f[1] != silent || f[2] != givesUp {
			t.Errorf("%s: silent %s, gives up %s; expected %s, %s", what, f[1], f[2], silent, givesUp)
		}
	}
	has("at first", m, "12s", "7m30s")
	m = sent(m, tickMsg(noon.Add(5*time.Second)))
	has("after 5 s", m, "17s", "7m25s")
	m = sent(m, lookMsg{seq: m.seq, at: noon.Add(6 * time.Second), err: errors.New("gone")}, tickMsg(noon.Add(9*time.Second)))
	has("lost", m, "12s", "7m30s")
	m = sent(m, lookMsg{seq: m.seq, at: noon.Add(10 * time.Second), reading: topReading()}, tickMsg(noon.Add(11*time.Second)))
	has("found again", m, "13s", "7m29s")
	m = sent(m, keys("p")...)
	m = sent(m, tickMsg(noon.Add(30*time.Second)))
	has("paused", m, "12s", "7m30s")
	m = sent(sent(m, keys("p")...), tickMsg(noon.Add(31*time.Second)))
	has("going on", m, "33s", "7m9s")
	m = sent(m, tickMsg(noon.Add(time.Hour)))
	has("overdue", m, "1h", "0s")
}

func TestTopLooksAgain(t *testing.T) {
	m := topScreen(t, 80, 24)
	asked := func(msg tea.Msg) bool {
		before := m.seq
		m = sent(m, msg)
		return m.seq > before
	}
	tick := func(after time.Duration) tickMsg { return tickMsg(noon.Add(after)) }
	if !asked(tick(time.Second)) {
		t.Error("it does not look after a second")
	}
	if asked(tick(2 * time.Second)) {
		t.Error("it looks before the answer has come")
	}
	msg := answered(m, topReading())
	msg.took = 400 * time.Millisecond
	if asked(msg) || asked(tick(8*time.Second)) || !asked(tick(9*time.Second)) {
		t.Error("after a look of 400 ms it does not look again 8 s later")
	}
	late := answered(m, &reading{at: noon})
	m = sent(m, keys("/port:5432")...)
	if late.seq == m.seq {
		t.Error("another filter, and nobody looks")
	}
	if m = sent(m, late); len(m.rows) == 0 {
		t.Error("it shows what was asked for before")
	}
	m = sent(m, answered(m, topReading()))
	m = sent(m, keys("<enter>p")...)
	if asked(tick(time.Minute)) {
		t.Error("it looks while it is paused")
	}
	if m = sent(m, keys("p")...); !m.asking {
		t.Error("it does not look when it goes on")
	}
	failed := lookMsg{seq: m.seq, at: noon.Add(time.Minute), took: topTimeout, err: errors.New("no answer")}
	if m = sent(m, failed); !asked(tick(61 * time.Second)) {
		t.Error("having lost its agent, it does not try again at once")
	}
}

func TestTopFilters(t *testing.T) {
	m := sent(topScreen(t, 80, 24), keys("/NGINX 10.77.2")...)
	for i := range m.rows {
		if m.rows[i].Process.Comm != "nginx" || m.rows[i].Remote.IP != "10.77.2.200" {
			t.Errorf("not filtered: %+v", m.rows[i])
		}
	}
	if len(m.rows) != 3 || !m.editing {
		t.Errorf("%d rows, editing %v", len(m.rows), m.editing)
	}
	before := m.seq
	m = sent(m, keys("<enter>q")...) // q would be typed
	if m.editing || m.seq != before {
		t.Errorf("editing %v; words are looked for here, but it has looked", m.editing)
	}
	if m = sent(m, keys("<esc>")...); len(m.rows) != 43 || m.filter.text != "" {
		t.Errorf("cleared, %d rows of filter %q", len(m.rows), m.filter.text)
	}
	m = sent(m, keys("/postgres verdict:undead")...)
	if len(m.rows) != 1 || m.inputErr == nil || !strings.Contains(strings.Join(m.lines(), ""), "undead") {
		t.Errorf("%d rows, %v", len(m.rows), m.inputErr)
	}
	if m = sent(m, keys("<enter>")...); !m.editing {
		t.Error("it takes what means nothing")
	}
	m = sent(m, keys("<backspace><backspace><backspace><backspace><backspace><backspace>zombie<enter>")...)
	if m.editing || !slices.Equal(m.filter.Verdicts, []conn.Verdict{conn.Zombie}) {
		t.Errorf("editing %v, filter %+v", m.editing, m.filter)
	}
}

func TestFilterText(t *testing.T) {
	for _, text := range []string{
		"", "verdict:zombie verdict:suspect", `owner:"tmux: server"`, `owner:"\xff\"\n"`, `owner:""`, "remote:10.0.0.0/8",
		"remote:2001:db8::1/128 port:5432 port:443 state:close_wait pid:812 risk:no_keepalive netns:4026531840", "owner:-",
	} {
		f, err := parseFilter(text)
		if text == `owner:""` {
			if err == nil || !strings.HasPrefix(err.Error(), "owner: ") {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if err != nil || len(f.words) > 0 {
			t.Errorf("%s: words %q, %v", text, f.words, err)
		}
		again, err := parseFilter(filterText(&f.Query))
		if err != nil {
			t.Errorf("%s: became %s: %v", text, filterText(&f.Query), err)
		}
		if !slices.Equal(f.Owners, again.Owners) || api.ConnectionParameters(&f.Query).Encode() != api.ConnectionParameters(&again.Query).Encode() {
			t.Errorf("%s: became %s", text, filterText(&f.Query))
		}
	}
	for text, words := range map[string][]string{
		"  two   words ": {"two", "words"}, `"Two words" 2001:db8::1`: {"two words", "2001:db8::1"}, "verdict": {"verdict"},
	} {
		if f, err := parseFilter(text); err != nil || !slices.Equal(f.words, words) || f.filtered() {
			t.Errorf("%q: %q, %v", text, f.words, err)
		}
	}
	if _, err := parseFilter(`owner:"open`); err == nil {
		t.Error("an open quotation mark is taken")
	}
}

func TestTopTellsTheEndOfWhatIsOpen(t *testing.T) {
	m := opened(t, topScreen(t, 80, 60))
	screenful := func() string { return ansi.Strip(strings.Join(m.lines(), "\n")) }
	for _, want := range []string{"The kernel gives up in 7m30s (keepalive_timeout).", "Owner: postgres[812], descriptor 9, uid 1000, in postgresql.service", "NOTICING SOONER", "keepalive 3 in a row"} {
		if !strings.Contains(screenful(), want) {
			t.Errorf("no %q in\n%s", want, screenful())
		}
	}
	r := topReading()
	r.deaths = slices.Insert(r.deaths, 0, api.Death{At: noon, Cookie: "1a2b", Cause: "keepalive_timeout"})
	msg := answered(m, r)
	msg.cookie = "1a2b"
	if m = sent(m, msg); !strings.Contains(screenful(), "It died at 12:00:00: keepalive_timeout.") {
		t.Errorf("its death is not in\n%s", screenful())
	}
	if m = sent(m, keys("<esc>")...); m.open != "" || m.detail != nil {
		t.Error("it is still open")
	}
}

func TestTopCountsDeathsThatStandForOthers(t *testing.T) {
	for since, want := range map[time.Duration]string{
		-time.Minute:   "died in the last 1h: 413 reset_by_peer, 1 keepalive_timeout",
		-2 * time.Hour: "died in the last 1h: 2+ reset_by_peer, 1 keepalive_timeout", // some of them died before
	} {
		r := topReading()
		r.deaths[0].Similar, r.deaths[0].SimilarSince = 411, new(noon.Add(since))
		m := topScreen(t, 120, 40)
		m.reading = r
		if got := ansi.Strip(m.deaths()); got != want {
			t.Errorf("similar deaths since %v: %q, want %q", since, got, want)
		}
	}
}

func TestTopNode(t *testing.T) {
	status := api.Status{
		EventsLost: map[string]uint64{"death": 3, "solicitation": 4},
		Degraded:   []api.Degraded{{Reason: "cgroups_refused"}},
		Detached:   []string{"timer_entry"},
		Summary:    api.Summary{Census: api.CensusSummary{At: &noon}},
	}
	n := newNode([]api.Group{{Verdicts: map[string]int{"zombie": 2}}, {Verdicts: map[string]int{"zombie": 1, "idle": 5}}}, &status)
	if diff := cmp.Diff(map[string]int{"zombie": 3, "idle": 5}, n.verdicts); diff != "" || n.connections() != 8 {
		t.Errorf("%d connections, -want +got\n%s", n.connections(), diff)
	}
	m := topScreen(t, 120, 40)
	m.reading.node = n
	if state, _ := m.state(); state != "not attached: timer_entry, 7 events lost, view incomplete: cgroups_refused" {
		t.Errorf("state is %q", state)
	}
	m.reading.node = newNode(nil, &api.Status{})
	if state, _ := m.state(); state != "first census under way" {
		t.Errorf("before the first census the state is %q", state)
	}
}

func TestTopNeedsATerminal(t *testing.T) {
	for _, args := range [][]string{{"top"}, {"top", "--url=http://127.0.0.1:1"}, {"top", "--verdict=zombie"}} {
		wantFailure(t, "top needs a terminal for its input and its output: use halfopen list, or halfopen trace, to write into a file or a pipe", args...)
	}
}
