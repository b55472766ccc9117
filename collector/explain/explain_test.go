// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

var testRules = conn.Rules{
	IdleAfter:        5 * time.Minute,
	StalledAfter:     10 * time.Second,
	ZombieUnanswered: 3,
	ZombieSilence:    10 * time.Second,
	Middleboxes:      conn.Middleboxes{Default: 350 * time.Second},
	UnreadAfter:      30 * time.Second,
	HZ:               conntest.HZ,
}

var explainedAt = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// explained describes and explains the connection whose record is c.
func explained(c *abi.Conn) (conn.Connection, Explanation) {
	c.Netns = 4026531840
	connection := testRules.Describe(c, explainedAt)
	connection.Local, connection.Remote = netip.MustParseAddrPort("10.0.0.1:37024"), netip.MustParseAddrPort("10.0.0.2:5432")
	return connection, Explain(&testRules, c, &connection, Netns{Host: true})
}

const (
	advisedKeepalive = "setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10); setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, 3); setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)"
	killNow          = "ss -K src 10.0.0.1:37024 dst 10.0.0.2:5432"
	userTimeout90    = "setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 90000)"
)

func TestExplain(t *testing.T) {
	for name, test := range map[string]struct {
		conn       *abi.Conn
		doing      string // a part of the text
		next       string
		assessment string
		how        []string        // each advice's, exactly
		then       []time.Duration // the earliest that each would bring, to a percent; 0: nothing now
	}{
		"healthy, and well set": {
			conn:       conntest.Guarded(time.Minute, 10*time.Second, 3, 90000),
			doing:      "The connection is established: both ends can send. The connection was made, or data last moved, 10s ago; the peer was last heard then, too. Nothing is in flight, and nothing waits to be sent. Verdict: active. The connection was made, or data moved, within the last 5m, and nothing is overdue.",
			next:       "If the peer stays silent, the first keepalive probe goes out in 50s; from then on the kernel sends one every 10s, and gives up once a probe is out and the peer has been silent for 90s (TCP_USER_TIMEOUT; TCP_KEEPCNT then means nothing). If nothing is heard from the peer, the kernel gives up in 1m21s (user_timeout): the application gets ETIMEDOUT.",
			assessment: "Nothing needs changing: a peer that vanishes is noticed after 1m30s of silence, and with data in flight after about 1m30s.",
		},
		"keepalive is quick, but data in flight would mask it": {
			conn:       conntest.Guarded(time.Minute, 10*time.Second, 3, 0),
			next:       "Should the application send meanwhile, keepalive waits, and only retransmission can end the connection: after about 15m.",
			assessment: "An idle peer that vanishes is noticed after 1m30s of silence. But keepalive waits while data is unacknowledged",
			how:        []string{userTimeout90},
			then:       []time.Duration{0},
		},
		"a user timeout that is shorter than the idle time": {
			conn: func() *abi.Conn {
				c := conntest.Guarded(time.Minute, 10*time.Second, 3, 20000)
				c.Risks |= 1 << abi.RiskOneProbeEndsIt
				return c
			}(),
			next:       "the kernel gives up in 1m",
			assessment: "a peer that vanishes is noticed after 1m10s of silence, and with data in flight after about 20s. Mind that TCP_USER_TIMEOUT is not longer than TCP_KEEPIDLE and TCP_KEEPINTVL together",
		},
		"a first probe that comes before the middlebox forgets, if no timer is late": {
			conn:       conntest.Guarded(340*time.Second, 10*time.Second, 3, 0),
			assessment: "The first probe comes after 340s of silence, or up to 5m56s, since the kernel's timers may be late. A NAT or load balancer on the way may have forgotten the connection after 350s",
			how:        []string{"setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)", userTimeout90},
			then:       []time.Duration{81660 * time.Millisecond, 0},
		},
		"its peer is in the same network namespace": {
			conn: func() *abi.Conn {
				c := conntest.Unguarded()
				c.Class = abi.ClassIdle
				c.Flags |= abi.ConnLocalPeer
				return c
			}(),
			doing:      "Verdict: idle. No data for 5m or more. The peer is in the same network namespace, and cannot vanish unnoticed.",
			assessment: "Nothing needs changing: the peer is in the same network namespace.",
		},
		"a user timeout that makes keepalive wait": {
			conn:       conntest.Guarded(time.Minute, 10*time.Second, 3, 900000),
			next:       "the kernel gives up in 14m",
			assessment: "TCP_USER_TIMEOUT overrides the number of probes: a dead peer is noticed after 15m, and would be after 1m30s without it.",
			how:        []string{userTimeout90},
			then:       []time.Duration{80 * time.Second},
		},
		"a user timeout, and keepalive that is slower than the middlebox": {
			conn: conntest.Timed(func(c *abi.Conn) {
				c.UserTimeout = 30000
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 2*time.Hour)
			}),
			next:       "(user_timeout)",
			assessment: "The first probe comes after 2h of silence. A NAT or load balancer on the way may have forgotten the connection after 350s",
			how:        []string{advisedKeepalive + "; " + userTimeout90},
			then:       []time.Duration{90 * time.Second},
		},
		"Linux's defaults": {
			conn: conntest.Idle(func(c *abi.Conn) {
				c.Class = abi.ClassIdle
				c.Silent, c.Idle = conntest.Ago(time.Hour), conntest.Ago(time.Hour)
			}),
			doing:      "Verdict: idle. No data for 5m or more, but the kernel would notice that the peer is gone.",
			next:       "the first keepalive probe goes out in 2h",
			assessment: "and a dead peer is noticed after 2h11m.",
			how: []string{
				advisedKeepalive,
				"sysctl -w net.ipv4.tcp_keepalive_time=60; sysctl -w net.ipv4.tcp_keepalive_intvl=10; sysctl -w net.ipv4.tcp_keepalive_probes=3",
				userTimeout90,
			},
			// Silent for an hour, so setting it asks at once; a sysctl waits for the timer.
			then: []time.Duration{30 * time.Second, 2*time.Hour + 30*time.Second, 0},
		},
		"slow probes, but no middlebox forgets it": {
			conn:       conntest.Guarded(2*time.Minute, 75*time.Second, 9, 0),
			assessment: "A dead peer is noticed only after 13m of silence.",
			how:        []string{"setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10); setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, 3)", "setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 150000)"},
			then:       []time.Duration{140 * time.Second, 0},
		},
		"keepalive was made quick by sysctl, and the timer runs as it was set before": {
			conn: conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = conntest.Ago(time.Minute), conntest.Ago(10*time.Second), 3
				c.Silent, c.Idle = conntest.Ago(2*time.Minute), conntest.Ago(2*time.Minute)
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 118*time.Minute)
			}),
			next:       "the first keepalive probe goes out in 1h58m",
			assessment: "With what is set now, a peer that vanishes is noticed after 1m30s of silence. But the keepalive timer that is running fires only in 1h58m: a changed sysctl leaves it as it is.",
			how:        []string{"setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)", userTimeout90},
			then:       []time.Duration{30 * time.Second, 0},
		},
		"the same, and the probes are still slow": {
			conn: conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime = conntest.Ago(time.Minute)
				c.Silent, c.Idle = conntest.Ago(2*time.Minute), conntest.Ago(2*time.Minute)
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 118*time.Minute)
			}),
			assessment: "A dead peer is noticed only after 12m of silence. But the keepalive timer that is running fires only in 1h58m: a changed sysctl leaves it as it is.",
			how: []string{
				"setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10); setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, 3); setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)",
				"sysctl -w net.ipv4.tcp_keepalive_intvl=10; sysctl -w net.ipv4.tcp_keepalive_probes=3",
				userTimeout90,
			},
			then: []time.Duration{30 * time.Second, 118*time.Minute + 30*time.Second, 0},
		},
		"the same, and probes are out since the timer fired": {
			conn: conntest.Unanswer(conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = conntest.Ago(time.Minute), conntest.Ago(10*time.Second), 9
				c.Silent, c.Idle, c.ProbesOut = conntest.Ago(2*time.Hour), conntest.Ago(2*time.Hour), 4
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 5*time.Second)
			}), abi.EvidenceKeepalive, 4),
			next:       "the kernel gives up in 56s",
			assessment: "No setting needs changing: the kernel gives up in 56s",
			how:        []string{killNow},
			then:       []time.Duration{0},
		},
		"unguarded": {
			conn:       conntest.Unguarded(),
			doing:      "Verdict: unguarded. No data for 5m or more, and keepalive is off: nothing would notice that the peer is gone.",
			next:       "Never: keepalive is off and nothing is in flight, so the kernel asks nothing. A peer that is gone is not noticed until the application sends something.",
			assessment: "Keepalive is off: a peer that vanishes while nothing is in flight is never noticed.",
			how:        []string{"setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1); " + advisedKeepalive, userTimeout90},
			then:       []time.Duration{30 * time.Second, 0},
		},
		"keepalive is set well, but not turned on": {
			conn: func() *abi.Conn {
				c := conntest.Guarded(time.Minute, 10*time.Second, 3, 90000)
				conntest.KeepaliveOff(c)
				c.KeepaliveExpires = 0
				return c
			}(),
			next:       "Never: keepalive is off",
			assessment: "Keepalive is off: a peer that vanishes while nothing is in flight is never noticed. TCP_USER_TIMEOUT is set, but alone it only bounds data in flight.",
			how:        []string{"setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1)"},
			then:       []time.Duration{80 * time.Second},
		},
		"a zombie found by keepalive": {
			conn:       conntest.KeepaliveZombie(),
			doing:      "The connection is established, as far as this kernel knows. Nothing has been heard from the peer for 2h3m. Nothing is in flight, and nothing waits to be sent. Verdict: zombie. 4 keepalive probes in a row went unanswered: the peer is most likely gone, and the kernel still waits.",
			next:       "4 probes are out. If the peer stays silent, the kernel sends one every 75s, and gives up when all 9 probes are unanswered. An answer sets all of this back. If nothing is heard from the peer, the kernel gives up in 7m",
			assessment: "The first probe comes after 2h of silence.",
			how: []string{
				advisedKeepalive,
				"sysctl -w net.ipv4.tcp_keepalive_time=60; sysctl -w net.ipv4.tcp_keepalive_intvl=10; sysctl -w net.ipv4.tcp_keepalive_probes=3",
				killNow,
			},
			// The timer is set to fire at once, and four are more than three.
			then: []time.Duration{0, 70 * time.Second, 0},
		},
		"data in flight, and keepalive cannot help": {
			conn:       conntest.Unacknowledged(func(c *abi.Conn) { c.Risks = 1 << abi.RiskKeepaliveMaskedByUnackedData }),
			doing:      "Nothing has been heard from the peer for 16s. 1 segment is not acknowledged, and has been sent again 6 times (14 bytes in the send queue). Verdict: zombie. 6 retransmissions in a row",
			next:       "The kernel sends it again at growing intervals. An answer sets all of this back. If nothing is heard from the peer, the kernel gives up in 15m",
			assessment: "Data is in flight, so only retransmission can end the connection, after about 15m. Keepalive is on, but does not help while data is in flight.",
			how:        []string{userTimeout90, "sysctl -w net.ipv4.tcp_retries2=8", killNow},
			then:       []time.Duration{75 * time.Second, 93900 * time.Millisecond, 0},
		},
		"data in flight that is given up soon": {
			conn:       conntest.Unacknowledged(func(c *abi.Conn) { conntest.KeepaliveOff(c); c.UserTimeout = 60000 }),
			next:       "(user_timeout)",
			assessment: "No setting needs changing: data that is not acknowledged ends the connection after about 1m.",
			how:        []string{killNow},
			then:       []time.Duration{0},
		},
		"a segment in flight on a healthy connection": {
			conn:       conntest.InFlight(func(*abi.Conn) {}),
			doing:      "1 segment is in flight, and not acknowledged yet (100 bytes in the send queue).",
			next:       "If nothing is heard from the peer, the kernel gives up in 15m",
			assessment: "The first probe comes after 2h of silence.",
			how: []string{
				advisedKeepalive,
				"sysctl -w net.ipv4.tcp_keepalive_time=60; sysctl -w net.ipv4.tcp_keepalive_intvl=10; sysctl -w net.ipv4.tcp_keepalive_probes=3",
				userTimeout90,
			},
			then: []time.Duration{0, 0, 90200 * time.Millisecond},
		},
		"a peer that answers, and does not read": {
			conn:       conntest.ClosedWindow(func(*abi.Conn) {}),
			doing:      "585K bytes wait to be sent or acknowledged, but the peer's window is closed: it does not read, or is gone. Verdict: stalled. The peer answers, but has not made room for 20s.",
			next:       "The kernel goes on asking the peer for room. As long as the peer answers and its window stays closed, it never gives up. If nothing is heard from the peer, the kernel gives up in",
			assessment: "A peer that answers without ever reading is waited for without end; keepalive does not help, since data waits to be sent.",
			how:        []string{"setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 300000)"},
			then:       []time.Duration{280 * time.Second},
		},
		"a peer that does not read, but not for ever": {
			conn:       conntest.ClosedWindow(func(c *abi.Conn) { c.UserTimeout = 60000 }),
			next:       "TCP_USER_TIMEOUT ends it even if the peer answers.",
			assessment: "No setting needs changing: TCP_USER_TIMEOUT bounds how long the peer may refuse to read.",
		},
		"a peer that neither reads nor answers": {
			conn:       conntest.Unanswer(conntest.ClosedWindow(func(c *abi.Conn) { c.ProbesOut, c.Silent = 6, conntest.Ago(18*time.Second) }), abi.EvidenceWindowProbe, 6),
			doing:      "Verdict: zombie. 6 window probes in a row went unanswered: the peer is most likely gone",
			next:       "The kernel goes on asking the peer for room. An answer sets all of this back. If nothing is heard from the peer, the kernel gives up in 15m",
			assessment: "The peer does not answer, and only unanswered window probes end the connection; keepalive does not help, since data waits to be sent.",
			how:        []string{"setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 300000)", killNow},
			then:       []time.Duration{280 * time.Second, 0},
		},
		"a peer that neither reads nor answers, and is given up soon": {
			conn:       conntest.Unanswer(conntest.ClosedWindow(func(c *abi.Conn) { c.ProbesOut, c.Retries, c.Silent = 6, 8, conntest.Ago(18*time.Second) }), abi.EvidenceWindowProbe, 6),
			next:       "An answer sets all of this back. If nothing is heard from the peer, the kernel gives up in 1m",
			assessment: "No setting needs changing: the kernel gives up in 1m",
			how:        []string{killNow},
			then:       []time.Duration{0},
		},
		"nobody answers the SYN": {
			conn:       conntest.Connecting(func(*abi.Conn) {}),
			doing:      "The connection is being made: we have sent a SYN, and wait for the peer's answer. The SYN has been sent again 3 times. Verdict: suspect. 3 retransmissions in a row went unanswered: there may be nobody at that address",
			next:       "The kernel sends the SYN again at growing intervals. An answer sets all of this back. If nothing is heard from the peer, the kernel gives up in 2m",
			assessment: "A peer that does not answer keeps the application waiting for long, unless it has a timeout of its own.",
			how: []string{
				"setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 10000)", "setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, 3)",
				"sysctl -w net.ipv4.tcp_syn_retries=3",
			},
			then: []time.Duration{7 * time.Second, 15500 * time.Millisecond, 15500 * time.Millisecond},
		},
		"nobody answers the SYN, and the application is in a hurry": {
			conn:       conntest.Connecting(func(c *abi.Conn) { c.Retries = 2; c.Flags |= abi.ConnSynRetriesSet }),
			next:       "(connect_timeout): connect(2) fails with ETIMEDOUT.",
			assessment: "Nothing needs changing: a peer that does not answer is given up soon.",
		},
		"the application has never closed it": {
			conn: func() *abi.Conn {
				c := conntest.Unguarded()
				c.State, c.Risks = abi.StateCloseWait, 1<<abi.RiskCloseWaitLeak
				return c
			}(),
			doing:      "The peer has closed its side and waits for ours: the application has not closed the socket.",
			next:       "Never, by itself: the connection stays in close_wait until the application closes the socket.",
			assessment: "The application leaks it: the peer has closed, and nothing has come from it for 6m.",
			how:        []string{"close(fd)"},
			then:       []time.Duration{0},
		},
		"the application may close it yet": {
			conn: conntest.Timed(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.State = abi.StateCloseWait
			}),
			next:       "Never, by itself",
			assessment: "Nothing needs changing, as long as the application closes the socket soon.",
		},
		"closed, and the end is not acknowledged": {
			conn:       conntest.Orphan(func(*abi.Conn) {}),
			doing:      "The application has closed it, and no process holds it any more. The peer has not acknowledged that yet.",
			next:       "(orphan_timeout): no application is told.",
			assessment: "No application waits for this: it costs the kernel some memory, and ends by itself.",
			how:        []string{"sysctl -w net.ipv4.tcp_orphan_retries=3", killNow},
			then:       []time.Duration{13 * time.Second, 0},
		},
		"close(2) waits": {
			conn:       conntest.Lingering(func(*abi.Conn) {}),
			doing:      "The application has closed it. The peer has not acknowledged that yet. close(2) waits until the peer has acknowledged everything, for up to 20s, of which 5s are over (SO_LINGER).",
			next:       "(orphan_timeout): no application is told.",
			assessment: "A thread waits in close(2), until the peer has acknowledged everything or the time is over; then the kernel treats it as any closed socket.",
			how:        []string{"sysctl -w net.ipv4.tcp_orphan_retries=3", killNow},
			then:       []time.Duration{39 * time.Second, 0},
		},
		"close(2) waits, and no program saw it begin": {
			conn:       conntest.Lingering(func(c *abi.Conn) { c.State, c.Lingering, c.Retries = abi.StateLastAck, abi.AgeNone, 1 }),
			doing:      "Both ends have closed it; the peer has not acknowledged our end yet. close(2) waits until the peer has acknowledged everything, for up to 20s (SO_LINGER).",
			assessment: "A thread waits in close(2), until the peer has acknowledged everything or the time is over; then the kernel treats it as any closed socket. No setting needs changing.",
			how:        []string{killNow},
			then:       []time.Duration{0},
		},
		"closed, and the namespace is strict with such": {
			conn:       conntest.Orphan(func(c *abi.Conn) { c.Retries = 1 }),
			assessment: "No application waits for this: it costs the kernel some memory, and ends by itself. No setting needs changing.",
			how:        []string{killNow},
			then:       []time.Duration{0},
		},
		"closed, and the peer does not close its side": {
			conn: conntest.Timed(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.State, c.FinTime = abi.StateFinWait2, conntest.Ago(5*time.Minute)
				c.Flags |= abi.ConnOrphan | abi.ConnFinTimeSet
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 4*time.Minute)
			}),
			doing:      "The application has closed it, and no process holds it any more. The peer knows, and has not closed its side yet.",
			next:       "If the peer does not close its side, the kernel gives up in 8m",
			assessment: "No application waits for this",
			how:        []string{"setsockopt(fd, IPPROTO_TCP, TCP_LINGER2, 60)"},
			then:       []time.Duration{0},
		},
		"half closed, held, and guarded": {
			conn: func() *abi.Conn {
				c := conntest.Guarded(time.Minute, 10*time.Second, 3, 0)
				c.State = abi.StateFinWait2
				return c
			}(),
			next:       "(keepalive_timeout): the application gets ETIMEDOUT.",
			assessment: "Nothing needs changing: a peer that vanishes is noticed after 1m30s of silence.",
		},
		"half closed, and the peer does not acknowledge it": {
			conn: conntest.Unacknowledged(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.State = abi.StateFinWait1
			}),
			doing:      "The application has closed its sending side (shutdown), and still holds the socket. The peer has not acknowledged that yet.",
			next:       "(retransmit_timeout): the application gets ETIMEDOUT.",
			assessment: "The end of our side is not acknowledged, so only retransmission can end the connection, after about 15m.",
			how:        []string{userTimeout90, "sysctl -w net.ipv4.tcp_retries2=8", killNow},
			then:       []time.Duration{75 * time.Second, 93900 * time.Millisecond, 0},
		},
		"half closed, and held": {
			conn: conntest.Timed(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.State = abi.StateFinWait2
			}),
			doing:      "The application has closed its sending side (shutdown), and still holds the socket.",
			next:       "It waits for the peer to close its side for as long as the application holds the socket.",
			assessment: "Keepalive is off",
			how:        []string{"setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1); " + advisedKeepalive, "close(fd)"},
			then:       []time.Duration{90 * time.Second, 0},
		},
		"nobody has accepted it": {
			conn: func() *abi.Conn {
				c := conntest.Unguarded()
				c.Flags |= abi.ConnUnaccepted
				return c
			}(),
			doing:      "No application has accepted it yet: it waits in the queue of its listener, and nobody reads what arrives.",
			next:       "Never, by itself: keepalive is off and nothing is in flight, so the kernel asks nothing. It waits until the application accepts it.",
			assessment: "Nobody has accepted the connection, so no application can notice anything.",
			how: []string{
				"accept(listener, ...)",
				"setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, 1); " + strings.ReplaceAll(advisedKeepalive, "(fd,", "(listener,"),
			},
			then: []time.Duration{0, 0},
		},
		"a network error was reported, which is what the application gets": {
			conn:       conntest.Unacknowledged(func(c *abi.Conn) { c.Flags |= abi.ConnSoftError; c.UserTimeout = 60000 }),
			next:       "the application gets the network error that was reported meanwhile, such as EHOSTUNREACH, or else ETIMEDOUT.",
			assessment: "No setting needs changing",
			how:        []string{killNow},
			then:       []time.Duration{0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := explained(test.conn)
			for what, s := range map[string][2]string{
				"doing":      {strings.Join(e.Doing, " "), test.doing},
				"next":       {strings.Join(e.Next, " "), test.next},
				"assessment": {e.Assessment, test.assessment},
			} {
				if !strings.Contains(s[0], s[1]) {
					t.Errorf("%s:\n%s\ndoes not say\n%s", what, s[0], s[1])
				}
			}
			var how []string
			for _, a := range e.Advice {
				how = append(how, strings.Join(a.How, "; "))
			}
			if diff := cmp.Diff(test.how, how); diff != "" {
				t.Fatalf("advice (-want +got)\n%s", diff)
			}
			for i, want := range test.then {
				f := e.Advice[i].Then
				switch {
				case !f.Ever() && want > 0:
					t.Errorf("advice %d changes nothing", i+1)
				case f.Ever():
					got := f.At.Sub(explainedAt)
					if off := got - want; off < -10*time.Millisecond || off > want/50+time.Second && want < time.Hour || off > 3*time.Minute {
						t.Errorf("advice %d: the kernel would give up in %v, want %v", i+1, got, want)
					}
				}
			}
			if strings.Contains(e.Assessment, "Nothing needs changing") && len(e.Advice) > 0 ||
				strings.Contains(e.Assessment, "No setting needs changing") && slices.ContainsFunc(e.Advice, func(a Advice) bool { return a.How[0] != killNow }) {
				t.Error("it needs no changing, and there is advice")
			}
		})
	}
}

// A pasted command acts on the connection's network namespace.
func TestCommandsEnterTheNetworkNamespace(t *testing.T) {
	for name, test := range map[string]struct {
		netns Netns
		enter string // "-": there is no command
	}{
		"the machine's own":                   {Netns{Host: true}, ""},
		"one to which no path is known":       {Netns{}, "-"},
		"one that a process is in":            {Netns{Path: "/proc/812/ns/net"}, "nsenter --net=/proc/812/ns/net "},
		"one that is mounted":                 {Netns{Path: "/run/netns/blue-1"}, "nsenter --net=/run/netns/blue-1 "},
		"one whose name a shell would act on": {Netns{Path: "/run/netns/a;reboot"}, "-"},
		"one whose name is of two words":      {Netns{Path: "/run/netns/a b"}, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			c := conntest.KeepaliveZombie()
			connection, _ := explained(c)
			advice := Explain(&testRules, c, &connection, test.netns).Advice
			want := []string{
				test.enter + "sysctl -w net.ipv4.tcp_keepalive_time=60", test.enter + "sysctl -w net.ipv4.tcp_keepalive_intvl=10",
				test.enter + "sysctl -w net.ipv4.tcp_keepalive_probes=3", test.enter + killNow,
			}
			if test.enter == "-" {
				want = nil
			}
			for _, a := range advice[1:] {
				if (test.enter == "-") != strings.Contains(a.Text, "There is no command here") {
					t.Error(a.Text)
				}
			}
			if diff := cmp.Diff(want, append(advice[1].How, advice[2].How...)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !strings.Contains(advice[2].Text, "in network namespace 4026531840") {
				t.Error(advice[2].Text)
			}
		})
	}
}

// Advice.Then equals the forecast after the advice was followed.
func TestAdviceThenEqualsTheForecastAfterwards(t *testing.T) {
	_, e := explained(conntest.Unguarded())
	then := e.Advice[0].Then
	c := conntest.Unguarded()
	c.Flags |= abi.ConnKeepalive
	c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = conntest.Ago(time.Minute), conntest.Ago(10*time.Second), 3
	c.KeepaliveExpires, c.KeepaliveLevel = c.Jiffies, 0 // silent for longer: at once
	if diff := cmp.Diff(testRules.Forecast(c, explainedAt), then); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTimers(t *testing.T) {
	for name, test := range map[string]struct {
		conn             *abi.Conn
		keepalive, write string // name, when, and then
	}{
		"idle": {
			conntest.Guarded(time.Minute, 10*time.Second, 3, 0),
			"keepalive in 50s: Sends probe 1 of 3; the next one, or the end, is 10s later.",
			"retransmission: Not running: nothing is in flight.",
		},
		"the last probe is out": {
			conntest.Unanswer(conntest.Idle(func(c *abi.Conn) {
				c.Silent, c.ProbesOut = conntest.Ago(7900*time.Second), 9
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 10*time.Second)
			}), abi.EvidenceKeepalive, 9),
			"keepalive in 10s: Gives the connection up: all 9 probes are unanswered.",
			"retransmission: Not running: nothing is in flight.",
		},
		"the peer was heard since the timer was set": {
			conntest.Idle(func(c *abi.Conn) { c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 10*time.Minute) }),
			"keepalive in 10m: The peer has not been silent for 2h by then: it waits for the rest.",
			"retransmission: Not running: nothing is in flight.",
		},
		"the user timeout decides": {
			conntest.Unanswer(conntest.Idle(func(c *abi.Conn) {
				c.Silent, c.ProbesOut, c.UserTimeout = conntest.Ago(7300*time.Second), 2, 30000
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 10*time.Second)
			}), abi.EvidenceKeepalive, 2),
			"keepalive in 10s: Gives the connection up: TCP_USER_TIMEOUT has passed.",
			"retransmission: Not running: nothing is in flight.",
		},
		"data in flight": {
			func() *abi.Conn {
				c := conntest.Unacknowledged(func(*abi.Conn) {})
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, time.Hour)
				return c
			}(),
			"keepalive in 1h1m: Sends nothing while data is unacknowledged, and waits for another 2h.",
			"retransmission in 13s: Sends the oldest segment again (retransmission 7 in a row); the next wait is longer, 2m at most.",
		},
		"the last retransmission is out": {
			conntest.Unacknowledged(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.Retransmitting, c.Retries = conntest.Ago(time.Minute), 6
			}),
			"keepalive: Not running: SO_KEEPALIVE is off.",
			"retransmission in 13s: Gives the connection up, unless the peer is heard before.",
		},
		"a tail loss probe": {
			conntest.InFlight(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.Pending, c.Rto = abi.PendingTailLossProbe, conntest.Ago(300*time.Millisecond)
			}),
			"keepalive: Not running: SO_KEEPALIVE is off.",
			"tail_loss_probe in 300ms: Sends it, and sets the retransmission timer.",
		},
		"a closed window": {
			conntest.ClosedWindow(func(*abi.Conn) {}),
			"keepalive: Not running: SO_KEEPALIVE is off.",
			"window_probe in 9.2s: Sends a window probe; the next wait is twice as long, 2m at most.",
		},
		"connecting": {
			conntest.Connecting(func(c *abi.Conn) { c.Flags |= abi.ConnKeepalive }),
			"keepalive: Not running: it begins once the connection is made.",
			"retransmission in 516ms: Sends the SYN again (retransmission 4).",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := explained(test.conn)
			for i, want := range []string{test.keepalive, test.write} {
				timer := e.Timers[i]
				got := timer.Name
				if timer.Pending() {
					got += " in " + roundly(timer.At.Sub(explainedAt))
					if timer.Latest.Before(timer.At) {
						t.Errorf("%s: at the latest before at the earliest", timer.Name)
					}
				}
				if got += ": " + timer.Then; !similar(got, want) {
					t.Errorf("%s\nwant\n%s", got, want)
				}
				if timer.Purpose == "" {
					t.Errorf("%s is for nothing", timer.Name)
				}
			}
		})
	}
}

func roundly(d time.Duration) string { return d.Round(time.Millisecond).String() }

// similar reports whether two sentences are equal except for times, which the timer wheel
// rounds up.
func similar(got, want string) bool {
	cutTime := func(s string) (string, string) {
		name, then, _ := strings.Cut(s, ": ")
		name, _, timed := strings.Cut(name, " in ")
		if timed {
			name += " in"
		}
		return name, then
	}
	gotName, gotThen := cutTime(got)
	wantName, wantThen := cutTime(want)
	return gotName == wantName && gotThen == wantThen
}

func TestSettingsAndTheirSources(t *testing.T) {
	one := func(s Setting) string {
		name := s.Option
		if name == "" {
			name = s.Sysctl
		}
		return name + "=" + strconv.FormatInt(s.Value, 10) + " " + s.Unit + " " + s.Source.String()
	}
	for name, test := range map[string]struct {
		conn *abi.Conn
		want []string
	}{
		"nothing is set anywhere": {conntest.Idle(func(*abi.Conn) {}), []string{
			"SO_KEEPALIVE=1 switch socket", "TCP_KEEPIDLE=7200 seconds default", "TCP_KEEPINTVL=75 seconds default",
			"TCP_KEEPCNT=9 probes default", "TCP_USER_TIMEOUT=0 milliseconds default", "net.ipv4.tcp_retries2=15 retransmissions default",
		}},
		"everything is the socket's own, though some of it is the default": {
			func() *abi.Conn {
				c := conntest.Guarded(2*time.Hour, 10*time.Second, 3, 1500)
				c.Flags |= abi.ConnRtoMaxSet | abi.ConnThinSet
				return c
			}(),
			[]string{
				"SO_KEEPALIVE=1 switch socket", "TCP_KEEPIDLE=7200 seconds socket", "TCP_KEEPINTVL=10 seconds socket",
				"TCP_KEEPCNT=3 probes socket", "TCP_USER_TIMEOUT=1500 milliseconds socket", "net.ipv4.tcp_retries2=15 retransmissions default",
				"TCP_RTO_MAX_MS=120000 milliseconds socket", "TCP_THIN_LINEAR_TIMEOUTS=1 switch socket",
			},
		},
		"everything is the namespace's": {
			conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = conntest.Ago(77*time.Second), conntest.Ago(7*time.Second), 2
				c.Retries, c.RtoMax, c.ThinRto = 8, conntest.Ago(time.Second), conntest.Ago(time.Second)
			}),
			[]string{
				"SO_KEEPALIVE=1 switch socket", "TCP_KEEPIDLE=77 seconds sysctl", "TCP_KEEPINTVL=7 seconds sysctl",
				"TCP_KEEPCNT=2 probes sysctl", "TCP_USER_TIMEOUT=0 milliseconds default", "net.ipv4.tcp_retries2=8 retransmissions sysctl",
				"TCP_RTO_MAX_MS=1000 milliseconds sysctl", "TCP_THIN_LINEAR_TIMEOUTS=1 switch sysctl",
			},
		},
		"keepalive is off, and the probe count set all the same": {
			conntest.Timed(func(c *abi.Conn) {
				conntest.KeepaliveOff(c)
				c.Flags |= abi.ConnKeepaliveProbesSet
			}),
			[]string{
				"SO_KEEPALIVE=0 switch default", "TCP_KEEPCNT=9 probes socket", "TCP_USER_TIMEOUT=0 milliseconds default",
				"net.ipv4.tcp_retries2=15 retransmissions default",
			},
		},
		"connecting": {conntest.Connecting(func(c *abi.Conn) { c.Retries = 2 }), []string{
			"SO_KEEPALIVE=0 switch default", "TCP_USER_TIMEOUT=0 milliseconds default", "TCP_SYNCNT=2 retransmissions sysctl",
			"net.ipv4.tcp_syn_linear_timeouts=4 retransmissions default",
		}},
		"connecting with a count of its own": {conntest.Connecting(func(c *abi.Conn) { c.Flags |= abi.ConnSynRetriesSet; c.SynLinear = 0 }), []string{
			"SO_KEEPALIVE=0 switch default", "TCP_USER_TIMEOUT=0 milliseconds default", "TCP_SYNCNT=6 retransmissions socket",
		}},
		"closed by its application": {conntest.Orphan(func(c *abi.Conn) { c.FinTime = conntest.Ago(30 * time.Second); c.Rto = conntest.Ago(time.Second) }), []string{
			"SO_KEEPALIVE=0 switch default", "TCP_USER_TIMEOUT=0 milliseconds default", "net.ipv4.tcp_orphan_retries=0 retransmissions default",
			"TCP_LINGER2=30 seconds sysctl",
		}},
		"closed, and not to wait for the peer's end": {
			conntest.Orphan(func(c *abi.Conn) { c.FinTime = abi.AgeNone; c.Flags |= abi.ConnFinTimeSet; c.Retries = 3 }),
			[]string{
				"SO_KEEPALIVE=0 switch default", "TCP_USER_TIMEOUT=0 milliseconds default", "net.ipv4.tcp_orphan_retries=3 retransmissions sysctl",
				"TCP_LINGER2=-1 seconds socket",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := explained(test.conn)
			var got []string
			for _, s := range e.Settings {
				got = append(got, one(s))
				if s.Means == "" {
					t.Errorf("%s means nothing", one(s))
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestWhatRetries2Means(t *testing.T) {
	for name, test := range map[string]struct {
		conn *abi.Conn
		want string
	}{
		"data in flight":                     {conntest.Unacknowledged(func(*abi.Conn) {}), "Before it gives up on data in flight: about 15m"},
		"data in flight, and a user timeout": {conntest.Unacknowledged(func(c *abi.Conn) { c.UserTimeout = 1000 }), "Before it gives up on data in flight; without effect, since TCP_USER_TIMEOUT is set"},
		"a closed window":                    {conntest.ClosedWindow(func(*abi.Conn) {}), "Unanswered window probes in a row, before it gives up"},
		"a closed window, and a user timeout, which does not override it": {
			conntest.ClosedWindow(func(c *abi.Conn) { c.UserTimeout = 1000 }), "Unanswered window probes in a row, before it gives up",
		},
		"a window that was closed under data in flight": {
			conntest.Unacknowledged(func(c *abi.Conn) { c.SendWindow = 0 }),
			"Before it gives up on data in flight; without effect while the peer's window is closed",
		},
		"an open window, and a host that lets nothing out": {
			conntest.ClosedWindow(func(c *abi.Conn) { c.Flags, c.SendWindow = abi.ConnBlocked, 65536 }), "Tries to send, before it gives up",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := explained(test.conn)
			i := slices.IndexFunc(e.Settings, func(s Setting) bool { return s.Sysctl == "net.ipv4.tcp_retries2" })
			if i < 0 || e.Settings[i].Means != test.want {
				t.Errorf("%+v", e.Settings)
			}
		})
	}
}

// A stuck connection: data in flight, and a peer that is heard and does not acknowledge it.
func stuck(reason func(*abi.Conn)) *abi.Conn {
	return conntest.Unacknowledged(func(c *abi.Conn) {
		c.Silent, c.Accepted, c.Mss, c.Retransmitted = conntest.Ago(2*time.Second), conntest.Ago(2*time.Second), 1448, 1448
		c.Unacknowledged = 6
		reason(c)
	})
}

func TestExplainStuckAndBlocked(t *testing.T) {
	const (
		getRoute  = "ip route get 10.0.0.2"
		tracepath = "tracepath -n 10.0.0.2"
		probing   = "sysctl -w net.ipv4.tcp_mtu_probing=1"
		clamp     = "nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu"
		tcpdump   = "tcpdump -ni any host 10.0.0.1 and tcp port 37024"
	)
	unanswered := func(c *abi.Conn) *abi.Conn { // nothing since the peer was heard
		c.Unanswered = 0
		return c
	}
	blocked := func(c *abi.Conn) *abi.Conn {
		c.Flags |= abi.ConnTrouble
		c.Attempts, c.Failing, c.Unanswered = 4, conntest.Ago(20*time.Second), 0
		return c
	}
	for name, test := range map[string]struct {
		conn              *abi.Conn
		doing, next, says string   // parts of the texts
		how               []string // each advice's
	}{
		"full-sized segments are lost": {
			unanswered(stuck(func(*abi.Conn) {})),
			"The peer was last heard 2s ago, but has not acknowledged what we sent for 15s. 1 segment is not acknowledged, and has been sent again 6 times (14 bytes in the send queue). Verdict: stuck. 6 retransmissions in a row are not acknowledged, although the peer is heard: it is there, and something on the way, or its kernel, does not let these through. Full-sized segments (1448 bytes of data) are not acknowledged, and smaller ones pass",
			"The kernel sends it again at growing intervals. An acknowledgement sets all of this back; other segments of the peer do not. If the peer acknowledges nothing, the kernel gives up in 15m (retransmit_timeout): the application gets ETIMEDOUT.",
			"The peer is there, so keepalive would change nothing: look at the path to it.",
			[]string{getRoute + "; " + tracepath, probing, clamp, userTimeout90},
		},
		"what this host sends is lost": {
			unanswered(stuck(func(c *abi.Conn) { c.Retransmitted = 14 })),
			"The segments of the peer arrive here, but nothing that this host sends is acknowledged.", "An acknowledgement sets all of this back",
			"look at the path to it.", []string{tcpdump, getRoute + "; nft list ruleset", userTimeout90},
		},
		"the listener of the peer does not accept": {
			func() *abi.Conn {
				c := stuck(func(c *abi.Conn) { c.Flags |= abi.ConnNeverAcked })
				c.Accepted = conntest.Ago(20 * time.Second)
				return unanswered(c)
			}(),
			"since the handshake it has acknowledged nothing: its listener does not accept the connection", "An acknowledgement sets all of this back",
			"look at its listener first, then at the path to it.",
			[]string{
				"ss -ltn sport = :5432; nstat -az TcpExtListenOverflows TcpExtListenDrops; halfopen list --risk accept_queue_full",
				tcpdump, getRoute + "; nft list ruleset", userTimeout90,
			},
		},
		"the reason is not known": {
			unanswered(stuck(func(c *abi.Conn) { c.Retransmitted = 0 })),
			"does not let these through.", "An acknowledgement sets all of this back",
			"look at the path to it.", []string{getRoute + "; " + tracepath, probing, clamp, tcpdump, getRoute + "; nft list ruleset", userTimeout90},
		},
		"keepalive probes are not acknowledged": {
			func() *abi.Conn {
				c := conntest.KeepaliveZombie()
				c.Silent, c.Accepted, c.Unacknowledged = conntest.Ago(time.Second), conntest.Ago(7430*time.Second), 4
				return unanswered(c)
			}(),
			"Verdict: stuck. 4 keepalive probes in a row are not acknowledged",
			"4 probes are out. If the peer acknowledges none, the kernel sends one every 75s, and gives up when all 9 probes are unanswered. An acknowledgement sets all of this back",
			"keepalive would change nothing", []string{tcpdump, getRoute + "; nft list ruleset"},
		},
		"this host fails to send probes": {
			func() *abi.Conn {
				c := blocked(conntest.KeepaliveZombie())
				c.Evidence = abi.EvidenceKeepalive
				return c
			}(),
			"Verdict: blocked. This host has failed to send 4 keepalive probes in a row: nothing was asked, so this says nothing about the peer.",
			"The kernel goes on trying to send keepalive probes. It counts 4 as unanswered, although this host failed to send the newest 4, and gives up when all 9 probes are unanswered. If this host sends nothing until then, the kernel gives up in",
			"This host sends nothing, so no setting of the connection changes anything",
			[]string{"ip route get 10.0.0.2 from 10.0.0.1; ip addr; ip -s link", "nft list ruleset; tc -s qdisc"},
		},
		"this host fails to send data": {
			blocked(conntest.Unacknowledged(func(*abi.Conn) {})),
			"1 segment is not acknowledged; this host has tried to send the oldest again 6 times, and the newest 4 attempts failed (14 bytes in the send queue). Verdict: blocked. This host has failed to send 4 retransmissions in a row",
			"The kernel goes on trying to send, at growing intervals. If this host sends nothing until then, the kernel gives up in 15m (retransmit_timeout)",
			"find what keeps the segments back here",
			[]string{"ip route get 10.0.0.2 from 10.0.0.1; ip addr; ip -s link", "nft list ruleset; tc -s qdisc"},
		},
		"the first attempts failed": {
			func() *abi.Conn {
				c := blocked(conntest.Unacknowledged(func(*abi.Conn) {}))
				c.Attempts, c.Failing, c.Drop = 2, conntest.Ago(time.Second), abi.DropFilter
				return c
			}(),
			"Verdict: suspect. This host has failed to send 2 retransmissions, which is not enough yet to call it blocked. A netfilter rule (nftables, iptables) in the output or postrouting hook drops what this connection sends.",
			"The kernel goes on trying to send, at growing intervals.", "",
			[]string{userTimeout90, "sysctl -w net.ipv4.tcp_retries2=8"},
		},
		"an output filter drops what this host sends": {
			func() *abi.Conn {
				c := blocked(conntest.Unacknowledged(func(*abi.Conn) {}))
				c.Drop = abi.DropFilter
				return c
			}(),
			"in the output or postrouting hook drops what this connection sends.", "at growing intervals",
			"find what keeps the segments back here",
			[]string{"nft list ruleset; bpftool cgroup tree"},
		},
		"a device does not take what this host sends": {
			func() *abi.Conn {
				c := blocked(conntest.Unacknowledged(func(*abi.Conn) {}))
				c.Flags |= abi.ConnCongested
				return c
			}(),
			"The device does not take what this connection sends",
			"The kernel goes on trying to send, every half second, since the device does not take it.",
			"find what keeps the segments back here",
			[]string{"ip route get 10.0.0.2 from 10.0.0.1; tc -s qdisc; bpftool net; nft list ruleset netdev"},
		},
		"a device does not take keepalive probes": {
			func() *abi.Conn {
				c := blocked(conntest.KeepaliveZombie())
				c.Evidence, c.ProbesOut, c.Drop = abi.EvidenceKeepalive, 0, abi.DropQueue
				c.Flags |= abi.ConnCongested
				return c
			}(),
			"Verdict: blocked. This host has failed to send 4 keepalive probes in a row: nothing was asked, so this says nothing about the peer. The queueing discipline of the device (tc qdisc) drops what this connection sends.",
			"Never, as long as this host drops its keepalive probes: the kernel tries again every half second, and counts none of them.",
			"find what keeps the segments back here",
			[]string{"ip route get 10.0.0.2 from 10.0.0.1; tc -s qdisc; bpftool net; nft list ruleset netdev"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := explained(test.conn)
			for _, part := range []struct{ has, want string }{
				{strings.Join(e.Doing, " "), test.doing}, {strings.Join(e.Next, " "), test.next}, {e.Assessment, test.says},
			} {
				if !strings.Contains(part.has, part.want) {
					t.Errorf("%q\nhas no\n%q", part.has, part.want)
				}
			}
			var how []string
			for _, a := range e.Advice {
				how = append(how, strings.Join(a.How, "; "))
			}
			if diff := cmp.Diff(test.how, how); diff != "" {
				t.Errorf("advice (-want +got)\n%s", diff)
			}
		})
	}
}

// A zombie whose address answers others is not called gone.
func TestExplainZombieOfAnAddressThatAnswers(t *testing.T) {
	c := conntest.KeepaliveZombie()
	connection := testRules.Describe(c, explainedAt)
	for code, want := range map[conn.ReasonCode]string{
		conn.ReasonPeerHostAlive:  "the peer does not answer on this connection, and the kernel still waits. Others were heard.",
		conn.ReasonPeerHostSilent: "the peer is most likely gone, and the kernel still waits. Others were heard.",
	} {
		connection.Reason = conn.Reason{Code: code, Detail: "Others were heard."}
		if e := Explain(&testRules, c, &connection, Netns{Host: true}); !strings.Contains(strings.Join(e.Doing, " "), want) {
			t.Errorf("%s: %q has no %q", code, e.Doing, want)
		}
	}
}

func TestExplainOtherEnd(t *testing.T) {
	c := conn.Connection{Cookie: 0x1a2c, ReceiveQueue: 600000}
	if got, want := OtherEnd(&c), "The other end is on this machine, too: its application has left 585K bytes there, see connection 1a2c."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	c.Process = &conn.Process{PID: 813, Comm: "worker"}
	if got, want := OtherEnd(&c), "The other end is on this machine, too: process 813 has left 585K bytes there, see connection 1a2c."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestExplainUnread(t *testing.T) {
	const stacks, gdb = "cat /proc/812/task/*/stack", "gdb -p 812 -batch -ex 'thread apply all bt'"
	for name, test := range map[string]struct {
		conn        *abi.Conn
		process     *conn.Process
		doing, says string // parts of the texts
		how         []string
		text        string // a part of the last advice
	}{
		"by a process that is known": {
			conntest.Leave(conntest.Unguarded(), 11584, 47*time.Second), &conn.Process{PID: 812, Comm: "worker", FD: 9},
			"11K bytes have arrived and have not been read for 47s: process 812 holds the socket, as descriptor 9. Verdict: unread. The peer and the way to it are well: the application of this host does not read.",
			"keepalive would change nothing", []string{stacks + "; " + gdb, "close(fd)"}, "has to close it",
		},
		"by a process that is not known": {
			conntest.Leave(conntest.Unguarded(), 1, 47*time.Second), nil,
			"1 byte has arrived and has not been read for 47s. Verdict: unread.",
			"keepalive would change nothing", []string{strings.ReplaceAll(stacks+"; "+gdb, "812", "PID"), "close(fd)"}, "has to close it",
		},
		"after the peer's FIN": {
			func() *abi.Conn {
				c := conntest.Leave(conntest.Unguarded(), 24, time.Hour)
				c.State = abi.StateCloseWait
				return c
			}(), &conn.Process{PID: 812, FD: 9},
			"24 bytes have arrived", "find out why the application does not read", []string{stacks + "; " + gdb, "close(fd)"}, "The peer has closed its side.",
		},
		"both ends stop reading": {
			conntest.Leave(conntest.ClosedWindow(func(*abi.Conn) {}), 600000, time.Minute), &conn.Process{PID: 812, FD: 9},
			"Verdict: stalled. The peer answers, but has not made room for 20s. It is unread, too.",
			"A peer that answers without ever reading is waited for without end", []string{"setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 300000)", stacks + "; " + gdb, "close(fd)"}, "has to close it",
		},
		"not accepted": {
			func() *abi.Conn {
				c := conntest.Leave(conntest.Idle(func(*abi.Conn) {}), 24, time.Hour)
				c.Flags |= abi.ConnUnaccepted
				return c
			}(), nil,
			"No application has accepted it yet", "Nobody has accepted the connection", []string{"accept(listener, ...)"}, "has to accept",
		},
	} {
		t.Run(name, func(t *testing.T) {
			connection := testRules.Describe(test.conn, explainedAt)
			connection.Process = test.process
			e := Explain(&testRules, test.conn, &connection, Netns{Host: true})
			if doing := strings.Join(e.Doing, " "); !strings.Contains(doing, test.doing) {
				t.Errorf("%q\nhas no\n%q", doing, test.doing)
			}
			if !strings.Contains(e.Assessment, test.says) {
				t.Errorf("%q\nhas no\n%q", e.Assessment, test.says)
			}
			var how []string
			for _, a := range e.Advice {
				how = append(how, strings.Join(a.How, "; "))
			}
			if diff := cmp.Diff(test.how, how); diff != "" {
				t.Errorf("advice (-want +got)\n%s", diff)
			}
			if last := e.Advice[len(e.Advice)-1].Text; !strings.Contains(last, test.text) {
				t.Errorf("%q has no %q", last, test.text)
			}
		})
	}
}

// The commands enter the namespace of the connection, but for those of other hosts.
func TestStuckAdviceEntersTheNamespace(t *testing.T) {
	c := stuck(func(c *abi.Conn) { c.Unanswered = 0 })
	connection := testRules.Describe(c, explainedAt)
	connection.Verdict, connection.Local, connection.Remote = conn.Stuck, netip.MustParseAddrPort("[fd77::1]:1"), netip.MustParseAddrPort("[fd77::2]:2")
	e := Explain(&testRules, c, &connection, Netns{Path: "/proc/7/ns/net"})
	if want := "nsenter --net=/proc/7/ns/net ip route get fd77::2"; e.Advice[0].How[0] != want {
		t.Errorf("%q, want %q", e.Advice[0].How[0], want)
	}
}

// Every record has an explanation, and its sentences are printable and not empty.
func FuzzExplain(f *testing.F) {
	f.Add(uint8(1), uint32(1), uint8(1), uint32(1), uint32(100), uint32(0), uint32(250), uint8(3), uint64(5000))
	f.Add(uint8(2), uint32(0), uint8(1), uint32(1), abi.AgeNone, uint32(10000), uint32(1), uint8(0), uint64(0))
	f.Fuzz(func(t *testing.T, state uint8, flags uint32, pending uint8, packets, silent, timeout, idle uint32, probes uint8, expires uint64) {
		state = state%11 + 1
		c := conntest.Timed(func(c *abi.Conn) {
			c.State, c.Flags, c.Pending, c.PacketsOut, c.SendQueue = state, flags, pending, packets, packets
			c.Silent, c.Idle, c.UserTimeout, c.KeepaliveProbes, c.KeepaliveTime = silent, silent, timeout, probes, idle%(32767*conntest.HZ)+1
			c.ProbesOut, c.Retransmits = probes/2, probes/3
			if expires%3 > 0 {
				c.KeepaliveExpires, c.WriteExpires = c.Jiffies+expires%1e9, c.Jiffies+expires%1e6
			}
		})
		_, e := explained(c)
		says := append(append(append([]string{e.Assessment}, e.Doing...), e.Next...), e.Timers[0].Then, e.Timers[1].Then)
		for _, a := range e.Advice {
			says = append(append(says, a.Text), a.How...)
		}
		if len(e.Next) == 0 || len(e.Settings) == 0 {
			t.Errorf("nothing next or no settings: %+v", e)
		}
		for _, s := range says {
			if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.Contains(s, "%!") {
				t.Errorf("%q", s)
			}
		}
	})
}

func TestEveryTimeoutHasItsEnding(t *testing.T) {
	for c := range conn.Cause(conn.Causes) {
		if (endings[c] != "") != c.IsTimeout() {
			t.Errorf("%v has the ending %q in endings (next.go); a timeout needs one, and no other cause has one", c, endings[c])
		}
	}
}

func TestTheMiddleboxIsThatOfTheDestination(t *testing.T) {
	c := conntest.Guarded(time.Minute, 10*time.Second, 3, 0)
	connection, _ := explained(c)
	for name, test := range map[string]struct {
		to        time.Duration // of 10.0.0.0/8, in which the peer is
		others    time.Duration
		forgotten bool
	}{
		"only the one to the peer forgets early": {40 * time.Second, 900 * time.Second, true},
		"all but the one to the peer do":         {900 * time.Second, 40 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			rules := testRules
			rules.Middleboxes = conn.Middleboxes{Default: test.others, To: map[netip.Prefix]time.Duration{netip.MustParsePrefix("10.0.0.0/8"): test.to}}
			e := Explain(&rules, c, &connection, Netns{Host: true})
			if says := strings.Contains(e.Assessment, "A NAT or load balancer on the way may have forgotten the connection after 40s"); says != test.forgotten {
				t.Errorf("it says %s", e.Assessment)
			}
			half := slices.ContainsFunc(e.Advice, func(a Advice) bool {
				return slices.ContainsFunc(a.How, func(how string) bool { return strings.HasSuffix(how, "TCP_KEEPIDLE, 20)") })
			})
			if half != test.forgotten {
				t.Errorf("advised: %+v", e.Advice)
			}
		})
	}
}
