// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"strings"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// Explanation is what there is to say of one connection in plain sentences.
// None of them has a word in it that a process or a peer has chosen, but for the
// name of a mounted network namespace, if that is harmless.
type Explanation struct {
	At         time.Time // of the look: "in 5s" counts from here
	Doing      []string  // what the socket is doing
	Timers     []Timer
	Settings   []Setting // of these timers
	Next       []string  // what happens next, and when
	Assessment string    // whether a peer that is gone is noticed soon enough
	Advice     []Advice  // what would make it sooner; none where nothing has to
}

// Timer is one of the kernel's timers of a connection.
type Timer struct {
	Name    string // keepalive, retransmission, window_probe, tail_loss_probe, reordering, fin_wait2
	Purpose string // a sentence
	// It fires between the two; zero: it is not running.
	At, Latest time.Time
	Then       string // what it does then if nothing is heard before; or why it is not running
}

// Pending tells whether the timer runs.
func (t *Timer) Pending() bool { return !t.At.IsZero() }

// Explain explains a connection that looked like c, and of which conn is what
// there is to say in short. netns is a path to its network namespace, "" if that
// is our own, or none is known.
func Explain(r *conn.Rules, c *abi.Conn, connection *conn.Connection, netns string) Explanation {
	x := explainer{rules: r, c: c, conn: connection, netns: netns, t: conn.Timers{C: c, Hz: uint64(r.HZ)}}
	e := Explanation{
		At:       connection.At,
		Doing:    x.doing(),
		Timers:   x.timers(),
		Settings: x.settings(),
		Next:     x.next(),
	}
	e.Assessment, e.Advice = x.advise()
	return e
}

// explainer is one connection at one moment.
type explainer struct {
	rules *conn.Rules
	c     *abi.Conn
	conn  *conn.Connection
	netns string      // a path, or ""
	t     conn.Timers // with every timer on time
}

func (x *explainer) flag(f uint16) bool { return x.c.Flags&f != 0 }

// waiting tells whether anything is sent and not acknowledged, or not sent yet.
func (x *explainer) waiting() bool { return x.c.PacketsOut > 0 || x.c.SendQueue > 0 }

// canSend tells whether the application can still send data.
func (x *explainer) canSend() bool {
	return (x.conn.State == conn.Established || x.conn.State == conn.CloseWait) && !x.conn.Orphaned
}

// closedWindow tells whether the peer's window keeps the connection from sending.
func (x *explainer) closedWindow() bool {
	return x.flag(abi.ConnWindowClosed) || x.t.GiveUpPath() == conn.ByWindowProbe && !x.flag(abi.ConnBlocked)
}

func (x *explainer) connecting() bool {
	return x.conn.State == conn.SynSent || x.conn.State == conn.SynRecv
}

// orphanedFinWait2 is the one state whose end the keepalive timer brings about
// without keepalive.
func (x *explainer) orphanedFinWait2() bool {
	return x.conn.State == conn.FinWait2 && x.conn.Orphaned
}

func (x *explainer) doing() []string {
	says := []string{x.inState()}
	if !x.conn.Accepted {
		says = append(says, "No application has accepted it yet: it waits in the queue of its listener, and nobody reads what arrives.")
	}
	if !x.connecting() {
		says = append(says, x.traffic())
	}
	if s := x.queued(); s != "" {
		says = append(says, s)
	}
	if s := x.judged(); s != "" {
		says = append(says, s)
	}
	return says
}

func (x *explainer) inState() string {
	switch x.conn.State {
	case conn.Established:
		if x.conn.Verdict == conn.Zombie {
			return "The connection is established, as far as this kernel knows."
		}
		return "The connection is established: both ends can send."
	case conn.SynSent:
		return "The connection is being made: we have sent a SYN, and wait for the peer's answer." + x.again(int(x.c.Retransmits))
	case conn.SynRecv:
		return "The connection is being made: we have answered the peer's SYN, and wait for its last word."
	case conn.FinWait1:
		return x.closer() + " The peer has not acknowledged that yet."
	case conn.FinWait2:
		return x.closer() + " The peer knows, and has not closed its side yet."
	case conn.Closing:
		return "Both ends have closed it at the same time, and the peer has not acknowledged our end yet."
	case conn.CloseWait:
		return "The peer has closed its side and waits for ours: the application has not closed the socket."
	case conn.LastAck:
		return "Both ends have closed it; the peer has not acknowledged our end yet."
	}
	return "The connection is in state " + x.conn.State.String() + "."
}

// closer says who closed our side.
func (x *explainer) closer() string {
	if x.conn.Orphaned {
		return "The application has closed it, and no process holds it any more."
	}
	return "The application has closed its sending side (shutdown), and still holds the socket."
}

func (x *explainer) again(retransmits int) string {
	if retransmits == 0 {
		return ""
	}
	return fmt.Sprintf(" The SYN has been sent again %s.", times(retransmits))
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func (x *explainer) traffic() string {
	idle, silent := x.conn.Idle, x.conn.Silent
	// The kernel stamps a retransmission as data sent.
	if x.conn.Verdict >= conn.Suspect || idle < 0 {
		return "Nothing has been heard from the peer for " + humanize.Age(silent) + "."
	}
	// The kernel stamps the making of a connection as data, too.
	if since(idle) == since(silent) {
		return fmt.Sprintf("The connection was made, or data last moved, %s; the peer was last heard then, too.", since(idle))
	}
	return fmt.Sprintf("The connection was made, or data last moved, %s; the peer was last heard %s.", since(idle), since(silent))
}

func since(d time.Duration) string {
	if d < time.Second {
		return "less than a second ago"
	}
	return humanize.Age(d) + " ago"
}

func (x *explainer) queued() string {
	c := x.c
	bytes := humanize.Size(c.SendQueue) + " bytes"
	if c.SendQueue < 1024 {
		bytes = humanize.Plural(int(c.SendQueue), "byte")
	}
	switch {
	case x.connecting():
		return ""
	case x.flag(abi.ConnWindowClosed):
		return fmt.Sprintf("%s wait to be sent or acknowledged, but the peer's window is closed: it does not read, or is gone.", bytes)
	case x.flag(abi.ConnBlocked):
		return fmt.Sprintf("%s wait to be sent, and the peer has room for them, but nothing goes out: something on this host keeps them back, such as an output filter or a missing route.", bytes)
	case x.closedWindow():
		return fmt.Sprintf("%s wait to be sent, and nothing is in flight: the peer's window (%s) is too small for them.", bytes, humanize.Plural(int(c.SendWindow), "byte"))
	case c.PacketsOut == 1 && c.Retransmits > 0:
		return fmt.Sprintf("1 segment is not acknowledged, and has been sent again %s (%s in the send queue).", times(int(c.Retransmits)), bytes)
	case c.PacketsOut > 0 && c.Retransmits > 0:
		return fmt.Sprintf("%d segments are not acknowledged; the oldest has been sent again %s (%s in the send queue).", c.PacketsOut, times(int(c.Retransmits)), bytes)
	case c.PacketsOut > 0:
		return fmt.Sprintf("%s in flight, and not acknowledged yet (%s in the send queue).", are(int(c.PacketsOut), "segment"), bytes)
	case c.SendQueue > 0:
		return bytes + " wait in the send queue, and nothing is in flight."
	}
	return "Nothing is in flight, and nothing waits to be sent."
}

func are(n int, thing string) string {
	if n == 1 {
		return humanize.Plural(n, thing) + " is"
	}
	return humanize.Plural(n, thing) + " are"
}

// judged says what the verdict rests on.
func (x *explainer) judged() string {
	if !x.conn.State.Judged() {
		return ""
	}
	asked := humanize.Plural(x.conn.Unanswered, x.conn.Evidence.Solicitation())
	switch x.conn.Verdict {
	case conn.Zombie:
		return fmt.Sprintf("Verdict: zombie. %s in a row went unanswered: the peer is most likely gone, and the kernel still waits.", asked)
	case conn.Suspect:
		if x.conn.State == conn.SynSent {
			return fmt.Sprintf("Verdict: suspect. %s in a row went unanswered: there may be nobody at that address, or something on the way drops the packets.", asked)
		}
		return fmt.Sprintf("Verdict: suspect. %s in a row went unanswered, which is not enough yet to call it a zombie.", asked)
	case conn.Stalled:
		return "Verdict: stalled. The peer answers, but has not made room for " + humanize.Age(x.rules.Age(x.c.WindowClosed)) + "."
	case conn.Unguarded:
		return "Verdict: unguarded. No data for " + humanize.Setting(x.rules.IdleAfter) + " or more, and keepalive is off: nothing would notice that the peer is gone."
	case conn.Idle:
		return "Verdict: idle. No data for " + humanize.Setting(x.rules.IdleAfter) + " or more, but the kernel would notice that the peer is gone."
	}
	return "Verdict: active. The connection was made, or data moved, within the last " + humanize.Setting(x.rules.IdleAfter) + ", and nothing is overdue."
}

// fires is when a timer does that is in the wheel.
func (x *explainer) fires(expires uint64, level uint8) (at, latest time.Time) {
	late := x.t
	late.Late = conn.Lateness
	f := x.rules.Between(x.c, x.conn.At, x.t.Pending(expires, level), late.Pending(expires, level), conn.CauseUnknown)
	return later(f.At, x.conn.At), later(f.Latest, x.conn.At)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (x *explainer) timers() []Timer { return []Timer{x.keepaliveTimer(), x.writeTimer()} }

func (x *explainer) keepaliveTimer() Timer {
	c := x.c
	t := Timer{
		Name:    "keepalive",
		Purpose: "Asks a silent peer for a sign of life, as long as nothing of ours is unacknowledged.",
	}
	if c.KeepaliveExpires != 0 {
		t.At, t.Latest = x.fires(c.KeepaliveExpires, c.KeepaliveLevel)
	}
	switch {
	case x.orphanedFinWait2():
		t.Name, t.Purpose = "fin_wait2", "Bounds the wait for the peer to close its side, since no application waits for it."
		t.Then = "Frees the socket; what is left of the wait, a small time_wait entry takes over."
		if c.KeepaliveExpires == 0 {
			t.Then = "Not running at this moment."
		}
	case !x.flag(abi.ConnKeepalive):
		t.At, t.Latest = time.Time{}, time.Time{}
		t.Then = "Not running: SO_KEEPALIVE is off."
	case x.conn.State == conn.SynSent:
		t.At, t.Latest = time.Time{}, time.Time{}
		t.Then = "Not running: it begins once the connection is made."
	case c.KeepaliveExpires == 0:
		t.Then = "Not running at this moment."
	default:
		t.Then = x.keepaliveThen()
	}
	return t
}

// keepaliveThen follows tcp_keepalive_timer().
func (x *explainer) keepaliveThen() string {
	c, r := x.c, x.rules
	now := x.t.Pending(c.KeepaliveExpires, c.KeepaliveLevel)
	silent := uint64(c.Silent) + now - c.Jiffies
	timeout := x.t.Msecs(c.UserTimeout)
	idle := humanize.Setting(r.Duration(c.KeepaliveTime))
	switch {
	case x.waiting():
		return "Sends nothing while data is unacknowledged, and waits for another " + idle + "."
	case silent < uint64(c.KeepaliveTime):
		return "The peer has not been silent for " + idle + " by then: it waits for the rest."
	case timeout > 0 && silent >= timeout && c.ProbesOut > 0:
		return "Gives the connection up: TCP_USER_TIMEOUT has passed."
	case timeout == 0 && c.ProbesOut >= c.KeepaliveProbes:
		return fmt.Sprintf("Gives the connection up: %s unanswered.", all(int(c.KeepaliveProbes), "probe"))
	case timeout > 0:
		return fmt.Sprintf("Sends probe %d, and looks again %s later whether TCP_USER_TIMEOUT has passed.", c.ProbesOut+1, humanize.Setting(r.Duration(c.KeepaliveIntvl)))
	}
	return fmt.Sprintf("Sends probe %d of %d; the next one, or the end, is %s later.", c.ProbesOut+1, c.KeepaliveProbes, humanize.Setting(r.Duration(c.KeepaliveIntvl)))
}

func all(n int, thing string) string {
	if n == 1 {
		return "the only " + thing + " is"
	}
	return fmt.Sprintf("all %d %ss are", n, thing)
}

func (x *explainer) writeTimer() Timer {
	c := x.c
	t := Timer{
		Name:    "retransmission",
		Purpose: "Sends again what the peer has not acknowledged, and gives up after long enough.",
		Then:    "Not running: nothing is in flight.",
	}
	if x.waiting() {
		t.Then = "Not running at this moment."
	}
	if c.WriteExpires == 0 || c.Pending == 0 {
		return t
	}
	gone := false // does it give up when it fires?
	if d := x.t.GiveUpPath(); d == conn.ByRetransmission || d == conn.ByWindowProbe {
		jiffy, by := x.t.GivesUp()
		gone = by != conn.CauseUnknown && jiffy == x.t.Pending(c.WriteExpires, c.WriteLevel) && c.Pending != abi.PendingTailLossProbe && c.Pending != abi.PendingReorder
	}
	switch {
	case c.Pending == abi.PendingTailLossProbe:
		t.Name, t.Purpose = "tail_loss_probe", "Sends the newest segment again early, in case only that was lost."
		t.Then = "Sends it, and sets the retransmission timer."
	case c.Pending == abi.PendingReorder:
		t.Name, t.Purpose = "reordering", "Waits a moment for segments that may only have been overtaken."
		t.Then = "Sends again what is lost by then, and sets the retransmission timer."
	case c.Pending == abi.PendingWindowProbe:
		t.Name, t.Purpose = "window_probe", "Asks a peer that has closed its window whether there is room again."
		if x.flag(abi.ConnBlocked) {
			t.Purpose = "Tries again what this host has not let out."
		}
		t.Then = fmt.Sprintf("Sends a window probe; the next wait is twice as long, %s at most.", humanize.Setting(x.rules.Duration(c.RtoMax)))
	case c.Pending != abi.PendingRetransmit:
		return t
	case x.conn.State == conn.SynSent:
		t.Purpose = "Sends the SYN again until the peer answers, and gives up after long enough."
		t.Then = fmt.Sprintf("Sends the SYN again (retransmission %d).", c.Retransmits+1)
	case c.SendWindow == 0 && !x.conn.Orphaned && !x.connecting():
		t.Purpose = "Asks a peer that has closed its window under data in flight whether there is room again."
		t.Then = "Sends the oldest segment again; the next wait is longer, " + humanize.Setting(x.rules.Duration(c.RtoMax)) + " at most."
	default:
		t.Then = fmt.Sprintf("Sends the oldest segment again (retransmission %d in a row); the next wait is longer, %s at most.",
			c.Retransmits+1, humanize.Setting(x.rules.Duration(c.RtoMax)))
	}
	if gone {
		t.Then = "Gives the connection up, unless the peer is heard before."
	}
	t.At, t.Latest = x.fires(c.WriteExpires, c.WriteLevel)
	return t
}

// in says when something happens that is forecast: in 5s, in 2m10s to 2m30s.
func (x *explainer) in(f conn.Forecast) string {
	from, spread := max(0, f.At.Sub(x.conn.At)), f.Latest.Sub(f.At)
	if spread < time.Second || spread < from/20 {
		return "in " + humanize.Age(from)
	}
	return "in " + humanize.Age(from) + " to " + humanize.Age(from+spread)
}

func (x *explainer) next() []string {
	f := x.conn.GivesUp
	if !f.Ever() {
		return []string{x.never()}
	}
	var says []string
	switch x.t.GiveUpPath() {
	case conn.ByKeepalive:
		says = append(says, x.probing())
	case conn.ByWindowProbe:
		if x.flag(abi.ConnBlocked) {
			says = append(says, "The kernel tries to send again at growing intervals.")
		} else {
			says = append(says, "The kernel goes on asking the peer for room. "+x.answering())
		}
	case conn.ByRetransmission:
		if x.closedWindow() {
			says = append(says, "The kernel goes on asking the peer for room. "+x.answering())
		} else if x.c.Retransmits > 0 {
			what := "it"
			if x.conn.State == conn.SynSent {
				what = "the SYN"
			}
			says = append(says, "The kernel sends "+what+" again at growing intervals. An answer sets all of this back.")
		}
	}
	says = append(says, x.end(f))
	if x.t.GiveUpPath() == conn.ByKeepalive && x.canSend() && x.conn.UserTimeout == 0 && x.conn.Unanswered == 0 {
		says = append(says, fmt.Sprintf("Should the application send meanwhile, keepalive waits, and only retransmission can end the connection: after about %s.",
			humanize.Age(x.retransmitsFor())))
	}
	return says
}

// never says that the kernel will not notice, and why.
func (x *explainer) never() string {
	switch {
	case x.waiting():
		return "No timer is running at this very moment: data is just being sent or acknowledged. Look again."
	case x.conn.State == conn.FinWait2:
		return "Never, by itself: keepalive is off and nothing is in flight, so the kernel asks nothing. It waits for the peer to close its side for as long as the application holds the socket."
	case x.conn.State == conn.CloseWait:
		return "Never, by itself: the connection stays in close_wait until the application closes the socket. Keepalive is off and nothing is in flight, so the kernel asks nothing."
	case x.flag(abi.ConnKeepalive):
		return "The keepalive timer is not running at this very moment. Look again."
	case !x.conn.Accepted:
		return "Never, by itself: keepalive is off and nothing is in flight, so the kernel asks nothing. It waits until the application accepts it."
	}
	return "Never: keepalive is off and nothing is in flight, so the kernel asks nothing. A peer that is gone is not noticed until the application sends something."
}

// probing says what keepalive is going to do.
func (x *explainer) probing() string {
	c, r := x.c, x.rules
	interval := humanize.Setting(r.Duration(c.KeepaliveIntvl))
	limit := fmt.Sprintf("gives up when %s unanswered", all(int(c.KeepaliveProbes), "probe"))
	if c.UserTimeout > 0 {
		limit = fmt.Sprintf("gives up once a probe is out and the peer has been silent for %s (TCP_USER_TIMEOUT; TCP_KEEPCNT then means nothing)",
			humanize.Setting(x.conn.UserTimeout))
	}
	if c.ProbesOut > 0 {
		return fmt.Sprintf("%s out. If the peer stays silent, the kernel sends one every %s, and %s. An answer sets all of this back.",
			are(int(c.ProbesOut), "probe"), interval, limit)
	}
	first := max(r.Duration(c.KeepaliveTime)-r.Duration(c.Silent), 0)
	at, _ := x.fires(c.KeepaliveExpires, c.KeepaliveLevel)
	first = max(first, at.Sub(x.conn.At))
	return fmt.Sprintf("If the peer stays silent, the first keepalive probe goes out in %s; from then on the kernel sends one every %s, and %s.",
		humanize.Age(first), interval, limit)
}

// answering says what becomes of a closed window that the peer keeps closed.
func (x *explainer) answering() string {
	switch {
	case x.conn.Orphaned:
		return "No application waits for it."
	case x.conn.UserTimeout > 0:
		return "TCP_USER_TIMEOUT ends it even if the peer answers."
	case x.conn.Verdict >= conn.Suspect:
		return "An answer sets all of this back."
	}
	return "As long as the peer answers and its window stays closed, it never gives up."
}

// endings is what the application gets when the kernel gives the connection up, for each
// cause that is a timeout.
var endings = [conn.Causes]string{
	conn.CauseKeepaliveTimeout:   "the application gets ETIMEDOUT",
	conn.CauseUserTimeout:        "the application gets ETIMEDOUT",
	conn.CauseRetransmitTimeout:  "the application gets ETIMEDOUT",
	conn.CauseWindowProbeTimeout: "the application gets ETIMEDOUT",
	conn.CauseConnectTimeout:     "connect(2) fails with ETIMEDOUT",
	conn.CauseOrphanTimeout:      "no application is told",
}

// end says when the kernel gives up, and what then.
func (x *explainer) end(f conn.Forecast) string {
	then := endings[f.By]
	switch {
	case x.conn.Orphaned:
		then = endings[conn.CauseOrphanTimeout]
	case x.connecting():
		then = endings[conn.CauseConnectTimeout]
	}
	if x.flag(abi.ConnSoftError) { // tcp_write_err()
		then = strings.Replace(then, "ETIMEDOUT", "the network error that was reported meanwhile, such as EHOSTUNREACH, or else ETIMEDOUT", 1)
	}
	if x.orphanedFinWait2() {
		return fmt.Sprintf("If the peer does not close its side, the kernel gives up %s (%s): %s.", x.in(f), f.By, then)
	}
	return fmt.Sprintf("If nothing is heard from the peer, the kernel gives up %s (%s): %s.", x.in(f), f.By, then)
}

// retransmitsFor is about how long the kernel sends again what nobody
// acknowledges, with this socket's settings once it is connected.
func (x *explainer) retransmitsFor() time.Duration {
	c := x.c
	if c.UserTimeout > 0 {
		return x.conn.UserTimeout
	}
	retries := int(c.Retries)
	if x.conn.Orphaned {
		retries = x.t.OrphanRetries(true)
	}
	return x.rules.Jiffies64(conn.RetransmitTime(retries, x.t.Hz/5, uint64(c.RtoMax)))
}
