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
