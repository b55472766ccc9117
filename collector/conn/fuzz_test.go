// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"encoding/binary"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// describes fails unless what is said of a connection makes sense: every name is one
// of the contract's, or empty, and no age is that of the future.
func describes(t *testing.T, c *Connection) {
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
		t.Fatalf("at %v: %+v", c.At, c)
	}
	if f := c.GivesUp; f.Ever() && (f.At.After(f.Latest) || f.At.Before(c.At.Add(-time.Second))) {
		t.Fatalf("at %v it gives up between %v and %v", c.At, f.At, f.Latest)
	}
}

// Whatever a record has in it, there is a forecast of it, or none.
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
		describes(t, &connection)
		if by := connection.GivesUp.By; by != CauseUnknown && !by.IsTimeout() {
			t.Fatalf("it gives up by %v", by)
		}
	})
}

// A tracker takes in any history: facts that come late, twice, or not at all, and
// records with anything in them.
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
		table := NewTracker(testRules, func(n Notice) {
			if n.At.After(now) {
				t.Fatalf("at %v a notice is of %v", now, n.At)
			}
			describes(t, &n.Connection)
			if d := n.Death; d != nil && (d.DiedAt.After(now) || d.ZombieFor < 0) {
				t.Fatalf("at %v: %+v", now, d)
			}
		})
		table.FollowRows()
		var passed []Observation // since the last census
		size := binary.Size(&abi.Conn{})
		for len(history) >= 3 {
			op, wait, cookie := history[0], history[1], history[2]
			c := conntest.FromBytes(history[3:])
			history = history[min(len(history), 3+size):]
			// What is known of it may be older than now.
			now = now.Add(time.Duration(wait) * 100 * time.Millisecond)
			at := now.Add(-time.Duration(op>>3) * time.Second)
			if at.Before(start) {
				at = now
			}
			c.At, c.Cookie = uint64(at.Sub(start)), uint64(cookie%8)
			switch op % 8 {
			case 0, 1:
				table.Apply(&Fact{Kind: FactEvent, At: at, Event: &abi.Event{Type: abi.EventSolicitation, Conn: c}})
			case 2:
				table.Apply(&Fact{Kind: FactEvent, At: at, Event: &abi.Event{Type: wait, Cause: c.Cause, During: c.Evidence, Conn: c}})
			case 3, 4:
				table.watched(&c, at)
			case 5:
				table.sweep(now)
			case 6:
				var counts abi.CensusCounts
				counts.Sockets[cookie%16][wait%8] = uint64(op)
				table.census(&Census{Counts: &counts, Troubled: passed, Began: now.Add(-time.Second), Rows: passed}, now)
				table.TakeRowChanges()
				passed = nil
			case 7:
				wanted := table.NeedOwners(now, at)
				owners := make(map[uint64]Ownership)
				for cookie := range wanted {
					owners[cookie] = Ownership{Process: &Process{PID: 1, Comm: "x"}}
				}
				table.setOwners(owners, now)
			}
			passed = append(passed, Observation{Conn: c, At: at})
			keeps(t, table, now)
		}
	})
}

// keeps fails unless a table is within its bounds and knows nothing of the future.
func keeps(t *testing.T, table *Tracker, now time.Time) {
	t.Helper()
	if len(table.tracked) > maxTracked || len(table.histories) > maxHistories || len(table.deaths) > maxDeaths ||
		len(table.dead) != len(table.deaths) || len(table.recovered) > maxTracked {
		t.Fatalf("%d members, %d stories, %d deaths, %d buried, %d recovered", len(table.tracked), len(table.histories),
			len(table.deaths), len(table.dead), len(table.recovered))
	}
	for cookie, m := range table.tracked {
		if _, dead := table.dead[cookie]; dead {
			t.Fatalf("%x is dead and alive", cookie)
		}
		if m.at.After(now) || m.since.After(m.at) || m.gone.After(now) {
			t.Fatalf("at %v: member %+v", now, m)
		}
	}
	for cookie, r := range table.rows.current {
		if _, dead := table.dead[cookie]; dead || r.Cookie != cookie || r.At.After(now) {
			t.Fatalf("at %v: row %+v, dead: %v", now, r, dead)
		}
	}
	for _, s := range table.histories {
		if n := len(s.entries); n == 0 || n > maxEntries {
			t.Fatalf("a story of %d events", n)
		}
		for _, e := range s.entries {
			if e.At.After(now) || e.Took < -1 {
				t.Fatalf("at %v: %+v", now, e)
			}
		}
	}
	for _, states := range table.counts {
		for _, n := range states {
			if n < 0 {
				t.Fatalf("counts are %v", table.counts)
			}
		}
	}
}

var (
	anyContainer = regexp.MustCompile(`^([0-9a-f]{64})?$`)
	anyPod       = regexp.MustCompile(`^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})?$`)
)

// Users name control groups: what is told of one is in its path, and what is not an
// id is not taken for one.
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
		if g.Path != s || !anyContainer.MatchString(g.ContainerID) || !anyPod.MatchString(g.PodUID) {
			t.Fatalf("%q is %+v", s, g)
		}
		if !strings.Contains(s, g.ContainerID) || !strings.Contains(strings.ReplaceAll(s, "_", "-"), g.PodUID) {
			t.Fatalf("%q is %+v", s, g)
		}
		if ext := path.Ext(g.Unit); g.Unit != "" && (ext != ".service" && ext != ".scope" || strings.Contains(g.Unit, "/") || !strings.Contains(s, g.Unit)) {
			t.Fatalf("%q is %+v", s, g)
		}
		c := Connection{Cgroup: g}
		if name := c.Owner(); name != "" && name != "-" && !c.OwnedBy(name) {
			t.Fatalf("%q is not owned by %q", s, name)
		}
	})
}
