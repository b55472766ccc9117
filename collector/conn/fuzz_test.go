// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"encoding/binary"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// checkDescription fails unless every name in the description is empty or one of the
// contract, and no time is in the future.
func checkDescription(t *testing.T, c *Connection) {
	t.Helper()
	for _, name := range []struct {
		is  string
		all []string
	}{
		{c.Verdict.String(), verdictNames[:]}, {c.Evidence.String(), evidenceNames[:]},
		{c.State.String(), stateNames[:]}, {c.GivesUp.By.String(), causeNames[:]},
	} {
		if !slices.Contains(name.all, name.is) {
			t.Fatalf("%q is not one of %q", name.is, name.all)
		}
	}
	if c.Since.After(c.At) || c.Idle < -1 || c.Silent < -1 || c.UserTimeout < 0 || c.RTO < 0 || c.Keepalive.Time < 0 {
		t.Fatalf("implausible times at %v: %+v", c.At, c)
	}
	if f := c.GivesUp; f.Ever() && (f.At.After(f.Latest) || f.At.Before(c.At.Add(-time.Second))) {
		t.Fatalf("at %v the forecast is from %v to %v", c.At, f.At, f.Latest)
	}
}

// Any record can be described and forecast.
func FuzzForecast(f *testing.F) {
	for i, c := range conntest.Seeds() {
		f.Add(conntest.Bytes(c), uint8(i))
	}
	for _, change := range []func(*abi.Conn){
		func(c *abi.Conn) { c.KeepaliveLevel = 22 },
		func(c *abi.Conn) { c.KeepaliveExpires = 1<<64 - 1 },
		func(c *abi.Conn) { c.KeepaliveExpires = c.Jiffies + 1<<62 },
		func(c *abi.Conn) { c.KeepaliveIntvl, c.KeepaliveProbes = abi.AgeNone, 255 },
		func(c *abi.Conn) { c.Jiffies = 1<<64 - 1 },
		func(c *abi.Conn) { c.State, c.Evidence, c.Cause = 255, 255, 255 },
	} {
		f.Add(conntest.Bytes(conntest.Idle(change)), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, hz uint8) {
		c := conntest.FromBytes(data)
		rules := testRules
		rules.HZ = []int{100, 250, 300, 1000}[hz%4]
		at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		connection := rules.Describe(&c, at)
		checkDescription(t, &connection)
		if by := connection.GivesUp.By; by != CauseUnknown && !by.IsTimeout() {
			t.Fatalf("the kernel gives up by %v, which is not a timeout", by)
		}
	})
}

// A tracker keeps its invariants whatever facts it applies: late ones, double ones,
// missing ones, and records with any values.
func FuzzTracker(f *testing.F) {
	var all []byte
	for i, c := range conntest.Seeds() {
		record := conntest.Bytes(c)
		f.Add(slices.Concat([]byte{0, 1, byte(i)}, record, []byte{1, 9, byte(i)}, record))
		all = slices.Concat(all, []byte{byte(i), 200, 1}, record)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, history []byte) {
		start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		now := start
		tracker := NewTracker(testRules, func(n Notice) {
			if n.At.After(now) {
				t.Fatalf("at %v a notice has the time %v", now, n.At)
			}
			checkDescription(t, &n.Connection)
			if d := n.Death; d != nil && (d.DiedAt.After(now) || d.ZombieFor < 0) {
				t.Fatalf("at %v: death %+v", now, d)
			}
		})
		tracker.FollowRows()
		var observed []Observation // since the last census
		size := binary.Size(&abi.Conn{})
		for len(history) >= 3 {
			op, wait, cookie := history[0], history[1], history[2]
			c := conntest.FromBytes(history[3:])
			history = history[min(len(history), 3+size):]
			// A record may be older than the time at which it is applied.
			now = now.Add(time.Duration(wait) * 100 * time.Millisecond)
			at := now.Add(-time.Duration(op>>3) * time.Second)
			if at.Before(start) {
				at = now
			}
			c.At, c.Cookie = uint64(at.Sub(start)), uint64(cookie%8)
			switch op % 8 {
			case 0, 1:
				tracker.Apply(&Fact{Kind: FactEvent, At: at, Event: &abi.Event{Type: abi.EventSolicitation, Conn: c}})
			case 2:
				tracker.Apply(&Fact{Kind: FactEvent, At: at, Event: &abi.Event{Type: wait, Cause: c.Cause, During: c.Evidence, Conn: c}})
			case 3, 4:
				tracker.watched(&c, at)
			case 5:
				tracker.sweep(now)
			case 6:
				var counts abi.CensusCounts
				counts.Sockets[cookie%16][wait%8] = uint64(op)
				tracker.census(&Census{Counts: &counts, Troubled: observed, Began: now.Add(-time.Second), Rows: observed}, now)
				tracker.TakeRowChanges()
				observed = nil
			case 7:
				wanted := tracker.NeedOwners(now, at)
				owners := make(map[uint64]Ownership)
				for cookie := range wanted {
					owners[cookie] = Ownership{Process: &Process{PID: 1, Comm: "x"}}
				}
				tracker.setOwners(owners, now)
			}
			observed = append(observed, Observation{Conn: c, At: at})
			checkInvariants(t, tracker, now)
		}
	})
}

// checkInvariants fails unless the tracker is within its bounds and knows nothing of the
// future.
func checkInvariants(t *testing.T, tracker *Tracker, now time.Time) {
	t.Helper()
	checkBounds(t, tracker)
	for cookie, tc := range tracker.tracked {
		if tracker.dead.has(cookie) {
			t.Fatalf("connection %x is dead and tracked", cookie)
		}
		if tc.at.After(now) || tc.since.After(tc.at) || tc.gone.After(now) {
			t.Fatalf("at %v: tracked connection %+v", now, tc)
		}
	}
	for cookie, r := range tracker.rows.current {
		if dead := tracker.dead.has(cookie); dead || r.Cookie != cookie || r.At.After(now) {
			t.Fatalf("at %v: row %+v, dead: %v", now, r, dead)
		}
	}
	for _, h := range tracker.histories {
		for _, e := range h.entries {
			if e.At.After(now) || e.Took < -1 {
				t.Fatalf("at %v: history entry %+v", now, e)
			}
		}
	}
}

// checkBounds fails unless everything that the tracker keeps is within its bounds.
func checkBounds(t *testing.T, tracker *Tracker) {
	t.Helper()
	for _, kept := range []struct {
		what   string
		n, max int
	}{
		{"tracked connections", len(tracker.tracked), maxTracked},
		{"histories", len(tracker.histories), maxHistories},
		{"deaths", tracker.deaths.len, maxDeaths},
		{"cookies of deaths", len(tracker.dead.ring), maxRecentCookies},
		{"routine resets", len(tracker.deaths.routine), tracker.deaths.len},
		{"recoveries", len(tracker.recovered), maxTracked},
	} {
		if kept.n > kept.max {
			t.Fatalf("%d %s, at most %d expected", kept.n, kept.what, kept.max)
		}
	}
	if n := len(slices.Collect(tracker.Deaths())); n != tracker.deaths.len || len(tracker.dead.known) != len(tracker.dead.ring) {
		t.Fatalf("%d deaths, expected %d; %d dead cookies, expected %d", n, tracker.deaths.len, len(tracker.dead.known), len(tracker.dead.ring))
	}
	for _, h := range tracker.histories {
		if n := len(h.entries); n == 0 || n > maxEntries {
			t.Fatalf("a history has %d entries", n)
		}
	}
	for state, verdicts := range tracker.counts {
		if slices.Min(verdicts[:]) < 0 {
			t.Fatalf("negative count in state %v: %v", State(state), verdicts)
		}
	}
}

var (
	anyContainer = regexp.MustCompile(`^([0-9a-f]{64})?$`)
	anyPod       = regexp.MustCompile(`^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})?$`)
)

// checkUnit fails unless the unit of a control group is empty, or a unit in its path, or a
// unit with its user's manager before it.
func checkUnit(t *testing.T, path string, g *Cgroup) {
	t.Helper()
	if g.Unit == "" {
		return
	}
	manager, unit, managed := strings.Cut(g.Unit, "/")
	if !managed {
		unit = g.Unit
	} else if !userManager.MatchString(manager) {
		t.Fatalf("%q is %+v", path, g)
	}
	if !isUnit(unit) || strings.Contains(unit, "/") || !strings.Contains(path, manager) || !strings.Contains(path, unit) {
		t.Fatalf("%q is %+v", path, g)
	}
}

// Users choose the names of control groups. All that ParseCgroup returns is in the path,
// and it returns as an id only what looks like one.
func FuzzParseCgroup(f *testing.F) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, s := range []string{
		"/", "/system.slice/nginx.service", "/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice/cri-containerd-" + id + ".scope",
		"/kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef/" + id, "/docker/" + id,
		"kubepods-pod01234567_89ab_cdef_0123_456789abcdef.slice:cri-containerd:" + id, "/../../x.service/ (deleted)", "/\xff\n.scope",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g := ParseCgroup(s)
		checkUnit(t, s, &g)
		if g.Path != s || !anyContainer.MatchString(g.ContainerID) || !anyPod.MatchString(g.PodUID) {
			t.Fatalf("%q is %+v", s, g)
		}
		if !strings.Contains(s, g.ContainerID) || !strings.Contains(strings.ReplaceAll(s, "_", "-"), g.PodUID) {
			t.Fatalf("%q is %+v", s, g)
		}
		// Groups below that of a pod's container, or of a unit, change nothing.
		if g.Unit != "" && !userManager.MatchString(g.Unit) && !runtimeUnit.MatchString(g.Unit) || g.ContainerID != "" {
			below := ParseCgroup(s + "/kubepods/pod01234567-89ab-cdef-0123-456789abcdef/" + id + "/x.service")
			if below.Path = s; below != g {
				t.Fatalf("%q is %+v, and below it is %+v", s, g, below)
			}
		}
		c := Connection{Cgroup: g}
		if name := c.Owner(); name != "" && name != "-" && !NewOwnerSet([]string{name}).Owns(&c) {
			t.Fatalf("%q is not owned by %q", s, name)
		}
	})
}
