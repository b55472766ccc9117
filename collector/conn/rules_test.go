// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"slices"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

var testRules = Rules{
	IdleAfter:        5 * time.Minute,
	StalledAfter:     10 * time.Second,
	ZombieUnanswered: 3,
	ZombieSilence:    10 * time.Second,
	Middleboxes:      Middleboxes{Default: 350 * time.Second},
	UnreadAfter:      30 * time.Second,
	HZ:               conntest.HZ,
}

// stuckFor returns the record of a connection of which that many solicitations are not
// acknowledged, the first of them that long ago; the peer was last heard at silent. Keepalive
// probes are a second apart.
func stuckFor(evidence uint8, unacknowledged uint16, since, silent time.Duration) *abi.Conn {
	c := conntest.Silent(evidence, 0, silent)
	c.Unacknowledged, c.Retransmitting = unacknowledged, conntest.Ago(since)
	c.KeepaliveIntvl, c.Solicited = conntest.Ago(time.Second), 0
	c.Accepted = conntest.Ago(since + time.Second)
	return c
}

// blockedFor returns the record of a connection of which this host failed to send that many
// keepalive probes, the first of them that long ago.
func blockedFor(attempts uint8, failing time.Duration) *abi.Conn {
	c := conntest.Silent(abi.EvidenceKeepalive, 0, failing+time.Minute)
	c.Attempts, c.Failing = attempts, conntest.Ago(failing)
	return c
}

// satellite returns the record of a connection with that many unanswered keepalive probes, a
// second apart, the last of them just now, a smoothed round trip, and a timeout without
// backoff.
func satellite(silent time.Duration, unanswered uint16, srtt, rto time.Duration) *abi.Conn {
	c := conntest.Silent(abi.EvidenceKeepalive, unanswered, silent)
	c.Solicited, c.KeepaliveIntvl = 0, conntest.Ago(time.Second)
	c.Srtt, c.Rto = uint32(srtt.Microseconds()), conntest.Ago(rto)
	return c
}

// unaccepted returns the record of a connection that was made that long ago, and of which TCP
// accepted nothing since; segments came at silent. That many retransmissions are not
// acknowledged, unanswered of them since, and the first of them that long ago.
func unaccepted(made, silent, since time.Duration, unacknowledged, unanswered uint16) *abi.Conn {
	c := stuckFor(abi.EvidenceRetransmit, unacknowledged, since, silent)
	c.Flags |= abi.ConnNeverAcked
	c.Accepted, c.Unanswered, c.Solicited = conntest.Ago(made), unanswered, conntest.Ago(3*time.Second)
	return c
}

func TestJudge(t *testing.T) {
	for name, test := range map[string]struct {
		conn     *abi.Conn
		verdict  Verdict
		evidence Evidence
	}{
		"data just moved": {conntest.With(func(*abi.Conn) {}), Active, NoEvidence},
		"idle with keepalive": {
			conntest.With(func(c *abi.Conn) { c.Class = abi.ClassIdle }), Idle, NoEvidence,
		},
		"idle without keepalive": {
			conntest.With(func(c *abi.Conn) { c.Class = abi.ClassUnguarded }), Unguarded, NoEvidence,
		},
		"a first probe just went out, as on every healthy idle connection": {
			conntest.Silent(abi.EvidenceKeepalive, 1, 2*time.Hour), Active, NoEvidence,
		},
		"a first probe has been out for two seconds": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 1, 2*time.Hour)
				c.Solicited = conntest.Ago(2 * time.Second)
				return c
			}(), Suspect, EvidenceKeepalive,
		},
		"a first probe that we did not observe": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 1, 2*time.Hour)
				c.Solicited = abi.AgeNone
				return c
			}(), Suspect, EvidenceKeepalive,
		},
		"a second one just went out, and the first waits since 75 seconds": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 2, 2*time.Hour)
				c.Solicited = conntest.Ago(20 * time.Millisecond)
				return c
			}(), Suspect, EvidenceKeepalive,
		},
		"a second window probe just went out; the first may have met the peer's limit on answers": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceWindowProbe, 2, time.Minute)
				c.Solicited, c.Rto, c.RtoMax, c.Backoff = conntest.Ago(20*time.Millisecond), conntest.Ago(208*time.Millisecond), conntest.Ago(2*time.Minute), 2
				return c
			}(), Active, NoEvidence,
		},
		"a third one just went out, and may be answered": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 3, 2*time.Hour)
				c.Solicited = conntest.Ago(20 * time.Millisecond)
				return c
			}(), Suspect, EvidenceKeepalive,
		},
		"a third one went out a long round trip ago, and may still be answered": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 3, 2*time.Hour)
				c.Solicited, c.Srtt, c.Rto = conntest.Ago(200*time.Millisecond), 150000, conntest.Ago(400*time.Millisecond)
				return c
			}(), Suspect, EvidenceKeepalive,
		},
		"a fourth one just went out": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 4, 2*time.Hour)
				c.Solicited = conntest.Ago(0)
				return c
			}(), Zombie, EvidenceKeepalive,
		},
		"a first probe that we did not observe, a second ago by the timer of the next": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 1, 2*time.Hour)
				c.Solicited, c.Jiffies, c.KeepaliveExpires = abi.AgeNone, 1000000, 1000000+uint64(conntest.Ago(74*time.Second))
				return c
			}(), Active, NoEvidence,
		},
		"two unanswered": {conntest.Silent(abi.EvidenceRetransmit, 2, time.Minute), Suspect, EvidenceRetransmit},
		"three unanswered, but heard of less than ten seconds ago": {
			conntest.Silent(abi.EvidenceRetransmit, 3, 9900*time.Millisecond), Suspect, EvidenceRetransmit,
		},
		"three unanswered and silent for ten seconds": {
			conntest.Silent(abi.EvidenceKeepalive, 3, 10*time.Second), Zombie, EvidenceKeepalive,
		},
		"data that the application has left": {
			conntest.Leave(conntest.Unguarded(), 11584, 30*time.Second), Unread, EvidenceReceiveQueue,
		},
		"data that the application has left for less than --unread-after, by the kernel's count": {
			func() *abi.Conn {
				c := conntest.Leave(conntest.Unguarded(), 11584, 29*time.Second)
				c.Flags &^= abi.ConnUnread
				return c
			}(), Unguarded, NoEvidence,
		},
		"unread, and the first probe is out": {
			conntest.Leave(conntest.Silent(abi.EvidenceKeepalive, 1, time.Minute), 1, time.Minute), Unread, EvidenceReceiveQueue,
		},
		"unread, and a zombie": {
			conntest.Leave(conntest.Silent(abi.EvidenceKeepalive, 3, time.Minute), 1, time.Minute), Zombie, EvidenceKeepalive,
		},
		"unread, and a suspect": {
			conntest.Leave(conntest.Silent(abi.EvidenceRetransmit, 2, time.Minute), 1, time.Minute), Suspect, EvidenceRetransmit,
		},
		"both ends stop reading": {
			conntest.Leave(conntest.ClosedWindow(func(*abi.Conn) {}), 600000, time.Minute), Stalled, EvidenceWindowProbe,
		},
		"window probes unanswered": {
			conntest.Silent(abi.EvidenceWindowProbe, 5, time.Minute), Zombie, EvidenceWindowProbe,
		},
		"a connection that is still being made is never a zombie": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceRetransmit, 5, time.Minute)
				c.State = abi.StateSynSent
				return c
			}(), Suspect, EvidenceRetransmit,
		},
		"nor is an orphan in FIN_WAIT2": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 5, time.Minute)
				c.State = abi.StateFinWait2
				c.Flags |= abi.ConnOrphan
				return c
			}(), Suspect, EvidenceKeepalive,
		},
		"one in FIN_WAIT2 that its application holds can be": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceKeepalive, 5, time.Minute)
				c.State = abi.StateFinWait2
				return c
			}(), Zombie, EvidenceKeepalive,
		},
		"an orphan in FIN_WAIT1 can be": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceRetransmit, 5, time.Minute)
				c.State, c.Flags = abi.StateFinWait1, c.Flags|abi.ConnOrphan
				return c
			}(), Zombie, EvidenceRetransmit,
		},
		"the window has been closed for ten seconds, and the peer answers": {
			conntest.With(func(c *abi.Conn) {
				c.Flags |= abi.ConnTrouble | abi.ConnWindowClosed
				c.WindowClosed = conntest.Ago(10 * time.Second)
			}), Stalled, EvidenceWindowProbe,
		},
		"the window has just closed": {
			conntest.With(func(c *abi.Conn) {
				c.Flags |= abi.ConnTrouble | abi.ConnWindowClosed
				c.WindowClosed = conntest.Ago(9 * time.Second)
			}), Active, NoEvidence,
		},
		"the window is closed but not probed yet": {
			conntest.With(func(c *abi.Conn) { c.Flags |= abi.ConnTrouble | abi.ConnWindowClosed }), Active, NoEvidence,
		},
		"the window is closed and two probes are unanswered": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceWindowProbe, 2, time.Minute)
				c.Flags |= abi.ConnWindowClosed
				c.WindowClosed = conntest.Ago(time.Minute)
				return c
			}(), Suspect, EvidenceWindowProbe,
		},
		"three retransmissions are not acknowledged in ten seconds, though the peer was heard since": {
			stuckFor(abi.EvidenceRetransmit, 3, 10*time.Second, 2*time.Second), Stuck, EvidenceRetransmit,
		},
		"two retransmissions are not acknowledged": {
			stuckFor(abi.EvidenceRetransmit, 2, time.Minute, 2*time.Second), Active, NoEvidence,
		},
		"three, for less than ten seconds": {
			stuckFor(abi.EvidenceRetransmit, 3, 9900*time.Millisecond, 2*time.Second), Active, NoEvidence,
		},
		"the peer was last heard before the first of them": {
			stuckFor(abi.EvidenceRetransmit, 5, 20*time.Second, 21*time.Second), Active, NoEvidence,
		},
		"three more are unanswered since it was heard, for less than ten seconds": {
			func() *abi.Conn {
				c := stuckFor(abi.EvidenceRetransmit, 8, time.Minute, 9*time.Second)
				c.Unanswered, c.Solicited = 3, conntest.Ago(time.Second)
				return c
			}(), Stuck, EvidenceRetransmit,
		},
		"three more, for ten seconds": {
			func() *abi.Conn {
				c := stuckFor(abi.EvidenceRetransmit, 8, time.Minute, 10*time.Second)
				c.Unanswered, c.Solicited = 3, conntest.Ago(time.Second)
				return c
			}(), Zombie, EvidenceRetransmit,
		},
		"keepalive probes of a second each are not acknowledged, the first ten seconds ago": {
			stuckFor(abi.EvidenceKeepalive, 11, 10*time.Second, time.Second), Stuck, EvidenceKeepalive,
		},
		"the first nine seconds ago": {
			stuckFor(abi.EvidenceKeepalive, 10, 9*time.Second, time.Second), Active, NoEvidence,
		},
		"stuck, but the window is closed, and the peer answers": {
			func() *abi.Conn {
				c := stuckFor(abi.EvidenceWindowProbe, 5, time.Minute, time.Second)
				c.Flags |= abi.ConnWindowClosed
				c.WindowClosed = conntest.Ago(time.Minute)
				return c
			}(), Stalled, EvidenceWindowProbe,
		},
		"a connection that is still being made is not stuck": {
			func() *abi.Conn {
				c := stuckFor(abi.EvidenceRetransmit, 5, time.Minute, time.Second)
				c.State = abi.StateSynSent
				return c
			}(), Active, NoEvidence,
		},
		"its listener does not accept it, and was heard since the first retransmission": {
			unaccepted(20*time.Second, 5*time.Second, 15*time.Second, 6, 2), Stuck, EvidenceRetransmit,
		},
		"it was heard before that only, when it repeated the handshake": {
			unaccepted(50*time.Second, 20*time.Second, 15*time.Second, 5, 5), Stuck, EvidenceRetransmit,
		},
		"for less than ten seconds": {
			unaccepted(50*time.Second, 20*time.Second, 9900*time.Millisecond, 5, 5), Suspect, EvidenceRetransmit,
		},
		"it has been silent for long, but will answer the next retransmission": {
			unaccepted(125*time.Second, 94*time.Second, 120*time.Second, 9, 4), Stuck, EvidenceRetransmit,
		},
		"it would have answered that by now": {
			unaccepted(126*time.Second, 95*time.Second, 120*time.Second, 9, 4), Zombie, EvidenceRetransmit,
		},
		"it was not heard after the handshake": {
			unaccepted(20*time.Second, 20*time.Second, 15*time.Second, 5, 5), Zombie, EvidenceRetransmit,
		},
		"nor a jiffy after it, which may be rounded": {
			func() *abi.Conn {
				c := unaccepted(20*time.Second, 20*time.Second, 15*time.Second, 5, 5)
				c.Accepted++
				return c
			}(), Zombie, EvidenceRetransmit,
		},
		"it has acknowledged something before": {
			func() *abi.Conn {
				c := unaccepted(50*time.Second, 20*time.Second, 15*time.Second, 5, 5)
				c.Flags &^= abi.ConnNeverAcked
				return c
			}(), Zombie, EvidenceRetransmit,
		},
		"this host failed to send three for ten seconds": {
			blockedFor(3, 10*time.Second), Blocked, EvidenceKeepalive,
		},
		"it failed to send two": {
			blockedFor(2, time.Minute), Suspect, EvidenceKeepalive,
		},
		"it failed to send three for less than ten seconds": {
			blockedFor(3, 9900*time.Millisecond), Suspect, EvidenceKeepalive,
		},
		"it fails to send SYNs": {
			func() *abi.Conn {
				c := blockedFor(3, 10*time.Second)
				c.State, c.Evidence, c.Silent = abi.StateSynSent, abi.EvidenceRetransmit, abi.AgeNone
				return c
			}(), Blocked, EvidenceRetransmit,
		},
		"it failed to send after two that the peer did not answer": {
			func() *abi.Conn {
				c := blockedFor(5, time.Minute)
				c.Unanswered = 2
				return c
			}(), Blocked, EvidenceKeepalive,
		},
		"a zombie stays one when this host fails to send": {
			func() *abi.Conn {
				c := blockedFor(5, time.Minute)
				c.Unanswered = 3
				return c
			}(), Zombie, EvidenceKeepalive,
		},
		"this host fails to send, and the window is closed": {
			func() *abi.Conn {
				c := blockedFor(3, 10*time.Second)
				c.Flags |= abi.ConnWindowClosed
				c.WindowClosed = conntest.Ago(time.Minute)
				return c
			}(), Blocked, EvidenceKeepalive,
		},
		"keepalive probes each second, and a round trip of three and a half": {
			satellite(12*time.Second, 3, 1750*time.Millisecond, 4*time.Second), Active, NoEvidence,
		},
		"four of them: none is due": {
			satellite(12*time.Second, 4, 1750*time.Millisecond, 4*time.Second), Active, NoEvidence,
		},
		"one is due": {
			satellite(12*time.Second, 5, 1750*time.Millisecond, 4*time.Second), Suspect, EvidenceKeepalive,
		},
		"two are due": {
			satellite(12*time.Second, 6, 1750*time.Millisecond, 4*time.Second), Suspect, EvidenceKeepalive,
		},
		"three are due": {
			satellite(12*time.Second, 7, 1750*time.Millisecond, 4*time.Second), Zombie, EvidenceKeepalive,
		},
		"the peer makes the round trip an hour: the retransmission timeout bounds it": {
			satellite(12*time.Second, 7, 30*time.Minute, 3500*time.Millisecond), Zombie, EvidenceKeepalive,
		},
		"never heard at all": {
			func() *abi.Conn {
				c := conntest.Silent(abi.EvidenceRetransmit, 4, 0)
				c.Silent = abi.AgeNone
				return c
			}(), Suspect, EvidenceRetransmit,
		},
	} {
		t.Run(name, func(t *testing.T) {
			verdict, evidence := testRules.Judge(test.conn)
			if verdict != test.verdict || evidence != test.evidence {
				t.Errorf("%v with evidence %q, expected %v with %q", verdict, evidence, test.verdict, test.evidence)
			}
		})
	}
}

func TestReason(t *testing.T) {
	// retransmitted returns a stuck connection whose retransmissions have that many bytes of
	// data. The newest sign of life was accepted.
	retransmitted := func(bytes uint16) *abi.Conn {
		c := stuckFor(abi.EvidenceRetransmit, 5, time.Minute, 2*time.Second)
		c.Accepted, c.Mss, c.Retransmitted = c.Silent, 1448, bytes
		return c
	}
	for name, test := range map[string]struct {
		conn *abi.Conn
		want ReasonCode
	}{
		"full-sized segments":                          {retransmitted(1448), ReasonPathMTU},
		"full-sized but for TCP's options":             {retransmitted(1408), ReasonPathMTU},
		"smaller segments":                             {retransmitted(1407), ReasonOneWay},
		"it is not known how large they were":          {retransmitted(0), ""},
		"keepalive probes, which are small":            {stuckFor(abi.EvidenceKeepalive, 20, time.Minute, time.Second), ReasonOneWay},
		"nothing was accepted since the handshake":     {unaccepted(50*time.Second, 20*time.Second, 15*time.Second, 5, 5), ReasonNeverAccepted},
		"the listener is heard after a very long time": {unaccepted(10*time.Minute, 2*time.Second, 5*time.Minute, 9, 0), ReasonNeverAccepted},
		"it became a zombie":                           {unaccepted(126*time.Second, 95*time.Second, 120*time.Second, 9, 4), ""},
		"a zombie needs no reason":                     {conntest.Silent(abi.EvidenceRetransmit, 5, time.Minute), ""},
		"a blocked connection's is not searched":       {blockedFor(5, time.Minute), ""},
		"full-sized, and the peer sends again what it did not get acknowledged": {
			func() *abi.Conn {
				c := retransmitted(1448)
				c.Accepted++
				return c
			}(), ReasonOneWay,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := testRules.Describe(test.conn, time.Now())
			if got.Reason.Code != test.want || (got.Reason.Detail == "") != (test.want == "") {
				t.Errorf("a %v connection has reason %+v, expected %q", got.Verdict, got.Reason, test.want)
			}
		})
	}
}

// Also has what a worse verdict hides.
func TestAlso(t *testing.T) {
	for name, test := range map[string]struct {
		conn *abi.Conn
		want []Verdict
	}{
		"a healthy connection": {conntest.Idle(func(*abi.Conn) {}), nil},
		"a zombie":             {conntest.KeepaliveZombie(), nil},
		"an unread one":        {conntest.Leave(conntest.Unguarded(), 1, time.Minute), nil},
		"an unread zombie":     {conntest.Leave(conntest.KeepaliveZombie(), 1, time.Minute), []Verdict{Unread}},
		"a stalled one":        {conntest.ClosedWindow(func(*abi.Conn) {}), nil},
		"both ends stop reading": {
			conntest.Leave(conntest.ClosedWindow(func(*abi.Conn) {}), 600000, time.Minute), []Verdict{Unread},
		},
		"unread, stuck": {
			conntest.Leave(stuckFor(abi.EvidenceRetransmit, 3, 10*time.Second, time.Second), 1, time.Minute), []Verdict{Unread},
		},
		"unread, with a closed window, and this host sends no probe": {
			conntest.Leave(conntest.ClosedWindow(func(c *abi.Conn) { c.Attempts, c.Failing = 3, conntest.Ago(time.Minute) }), 1, time.Minute),
			[]Verdict{Stalled, Unread},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := testRules.Describe(test.conn, time.Now()); !slices.Equal(got.Also, test.want) {
				t.Errorf("a %v connection is also %v, expected %v", got.Verdict, got.Also, test.want)
			}
		})
	}
}

// What unanswered counts depends on the verdict.
func TestUnansweredOfStuckAndBlocked(t *testing.T) {
	stuck := testRules.Describe(stuckFor(abi.EvidenceRetransmit, 5, time.Minute, time.Second), time.Now())
	blocked := testRules.Describe(blockedFor(4, time.Minute), time.Now())
	if stuck.Unanswered != 5 || stuck.Attempts != 0 || blocked.Unanswered != 0 || blocked.Attempts != 4 {
		t.Errorf("stuck has %d and %d, blocked %d and %d", stuck.Unanswered, stuck.Attempts, blocked.Unanswered, blocked.Attempts)
	}
}

func TestDescribe(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

	t.Run("the verdict idle began idle-after after the last data", func(t *testing.T) {
		c := conntest.With(func(c *abi.Conn) { c.Class, c.Idle = abi.ClassUnguarded, conntest.Ago(7*time.Minute) })
		if got, want := testRules.Describe(c, at).Since, at.Add(-2*time.Minute); !got.Equal(want) {
			t.Errorf("since %v, expected %v", got, want)
		}
	})
	t.Run("a zombie that is first seen as one began with its third probe", func(t *testing.T) {
		c := conntest.Silent(abi.EvidenceKeepalive, 5, 7600*time.Second)
		c.Solicited, c.Jiffies, c.KeepaliveExpires = abi.AgeNone, 1000000, 1000000+uint64(conntest.Ago(25*time.Second))
		// The fifth went out 50 s ago, the third 2 × 75 s before.
		if got := at.Sub(testRules.Describe(c, at).Since); got != 200*time.Second {
			t.Errorf("since %v", got)
		}
	})
	t.Run("a zombie began when the silence was long enough, if that was later", func(t *testing.T) {
		c := conntest.Silent(abi.EvidenceRetransmit, 5, 14*time.Second)
		c.PacketsOut, c.Retransmits, c.Rto, c.RtoMax = 1, 5, conntest.Ago(6400*time.Millisecond), conntest.Ago(2*time.Minute)
		c.Solicited, c.Jiffies, c.WriteExpires = abi.AgeNone, 1000000, 1000000+uint64(conntest.Ago(400*time.Millisecond))
		if got := at.Sub(testRules.Describe(c, at).Since); got != 4*time.Second {
			t.Errorf("since %v", got)
		}
	})
	t.Run("the verdict stalled began stalled-after after the first window probe", func(t *testing.T) {
		c := conntest.With(func(c *abi.Conn) {
			c.Flags |= abi.ConnTrouble | abi.ConnWindowClosed
			c.WindowClosed = conntest.Ago(25 * time.Second)
		})
		if got := at.Sub(testRules.Describe(c, at).Since); got != 15*time.Second {
			t.Errorf("since %v", got)
		}
	})
	t.Run("the verdict stuck began zombie-silence after the first retransmission", func(t *testing.T) {
		if got := at.Sub(testRules.Describe(stuckFor(abi.EvidenceRetransmit, 5, 25*time.Second, time.Second), at).Since); got != 15*time.Second {
			t.Errorf("since %v", got)
		}
	})
	t.Run("the verdict blocked began zombie-silence after the first failure", func(t *testing.T) {
		if got := at.Sub(testRules.Describe(blockedFor(5, 25*time.Second), at).Since); got != 15*time.Second {
			t.Errorf("since %v", got)
		}
	})
	t.Run("the beginning of the verdict active is unknown", func(t *testing.T) {
		if got := testRules.Describe(conntest.With(func(*abi.Conn) {}), at).Since; !got.IsZero() {
			t.Errorf("since %v", got)
		}
	})
	t.Run("the age of something that never happened is -1", func(t *testing.T) {
		got := testRules.Describe(conntest.With(func(c *abi.Conn) { c.Silent = abi.AgeNone }), at).Silent
		if got != -1 {
			t.Errorf("silent for %v", got)
		}
	})
	t.Run("an IPv4 connection of an IPv6 socket is IPv4", func(t *testing.T) {
		c := conntest.With(func(c *abi.Conn) {
			c.Family, c.Lport = 10, 80
			c.Laddr = [16]uint8{10: 0xff, 11: 0xff, 12: 10, 15: 1}
		})
		connection := testRules.Describe(c, at)
		if got := connection.Local.String(); got != "10.0.0.1:80" || connection.IPv6() {
			t.Errorf("local is %s", got)
		}
	})
	t.Run("risks are in the order of their numbers", func(t *testing.T) {
		c := conntest.With(func(c *abi.Conn) { c.Risks = 1<<abi.RiskCloseWaitLeak | 1<<abi.RiskNoKeepalive })
		got := testRules.Describe(c, at).Risks
		if len(got) != 2 || got[0] != RiskNoKeepalive || got[1] != RiskCloseWaitLeak {
			t.Errorf("risks are %v", got)
		}
	})
}

// parses fails unless parse returns each of the n values from first on for its name, and an
// error for a text that is not a name.
func parses[T interface {
	~uint8
	String() string
}](t *testing.T, first T, n int, parse func(string) (T, error)) {
	t.Helper()
	for i := range n {
		v := first + T(i)
		if v.String() == "" {
			t.Errorf("%T %d has no name", v, v)
			continue
		}
		if got, err := parse(v.String()); err != nil || got != v {
			t.Errorf("%q is parsed as %v, error %v", v.String(), got, err)
		}
	}
	for _, wrong := range []string{"", "Zombie", "undead"} {
		if got, err := parse(wrong); err == nil {
			t.Errorf("%q is parsed as %v", wrong, got)
		}
	}
}

func TestNamesAreParsed(t *testing.T) {
	parses(t, 0, Verdicts, ParseVerdict)
	parses(t, 0, Causes, ParseCause)
	parses(t, Established, States-int(Established), ParseState)
	parses(t, 0, Risks, ParseRisk)
	parses(t, 0, len(GroupingNames()), ParseGrouping)
	if got, err := ParseCookie(FormatCookie(0x1a2b)); err != nil || got != 0x1a2b {
		t.Errorf("cookie is parsed as %x, error %v", got, err)
	}
}

func TestNamesAreUnique(t *testing.T) {
	for what, names := range map[string][]string{
		"verdicts": VerdictNames(), "states": StateNames(), "risks": RiskNames(), "causes": CauseNames(),
		"retransmissions": retransmitTypeNames[:], "events": eventTypeNames[:], "faults": faultNames[:],
	} {
		seen := make(map[string]bool)
		for _, name := range names {
			if name == "" || seen[name] {
				t.Errorf("%s: the name %q is empty or occurs twice: %q", what, name, names)
			}
			seen[name] = true
		}
	}
}
