// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// The bounds of the stream.
const (
	// A viewer has at most viewerFrames frames of the stream, which all share, still to
	// be sent; who falls further behind is dropped, as is who takes nothing for
	// viewerPatience.
	viewerFrames   = 64
	viewerPatience = 10 * time.Second
	// viewerHeartbeat is after how long of nothing a comment is sent.
	viewerHeartbeat = 15 * time.Second
	// viewerChunk is how much has to be taken within viewerPatience.
	viewerChunk = 64 << 10

	// maxRows are kept for the pages, the worst; as much again may get into
	// trouble until the next look.
	maxRows = 10000
	// noticeBuffer is how many notices may wait for the next frame. More are missed,
	// and counted as that; the next look at all connections makes the rows right.
	noticeBuffer = 4096

	// The first notice waits noticeDelay for others, and frames are at least
	// frameSpacing apart.
	noticeDelay  = 100 * time.Millisecond
	frameSpacing = 500 * time.Millisecond
	// summarySpacing is between two looks at the counts, and summaryLatest until
	// they are sent though they are the same.
	summarySpacing = 2 * time.Second
	summaryLatest  = 10 * time.Second
	// lookSpacing is between two looks at all connections, and lookShare what
	// they may take of a core.
	lookSpacing = 15 * time.Second
	lookShare   = 0.004

	// The counts are remembered each historyStep for historySpan.
	historyStep = 10 * time.Second
	historySpan = time.Hour
)

// kind is what a client of the stream can ask for.
type kind uint8

const (
	kindVerdict kind = iota
	kindDeath
	kindSolicitation
	kindSummary
	kindHistory
	kindRows
	// kindOwned is from which on come the first three again, told when the owners have
	// been looked for: of those who ask for owners.
	kindOwned
	kinds = kindOwned + 3
)

var kindNames = [kinds]string{"verdict", "death", "solicitation", "summary", "history", "rows", "verdict", "death", "solicitation"}

// told is the kinds of what happens.
const told = 1<<kindVerdict | 1<<kindDeath | 1<<kindSolicitation

// usualKinds are those of who asks for none.
const usualKinds = told | 1<<kindSummary

func parseKind(s string) (kind, error) {
	names := kindNames[:kindOwned]
	if k := slices.Index(names, s); k >= 0 {
		return kind(k), nil
	}
	return 0, fmt.Errorf("unknown event %q: there are %s", s, strings.Join(names, ", "))
}

// A frame is what all viewers are sent at one moment: server-sent events, by kind.
type frame [kinds][]byte

func (f *frame) add(k kind, data []byte) {
	f[k] = fmt.Appendf(f[k], "event: %s\ndata: %s\n\n", kindNames[k], data)
}

func (f *frame) empty() bool {
	return !slices.ContainsFunc(f[:], func(b []byte) bool { return len(b) > 0 })
}

// A viewer is a client of the stream.
type viewer struct {
	client  netip.Prefix
	joined  time.Time
	wants   uint16      // a bit for each kind
	frames  chan *frame // closed when it is dropped
	refused *refusal    // set before frames is closed, if it got none
}

// Live tells the pages, and whoever else listens to the stream, what happens. What
// it knows of the connections it knows only while somebody listens; of the counts it
// remembers the last hour.
type Live struct {
	src    Source
	logger *slog.Logger
	node   string
	join   chan *viewer
	leave  chan *viewer
	ended  chan struct{}

	metrics streamMetrics

	patience time.Duration // viewerPatience, but for tests

	// All below is Run's alone.
	viewers map[*viewer]bool
	waiting []*viewer                  // for the first look to be over
	wanted  uint16                     // by any viewer
	sub     *collector.Subscription    // nil: nobody listens, and there is nothing of the next five
	pending []conn.Notice              // for the next frame, and what is in sub
	rows    map[uint64]*row            // nil: nobody wants them
	known   bool                       // the rows are all there are
	whole   []byte                     // all rows, for who joins; nil: to be made
	strays  map[uint64]conn.Connection // whose owners are still to be found
	unowned []unowned                  // notices that wait for their owners
	// What takes its time has a goroutine of its own, so that frames need not wait.
	working  sync.WaitGroup
	looking  bool
	seen     chan seen
	died     map[uint64]bool // since the look began
	asking   bool
	owners   chan owners
	searches alarm         // the next search for owners, or the end of waiting for it
	flushes  alarm         // the next frame of notices
	looks    alarm         // the next look at all connections
	counts   alarm         // the next look at the counts
	framed   time.Time     // the last frame of notices
	searched time.Time     // the end of the last search for owners
	search   time.Duration // what that took
	summary  []byte        // the last, without its time
	told     time.Time     // when that was
	past     []moment      // oldest first, historyStep apart
}

// A moment is what is remembered of one.
type moment struct {
	at       time.Time
	verdicts [conn.Verdicts]uint64
	risks    uint64
	deaths   [conn.Causes]uint64 // since the agent started
}

// An alarm is a timer that may not be set.
type alarm struct {
	*time.Timer
	set bool
}

func newAlarm() alarm {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return alarm{t, false}
}

func (a *alarm) in(d time.Duration) {
	a.Reset(d)
	a.set = true
}

func (a *alarm) off() {
	a.Stop()
	a.set = false
}

// NewLive makes the source of the stream, which [Live.Run] runs.
func NewLive(src Source, logger *slog.Logger) *Live {
	return &Live{
		src: src, logger: logger, node: hostName(),
		join: make(chan *viewer), leave: make(chan *viewer), ended: make(chan struct{}), patience: viewerPatience,
		seen: make(chan seen), owners: make(chan owners),
		viewers: make(map[*viewer]bool), searches: newAlarm(), flushes: newAlarm(), looks: newAlarm(), counts: newAlarm(),
		metrics: newStreamMetrics(),
	}
}

// Run serves the stream until the context ends, and with it every answer that is
// under way.
func (l *Live) Run(ctx context.Context) {
	defer l.working.Wait()
	defer close(l.ended)
	defer func() {
		for v := range l.viewers {
			l.drop(v)
		}
		for _, v := range l.waiting {
			close(v.frames)
		}
	}()
	l.remember(time.Now())
	history := time.NewTicker(historyStep)
	defer history.Stop()
	for {
		var notices <-chan conn.Notice // nil: the next frame takes them
		if l.sub != nil && !l.flushes.set {
			notices = l.sub.C
		}
		select {
		case <-ctx.Done():
			return
		case v := <-l.join:
			l.admit(ctx, v)
		case v := <-l.leave:
			l.remove(v)
		case n := <-notices:
			l.pending = append(l.pending, n)
			l.flushes.in(max(noticeDelay, frameSpacing-time.Since(l.framed)))
		case <-l.flushes.C:
			l.flushes.set = false
			l.flush()
			l.findOwners(ctx)
		case <-l.searches.C:
			l.searches.set = false
			l.findOwners(ctx)
		case o := <-l.owners:
			l.takeOwners(&o)
			l.findOwners(ctx)
		case <-l.looks.C:
			l.look(ctx)
		case s := <-l.seen:
			l.takeSeen(&s)
		case now := <-history.C:
			l.remember(now)
		case now := <-l.counts.C:
			l.counts.set = false
			if len(l.viewers) > 0 {
				l.summarise(now)
				l.counts.in(summarySpacing)
			}
		}
		l.tidy()
	}
}

// admit begins to serve a viewer, once there is what it wants.
func (l *Live) admit(ctx context.Context, v *viewer) {
	if r := l.makeRoom(v.client); r != nil {
		l.refuse(v, r)
		close(v.frames)
		return
	}
	if l.sub == nil {
		l.sub = l.src.Subscribe(noticeBuffer)
	}
	if v.wants&(1<<kindRows) != 0 && !l.known {
		l.waiting = append(l.waiting, v)
		l.look(ctx)
		return
	}
	l.begin(v)
}

// begin serves a viewer, with all there is to begin with.
func (l *Live) begin(v *viewer) {
	now := time.Now()
	l.summarise(now)
	var first frame
	if v.wants&(1<<kindSummary) != 0 {
		first.add(kindSummary, withTime(l.summary, now)) // it is the same, whenever it was told
	}
	if v.wants&(1<<kindHistory) != 0 {
		first.add(kindHistory, l.history())
	}
	if v.wants&(1<<kindRows) != 0 {
		if l.whole == nil {
			l.whole = l.allRows()
		}
		first[kindRows] = l.whole
	}
	v.frames <- &first // there is room
	if !l.counts.set {
		l.counts.in(summarySpacing)
	}
	l.viewers[v] = true
	l.wanted |= v.wants
}

// drop ends the service of a viewer.
func (l *Live) drop(v *viewer) {
	delete(l.viewers, v)
	close(v.frames)
	l.wanted = 0
	for v := range l.viewers {
		l.wanted |= v.wants
	}
}

// tidy lets go of what nobody listens to any more.
func (l *Live) tidy() {
	l.metrics.served.Set(float64(len(l.viewers) + len(l.waiting)))
	if l.wanted&(1<<kindRows) == 0 && len(l.waiting) == 0 {
		l.rows, l.known, l.whole, l.strays = nil, false, nil, nil
		l.looks.off()
	}
	if len(l.viewers)+len(l.waiting) == 0 && l.sub != nil {
		l.sub.Close()
		l.sub, l.pending, l.unowned = nil, nil, nil
		l.flushes.off()
		l.searches.off()
	}
}

// send gives all viewers a frame. It waits for none.
func (l *Live) send(f *frame) {
	if f.empty() {
		return
	}
	for v := range l.viewers {
		select {
		case v.frames <- f:
		default:
			l.drop(v)
		}
	}
}

// flush sends what has been told since the last frame.
func (l *Live) flush() {
	notices := l.pending
	for range len(l.sub.C) {
		notices = append(notices, <-l.sub.C)
	}
	l.pending = notices[:0]
	if len(notices) == 0 {
		return
	}
	l.framed = time.Now()
	var f frame
	changes := newChanges(l.rows)
	for i := range notices {
		n := &notices[i]
		if l.rows != nil {
			l.take(n, changes)
		}
		if k := kindOf(n.Kind); l.wanted&(1<<k) != 0 {
			data, err := json.Marshal(api.NewNotice(n))
			if err != nil {
				l.logger.Error("Event was not encoded", "err", err)
				continue
			}
			f.add(k, data)
		}
		if l.wanted&(told<<kindOwned) != 0 {
			l.unowned = append(l.unowned, unowned{notice: *n, since: l.framed})
		}
	}
	clear(notices) // what they point to
	l.sendChanges(&f, changes)
	l.send(&f)
}

func kindOf(k conn.NoticeKind) kind {
	switch k {
	case conn.NoticeVerdict:
		return kindVerdict
	case conn.NoticeDeath:
		return kindDeath
	}
	return kindSolicitation
}

// take has the rows follow a notice, and the notice know the owner that they do.
func (l *Live) take(n *conn.Notice, changes *changes) {
	cookie := n.Connection.Cookie
	old := l.rows[cookie]
	if n.Death != nil {
		if l.looking {
			l.died[cookie] = true
		}
		if old == nil {
			return
		}
		if n.Death.Process == nil && old.pid != 0 {
			death := *n.Death // others have it too
			death.Process = &conn.Process{PID: old.pid, Comm: old.comm, FD: old.fd}
			n.Death = &death
		}
		changes.before(cookie)
		delete(l.rows, cookie)
		delete(l.strays, cookie)
		return
	}
	r := newRow(&n.Connection)
	switch {
	case !n.Connection.Judged(), old == nil && len(l.rows) >= 2*maxRows, old != nil && r.at.Before(old.at):
		return
	case old != nil:
		r.follow(old)
	}
	changes.before(cookie)
	l.rows[cookie] = &r
	if r.held == heldByProcess && r.pid == 0 {
		l.strays[cookie] = n.Connection
	}
}

// share is for how long what took so much must not be done again.
func share(took time.Duration) time.Duration { return time.Duration(float64(took) / lookShare) }

// seen is what a look at all connections found.
type seen struct {
	rows  map[uint64]*row
	began time.Time
	took  time.Duration
	err   error
}

// look begins to look at all connections.
func (l *Live) look(ctx context.Context) {
	l.looks.off()
	if l.rows == nil {
		l.rows, l.strays = make(map[uint64]*row), make(map[uint64]conn.Connection)
	}
	if l.looking {
		return
	}
	l.looking = true
	l.died = make(map[uint64]bool)
	l.working.Go(func() {
		s := seen{rows: make(map[uint64]*row), began: time.Now()}
		var connections iter.Seq2[*conn.Connection, error]
		if _, connections, s.err = l.src.Connections(ctx, collector.Query{Limit: maxRows}); s.err == nil {
			for c, err := range connections {
				if s.err = err; err != nil {
					break
				}
				r := newRow(c)
				s.rows[c.Cookie] = &r
			}
		}
		s.took = time.Since(s.began)
		select {
		case l.seen <- s:
		case <-ctx.Done():
		}
	})
}

// takeSeen sends what nobody has told: which connections are new, which are no more,
// and where data has moved. What was told since the look is newer.
func (l *Live) takeSeen(s *seen) {
	l.looking = false
	if s.err != nil {
		l.logger.Error("Connections were not looked at for the live page", "err", s.err)
	}
	if l.rows == nil {
		return // nobody wants them any more
	}
	l.looks.in(max(lookSpacing, share(s.took)))
	l.flush()
	changes := newChanges(l.rows)
	for cookie, r := range s.rows {
		old := l.rows[cookie]
		switch {
		case l.died[cookie]:
			continue
		case old != nil && r.at.Before(old.at):
			newer := *old
			newer.follow(r) // which has an owner
			r = &newer
		case old != nil:
			r.follow(old)
		}
		if old == nil || *r != old.asOf(r.at) {
			changes.before(cookie)
		}
		l.rows[cookie] = r
	}
	for cookie, old := range l.rows {
		if s.err == nil && s.rows[cookie] == nil && old.at.Before(s.began) {
			changes.before(cookie)
			delete(l.rows, cookie)
		}
	}
	clear(l.strays)
	var f frame
	l.sendChanges(&f, changes)
	l.send(&f)
	l.known = true
	for _, v := range l.waiting {
		l.begin(v)
	}
	l.waiting = nil
}

// changes are of the rows: how those were that are no longer so.
type changes struct {
	rows map[uint64]*row
	old  map[uint64]*row // nil: there was none
}

func newChanges(rows map[uint64]*row) *changes { return &changes{rows, make(map[uint64]*row)} }

// before is to be called before a row is changed, which is by putting another there.
func (c *changes) before(cookie uint64) {
	if _, ok := c.old[cookie]; !ok {
		c.old[cookie] = c.rows[cookie]
	}
}

// sendChanges adds an event of kindRows to a frame: rows that are new or different
// with what is different, and the cookies of those that are gone.
func (l *Live) sendChanges(f *frame, changes *changes) {
	if len(changes.old) == 0 {
		return
	}
	var changed, gone []byte
	for cookie, old := range changes.old {
		switch r := l.rows[cookie]; {
		case r != nil:
			changed = r.appendJSON(comma(changed), old)
		case old != nil:
			gone = strconv.AppendUint(append(comma(gone), '"'), cookie, 16)
			gone = append(gone, '"')
		}
	}
	l.whole = nil
	f.add(kindRows, fmt.Appendf(nil, `{"at":%d,"rows":[%s],"gone":[%s]}`, time.Now().UnixMilli(), changed, gone))
}

// allRows is the event of kindRows that a viewer begins with.
func (l *Live) allRows() []byte {
	b := make([]byte, 0, 256*len(l.rows)+128)
	b = fmt.Appendf(b, "event: %s\ndata: {\"all\":true,\"rows\":[", kindNames[kindRows]) // not when: it is kept
	first := true
	for _, r := range l.rows {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = r.appendJSON(b, nil)
	}
	return append(b, "],\"gone\":[]}\n\n"...)
}

func comma(b []byte) []byte {
	if len(b) > 0 {
		return append(b, ',')
	}
	return b
}

// summarise sends the counts, if they have changed or were sent long ago.
func (l *Live) summarise(now time.Time) {
	stats, err := l.src.Stats()
	if err != nil {
		l.logger.Error("Counts were not read for the live page", "err", err)
		return
	}
	counted := momentOf(&stats, now)
	s := api.StreamSummary{Summary: newSummary(l.src, &stats, l.node), Missed: l.sub.Dropped()}
	s.DeathsSince = now.UTC()
	var before moment
	if len(l.past) > 0 {
		before = l.past[0]
		s.DeathsSince = before.at.UTC()
	} else {
		before.deaths = counted.deaths
	}
	for c, n := range counted.deaths {
		s.Deaths[conn.Cause(c).String()] = n - before.deaths[c]
	}
	data, err := json.Marshal(&s)
	if err != nil {
		l.logger.Error("Counts were not encoded", "err", err)
		return
	}
	if bytes.Equal(data, l.summary) && now.Sub(l.told) < summaryLatest {
		return
	}
	l.summary, l.told = data, now
	var f frame
	f.add(kindSummary, withTime(data, now))
	l.send(&f)
}

// withTime adds when it was to a JSON object that is not empty.
func withTime(object []byte, at time.Time) []byte {
	if len(object) == 0 {
		return []byte("{}") // it could not be read
	}
	return fmt.Appendf(nil, `{"at":%q,%s`, at.UTC().Format(time.RFC3339Nano), object[1:])
}

func momentOf(stats *collector.Stats, at time.Time) moment {
	m := moment{at: at}
	copy(m.deaths[:], stats.Kernel.Deaths[:])
	for _, verdicts := range stats.Connections {
		for v, n := range verdicts {
			m.verdicts[v] += n
		}
	}
	for _, n := range stats.AtRisk {
		m.risks += n
	}
	return m
}

// remember keeps the counts for the history, and sends that.
func (l *Live) remember(now time.Time) {
	stats, err := l.src.Stats()
	if err != nil {
		l.logger.Error("Counts were not read for the live page", "err", err)
		return
	}
	for len(l.past) > 0 && now.Sub(l.past[0].at) > historySpan {
		l.past = slices.Delete(l.past, 0, 1)
	}
	l.past = append(l.past, momentOf(&stats, now))
	if l.wanted&(1<<kindHistory) != 0 {
		var f frame
		f.add(kindHistory, l.history())
		l.send(&f)
	}
}

func (l *Live) history() []byte {
	var h api.History
	for i := range l.past {
		m := &l.past[i]
		var deaths uint64
		if i > 0 {
			for c := range m.deaths {
				if conn.Cause(c) != conn.CauseClosed {
					deaths += m.deaths[c] - l.past[i-1].deaths[c]
				}
			}
		}
		h.At = append(h.At, m.at.Unix())
		h.Zombie = append(h.Zombie, m.verdicts[conn.Zombie])
		h.Suspect = append(h.Suspect, m.verdicts[conn.Suspect])
		h.Stalled = append(h.Stalled, m.verdicts[conn.Stalled])
		h.Unguarded = append(h.Unguarded, m.verdicts[conn.Unguarded])
		h.AtRisk = append(h.AtRisk, m.risks)
		h.Deaths = append(h.Deaths, deaths)
	}
	data, err := json.Marshal(&h)
	if err != nil {
		l.logger.Error("History was not encoded", "err", err)
		return []byte("{}")
	}
	return data
}

// wantedKinds are those that a query asks for, a bit each.
func wantedKinds(query string) (wants uint16, err error) {
	params, err := api.ParseParameters(query, "event", "owners")
	if err != nil {
		return 0, err
	}
	asked, err := api.ParseAll(params["event"], parseKind)
	if err != nil {
		return 0, err
	}
	owners, err := api.ParseSwitch("owners", params["owners"])
	if err != nil {
		return 0, err
	}
	for _, k := range asked {
		wants |= 1 << k
	}
	if len(asked) == 0 {
		wants = usualKinds
	}
	if owners {
		wants = wants&^told | wants&told<<kindOwned
	}
	return wants, nil
}

var errEnding = errors.New("the agent is ending")

// ServeHTTP answers with the stream: the kinds of events that are asked for, until
// the client goes or falls behind, or the agent ends.
func (l *Live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	wants, err := wantedKinds(r.URL.RawQuery)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	v := &viewer{client: clientOf(r.RemoteAddr), joined: time.Now(), wants: wants, frames: make(chan *frame, viewerFrames)}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	select {
	case l.join <- v:
	case <-l.ended:
		writeError(w, http.StatusServiceUnavailable, errEnding)
		return
	case <-r.Context().Done():
		return
	}
	defer func() {
		select {
		case l.leave <- v:
		case <-l.ended:
		}
	}()
	var first *frame
	var ok bool
	select {
	case first, ok = <-v.frames:
	case <-r.Context().Done():
		return
	}
	if !ok {
		refused := cmp.Or(v.refused, &refusal{status: http.StatusServiceUnavailable, err: errEnding})
		writeError(w, refused.status, refused.err)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // of a proxy
	out := &taken{w: w, rc: http.NewResponseController(w), within: l.patience}
	_ = out.rc.SetReadDeadline(time.Time{}) // the request's, which the wait for its end would meet
	if !out.write([]byte("retry: 2000\n\n")) || !out.frame(first, v.wants) || !out.flush() {
		return
	}
	heartbeat := time.NewTimer(viewerHeartbeat)
	defer heartbeat.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case f, ok := <-v.frames:
			if !ok || !out.frame(f, v.wants) {
				return
			}
		case <-heartbeat.C:
			if !out.write([]byte(":\n\n")) || !out.flush() {
				return
			}
		}
		heartbeat.Reset(viewerHeartbeat)
	}
}

// taken writes to a client that has to take what is written.
type taken struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	within time.Duration
}

func (t *taken) frame(f *frame, wants uint16) bool {
	wanted := false
	for k, data := range f {
		if wants&(1<<k) != 0 && len(data) > 0 {
			wanted = true
			if !t.write(data) {
				return false
			}
		}
	}
	return !wanted || t.flush()
}

func (t *taken) write(data []byte) bool {
	for len(data) > 0 {
		n := min(len(data), viewerChunk)
		if t.rc.SetWriteDeadline(time.Now().Add(t.within)) != nil {
			return false
		}
		if _, err := t.w.Write(data[:n]); err != nil {
			return false
		}
		data = data[n:]
	}
	return true
}

// flush ends what was written, and with it the deadline: that of an HTTP/2 stream
// would end it even if there is nothing more to write.
func (t *taken) flush() bool {
	return t.rc.Flush() == nil && t.rc.SetWriteDeadline(time.Time{}) == nil
}
