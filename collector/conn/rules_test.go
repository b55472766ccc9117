// SPDX-License-Identifier: Apache-2.0

package conn

import (
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
	MiddleboxTimeout: 350 * time.Second,
	HZ:               conntest.HZ,
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
// error for what is not a name.
func parses[T interface {
	~uint8
	String() string
}](t *testing.T, first T, n int, parse func(string) (T, error)) {
	t.Helper()
	for i := range n {
		v := first + T(i)
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
