// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// replay applies facts to a Tracker and keeps its notices.
type replay struct {
	*Tracker
	t       *testing.T
	start   time.Time
	notices []string // since the last expect
}

func newReplay(t *testing.T) *replay {
	r := &replay{t: t, start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r.Tracker = NewTracker(testRules, func(n Notice) {
		at := n.At.Sub(r.start)
		switch n.Kind {
		case NoticeSolicitation:
			r.notices = append(r.notices, fmt.Sprintf("%v %d unanswered", at, n.Connection.Unanswered))
		case NoticeVerdict:
			r.notices = append(r.notices, fmt.Sprintf("%v %v to %v", at, n.From, n.Connection.Verdict))
		case NoticeDeath:
			r.notices = append(r.notices, fmt.Sprintf("%v died of %v as %v", at, n.Death.Cause, n.Death.Verdict))
		}
	})
	return r
}

// at returns the time that long after the start.
func (r *replay) at(after time.Duration) time.Time { return r.start.Add(after) }

// stamp sets the time of a record.
func stamp(c *abi.Conn, after time.Duration) *abi.Conn {
	c.At = uint64(after)
	return c
}

// solicit applies the event of a solicitation.
func (r *replay) solicit(after time.Duration, c *abi.Conn) {
	r.Apply(&Fact{Kind: FactEvent, At: r.at(after), Event: &abi.Event{Type: abi.EventSolicitation, Conn: *stamp(c, after)}})
}

// die applies the event of a death.
func (r *replay) die(after time.Duration, cause Cause, c *abi.Conn) {
	r.Apply(&Fact{Kind: FactEvent, At: r.at(after), Event: &abi.Event{Type: abi.EventDeath, Cause: uint8(cause), Err: 110, Conn: *stamp(c, after)}})
}

// lastDeath returns the newest death.
func (r *replay) lastDeath() Death {
	r.t.Helper()
	for d := range r.Deaths() {
		return *d
	}
	r.t.Fatal("no death is remembered")
	return Death{}
}

// expect fails unless these are the notices since its last call.
func (r *replay) expect(notices ...string) {
	r.t.Helper()
	if !slices.Equal(r.notices, notices) {
		r.t.Errorf("notices:\n%q\nexpected:\n%q", r.notices, notices)
	}
	r.notices = nil
}

// counted fails unless the established connections are counted under these verdicts.
func (r *replay) counted(want map[Verdict]int64) {
	r.t.Helper()
	for v, n := range r.counts[Established] {
		if n != want[Verdict(v)] {
			r.t.Errorf("%d established connections are counted as %v, expected %d", n, Verdict(v), want[Verdict(v)])
		}
	}
}

// census returns the counts of a census that found so many established connections.
func census(active, idle, unguarded uint64) *abi.CensusCounts {
	var c abi.CensusCounts
	c.Sockets[abi.StateEstablished][abi.ClassActive] = active
	c.Sockets[abi.StateEstablished][abi.ClassIdle] = idle
	c.Sockets[abi.StateEstablished][abi.ClassUnguarded] = unguarded
	c.Sockets[abi.StateListen][abi.ClassNone] = 4
	return &c
}

// seen returns these records as observations of one time.
func seen(at time.Time, connections ...abi.Conn) []Observation {
	var s []Observation
	for _, c := range connections {
		s = append(s, Observation{c, at})
	}
	return s
}

func TestTrackerFromFirstProbeToDeath(t *testing.T) {
	r := newReplay(t)
	r.census(&Census{Counts: census(3, 0, 0), Began: r.at(0)}, r.at(0))
	r.counted(map[Verdict]int64{Active: 3})
	for n := range 9 {
		after := time.Duration(3+n) * time.Second
		r.solicit(after, conntest.Silent(abi.EvidenceKeepalive, uint16(2+n), after))
	}
	r.expect("3s 2 unanswered", "3s active to suspect", "4s 3 unanswered", "5s 4 unanswered", "6s 5 unanswered",
		"7s 6 unanswered", "8s 7 unanswered", "9s 8 unanswered", "10s 9 unanswered", "10s suspect to zombie",
		"11s 10 unanswered")
	r.counted(map[Verdict]int64{Active: 2, Zombie: 1})
	r.die(12*time.Second, CauseKeepaliveTimeout, conntest.Silent(abi.EvidenceKeepalive, 10, 12*time.Second))
	r.expect("12s died of keepalive_timeout as zombie")
	r.counted(map[Verdict]int64{Active: 2})
	if d := r.lastDeath(); d.ZombieFor != 2*time.Second || d.Unanswered != 10 || d.Errno != 110 {
		t.Errorf("death is %+v", d)
	}
	if r.zombieSeconds.Sum != 2 || r.zombieSeconds.Counts[1] != 1 {
		t.Errorf("zombie seconds are %+v", r.zombieSeconds)
	}
	if len(r.tracked) != 0 || len(r.histories) != 0 {
		t.Errorf("the dead connection is still tracked: %v, histories %v", r.tracked, r.histories)
	}
}

func TestTrackerRecovery(t *testing.T) {
	r := newReplay(t)
	r.census(&Census{Counts: census(1, 0, 0), Began: r.at(0)}, r.at(0))
	r.solicit(10*time.Second, conntest.Silent(abi.EvidenceKeepalive, 9, 10*time.Second))
	r.watched(stamp(conntest.With(func(c *abi.Conn) { c.Flags |= abi.ConnAnswered }), 12*time.Second), r.at(12*time.Second))
	r.expect("10s 9 unanswered", "10s active to zombie", "12s zombie to active")
	r.counted(map[Verdict]int64{Active: 1})
	if len(r.tracked) != 0 {
		t.Errorf("still tracked: %v", r.tracked)
	}
	if r.zombieSeconds.Sum != 2 {
		t.Errorf("zombie seconds are %+v", r.zombieSeconds)
	}
	t.Run("its history has the time of the answer and how long it took", func(t *testing.T) {
		answer := r.histories[0x1a2b].entries[2]
		// Silent for a second at 12 s; the last solicitation went 100 ms before 10 s.
		if answer.Kind != HistoryAnswer || !answer.At.Equal(r.at(11*time.Second)) || answer.Took != 1100*time.Millisecond || answer.Unanswered != 9 {
			t.Errorf("%+v", answer)
		}
	})
	t.Run("its history has the time of the recovery", func(t *testing.T) {
		connection := r.describeTracked(conntest.With(func(*abi.Conn) {}), r.at(13*time.Second), nil)
		if !connection.Since.Equal(r.at(12 * time.Second)) {
			t.Errorf("active since %v", connection.Since)
		}
	})
	t.Run("its history is forgotten after a quarter of an hour", func(t *testing.T) {
		r.census(&Census{Counts: census(1, 0, 0), Began: r.at(11 * time.Minute)}, r.at(11*time.Minute))
		if len(r.histories) != 1 {
			t.Error("the history is forgotten too early")
		}
		r.census(&Census{Counts: census(1, 0, 0), Began: r.at(16 * time.Minute)}, r.at(16*time.Minute))
		if len(r.histories) != 0 {
			t.Error("the history is not forgotten")
		}
	})
}

func TestTrackerDeathThatClearsTheUnansweredCount(t *testing.T) {
	dead := func(silent time.Duration) *abi.Conn {
		c := conntest.Silent(abi.EvidenceNone, 0, silent)
		c.Flags &^= abi.ConnTrouble
		c.Jiffies = uint64(conntest.Ago(time.Hour + 11*time.Second))
		return c
	}
	zombie := func() *abi.Conn {
		c := conntest.Silent(abi.EvidenceRetransmit, 6, 10*time.Second)
		c.Jiffies = uint64(conntest.Ago(time.Hour + 10*time.Second))
		return c
	}

	t.Run("destroyed, and the peer was not heard since", func(t *testing.T) {
		r := newReplay(t)
		r.solicit(10*time.Second, zombie())
		r.die(11*time.Second, CauseDestroyed, dead(11*time.Second))
		if d := r.lastDeath(); d.Unanswered != 6 || d.Evidence != EvidenceRetransmit || d.Verdict != Zombie {
			t.Errorf("%d unanswered, evidence %v, verdict %v", d.Unanswered, d.Evidence, d.Verdict)
		}
	})
	t.Run("a reset by the peer is an answer", func(t *testing.T) {
		r := newReplay(t)
		r.solicit(10*time.Second, zombie())
		r.die(11*time.Second, CauseResetByPeer, dead(0))
		if d := r.lastDeath(); d.Unanswered != 0 || d.Evidence != NoEvidence || d.Verdict != Zombie {
			t.Errorf("%d unanswered, evidence %v, verdict %v", d.Unanswered, d.Evidence, d.Verdict)
		}
	})
}

func TestTrackerForecastError(t *testing.T) {
	die := func(after time.Duration, cause Cause) Death {
		r := newReplay(t)
		c := conntest.Silent(abi.EvidenceKeepalive, 2, 2*time.Hour+75*time.Second)
		c.Jiffies, c.ProbesOut, c.Idle = conntest.Jiffies, 2, c.Silent
		c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 75*time.Second)
		r.solicit(0, c)
		dead := *c
		dead.Jiffies += uint64(conntest.Ago(after))
		dead.Silent += conntest.Ago(after)
		r.die(after, cause, &dead)
		return r.lastDeath()
	}
	// Two probes are out; the timer fires in 75 s and seven times after that, and
	// each time the wheel adds up to two seconds.
	if d := die(8*75*time.Second+7*time.Second, CauseKeepaliveTimeout); !d.Forecast.Ever() || d.ForecastError != 0 {
		t.Errorf("expected no error: forecast %+v, error %v", d.Forecast, d.ForecastError)
	}
	if d := die(500*time.Second, CauseKeepaliveTimeout); d.ForecastError > -99*time.Second || d.ForecastError < -120*time.Second {
		t.Errorf("expected 100 s early, and a little more for the timer wheel: error %v", d.ForecastError)
	}
	if d := die(700*time.Second, CauseKeepaliveTimeout); d.ForecastError < 70*time.Second || d.ForecastError > 100*time.Second {
		t.Errorf("expected 100 s late, less the slack of the timer wheel: error %v", d.ForecastError)
	}
	if d := die(500*time.Second, CauseUserTimeout); d.ForecastError > -99*time.Second || d.ForecastError < -120*time.Second {
		t.Errorf("expected early, by another timeout than forecast: error %v", d.ForecastError)
	}
	if d := die(500*time.Second, CauseResetByPeer); d.Forecast.Ever() || d.ForecastError != 0 {
		t.Errorf("expected no forecast of a reset: %+v", d.Forecast)
	}
}

// The death of an orphan is compared with what was said while close(2) waited. It is not if a
// signal ended that wait.
func TestTrackerForecastErrorOfAnOrphan(t *testing.T) {
	die := func(orphan, died time.Duration) Death {
		r := newReplay(t)
		c := conntest.Lingering(func(c *abi.Conn) { c.Retries = 3 }) // an orphan after 15 s, dead after 40
		r.solicit(0, c)
		later := *c
		later.Flags ^= abi.ConnLingering | abi.ConnOrphan
		later.Jiffies += uint64(conntest.Ago(orphan))
		later.Silent += conntest.Ago(orphan)
		later.WriteExpires, later.WriteLevel = conntest.Arm(&later, died-orphan)
		r.solicit(orphan, &later)
		r.die(died, CauseOrphanTimeout, &later)
		return r.lastDeath()
	}
	if d := die(15100*time.Millisecond, 41*time.Second); !d.Forecast.Ever() || d.ForecastError != 0 {
		t.Errorf("expected no error: forecast %+v, error %v", d.Forecast, d.ForecastError)
	}
	if d := die(15100*time.Millisecond, 20*time.Second); d.ForecastError > -19*time.Second || d.ForecastError < -23*time.Second {
		t.Errorf("expected 19 s early: error %v", d.ForecastError)
	}
	if d := die(6*time.Second, 13*time.Second); !d.Forecast.Ever() || d.ForecastError.Abs() > 500*time.Millisecond {
		t.Errorf("after a signal, expected no error but that of the timer wheel: forecast %+v, error %v", d.Forecast, d.ForecastError)
	}
}

func TestTrackerTroubleBeforeItWasFirstSeen(t *testing.T) {
	r := newReplay(t)
	c := conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
	c.Solicited, c.Jiffies, c.KeepaliveIntvl = abi.AgeNone, 1000000, conntest.Ago(time.Second)
	c.KeepaliveExpires = c.Jiffies + uint64(conntest.Ago(500*time.Millisecond))
	var initial bool
	r.notify = func(n Notice) { initial = n.Initial }
	r.census(&Census{Counts: census(0, 0, 0), Began: r.at(0), Troubled: seen(r.at(0), *c)}, r.at(0))
	m := r.tracked[c.Cookie]
	if !initial || m.verdict != Zombie || r.at(0).Sub(m.since) != 6500*time.Millisecond {
		t.Errorf("initial %v, %v for %v", initial, m.verdict, r.at(0).Sub(m.since))
	}
	if len(r.histories) != 0 {
		t.Errorf("nothing happened, but the histories are %+v", r.histories)
	}
}

func TestTrackerIgnoresOlderRecords(t *testing.T) {
	r := newReplay(t)
	r.solicit(10*time.Second, conntest.Silent(abi.EvidenceKeepalive, 9, 10*time.Second))
	r.notices = nil
	// This record was read before that event and is applied after it.
	r.watched(stamp(conntest.Silent(abi.EvidenceKeepalive, 8, 9*time.Second), 9*time.Second), r.at(9*time.Second))
	r.expect()
	if m := r.tracked[0x1a2b]; m.verdict != Zombie || m.conn.Unanswered != 9 {
		t.Errorf("went back to %v with %d unanswered", m.verdict, m.conn.Unanswered)
	}
}

func TestTrackerDeathWithoutEvent(t *testing.T) {
	gone := &abi.Conn{Cookie: 0x1a2b, Flags: abi.ConnGone}

	t.Run("the event comes late", func(t *testing.T) {
		r := newReplay(t)
		r.solicit(10*time.Second, conntest.Silent(abi.EvidenceKeepalive, 9, 10*time.Second))
		r.notices = nil
		r.watched(gone, r.at(11*time.Second))
		r.sweep(r.at(11500 * time.Millisecond))
		r.die(11*time.Second, CauseKeepaliveTimeout, conntest.Silent(abi.EvidenceKeepalive, 10, 11*time.Second))
		r.sweep(r.at(13 * time.Second))
		r.expect("11s died of keepalive_timeout as zombie")
	})
	t.Run("the watch pass has the cause", func(t *testing.T) {
		r := newReplay(t)
		r.solicit(10*time.Second, conntest.Silent(abi.EvidenceKeepalive, 9, 10*time.Second))
		r.notices = nil
		caused := *gone
		caused.Cause, caused.Evidence = abi.CauseUserTimeout, abi.EvidenceKeepalive
		r.watched(&caused, r.at(11*time.Second))
		r.expect("11s died of user_timeout as zombie")
		if d := r.lastDeath(); d.During != EvidenceKeepalive || d.Unanswered != 9 {
			t.Errorf("death is %+v", d)
		}
	})
	t.Run("the event never comes", func(t *testing.T) {
		r := newReplay(t)
		r.census(&Census{Counts: census(0, 1, 0), Began: r.at(0)}, r.at(0))
		r.solicit(10*time.Second, conntest.Silent(abi.EvidenceKeepalive, 9, 10*time.Second))
		r.notices = nil
		r.watched(gone, r.at(11*time.Second))
		r.sweep(r.at(12 * time.Second))
		r.expect("11s died of unknown as zombie")
		if len(r.tracked) != 0 || r.unseen != 1 {
			t.Errorf("%d still tracked, %d deaths unseen", len(r.tracked), r.unseen)
		}
	})
}

func TestTrackerCensus(t *testing.T) {
	zombie := func(cookie uint64, after time.Duration) abi.Conn {
		c := conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
		c.Cookie = cookie
		return *stamp(c, after)
	}

	t.Run("finds the trouble that began before the agent", func(t *testing.T) {
		r := newReplay(t)
		r.census(&Census{Counts: census(5, 3, 2), Began: r.at(0), Troubled: seen(r.at(0), zombie(1, 0), zombie(2, 0))}, r.at(0))
		r.expect("0s active to zombie", "0s active to zombie")
		r.counted(map[Verdict]int64{Active: 5, Idle: 3, Unguarded: 2, Zombie: 2})
	})
	t.Run("counts each connection once, whenever its trouble began", func(t *testing.T) {
		r := newReplay(t)
		r.census(&Census{Counts: census(10, 0, 0), Began: r.at(0)}, r.at(0))
		z := zombie(1, time.Second)
		r.Apply(&Fact{Kind: FactEvent, At: r.at(time.Second), Event: &abi.Event{Type: abi.EventSolicitation, Conn: z}})
		r.counted(map[Verdict]int64{Active: 9, Zombie: 1})
		// The next census reads it as a zombie.
		r.census(&Census{Counts: census(9, 0, 0), Began: r.at(15 * time.Second), Troubled: seen(r.at(15*time.Second), zombie(1, 15*time.Second))}, r.at(16*time.Second))
		r.counted(map[Verdict]int64{Active: 9, Zombie: 1})
		// The one after that reads another connection just before its trouble.
		z = zombie(2, 31*time.Second)
		r.Apply(&Fact{Kind: FactEvent, At: r.at(31 * time.Second), Event: &abi.Event{Type: abi.EventSolicitation, Conn: z}})
		r.census(&Census{Counts: census(9, 0, 0), Began: r.at(30 * time.Second), Troubled: seen(r.at(30*time.Second), zombie(1, 30*time.Second))}, r.at(32*time.Second))
		r.counted(map[Verdict]int64{Active: 8, Zombie: 2})
	})
	t.Run("applies each connection with the time of its record", func(t *testing.T) {
		r := newReplay(t)
		r.census(&Census{Counts: census(0, 0, 0), Began: r.at(0), Troubled: seen(r.at(3*time.Second), zombie(1, 3*time.Second))}, r.at(5*time.Second))
		if m := r.tracked[1]; !m.at.Equal(r.at(3 * time.Second)) {
			t.Errorf("its record is of %v", m.at)
		}
	})
	t.Run("forgets connections that are out of trouble, and does not call them dead", func(t *testing.T) {
		r := newReplay(t)
		r.census(&Census{Counts: census(0, 0, 0), Began: r.at(0), Troubled: seen(r.at(0), zombie(1, 0))}, r.at(0))
		r.notices = nil
		r.census(&Census{Counts: census(1, 0, 0), Began: r.at(15 * time.Second)}, r.at(15*time.Second))
		r.sweep(r.at(17 * time.Second))
		r.expect()
		r.counted(map[Verdict]int64{Active: 1})
		if len(r.tracked) != 0 || r.deaths.len != 0 || r.zombieSeconds.Sum != 15 {
			t.Errorf("%d tracked connections, %d deaths, zombie seconds %v", len(r.tracked), r.deaths.len, r.zombieSeconds)
		}
	})
	t.Run("does not revive a connection that it read before its death", func(t *testing.T) {
		r := newReplay(t)
		z := zombie(1, 0)
		r.census(&Census{Counts: census(0, 0, 0), Began: r.at(0), Troubled: seen(r.at(0), z)}, r.at(0))
		r.die(time.Second, CauseKeepaliveTimeout, &z)
		r.notices = nil
		r.watched(&z, r.at(0))
		r.census(&Census{Counts: census(0, 0, 0), Began: r.at(500 * time.Millisecond), Troubled: seen(r.at(500*time.Millisecond), z)}, r.at(2*time.Second))
		r.expect()
		r.counted(nil)
		if len(r.tracked) != 0 {
			t.Errorf("%d tracked connections", len(r.tracked))
		}
	})
	t.Run("keeps counting the connections in trouble of a network namespace that it did not walk", func(t *testing.T) {
		r := newReplay(t)
		z := zombie(1, 0)
		z.Netns = 7
		r.census(&Census{Counts: census(0, 0, 0), Began: r.at(0), Troubled: seen(r.at(0), z)}, r.at(0))
		// The census counts ten active connections; the zombie is not among them.
		r.watched(stamp(&z, 2*time.Second), r.at(2*time.Second))
		r.census(&Census{Counts: census(10, 0, 0), Began: r.at(time.Second), Unwalked: []uint32{7}}, r.at(3*time.Second))
		r.counted(map[Verdict]int64{Active: 10, Zombie: 1})
	})
	t.Run("does not undo a recovery after it read the connection", func(t *testing.T) {
		r := newReplay(t)
		z := zombie(1, 2*time.Second)
		r.watched(stamp(&z, time.Second), r.at(time.Second))
		well := conntest.With(func(c *abi.Conn) { c.Cookie, c.Flags = 1, c.Flags|abi.ConnAnswered })
		r.watched(stamp(well, 3*time.Second), r.at(3*time.Second))
		r.notices = nil
		r.census(&Census{Counts: census(0, 0, 0), Began: r.at(2 * time.Second), Troubled: seen(r.at(2*time.Second), zombie(1, 2*time.Second))}, r.at(4*time.Second))
		r.expect()
		r.counted(map[Verdict]int64{Active: 1})
		if len(r.tracked) != 0 {
			t.Errorf("%d tracked connections", len(r.tracked))
		}
		// A newer record puts it in trouble again.
		r.watched(stamp(&z, 5*time.Second), r.at(5*time.Second))
		r.expect("5s active to zombie")
	})
	t.Run("keeps connections that only the watch pass reads", func(t *testing.T) {
		r := newReplay(t)
		z := zombie(1, 0)
		for s := range 40 {
			r.watched(stamp(&z, time.Duration(s)*time.Second), r.at(time.Duration(s)*time.Second))
			if s%15 == 0 {
				r.census(&Census{Counts: census(0, 0, 0), Began: r.at(time.Duration(s) * time.Second)}, r.at(time.Duration(s)*time.Second))
			}
		}
		r.expect("0s active to zombie")
		r.counted(map[Verdict]int64{Zombie: 1})
		if r.zombieSeconds.Sum != 0 {
			t.Errorf("zombie seconds %v", r.zombieSeconds)
		}
	})
	t.Run("never counts below zero", func(t *testing.T) {
		r := newReplay(t)
		z := zombie(1, 0)
		r.Apply(&Fact{Kind: FactEvent, At: r.at(0), Event: &abi.Event{Type: abi.EventSolicitation, Conn: z}})
		r.counted(map[Verdict]int64{Zombie: 1})
		r.die(time.Second, CauseResetByPeer, &z)
		r.counted(nil)
	})
}

func TestTrackerIsBounded(t *testing.T) {
	r := newReplay(t)
	troubled := make([]abi.Conn, maxTracked+23)
	for i := range troubled {
		troubled[i] = *conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
		troubled[i].Cookie = uint64(i + 1)
	}
	r.census(&Census{Counts: census(0, 0, 0), Began: r.at(0), Troubled: seen(r.at(0), troubled...)}, r.at(0))
	if len(r.tracked) != maxTracked || len(r.histories) > maxHistories {
		t.Errorf("%d tracked connections, %d histories", len(r.tracked), len(r.histories))
	}
	r.counted(map[Verdict]int64{Zombie: maxTracked + 23})
	for i := range maxDeaths + 23 {
		c := conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
		c.Cookie = uint64(i + 1)
		r.die(time.Duration(i)*time.Millisecond, CauseKeepaliveTimeout, c)
	}
	if r.deaths.len != maxDeaths {
		t.Errorf("%d deaths are remembered", r.deaths.len)
	}
	last := time.Duration(maxDeaths+22) * time.Millisecond
	for d := range r.Deaths() {
		if !d.DiedAt.Equal(r.at(last)) {
			t.Fatalf("died at %v, expected %v: newest first", d.DiedAt, r.at(last))
		}
		last -= time.Millisecond
	}
	for range maxEntries + 23 {
		r.appendHistory(0x1a2b, HistoryEntry{Kind: HistorySolicitation})
	}
	if n := len(r.histories[0x1a2b].entries); n != maxEntries {
		t.Errorf("a history has %d entries", n)
	}
}

// Their number is bounded however long it is until the next census.
func TestRecoveriesAreBounded(t *testing.T) {
	r := newReplay(t)
	for i := range maxTracked + 23 {
		c := conntest.Silent(abi.EvidenceKeepalive, 9, time.Minute)
		c.Cookie = uint64(i + 1)
		r.solicit(time.Second, c)
		c = conntest.With(func(c *abi.Conn) { c.Cookie = uint64(i + 1) })
		r.watched(stamp(c, 2*time.Second), r.at(2*time.Second))
	}
	if len(r.tracked) != 0 || len(r.recovered) != maxTracked || r.overflowed < 23 {
		t.Errorf("%d tracked, %d recovered, %d overflowed; expected 0, %d and 23 or more", len(r.tracked), len(r.recovered), r.overflowed, maxTracked)
	}
	r.census(&Census{Counts: census(0, 0, 0), Began: r.at(3 * time.Second)}, r.at(3*time.Second))
	if len(r.recovered) != 0 {
		t.Errorf("%d recoveries are remembered after a census", len(r.recovered))
	}
}

func BenchmarkEvent(b *testing.B) {
	tracker := NewTracker(testRules, nil)
	e := abi.Event{Type: abi.EventSolicitation, Conn: *conntest.Silent(abi.EvidenceKeepalive, 2, time.Minute)}
	start := time.Now()
	b.ReportAllocs()
	for i := range b.N {
		e.Conn.Cookie = uint64(i%1000 + 1)
		e.Conn.At++
		tracker.Apply(&Fact{Kind: FactEvent, At: start.Add(time.Duration(e.Conn.At)), Event: &e})
	}
}

// Between two heartbeats of a peer that acknowledges nothing the connection stays stuck.
func TestTrackerStuckBetweenHeartbeats(t *testing.T) {
	r := newReplay(t)
	r.census(&Census{Counts: census(1, 0, 0), Began: r.at(0)}, r.at(0))
	// look shows the connection as a watch pass at that time finds it, with the peer last
	// heard at that time. The retransmissions began at 10 s, one each second.
	const began = 10 * time.Second
	look := func(after, heard time.Duration) {
		unanswered := uint16((after - max(heard, began)) / time.Second)
		c := conntest.Silent(abi.EvidenceRetransmit, unanswered, after-heard) // the last 100 ms ago
		c.Jiffies = conntest.Jiffies + uint64(conntest.Ago(after))
		c.Unacknowledged, c.Retransmitting = uint16((after-began)/time.Second), conntest.Ago(after-began)
		c.Accepted = conntest.Ago(after)
		r.Apply(&Fact{Kind: FactWatch, At: r.at(after), Conn: stamp(c, after)})
	}
	for after := 11 * time.Second; after < 50*time.Second; after += time.Second {
		look(after, after.Truncate(12*time.Second)) // a heartbeat every 12 s
	}
	r.expect("14s active to suspect", "20s suspect to stuck")
	// The last heartbeat was at 48 s. Twice the time between two of them may pass.
	for after := 50 * time.Second; after < 72*time.Second; after += time.Second {
		look(after, 48*time.Second)
	}
	r.expect()
	look(72*time.Second, 48*time.Second)
	r.expect("1m12s stuck to zombie")
	look(73*time.Second, 73*time.Second)
	r.expect("1m13s zombie to stuck")
	recovered := conntest.With(func(c *abi.Conn) { c.Jiffies = conntest.Jiffies + uint64(conntest.Ago(74*time.Second)) })
	r.Apply(&Fact{Kind: FactWatch, At: r.at(74 * time.Second), Conn: stamp(recovered, 74*time.Second)})
	r.expect("1m14s stuck to active")
	r.counted(map[Verdict]int64{Active: 1})
}

// halfopen probe has the kernel send three probes, three seconds apart, on a connection without
// keepalive. While it sends one, the settings are others, as the record of the event shows.
func TestTrackerOfAConnectionThatWasAsked(t *testing.T) {
	// asked returns the record of the connection after that many probes, the last of them that long
	// ago, whose peer was last heard at heard.
	asked := func(at, heard, last time.Duration, probes uint16) *abi.Conn {
		c := conntest.Silent(abi.EvidenceKeepalive, probes, at-heard)
		c.Jiffies = conntest.Jiffies + uint64(conntest.Ago(at))
		c.Class, c.Flags = abi.ClassUnguarded, c.Flags&^abi.ConnKeepalive
		c.Unacknowledged, c.ProbesOut = probes, uint8(probes)
		c.Accepted, c.Solicited = c.Silent, conntest.Ago(last)
		return c
	}
	sending := func(c *abi.Conn) *abi.Conn {
		c.Flags |= abi.ConnKeepalive
		c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes, c.Solicited = conntest.Ago(time.Second), conntest.Ago(32767*time.Second), 127, 0
		return c
	}
	for name, test := range map[string]struct {
		heard time.Duration // before the first probe, at 0
		want  []string
	}{
		"it was silent for long": {-time.Hour, []string{
			"2s unguarded to suspect", "3s 2 unanswered", "6s 3 unanswered", "6.1s suspect to zombie",
		}},
		"it was heard just before": {-2 * time.Second, []string{
			"2s unguarded to suspect", "3s 2 unanswered", "6s 3 unanswered", "8s suspect to zombie",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplay(t)
			r.census(&Census{Counts: census(0, 0, 1), Began: r.at(-2 * time.Minute)}, r.at(-2*time.Minute))
			watch := func(after time.Duration, c *abi.Conn) {
				r.Apply(&Fact{Kind: FactWatch, At: r.at(after), Conn: stamp(c, time.Hour+after)})
			}
			var sent uint16
			for after := time.Duration(0); after <= 30*time.Minute; after += 100 * time.Millisecond {
				if after%(3*time.Second) == 0 && sent < 3 {
					if sent++; sent > 1 { // the first sends no event
						r.Apply(&Fact{Kind: FactEvent, At: r.at(after), Event: &abi.Event{
							Type: abi.EventSolicitation, Conn: *stamp(sending(asked(after, test.heard, 0, sent)), time.Hour+after),
						}})
					}
				} else {
					watch(after, asked(after, test.heard, after-time.Duration(sent-1)*3*time.Second, sent))
				}
			}
			r.expect(test.want...) // and it stays one
			answered := conntest.Unguarded()
			answered.Jiffies = conntest.Jiffies + uint64(conntest.Ago(time.Hour))
			answered.Silent = conntest.Ago(time.Second)
			watch(time.Hour, answered)
			r.expect("1h0m0s zombie to unguarded")
		})
	}
}
