// SPDX-License-Identifier: Apache-2.0

// Package apitest has objects for the tests of the API and of its server.
package apitest

import (
	"net/netip"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/explain"
)

// HostileComm is a process name that breaks output that is not encoded.
const HostileComm = "<img src=x>\"\n\xff"

// Noon is when the objects are from.
var Noon = time.Date(2025, 11, 21, 12, 0, 0, 123456789, time.UTC)

// Connection returns the zombie of the documented example.
func Connection() conn.Connection {
	return conn.Connection{
		Cookie: 0x1a2b, At: Noon.Add(13 * time.Second),
		Local:  netip.MustParseAddrPort("10.0.0.1:37024"),
		Remote: netip.MustParseAddrPort("10.0.0.2:5432"),
		Netns:  4026531840, State: conn.Established, Verdict: conn.Zombie, Since: Noon,
		Evidence: conn.EvidenceKeepalive, Unanswered: 3,
		Idle: 12400 * time.Millisecond, Silent: 12400 * time.Millisecond, SegmentsIn: 33,
		Keepalive: conn.Keepalive{
			Enabled: true, Time: 7200 * time.Second, Interval: 75 * time.Second, Probes: 9, ProbesOut: 3,
		},
		RetransmitsTotal: 5, ReceiveQueue: 7, SendWindow: 64256, SRTT: 400 * time.Microsecond, RTO: 204 * time.Millisecond,
		GivesUp: conn.Forecast{
			At: Noon.Add(463 * time.Second), Latest: Noon.Add(473 * time.Second), By: conn.CauseKeepaliveTimeout,
		},
		Risks:    []conn.Risk{conn.RiskKeepaliveSlowerThanMiddlebox},
		Accepted: true, UID: 1000, Process: &conn.Process{PID: 812, Comm: "postgres", FD: 9},
		Cgroup: conn.Cgroup{Path: "/system.slice/x.service", Unit: "x.service"},
	}
}

// Explanation returns an explanation with one of everything.
func Explanation() explain.Explanation {
	at := Noon.Add(13 * time.Second)
	return explain.Explanation{
		At: at, Doing: []string{"It is established.", "It waits."}, Path: []string{"It is on eth0."},
		Timers: []explain.Timer{
			{
				Name: "keepalive", Purpose: "Asks.", At: at.Add(50 * time.Second), Latest: at.Add(52 * time.Second),
				Then: "Sends probe 4 of 9.",
			},
			{Name: "retransmission", Purpose: "Sends again.", Then: "Not running."},
		},
		Settings: []explain.Setting{
			{
				Option: "TCP_KEEPIDLE", Sysctl: "net.ipv4.tcp_keepalive_time", Value: 7200, Unit: "seconds",
				Source: explain.SourceDefault, Means: "Silence",
			},
			{Option: "TCP_USER_TIMEOUT", Value: 1500, Unit: "milliseconds", Source: explain.SourceSocket, Means: "Timeout"},
			{Sysctl: "net.ipv4.tcp_retries2", Value: 8, Unit: "retransmissions", Source: explain.SourceSysctl, Means: "Limit"},
		},
		Next: []string{"It ends."}, Assessment: "Too late.",
		Advice: []explain.Advice{
			{
				Text: "Set it.", How: []string{"setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60)"},
				Then: conn.Forecast{At: at.Add(30 * time.Second), Latest: at.Add(31 * time.Second), By: conn.CauseKeepaliveTimeout},
			},
			{Text: "Or close it.", How: []string{"close(fd)"}},
		},
	}
}

// Death returns the death of the connection.
func Death() conn.Death {
	return conn.Death{
		Connection: Connection(), DiedAt: Noon.Add(time.Minute),
		Cause: conn.CauseUserTimeout, During: conn.EvidenceKeepalive,
		Errno: 110, ZombieFor: time.Minute,
		Forecast:      conn.Forecast{At: Noon.Add(60500 * time.Millisecond), Latest: Noon.Add(61 * time.Second), By: conn.CauseUserTimeout},
		ForecastError: -500 * time.Millisecond,
	}
}
