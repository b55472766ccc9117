// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"github.com/halfopen/halfopen/exporter/api"
)

const (
	// topInterval is the least time between two looks,
	topInterval = time.Second
	// and so is topRest times what the last look took.
	topRest = 20
	// topLate is how long a look may take before the title says so.
	topLate = 3 * time.Second
)

// screen is bubbletea's model of top. All it knows comes in messages, so that a test
// can send them.
type screen struct {
	ctx context.Context
	src source
	p   palette

	width, height int
	now           time.Time // by the clock of this machine

	// The looks at the source.
	reading *reading
	read    time.Time // when it arrived
	seq     int       // of the newest look; results of older ones are ignored
	asking  bool
	asked   time.Time // when that look began
	next    time.Time // when the next is due
	err     error     // of the newest look, or nil
	lost    time.Time // since when there is an error
	paused  bool

	// The table.
	filter   filter
	input    textinput.Model
	editing  bool
	inputErr error
	by       int // of orders
	reversed bool
	rows     []api.Connection // of reading, filtered and sorted
	cursor   int              // of rows
	chosen   string           // cookie of the connection at the cursor; "": the first row
	offset   int              // of the first row on the screen
	open     string           // cookie of the connection shown in detail; "": none
	detail   *api.ConnectionDetail
	gone     bool // that connection has ended
	help     bool
	scrolled int // lines that the detail or the help is scrolled down
}

// The messages of top.
type (
	tickMsg time.Time
	lookMsg struct {
		seq     int
		at      time.Time // when it arrived
		took    time.Duration
		reading *reading
		err     error
		// Of the open connection, if any; nil if it has died.
		cookie string
		detail *api.ConnectionDetail
	}
)

func newScreen(ctx context.Context, src source, p palette, filterText string) screen {
	in := textinput.New()
	in.Prompt = "/"
	in.SetVirtualCursor(false)
	in.SetStyles(textinput.Styles{})
	in.SetValue(filterText)
	m := screen{ctx: ctx, src: src, p: p, input: in}
	m.filter, _ = parseFilter(filterText) // the text comes from a filter
	return m
}

// began returns the screen with its first reading.
func (m screen) began(r *reading) screen {
	now := time.Now()
	m.now = now
	return m.take(lookMsg{at: now, reading: r})
}

// Init implements tea.Model.
func (m screen) Init() tea.Cmd { return tick() }

func tick() tea.Cmd {
	return tea.Every(time.Second, func(t time.Time) tea.Msg { return tickMsg(t) })
}

// Update implements tea.Model.
func (m screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	var cmd tea.Cmd
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.input.SetWidth(max(1, m.width-2))
	case tickMsg:
		m.now = time.Time(msg)
		if !m.asking && !m.paused && !m.now.Before(m.next) {
			m, cmd = m.look()
		}
		cmd = tea.Batch(cmd, tick())
	case lookMsg:
		atEnd := m.scrolled > 0 && m.scrolled == m.lastScroll()
		if m = m.take(msg); atEnd {
			m.scrolled = m.lastScroll()
		}
	case tea.KeyPressMsg:
		m, cmd = m.key(msg)
	case tea.PasteMsg:
		if m.editing {
			m, cmd = m.edit(msg)
		}
	}
	return m.settle(), cmd
}

// look begins a look at the source.
func (m screen) look() (screen, tea.Cmd) {
	m.seq++
	m.asking, m.asked = true, m.now
	ctx, src, query, seq, cookie := m.ctx, m.src, m.filter.Query, m.seq, m.open
	return m, func() tea.Msg {
		began := time.Now()
		msg := lookMsg{seq: seq, cookie: cookie}
		msg.reading, msg.err = src.look(ctx, query)
		if cookie != "" && msg.err == nil {
			msg.detail, msg.err = detailOf(ctx, src, cookie)
		}
		msg.at = time.Now()
		msg.took = msg.at.Sub(began)
		return msg
	}
}

// take applies the result of a look.
func (m screen) take(msg lookMsg) screen {
	if msg.seq != m.seq {
		return m
	}
	m.asking = false
	m.next = msg.at
	if msg.err != nil {
		if m.err == nil {
			m.lost = msg.at
		}
		m.err = msg.err
		return m
	}
	m.err = nil
	m.next = m.asked.Add(max(topInterval, topRest*msg.took)).Add(-topInterval / 10) // a tick may be early
	m.reading, m.read = msg.reading, msg.at
	if m.now.Before(msg.at) {
		m.now = msg.at
	}
	if msg.cookie != "" && msg.cookie == m.open {
		m.gone = msg.detail == nil
		if msg.detail != nil {
			m.detail = msg.detail
		}
	}
	return m.arrange()
}

// order is an order of the table's rows.
type order struct {
	title   string // of the column
	compare func(a, b *api.Connection) int
}

// orders are the orders; the first is the source's own.
var orders = []order{
	{"VERDICT", func(*api.Connection, *api.Connection) int { return 0 }},
	{"UNANSWERED", func(a, b *api.Connection) int { return cmp.Compare(b.Unanswered, a.Unanswered) }},
	{"SILENT", func(a, b *api.Connection) int { return compareAges(b.SilentSeconds, a.SilentSeconds) }},
	{"IDLE", func(a, b *api.Connection) int { return compareAges(b.IdleSeconds, a.IdleSeconds) }},
	{"GIVES UP", func(a, b *api.Connection) int {
		switch {
		case a.GivesUp == nil || b.GivesUp == nil:
			return cmp.Compare(truth(a.GivesUp == nil), truth(b.GivesUp == nil))
		default:
			return cmp.Compare(a.GivesUp.InSeconds, b.GivesUp.InSeconds)
		}
	}},
	{"LOCAL", func(a, b *api.Connection) int { return compareEndpoints(a.Local, b.Local) }},
	{"REMOTE", func(a, b *api.Connection) int { return compareEndpoints(a.Remote, b.Remote) }},
	{ownerTitle, func(a, b *api.Connection) int {
		return cmp.Compare(owner(&a.Ownership), owner(&b.Ownership))
	}},
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// compareAges orders ages; nil, which is never, is the least.
func compareAges(a, b *float64) int {
	if a == nil || b == nil {
		return cmp.Compare(truth(a != nil), truth(b != nil))
	}
	return cmp.Compare(*a, *b)
}

func compareEndpoints(a, b api.Endpoint) int {
	ipA, _ := netip.ParseAddr(a.IP)
	ipB, _ := netip.ParseAddr(b.IP)
	return cmp.Or(ipA.Compare(ipB), cmp.Compare(a.Port, b.Port))
}

// arrange makes the rows from the reading. The cursor stays at its connection, or at
// its place if that has gone.
func (m screen) arrange() screen {
	m.rows = nil
	for i := range m.reading.conns {
		if c := &m.reading.conns[i]; m.filter.matches(c) {
			m.rows = append(m.rows, *c)
		}
	}
	compare := orders[m.by].compare
	slices.SortStableFunc(m.rows, func(a, b api.Connection) int { return compare(&a, &b) })
	if m.reversed {
		slices.Reverse(m.rows)
	}
	switch i := slices.IndexFunc(m.rows, func(c api.Connection) bool { return c.Cookie == m.chosen }); {
	case m.chosen == "":
		m.cursor = 0
	case i >= 0:
		m.cursor = i
	default:
		return m.choose(m.cursor)
	}
	return m
}

// choose moves the cursor to row i.
func (m screen) choose(i int) screen {
	m.cursor, m.chosen = max(0, min(i, len(m.rows)-1)), ""
	if m.cursor > 0 {
		m.chosen = m.rows[m.cursor].Cookie
	}
	return m
}

// settle limits scrolling to what there is.
func (m screen) settle() screen {
	room := m.roomForRows()
	m.offset = max(m.cursor-room+1, min(m.offset, m.cursor, len(m.rows)-room), 0)
	if m.help || m.open != "" {
		m.scrolled = max(0, min(m.scrolled, m.lastScroll()))
	}
	return m
}

// lastScroll returns how far the detail or the help can be scrolled.
func (m screen) lastScroll() int { return max(0, len(m.text())-m.roomForText()) }

func (m screen) key(msg tea.KeyPressMsg) (screen, tea.Cmd) {
	key := msg.String()
	switch {
	case key == "ctrl+c":
		return m, tea.Quit
	case key == "ctrl+z":
		return m, tea.Suspend
	case key == "ctrl+l":
		return m, tea.ClearScreen
	case m.editing:
		return m.editKey(key, msg)
	}
	switch key {
	case "q":
		return m, tea.Quit
	case "?":
		m.help, m.scrolled = !m.help, 0
		return m, nil
	case "p", "space":
		if m.paused = !m.paused; !m.paused {
			return m.look()
		}
		m.now = m.read
		return m, nil
	}
	if m.help || m.open != "" {
		return m.textKey(key)
	}
	return m.tableKey(key)
}

func (m screen) textKey(key string) (screen, tea.Cmd) {
	page := max(1, m.roomForText()-1)
	switch key {
	case "esc", "enter", "left", "h", "backspace":
		if m.help {
			m.help = false
		} else {
			m.open, m.detail, m.gone = "", nil, false
		}
		m.scrolled = 0
	case "up", "k":
		m.scrolled--
	case "down", "j":
		m.scrolled++
	case "pgup", "ctrl+b":
		m.scrolled -= page
	case "pgdown", "ctrl+f":
		m.scrolled += page
	case "home", "g":
		m.scrolled = 0
	case "end", "G":
		m.scrolled = m.lastScroll()
	}
	return m, nil
}

func (m screen) tableKey(key string) (screen, tea.Cmd) {
	page := max(1, m.roomForRows()-1)
	switch key {
	case "up", "k":
		return m.choose(m.cursor - 1), nil
	case "down", "j":
		return m.choose(m.cursor + 1), nil
	case "pgup", "ctrl+b":
		return m.choose(m.cursor - page), nil
	case "pgdown", "ctrl+f":
		return m.choose(m.cursor + page), nil
	case "home", "g":
		return m.choose(0), nil
	case "end", "G":
		return m.choose(len(m.rows) - 1), nil
	case "s", ">":
		m.by = (m.by + 1) % len(orders)
		return m.arrange(), nil
	case "S", "<":
		m.by = (m.by + len(orders) - 1) % len(orders)
		return m.arrange(), nil
	case "r":
		m.reversed = !m.reversed
		return m.arrange(), nil
	case "/":
		m.editing = true
		m.input.CursorEnd()
		return m, m.input.Focus()
	case "esc":
		m.input.SetValue("")
		return m.refilter()
	case "enter", "right", "l":
		if len(m.rows) > 0 {
			m.chosen = m.rows[m.cursor].Cookie
			m.open, m.scrolled = m.chosen, 0
			return m.look()
		}
	}
	return m, nil
}

func (m screen) editKey(key string, msg tea.Msg) (screen, tea.Cmd) {
	switch key {
	case "enter":
		if m.inputErr == nil {
			m.editing = false
			m.input.Blur()
		}
		return m, nil
	case "esc":
		m.editing = false
		m.input.Blur()
		m.input.SetValue("")
		return m.refilter()
	}
	return m.edit(msg)
}

func (m screen) edit(msg tea.Msg) (screen, tea.Cmd) {
	var blink, look tea.Cmd
	m.input, blink = m.input.Update(msg)
	m, look = m.refilter()
	return m, tea.Batch(blink, look)
}

// refilter applies the filter that the user has typed so far, as far as it can be
// parsed. Words filter the rows that top has; a change of the other filters begins a
// look.
func (m screen) refilter() (screen, tea.Cmd) {
	before := filterText(&m.filter.Query)
	m.filter, m.inputErr = parseFilter(m.input.Value())
	m = m.arrange()
	if before != filterText(&m.filter.Query) {
		return m.look()
	}
	return m, nil
}

// shown returns the time of what the screen shows. It stands still while top is paused
// or has lost its agent.
func (m screen) shown() time.Time {
	if m.paused || m.err != nil || m.now.Before(m.read) {
		return m.read
	}
	return m.now
}
