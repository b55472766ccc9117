// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

var testHost = HostKey{7, netip.MustParseAddr("10.0.0.2")}

// to returns the record of a connection to the address of testHost.
func to(cookie uint64, c *abi.Conn, after time.Duration) *abi.Conn {
	c.Cookie, c.Netns, c.Family, c.Raddr, c.Jiffies = cookie, testHost.Netns, 2, [16]uint8{10, 0, 0, 2}, uint64(conntest.Ago(time.Hour+after))
	return stamp(c, after)
}

// zombieTo returns the record of a zombie to that address, with that many unanswered probes, a
// second apart, the last of them 100 ms ago.
func zombieTo(cookie uint64, unanswered uint16, silent, after time.Duration) *abi.Conn {
	c := conntest.Silent(abi.EvidenceKeepalive, unanswered, silent)
	c.KeepaliveIntvl = conntest.Ago(time.Second)
	return to(cookie, c, after)
}

// idleTo returns the record of an unguarded connection to that address.
func idleTo(cookie uint64, silent, after time.Duration) *abi.Conn {
	return to(cookie, conntest.With(func(c *abi.Conn) {
		c.Class, c.Silent, c.Idle = abi.ClassUnguarded, conntest.Ago(silent), conntest.Ago(silent)
	}), after)
}

func TestPeerHost(t *testing.T) {
	const now = 20 * time.Second
	for name, tt := range map[string]struct {
		connections int
		heard       time.Duration // before the census, on any of them; -1: never
		code        ReasonCode
		detail      string
		sibling     bool // idle siblings are at risk
		exposed     int
	}{
		"another was heard since": {
			40, 3 * time.Second, ReasonPeerHostAlive, "one at least of 39 other connections to 10.0.0.2 had been heard 3s before", false, 0,
		},
		"the only other was": {2, 3 * time.Second, ReasonPeerHostAlive, "one at least of one other connection to 10.0.0.2", false, 0},
		"one was, but before the second zombie stopped to answer": {
			3, 10 * time.Second, ReasonPeerHostSilent, "none of 2 other connections to 10.0.0.2 had been heard for 10s, either.", true, 5,
		},
		"the second zombie was, but before the first stopped to answer": {
			3, 12 * time.Second, ReasonPeerHostSilent, "had been heard for 12s, either.", true, 5,
		},
		"none was ever heard": {3, -1, ReasonPeerHostSilent, "had ever been heard, either.", true, 5},
		"it is the only one":  {1, 15 * time.Second, "", "", true, 5},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplay(t)
			// They do not answer since 12.1 and 9.1 seconds.
			first, second := zombieTo(1, 13, 15*time.Second, now), zombieTo(2, 10, 12*time.Second, now)
			if hosts := r.ZombieHosts(9); hosts != nil {
				t.Errorf("without a zombie there are %v", hosts)
			}
			count := HostCount{Connections: tt.connections, Exposed: 5}
			if tt.heard >= 0 {
				count.HeardAt = r.at(now - tt.heard)
			}
			r.Apply(&Fact{Kind: FactWatch, At: r.at(now), Conn: first})
			r.Apply(&Fact{Kind: FactWatch, At: r.at(now), Conn: second})
			if hosts := r.ZombieHosts(9); !slices.Equal(hosts, []HostKey{testHost}) {
				t.Errorf("the zombies are at %v", hosts)
			}
			if before := r.Describe(first, r.at(now)); before.PeerHost != nil || before.Reason.Code != "" {
				t.Errorf("before a census: %+v, %+v", before.PeerHost, before.Reason)
			}
			r.census(&Census{
				Counts: census(0, 0, 0), Began: r.at(now), Troubled: seen(r.at(now), *first, *second),
				Hosts: map[HostKey]HostCount{testHost: count},
			}, r.at(now))
			got := r.Describe(first, r.at(now))
			heard := tt.heard
			if heard < 0 {
				heard = -1
			}
			if got.PeerHost == nil || *got.PeerHost != (PeerHost{tt.connections, 2, heard}) {
				t.Errorf("%+v", got.PeerHost)
			}
			if got.Reason.Code != tt.code || !strings.Contains(got.Reason.Detail, tt.detail) {
				t.Errorf("reason %+v, expected %s with %q", got.Reason, tt.code, tt.detail)
			}
			sibling := r.Describe(idleTo(3, 10*time.Minute, now), r.at(now))
			if slices.Contains(sibling.Risks, RiskPeerHostSilent) != tt.sibling || sibling.PeerHost != nil || sibling.Reason.Code != "" {
				t.Errorf("a sibling has risks %v, %+v, reason %+v", sibling.Risks, sibling.PeerHost, sibling.Reason)
			}
			if n := r.Stats(r.at(now)).PeerHostSilent; n != tt.exposed {
				t.Errorf("%d are exposed, expected %d", n, tt.exposed)
			}
		})
	}
}

// What the address of a zombie says holds until the next census, and for its connections only.
func TestPeerHostOfOthers(t *testing.T) {
	const now = 20 * time.Second
	r := newReplay(t)
	z := zombieTo(1, 13, 15*time.Second, now)
	counts := map[HostKey]HostCount{testHost: {Connections: 3, Exposed: 2, HeardAt: r.at(5 * time.Second)}}
	r.census(&Census{Counts: census(0, 0, 0), Began: r.at(now), Troubled: seen(r.at(now), *z), Hosts: counts}, r.at(now))
	atRisk := func(c *abi.Conn, at time.Duration) bool {
		return slices.Contains(r.Describe(c, r.at(at)).Risks, RiskPeerHostSilent)
	}
	elsewhere, another := idleTo(2, time.Minute, now), idleTo(3, time.Minute, now)
	elsewhere.Netns++
	another.Raddr[3]++
	active := to(4, conntest.With(func(c *abi.Conn) { c.Silent = conntest.Ago(time.Minute) }), now)
	for name, c := range map[string]*abi.Conn{
		"in another namespace": elsewhere, "to another address": another, "active": active,
		"heard since the census": idleTo(5, time.Second, now),
	} {
		if atRisk(c, now) {
			t.Errorf("a connection is at risk that is %s", name)
		}
	}
	if !atRisk(idleTo(6, time.Minute, now), now) {
		t.Error("an idle connection to the address is not at risk")
	}
	r.die(now+time.Second, CauseKeepaliveTimeout, z)
	r.census(&Census{Counts: census(1, 0, 0), Began: r.at(now + 2*time.Second), Hosts: counts}, r.at(now+2*time.Second))
	if atRisk(idleTo(6, time.Minute, now+3*time.Second), now+3*time.Second) || r.Stats(r.at(now+3*time.Second)).PeerHostSilent != 0 {
		t.Error("it is at risk though the zombie has ended")
	}
}

func TestZombieHostsAreBounded(t *testing.T) {
	r := newReplay(t)
	for i := range uint8(20) {
		z := zombieTo(uint64(i)+1, 13, 15*time.Second, 0)
		z.Raddr[3] = i
		r.Apply(&Fact{Kind: FactWatch, At: r.at(0), Conn: z})
	}
	if n := len(r.ZombieHosts(7)); n != 7 {
		t.Errorf("%d, expected 7", n)
	}
}
