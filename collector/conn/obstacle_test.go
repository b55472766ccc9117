// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"net/netip"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

func TestObstacle(t *testing.T) {
	f := &Flow{Local: netip.MustParseAddrPort("10.0.0.1:37024"), Remote: netip.MustParseAddrPort("10.0.0.2:5432")}
	up, down := &Device{Name: "eth0", Up: true, LowerUp: true}, &Device{Name: "eth0"}
	for name, tt := range map[string]struct {
		path Path
		want ReasonCode
	}{
		"all is well":            {Path{LocalDevice: up, Route: Route{Type: RouteUnicast, Device: up}}, ""},
		"the address is gone":    {Path{Route: Route{Type: RouteUnicast, Device: up}}, ReasonLocalAddressGone},
		"there is no route":      {Path{LocalDevice: up, Route: Route{Type: RouteNone, Errno: "ENETUNREACH"}}, ReasonNoRoute},
		"the link is down":       {Path{LocalDevice: down, Route: Route{Type: RouteNone, Errno: "ENETUNREACH"}}, ReasonInterfaceDown},
		"the route's is down":    {Path{LocalDevice: up, Route: Route{Type: RouteUnicast, Device: down}}, ReasonInterfaceDown},
		"there is no carrier":    {Path{LocalDevice: up, Route: Route{Type: RouteUnicast, Device: &Device{Name: "eth0", Up: true}}}, ReasonInterfaceDown},
		"an address elsewhere":   {Path{LocalDevice: down, Route: Route{Type: RouteUnicast, Device: up}}, ""},
		"the neighbour failed":   {Path{LocalDevice: up, Route: Route{Type: RouteUnicast, Device: up}, Neighbour: &Neighbour{State: "failed"}}, ReasonNeighbourFailed},
		"the neighbour is stale": {Path{LocalDevice: up, Route: Route{Type: RouteUnicast, Device: up}, Neighbour: &Neighbour{State: "stale"}}, ""},
	} {
		if got := tt.path.Obstacle(f); got.Code != tt.want || (got.Detail == "") != (tt.want == "") {
			t.Errorf("%s: %+v, expected %q", name, got, tt.want)
		}
	}
}

// A silence is the peer's if the host could send when it began.
func TestObstacleDecidesWhoIsToBlame(t *testing.T) {
	gone, failed := Reason{Code: ReasonLocalAddressGone, Detail: "x"}, Reason{Code: ReasonNeighbourFailed, Detail: "x"}
	silent := func(n uint16, d time.Duration) *abi.Conn {
		c := conntest.Silent(abi.EvidenceKeepalive, n, d)
		c.Jiffies = uint64(conntest.Ago(time.Hour + d))
		return c
	}
	for name, tt := range map[string]struct {
		first, second Reason // what looks after 2 and after 11 seconds find
		want          Verdict
		code          ReasonCode
	}{
		"no obstacle":                   {want: Zombie},
		"from the beginning":            {gone, gone, Blocked, gone.Code},
		"only later":                    {Reason{}, gone, Zombie, gone.Code},
		"only in the beginning":         {first: gone, want: Zombie},
		"the neighbour may be the peer": {failed, failed, Zombie, failed.Code},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplay(t)
			r.solicit(2*time.Second, silent(2, 2*time.Second))
			r.Apply(&Fact{Kind: FactObstacles, At: r.at(2 * time.Second), Obstacles: map[uint64]*Reason{0x1a2b: &tt.first, 7: &gone}})
			r.solicit(10*time.Second, silent(9, 10*time.Second))
			r.Apply(&Fact{Kind: FactObstacles, At: r.at(11 * time.Second), Obstacles: map[uint64]*Reason{0x1a2b: &tt.second}})
			c := stamp(silent(11, 12*time.Second), 12*time.Second)
			r.watched(c, r.at(12*time.Second))
			got := r.Describe(c, r.at(12*time.Second))
			if got.Verdict != tt.want || got.Reason.Code != tt.code {
				t.Errorf("%v for %q, expected %v for %q", got.Verdict, got.Reason.Code, tt.want, tt.code)
			}
			if blocked := got.Verdict == Blocked; blocked && (got.Attempts != 11 || got.Unanswered != 0) || !blocked && got.Unanswered != 11 {
				t.Errorf("%d attempts, %d unanswered", got.Attempts, got.Unanswered)
			}
		})
	}
}

func TestFlowsInDoubt(t *testing.T) {
	r := newReplay(t)
	other := func(cookie uint64, n uint16) *abi.Conn {
		c := conntest.Silent(abi.EvidenceKeepalive, n, 5*time.Second)
		c.Cookie, c.Family = cookie, abi.FamilyInet
		c.Raddr[3] = byte(cookie % 2)
		return c
	}
	for cookie := uint64(1); cookie <= 4; cookie++ {
		r.solicit(5*time.Second, other(cookie, 2))
	}
	now := r.at(5 * time.Second)
	flows := r.FlowsInDoubt(now, 10)
	if len(flows) != 2 || len(flows[0].Cookies) != 2 || len(flows[1].Cookies) != 2 {
		t.Fatalf("%+v", flows)
	}
	if one := r.FlowsInDoubt(now, 1); len(one) != 1 || len(one[0].Cookies) != 2 {
		t.Errorf("%+v with a limit of one flow", one)
	}
	r.Apply(&Fact{Kind: FactObstacles, At: now, Obstacles: map[uint64]*Reason{flows[0].Cookies[0]: nil, flows[0].Cookies[1]: {}}})
	if left := r.FlowsInDoubt(now.Add(time.Second), 10); len(left) != 1 || left[0].Remote != flows[1].Remote {
		t.Errorf("%+v after a look at one of two", left)
	}
	if again := r.FlowsInDoubt(now.Add(obstacleRetry), 10); len(again) != 2 {
		t.Errorf("%+v after a while", again)
	}
}

// A program that sees what this host drops decides who is to blame, whatever the path shows.
func TestDropsDecideWhoIsToBlame(t *testing.T) {
	free := Reason{}
	silent := func(n uint16, d time.Duration, drop uint8) *abi.Conn {
		c := conntest.Silent(abi.EvidenceKeepalive, n, d)
		c.Jiffies, c.Drop = uint64(conntest.Ago(time.Hour+d)), drop
		return c
	}
	for name, tt := range map[string]struct {
		first, second uint8 // of the solicitations after 2 and after 10 seconds
		flags         uint32
		path          Reason
		want          Verdict
		code          ReasonCode
	}{
		"nobody looked":                   {want: Zombie},
		"they left":                       {first: abi.DropNone, second: abi.DropNone, want: Zombie},
		"a filter from the beginning":     {first: abi.DropFilter, second: abi.DropFilter, want: Blocked, code: ReasonOutputFilter},
		"a filter only later":             {first: abi.DropNone, second: abi.DropFilter, want: Zombie, code: ReasonOutputFilter},
		"a control group":                 {first: abi.DropCgroup, second: abi.DropCgroup, want: Blocked, code: ReasonOutputFilter},
		"a queue":                         {first: abi.DropQueue, second: abi.DropQueue, want: Blocked, code: ReasonEgressDrop},
		"tc":                              {first: abi.DropTc, second: abi.DropTc, want: Blocked, code: ReasonEgressDrop},
		"a filter of the device":          {first: abi.DropFilter, second: abi.DropFilter, flags: abi.ConnCongested, want: Blocked, code: ReasonEgressDrop},
		"the kernel does not say":         {first: abi.DropOther, second: abi.DropOther, want: Blocked},
		"it does not, but tries at once":  {first: abi.DropOther, second: abi.DropOther, flags: abi.ConnCongested, want: Blocked, code: ReasonEgressDrop},
		"no route, and the path shows it": {first: abi.DropNoRoute, second: abi.DropNoRoute, path: Reason{ReasonInterfaceDown, "x"}, want: Blocked, code: ReasonInterfaceDown},
		"no route any more":               {first: abi.DropNoRoute, second: abi.DropNoRoute, want: Blocked, code: ReasonNoRoute},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplay(t)
			r.solicit(2*time.Second, silent(2, 2*time.Second, tt.first))
			r.Apply(&Fact{Kind: FactObstacles, At: r.at(2 * time.Second), Obstacles: map[uint64]*Reason{0x1a2b: &free}})
			if doubt := r.DropsInDoubt(); doubt == (tt.first == abi.DropNone) {
				t.Errorf("the drops are in doubt: %v", doubt)
			}
			r.Apply(&Fact{Kind: FactObstacles, At: r.at(8 * time.Second), Obstacles: map[uint64]*Reason{0x1a2b: &tt.path}})
			if doubt := r.DropsInDoubt(); doubt == (tt.first == abi.DropNone) {
				t.Errorf("with the path, the drops are in doubt: %v", doubt)
			}
			c := silent(11, 12*time.Second, tt.second)
			c.Flags |= tt.flags
			r.solicit(12*time.Second, c)
			got := r.Describe(c, r.at(12*time.Second))
			if got.Verdict != tt.want || got.Reason.Code != tt.code || (got.Reason.Detail == "") != (tt.code == "") {
				t.Errorf("%v for %+v, expected %v for %q", got.Verdict, got.Reason, tt.want, tt.code)
			}
		})
	}
}

// A reason stands beside a suspect as soon as it is seen, and a death keeps that of a blocked
// connection.
func TestReasonsBesideSuspectsAndDeaths(t *testing.T) {
	r := newReplay(t)
	failed := func(n uint8, d time.Duration) *abi.Conn {
		c := conntest.Silent(abi.EvidenceRetransmit, 0, d)
		c.Jiffies, c.Attempts, c.Failing, c.Drop = uint64(conntest.Ago(time.Hour+d)), n, conntest.Ago(d), abi.DropFilter
		return c
	}
	r.watched(stamp(failed(2, time.Second), time.Second), r.at(time.Second))
	if got := r.Describe(stamp(failed(2, time.Second), time.Second), r.at(time.Second)); got.Verdict != Suspect || got.Reason.Code != ReasonOutputFilter || got.Attempts != 2 {
		t.Errorf("%v for %+v, %d attempts", got.Verdict, got.Reason, got.Attempts)
	}
	r.watched(stamp(failed(6, 12*time.Second), 12*time.Second), r.at(12*time.Second))
	r.die(13*time.Second, CauseRetransmitTimeout, failed(0, 13*time.Second))
	if d := r.lastDeath(); d.Verdict != Blocked || d.Reason.Code != ReasonOutputFilter || d.Attempts != 6 {
		t.Errorf("it died as %v for %+v, %d attempts", d.Verdict, d.Reason, d.Attempts)
	}
}
