// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// slack is what the timer wheel may add: the sum of the granularities of all timers that
// fire on the way.
func TestForecast(t *testing.T) {
	second := time.Second
	for name, test := range map[string]struct {
		conn  *abi.Conn
		by    Cause
		in    time.Duration // not before
		slack time.Duration // nor later than with this
	}{
		"Linux's defaults: 2 h and 9 probes of 75 s": {
			conntest.Idle(func(*abi.Conn) {}), CauseKeepaliveTimeout, 7875 * second, 131*second + 10*2048*time.Millisecond,
		},
		"idle for an hour already": {
			conntest.Idle(func(c *abi.Conn) {
				c.Silent = conntest.Ago(time.Hour)
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, time.Hour)
			}), CauseKeepaliveTimeout, 4275 * second, 131*second + 10*2048*time.Millisecond,
		},
		"in the midst of probing": {
			conntest.Idle(func(c *abi.Conn) {
				c.Silent, c.ProbesOut = conntest.Ago(7300*second), 2
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 50*second)
			}), CauseKeepaliveTimeout, (50 + 7*75) * second, 8 * 2048 * time.Millisecond,
		},
		"2 s, 1 s, 3 probes": {
			conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = conntest.Ago(2*second), conntest.Ago(second), 3
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 2*second)
			}), CauseKeepaliveTimeout, 5 * second, 4 * 32 * time.Millisecond,
		},
		"TCP_USER_TIMEOUT overrides the probe count": {
			conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = conntest.Ago(10*second), conntest.Ago(5*second), 60
				c.UserTimeout = 23000
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 10*second)
			}), CauseUserTimeout, 25 * second, 4 * 256 * time.Millisecond,
		},
		"TCP_USER_TIMEOUT shorter than the idle time still takes one probe": {
			conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl = conntest.Ago(10*second), conntest.Ago(5*second)
				c.UserTimeout = 1000
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, 10*second)
			}), CauseUserTimeout, 15 * second, 2 * 256 * time.Millisecond,
		},
		// The model says 924.6 s after the first retransmission. The kernel compares only
		// when the timer fires: with an RTO of 204 ms, 928.7 s after the first segment.
		"tcp_retries2 is 15": {
			conntest.InFlight(func(*abi.Conn) {}), CauseRetransmitTimeout, 924600 * time.Millisecond, 45 * second,
		},
		"tcp_retries2 is 3": {
			conntest.InFlight(func(c *abi.Conn) { c.Retries = 3 }), CauseRetransmitTimeout, 3 * second, 3700 * time.Millisecond,
		},
		"tcp_rto_max_ms is 1000": {
			conntest.InFlight(func(c *abi.Conn) { c.RtoMax = conntest.Ago(second) }), CauseRetransmitTimeout, 14400 * time.Millisecond, 2 * second,
		},
		"TCP_USER_TIMEOUT with data in flight": {
			conntest.InFlight(func(c *abi.Conn) { c.UserTimeout = 3000 }), CauseUserTimeout, 3204 * time.Millisecond, 200 * time.Millisecond,
		},
		"closed by its application": {
			conntest.InFlight(func(c *abi.Conn) { c.State, c.Flags, c.Retries = abi.StateFinWait1, abi.ConnOrphan, 0 }),
			CauseOrphanTimeout, 102200 * time.Millisecond, 10 * second,
		},
		// It retransmits after 13 s, is an orphan after 15 s, and ends as such 26 s later.
		"close(2) waits": {
			conntest.Lingering(func(c *abi.Conn) { c.Retries = 3 }), CauseOrphanTimeout, 39 * second, 2 * 2048 * time.Millisecond,
		},
		"close(2) waits for longer than tcp_retries2 lets data be retransmitted": {
			conntest.Lingering(func(c *abi.Conn) { c.Retries2 = 5 }), CauseRetransmitTimeout, 13 * second, 2048 * time.Millisecond,
		},
		"close(2) waits with a closed window": {
			conntest.Lingering(func(c *abi.Conn) { c.SendWindow, c.Retries = 0, 3 }), CauseOrphanTimeout, 39 * second, 2 * 2048 * time.Millisecond,
		},
		"close(2) waits, with TCP_USER_TIMEOUT": {
			conntest.Lingering(func(c *abi.Conn) { c.UserTimeout = 20000 }), CauseUserTimeout, 13 * second, 2048 * time.Millisecond,
		},
		"close(2) waits with data that was never sent": {
			conntest.Lingering(func(c *abi.Conn) {
				c.PacketsOut, c.Pending, c.SendWindow, c.Retries, c.Backoff, c.ProbesOut = 0, abi.PendingWindowProbe, 0, 3, 4, 5
				c.Rto = conntest.Ago(204 * time.Millisecond)
			}), CauseOrphanTimeout, (1 + 32 + 64) * 204 * time.Millisecond, 600 * time.Millisecond,
		},
		"thin stream with linear timeouts": {
			conntest.InFlight(func(c *abi.Conn) { c.ThinRto = conntest.Ago(204 * time.Millisecond) }), CauseRetransmitTimeout, 924600 * time.Millisecond, 125 * second,
		},
		"SYN, before 6.5": {
			conntest.InFlight(func(c *abi.Conn) {
				c.State, c.Rto, c.Retries, c.SendWindow = abi.StateSynSent, conntest.Ago(second), 6, 0
				c.Silent, c.Retransmitting = abi.AgeNone, 0
			}), CauseConnectTimeout, 127 * second, 7 * second,
		},
		"SYN, with four linear timeouts": {
			conntest.InFlight(func(c *abi.Conn) {
				c.State, c.Rto, c.Retries, c.SynLinear, c.SendWindow = abi.StateSynSent, conntest.Ago(second), 6, 4, 0
				c.Silent, c.Retransmitting = abi.AgeNone, 0
			}), CauseConnectTimeout, 131 * second, 7 * second,
		},
		"a window that is closed, probes unanswered": {
			conntest.Timed(func(c *abi.Conn) {
				c.SendWindow, c.SendQueue, c.Pending = 0, 100, abi.PendingWindowProbe
				c.WriteExpires, c.WriteLevel = conntest.Arm(c, 204*time.Millisecond)
			}), CauseWindowProbeTimeout, 924600 * time.Millisecond, 45 * second,
		},
		"a window that is closed, with TCP_USER_TIMEOUT": {
			conntest.Timed(func(c *abi.Conn) {
				c.SendWindow, c.SendQueue, c.Pending, c.UserTimeout = 0, 100, abi.PendingWindowProbe, 2000
				c.WriteExpires, c.WriteLevel = conntest.Arm(c, 204*time.Millisecond)
			}), CauseUserTimeout, 2204 * time.Millisecond, 100 * time.Millisecond,
		},
		// The waits stop doubling at tcp_retries2, however often the peer answered.
		"a window that is closed and was answered often, tcp_retries2 is 3": {
			conntest.Timed(func(c *abi.Conn) {
				c.SendWindow, c.SendQueue, c.Pending = 0, 100, abi.PendingWindowProbe
				c.Retries, c.Retries2, c.Backoff = 3, 3, 3
				c.WriteExpires, c.WriteLevel = conntest.Arm(c, 1632*time.Millisecond)
			}), CauseWindowProbeTimeout, 4 * 1632 * time.Millisecond, 4 * 36 * time.Millisecond,
		},
		"a window that is open, but the host itself lets nothing out": {
			conntest.Timed(func(c *abi.Conn) {
				c.Flags, c.SendQueue, c.Pending, c.ProbesOut = abi.ConnBlocked, 100, abi.PendingWindowProbe, 1
				c.Backoff = 1
				c.WriteExpires, c.WriteLevel = conntest.Arm(c, 408*time.Millisecond)
			}), CauseRetransmitTimeout, 924600 * time.Millisecond, 45 * second,
		},
		"a device that does not take what is in flight": {
			conntest.InFlight(func(c *abi.Conn) {
				c.Flags, c.Retries, c.Retransmits, c.Retransmitting = abi.ConnCongested, 6, 3, conntest.Ago(2*second)
			}), CauseRetransmitTimeout, 23400 * time.Millisecond, 600 * time.Millisecond,
		},
		"a device that does not take what is in flight, tcp_retries2 is 15": {
			conntest.InFlight(func(c *abi.Conn) {
				c.Flags, c.Retransmits, c.Retransmitting = abi.ConnCongested, 1, 0
			}), CauseRetransmitTimeout, 924600 * time.Millisecond, 600 * time.Millisecond,
		},
		"a device that does not take what was never sent": {
			conntest.Timed(func(c *abi.Conn) {
				c.Flags, c.SendQueue, c.Pending, c.ProbesOut = abi.ConnBlocked|abi.ConnCongested, 100, abi.PendingWindowProbe, 1
				c.WriteExpires, c.WriteLevel = conntest.Arm(c, second/2)
			}), CauseRetransmitTimeout, 7500 * time.Millisecond, 15 * 32 * time.Millisecond,
		},
		"a device that does not take what was never sent, with TCP_USER_TIMEOUT": {
			conntest.Timed(func(c *abi.Conn) {
				c.Flags, c.SendQueue, c.Pending, c.ProbesOut = abi.ConnBlocked|abi.ConnCongested, 100, abi.PendingWindowProbe, 1
				c.UserTimeout, c.Failing = 3000, conntest.Ago(second)
				c.WriteExpires, c.WriteLevel = conntest.Arm(c, second/2)
			}), CauseUserTimeout, 2 * second, 5 * 32 * time.Millisecond,
		},
		"a device that does not take keepalive probes, after one of them was sent, with TCP_USER_TIMEOUT": {
			conntest.Idle(func(c *abi.Conn) {
				c.Flags |= abi.ConnCongested
				c.KeepaliveTime, c.Silent, c.ProbesOut, c.UserTimeout = conntest.Ago(10*second), conntest.Ago(15*second), 1, 20000
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, second/2)
			}), CauseUserTimeout, 5 * second, 600 * time.Millisecond,
		},
		"a child of TCP Fast Open whose SYN-ACK is not acknowledged": {
			conntest.InFlight(func(c *abi.Conn) {
				c.State, c.Rto, c.Retries, c.UserTimeout = abi.StateSynRecv, conntest.Ago(second), 6, 1500
				c.Silent, c.Retransmitting = abi.AgeNone, 0
			}), CauseConnectTimeout, 127 * second, 7 * second,
		},
		"a window that shrank under data in flight": {
			conntest.InFlight(func(c *abi.Conn) { c.SendWindow = 0 }), CauseWindowProbeTimeout, 240 * second, 125 * second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			f := testRules.Forecast(test.conn, at)
			if f.By != test.by {
				t.Errorf("by %v, expected %v", f.By, test.by)
			}
			in, latest := f.At.Sub(at), f.Latest.Sub(at)
			if in < test.in-10*time.Millisecond || latest > test.in+test.slack+test.in/100 {
				t.Errorf("in %v to %v, expected %v to %v", in, latest, test.in, test.in+test.slack)
			}
			if width := latest - in; width < 0 || width > test.slack+in/100 {
				t.Errorf("the interval is %v wide", width)
			}
		})
	}
}

// If no program saw close(2) begin to wait, the forecast holds the end whenever it ceases to.
func TestForecastHoldsHoweverLongCloseHasWaited(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, retries := range []uint8{0, 3, 7} { // tcp_orphan_retries
		for _, retries2 := range []uint8{4, 6, 15} {
			linger := func(f func(*abi.Conn)) Forecast {
				return testRules.Forecast(conntest.Lingering(func(c *abi.Conn) {
					c.Retries, c.Retries2 = retries, retries2
					f(c)
				}), at)
			}
			unknown := linger(func(c *abi.Conn) { c.Lingering = abi.AgeNone })
			for waited := range uint32(20) {
				f := linger(func(c *abi.Conn) { c.Lingering = conntest.Ago(time.Duration(waited) * time.Second) })
				orphan := linger(func(c *abi.Conn) { c.Flags ^= abi.ConnLingering | abi.ConnOrphan })
				if f.At.Before(unknown.At) || orphan.At.Before(unknown.At) || f.At.After(unknown.Latest) {
					t.Errorf("tcp_orphan_retries %d, tcp_retries2 %d: after %d s %+v, as an orphan %+v, if it is unknown %+v", retries, retries2, waited, f, orphan, unknown)
				}
			}
		}
	}
}

// With any settings, the width of the forecast is at most the slack of the timers plus 1 %.
// Here all timers that are still to fire have the same length.
func TestForecastIsAsNarrowAsTheTimers(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, jiffies := range []uint32{1, 10, 50, 62, 63, 100, 250, 503, 504, 1000, 4031, 4032, 18750} {
		for probes := uint8(1); probes <= 9; probes += 4 {
			c := conntest.Idle(func(c *abi.Conn) {
				c.KeepaliveTime, c.KeepaliveIntvl, c.KeepaliveProbes = jiffies, jiffies, probes
				c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, time.Duration(jiffies)*time.Second/conntest.HZ)
			})
			f := testRules.Forecast(c, at)
			in, slack := f.At.Sub(at), time.Duration(probes+1)*testRules.Duration64(granularity(WheelLevel(0, uint64(jiffies))))
			if width := f.Latest.Sub(f.At); width < 0 || width > slack+in/100 {
				t.Errorf("%d probes, one every %d jiffies: %v wide, slack of the timers %v, forecast in %v", probes, jiffies, width, slack, in)
			}
		}
	}
}

func TestForecastNever(t *testing.T) {
	for name, c := range map[string]*abi.Conn{
		"a device does not take keepalive probes": conntest.Idle(func(c *abi.Conn) {
			c.Flags |= abi.ConnCongested
			c.KeepaliveTime, c.Silent = conntest.Ago(time.Second), conntest.Ago(5*time.Second)
			c.KeepaliveExpires, c.KeepaliveLevel = conntest.Arm(c, time.Second/2)
		}),
		"idle without keepalive": conntest.Timed(func(c *abi.Conn) { c.Flags = 0 }),
		"a keepalive timer left over after SO_KEEPALIVE was switched off": conntest.Idle(func(c *abi.Conn) { c.Flags = 0 }),
		"a write timer left over after everything was acknowledged": conntest.Timed(func(c *abi.Conn) {
			c.Flags, c.WriteExpires = 0, c.Jiffies+50
		}),
	} {
		if f := testRules.Forecast(c, time.Now()); f.Ever() {
			t.Errorf("%s: by %v at %v", name, f.By, f.At)
		}
	}
}

// While ICMP errors answer the retransmissions, the kernel takes half of the timeout back some
// time after each of them. A forecast from before and one from after hold the same end.
func TestForecastHoldsWhileErrorsAnswer(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rto := 26 * time.Second
	reverted := func(backoff uint8, rto time.Duration) *abi.Conn { // sent a second ago
		return conntest.Timed(func(c *abi.Conn) {
			c.Flags = abi.ConnSoftError
			c.PacketsOut, c.SendQueue, c.Pending = 1, 100, abi.PendingRetransmit
			c.Retransmits, c.Backoff, c.Retransmitting = 9, backoff, conntest.Ago(100*time.Second)
			c.Rto = conntest.Ago(rto)
			c.WriteExpires, c.WriteLevel = conntest.Arm(c, rto-time.Second)
		})
	}
	after := testRules.Forecast(reverted(0, rto), at)
	before := testRules.Forecast(reverted(1, 2*rto), at)
	if before.At.After(after.At.Add(300*time.Millisecond)) || before.Latest.Before(after.Latest) || before.By != after.By {
		t.Errorf("before the error %+v, after it %+v", before, after)
	}
	// If a program saw the error, the timer only fires when it says.
	known := reverted(1, 2*rto)
	known.Flags |= abi.ConnRtoReverted
	if f := testRules.Forecast(known, at); f.At.Before(at.Add(2*rto-2*time.Second)) || f.Latest.Sub(f.At) > rto/2 {
		t.Errorf("after an error that a program saw: %+v", f)
	}
	// Without the error, the timer gives up when it fires; with it, the kernel sends once more.
	last := func(flags uint32) Forecast {
		return testRules.Forecast(conntest.InFlight(func(c *abi.Conn) {
			c.Flags, c.Retries, c.Retransmits, c.Backoff = abi.ConnSoftError|flags, 5, 6, 4
			c.Rto, c.Retransmitting = conntest.Ago(1300*time.Millisecond), conntest.Ago(11500*time.Millisecond)
		}), at)
	}
	seen, unseen := last(abi.ConnRtoReverted), last(0)
	if seen.At.Before(unseen.At) || !seen.At.Before(unseen.Latest) {
		t.Errorf("the error came %+v, or is still to come %+v", seen, unseen)
	}
	if w := before.Latest.Sub(before.At); w > 2*rto+rto/2 {
		t.Errorf("the forecast is %v wide", w)
	}
}

// The tracker makes a forecast for each event, of which there may be very many.
func TestForecastAllocatesNothing(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range conntest.Seeds() {
		if n := testing.AllocsPerRun(10, func() { testRules.Forecast(c, at) }); n > 0 {
			t.Errorf("%.0f allocations to forecast a record by %v", n, testRules.Forecast(c, at).By)
		}
	}
}
