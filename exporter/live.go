// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

// The bounds of the stream.
const (
	// At most viewerFrames frames wait to be sent to a viewer. Live drops a viewer that
	// falls further behind. All viewers share the frames.
	viewerFrames = 64
	// noticeBuffer is how many notices may wait for the next frame. A subscription drops
	// further notices, and counts them.
	noticeBuffer = 4096

	// The first notice or change of a row waits noticeDelay for others, and frames are at
	// least frameSpacing apart.
	noticeDelay  = 100 * time.Millisecond
	frameSpacing = 500 * time.Millisecond
	// Live reads the counts each summarySpacing. It sends them if they have changed, or
	// summaryLatest after it last sent them.
	summarySpacing = 2 * time.Second
	summaryLatest  = 10 * time.Second

	// Live remembers the counts of each historyStep for historySpan.
	historyStep = 10 * time.Second
	historySpan = time.Hour
)

// viewer is a client of the stream.
type viewer struct {
	client  netip.Prefix
	joined  time.Time
	wants   uint16      // a bit for each kind
	frames  chan *frame // closed when Live drops the viewer
	refused *refusal    // set before frames is closed, if Live refused the viewer
}

// Live serves the stream: it forwards the notices and the changes of rows of its source to
// the viewers, and keeps none of them. It remembers the counts of the last hour.
type Live struct {
	src    Source
	logger *slog.Logger
	node   string
	join   chan *viewer
	leave  chan *viewer
	ended  chan struct{}

	metrics streamMetrics

	writeTimeout time.Duration // viewerWriteTimeout; another value in tests

	// Only Run uses the fields below.
	viewers map[*viewer]bool
	waiting []*viewer // viewers that wait for the first rows
	wanted  uint16    // kinds that any viewer wants
	// notices and owned are the subscriptions; nil while no viewer wants their notices.
	// pending has the notices for the next frame, each with its kind.
	notices *collector.Subscription
	owned   *collector.Subscription
	pending []pendingNotice
	// missedBefore is how many notices did not fit the buffers of earlier subscriptions.
	missedBefore uint64
	rows         bool   // the source keeps rows, because a viewer wants them
	allRows      []byte // event with all rows, for new viewers; nil if it is not current

	flushes timer     // the next frame of notices and rows
	counts  timer     // the next reading of the counts
	flushed time.Time // the time of the last frame of notices and rows
	summary []byte    // the last summary sent, without its time
	sentAt  time.Time // when summary was sent
	past    []sample  // oldest first, historyStep apart
}

type pendingNotice struct {
	kind   kind
	notice conn.Notice
}

// timer is a [time.Timer] with a field that says whether it is set.
type timer struct {
	*time.Timer
	set bool
}

func newTimer() timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return timer{t, false}
}

// in sets the timer, unless it is set already.
func (t *timer) in(d time.Duration) {
	if !t.set {
		t.Reset(d)
		t.set = true
	}
}

func (t *timer) off() {
	t.Stop()
	t.set = false
}

// NewLive returns a Live. [Live.Run] must run for it to serve the stream.
func NewLive(src Source, logger *slog.Logger) *Live {
	return &Live{
		src: src, logger: logger, node: hostName(),
		join: make(chan *viewer), leave: make(chan *viewer), ended: make(chan struct{}), writeTimeout: viewerWriteTimeout,
		viewers: make(map[*viewer]bool), flushes: newTimer(), counts: newTimer(),
		metrics: newStreamMetrics(),
	}
}

// Run serves the stream until the context ends. Then it ends all responses that are under
// way.
func (l *Live) Run(ctx context.Context) {
	defer close(l.ended)
	defer func() {
		for v := range l.viewers {
			l.drop(v)
		}
		for _, v := range l.waiting {
			close(v.frames)
		}
		l.waiting = nil
		l.releaseIdle()
	}()
	l.remember(time.Now())
	history := time.NewTicker(historyStep)
	defer history.Stop()
	for {
		// While a frame is due, notices and changes of rows wait in the source.
		var notices, owned <-chan conn.Notice
		var rowsChanged <-chan struct{}
		if !l.flushes.set {
			if l.notices != nil {
				notices = l.notices.C
			}
			if l.owned != nil {
				owned = l.owned.C
			}
			if l.rows {
				rowsChanged = l.src.RowsChanged()
			}
		}
		due := max(noticeDelay, frameSpacing-time.Since(l.flushed))
		select {
		case <-ctx.Done():
			return
		case v := <-l.join:
			l.admit(v)
		case v := <-l.leave:
			l.remove(v)
		case n := <-notices:
			l.pending = append(l.pending, pendingNotice{kindOf(n.Kind), n})
			l.flushes.in(due)
		case n := <-owned:
			l.pending = append(l.pending, pendingNotice{kindOwned + kindOf(n.Kind), n})
			l.flushes.in(due)
		case <-rowsChanged:
			l.flushes.in(due)
		case <-l.flushes.C:
			l.flushes.set = false
			l.flush()
			l.admitWaiting()
		case now := <-history.C:
			l.remember(now)
		case now := <-l.counts.C:
			l.counts.set = false
			if len(l.viewers) > 0 {
				l.summarise(now)
				l.counts.in(summarySpacing)
			}
		}
		l.releaseIdle()
	}
}

// admit accepts a viewer, or refuses it. A viewer that wants rows waits until the rows are
// complete.
func (l *Live) admit(v *viewer) {
	if r := l.makeRoom(v.client); r != nil {
		l.refuse(v, r)
		close(v.frames)
		return
	}
	if v.wants&noticeKinds != 0 && l.notices == nil {
		l.notices = l.src.Subscribe(noticeBuffer)
	}
	if v.wants&(noticeKinds<<kindOwned) != 0 && l.owned == nil {
		l.owned = l.src.SubscribeOwned(noticeBuffer)
	}
	if v.wants&(1<<kindRows) != 0 && !l.rows {
		l.rows = true
		l.src.FollowRows(true)
	}
	l.waiting = append(l.waiting, v)
	l.admitWaiting()
}

// admitWaiting begins to serve the waiting viewers. Viewers that want rows go on waiting until
// the rows are complete.
func (l *Live) admitWaiting() {
	if len(l.waiting) == 0 {
		return
	}
	complete := true
	if l.rows && l.allRows == nil {
		// Rows drops the changes so far, so the viewers that have the rows get these first.
		var f frame
		l.addRows(&f)
		l.send(&f)
		var rows []*conn.Row
		if rows, complete = l.src.Rows(); complete {
			l.allRows = rowsEvent(rows)
		}
	}
	waiting := l.waiting
	l.waiting = nil
	for _, v := range waiting {
		if !complete && v.wants&(1<<kindRows) != 0 {
			l.waiting = append(l.waiting, v)
			continue
		}
		l.begin(v)
	}
}

// begin sends the first frame to a viewer, and serves the viewer from then on.
func (l *Live) begin(v *viewer) {
	now := time.Now()
	l.summarise(now)
	var first frame
	if v.wants&(1<<kindSummary) != 0 {
		first.add(kindSummary, withTime(l.summary, now)) // summarise has just checked that it is current
	}
	if v.wants&(1<<kindHistory) != 0 {
		first.add(kindHistory, l.history())
	}
	if v.wants&(1<<kindRows) != 0 {
		first[kindRows] = l.allRows
	}
	v.frames <- &first // there is room in the empty buffer
	l.counts.in(summarySpacing)
	l.viewers[v] = true
	l.wanted |= v.wants
}

// drop ends the service of a viewer, and closes its frames.
func (l *Live) drop(v *viewer) {
	delete(l.viewers, v)
	close(v.frames)
	l.wanted = 0
	for v := range l.viewers {
		l.wanted |= v.wants
	}
}

// releaseIdle ends the rows and the subscriptions that no viewer wants any more. It also sets
// the metric of the viewers served.
func (l *Live) releaseIdle() {
	l.metrics.served.Set(float64(len(l.viewers) + len(l.waiting)))
	wanted := l.wanted
	for _, v := range l.waiting {
		wanted |= v.wants
	}
	if wanted&(1<<kindRows) == 0 && l.rows {
		l.src.FollowRows(false)
		l.rows, l.allRows = false, nil
	}
	if wanted&noticeKinds == 0 && l.notices != nil {
		l.missedBefore += l.notices.Dropped()
		l.notices.Close()
		l.notices = nil
	}
	if wanted&(noticeKinds<<kindOwned) == 0 && l.owned != nil {
		l.missedBefore += l.owned.Dropped()
		l.owned.Close()
		l.owned = nil
	}
	if len(l.viewers)+len(l.waiting) == 0 {
		l.pending = nil
		l.flushes.off()
	}
}

// send queues a frame for all viewers. It does not block: it drops a viewer whose queue is
// full.
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

// flush sends a frame with the notices and the changes of rows since the last frame.
func (l *Live) flush() {
	l.flushed = time.Now()
	l.pending = drain(l.pending, l.notices, kindVerdict)
	l.pending = drain(l.pending, l.owned, kindOwned)
	var f frame
	for i := range l.pending {
		p := &l.pending[i]
		if l.wanted&(1<<p.kind) == 0 {
			continue
		}
		data, err := json.Marshal(api.NewNotice(&p.notice))
		if err != nil {
			l.logger.Error("Event was not encoded", "err", err)
			continue
		}
		f.add(p.kind, escape.JSON(data))
	}
	clear(l.pending) // frees the owners that they point to
	l.pending = l.pending[:0]
	if l.rows {
		l.addRows(&f)
	}
	l.send(&f)
}

// drain appends the notices that wait in a subscription. first is kindVerdict or kindOwned,
// the first of the three kinds of notices of that subscription.
func drain(pending []pendingNotice, s *collector.Subscription, first kind) []pendingNotice {
	if s == nil {
		return pending
	}
	for range len(s.C) {
		n := <-s.C
		pending = append(pending, pendingNotice{first + kindOf(n.Kind), n})
	}
	return pending
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

// addRows adds the changes of rows to a frame: new rows, the changed fields of other rows, and
// the cookies of removed rows.
func (l *Live) addRows(f *frame) {
	changes := l.src.RowChanges()
	if len(changes) == 0 {
		return
	}
	l.allRows = nil
	if l.wanted&(1<<kindRows) == 0 {
		return
	}
	var changed, gone []byte
	for i := range changes {
		c := &changes[i]
		if c.New != nil {
			changed = appendRow(comma(changed), c.New, c.Old)
		} else {
			gone = strconv.AppendUint(append(comma(gone), '"'), c.Cookie, 16)
			gone = append(gone, '"')
		}
	}
	f.add(kindRows, fmt.Appendf(nil, `{"at":%d,"rows":[%s],"gone":[%s]}`, time.Now().UnixMilli(), changed, gone))
}

// rowsEvent returns the event of kindRows in a viewer's first frame. The event has no time,
// because Live keeps it for later viewers.
func rowsEvent(rows []*conn.Row) []byte {
	b := make([]byte, 0, 256*len(rows)+128)
	b = fmt.Appendf(b, "event: %s\ndata: {\"all\":true,\"rows\":[", kindNames[kindRows])
	for i, r := range rows {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendRow(b, r, nil)
	}
	return append(b, "],\"gone\":[]}\n\n"...)
}

func comma(b []byte) []byte {
	if len(b) > 0 {
		return append(b, ',')
	}
	return b
}
