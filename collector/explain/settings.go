// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/humanize"
)

// Source says where the value of a setting comes from.
type Source uint8

// The sources.
const (
	// SourceSocket: an option of the socket.
	SourceSocket Source = iota
	// SourceSysctl: a sysctl of the network namespace, whose value differs from the
	// kernel's default.
	SourceSysctl
	// SourceDefault: the kernel's default.
	SourceDefault
)

var sourceNames = [...]string{SourceSocket: "socket", SourceSysctl: "sysctl", SourceDefault: "default"}

// String returns the name of the source.
func (s Source) String() string { return sourceNames[s] }

// Setting is one setting of a connection's timers.
type Setting struct {
	Option string // of setsockopt(2), such as TCP_KEEPIDLE; "": there is none
	Sysctl string // such as net.ipv4.tcp_keepalive_time; "": there is none
	Value  int64
	Unit   string // seconds, milliseconds, probes, retransmissions, or switch: 1 is on, 0 is off
	Source Source
	Means  string // a sentence without its full stop
}

// The kernel's defaults (net/ipv4/tcp_ipv4.c tcp_sk_init).
const (
	defaultKeepaliveTime   = 2 * time.Hour
	defaultKeepaliveIntvl  = 75 * time.Second
	defaultKeepaliveProbes = 9
	defaultRetries2        = 15
	defaultSynRetries      = 6
	defaultSynLinear       = 4
	defaultOrphanRetries   = 0
	defaultFinTimeout      = time.Minute
	defaultRTOMax          = 2 * time.Minute
)

// sourceOf returns the source of a value. onSocket says that it is set on the socket.
func sourceOf(onSocket bool, value, def int64) Source {
	switch {
	case onSocket:
		return SourceSocket
	case value != def:
		return SourceSysctl
	}
	return SourceDefault
}

// settings returns the settings that are in force in the state of the socket, and those
// that its application has set without effect.
func (x *explainer) settings() []Setting {
	c := x.c
	var all []Setting
	if !x.orphanedFinWait2() {
		all = append(all, x.keepaliveSettings()...)
		all = append(all, Setting{
			Option: "TCP_USER_TIMEOUT", Value: int64(c.UserTimeout), Unit: "milliseconds", Source: sourceOf(c.UserTimeout != 0, 0, 0),
			Means: "How long the peer may stay silent while it owes an answer; overrides the counts",
		})
		all = append(all, x.retrySettings()...)
	}
	switch x.conn.State {
	case conn.FinWait1, conn.FinWait2, conn.Closing:
		if s, ok := x.finSetting(); ok {
			all = append(all, s)
		}
	}
	return all
}

// keepaliveSettings returns the settings of keepalive.
func (x *explainer) keepaliveSettings() []Setting {
	c, r := x.c, x.rules
	on := x.flag(abi.ConnKeepalive)
	keepalive := Setting{Option: "SO_KEEPALIVE", Unit: "switch", Source: sourceOf(on, 0, 0), Means: "Whether to ask a silent peer; no sysctl turns it on"}
	if on {
		keepalive.Value = 1
	}
	all := []Setting{keepalive}
	for _, s := range []struct {
		Setting
		own uint32
		def int64
	}{
		{Setting{
			Option: "TCP_KEEPIDLE", Sysctl: "net.ipv4.tcp_keepalive_time", Value: inSeconds(r.Duration(c.KeepaliveTime)), Unit: "seconds",
			Means: "Silence before the first probe",
		}, abi.ConnKeepaliveTimeSet, inSeconds(defaultKeepaliveTime)},
		{Setting{
			Option: "TCP_KEEPINTVL", Sysctl: "net.ipv4.tcp_keepalive_intvl", Value: inSeconds(r.Duration(c.KeepaliveIntvl)), Unit: "seconds",
			Means: "Between two probes",
		}, abi.ConnKeepaliveIntvlSet, inSeconds(defaultKeepaliveIntvl)},
		{Setting{
			Option: "TCP_KEEPCNT", Sysctl: "net.ipv4.tcp_keepalive_probes", Value: int64(c.KeepaliveProbes), Unit: "probes",
			Means: "Unanswered ones before it gives up",
		}, abi.ConnKeepaliveProbesSet, defaultKeepaliveProbes},
	} {
		own := x.flag(s.own)
		if !on && !own {
			continue
		}
		s.Source = sourceOf(own, s.Value, s.def)
		switch {
		case !on:
			s.Means += "; without effect, since SO_KEEPALIVE is off"
		case s.own == abi.ConnKeepaliveProbesSet:
			s.Means += x.overridden()
		}
		all = append(all, s.Setting)
	}
	return all
}

// retrySettings returns the settings of retransmissions and window probes.
func (x *explainer) retrySettings() []Setting {
	c := x.c
	n := int64(c.Retries)
	var all []Setting
	switch {
	case x.connecting():
		own := x.flag(abi.ConnSynRetriesSet)
		all = append(all, Setting{
			Option: "TCP_SYNCNT", Sysctl: "net.ipv4.tcp_syn_retries", Value: n, Unit: "retransmissions", Source: sourceOf(own, n, defaultSynRetries),
			Means: "Of the SYN, before it gives up",
		})
		if c.SynLinear > 0 { // 0 also where the kernel has no such sysctl
			all = append(all, Setting{
				Sysctl: "net.ipv4.tcp_syn_linear_timeouts", Value: int64(c.SynLinear), Unit: "retransmissions",
				Source: sourceOf(false, int64(c.SynLinear), defaultSynLinear),
				Means:  "Of the SYN a second apart, on top of the others",
			})
		}
	case x.closed():
		all = append(all, Setting{
			Sysctl: "net.ipv4.tcp_orphan_retries", Value: n, Unit: "retransmissions", Source: sourceOf(false, n, defaultOrphanRetries),
			Means: "Of what a closed socket left behind, before it gives up; 0 means 8" + x.overridden(),
		})
	case x.conn.State != conn.FinWait2: // where nothing is left to send
		all = append(all, Setting{
			Sysctl: "net.ipv4.tcp_retries2", Value: n, Unit: "retransmissions", Source: sourceOf(false, n, defaultRetries2),
			Means: x.retriesMean(),
		})
	}
	// Not all kernels have this setting, so it is listed only if it is not the default.
	rtoMax := x.rules.Duration(c.RtoMax)
	if own := x.flag(abi.ConnRtoMaxSet); own || rtoMax != defaultRTOMax {
		all = append(all, Setting{
			Option: "TCP_RTO_MAX_MS", Sysctl: "net.ipv4.tcp_rto_max_ms", Value: rtoMax.Milliseconds(), Unit: "milliseconds",
			Source: sourceOf(own, rtoMax.Milliseconds(), defaultRTOMax.Milliseconds()),
			Means:  "The longest wait between two retransmissions",
		})
	}
	if own := x.flag(abi.ConnThinSet); own || c.ThinRto > 0 {
		all = append(all, Setting{
			Option: "TCP_THIN_LINEAR_TIMEOUTS", Sysctl: "net.ipv4.tcp_thin_linear_timeouts", Value: 1, Unit: "switch", Source: sourceOf(own, 1, 0),
			Means: "Retransmissions of thin streams are evenly spaced at first",
		})
	}
	return all
}

// retriesMean says what tcp_retries2 bounds. It bounds window probes even if
// TCP_USER_TIMEOUT is set (tcp_probe_timer).
func (x *explainer) retriesMean() string {
	switch path := x.t.GiveUpPath(); {
	case path == conn.ByWindowProbe && x.flag(abi.ConnBlocked):
		return "Tries to send, before it gives up"
	case path == conn.ByWindowProbe:
		return "Unanswered window probes in a row, before it gives up"
	case path == conn.ByRetransmission && x.c.SendWindow == 0: // tcp_rtx_probe0_timed_out()
		return "Before it gives up on data in flight; without effect while the peer's window is closed"
	case x.c.UserTimeout > 0:
		return "Before it gives up on data in flight" + x.overridden()
	}
	return "Before it gives up on data in flight: about " + humanize.Age(x.retransmitsFor())
}

// overridden says that TCP_USER_TIMEOUT overrides a limit; "" if it is not set.
func (x *explainer) overridden() string {
	if x.c.UserTimeout > 0 {
		return "; without effect, since TCP_USER_TIMEOUT is set"
	}
	return ""
}

// finSetting returns the setting that bounds fin_wait2. ok is false if the kernel takes a
// time that follows from the retransmission timeout instead (tcp_fin_time): then the value
// of the setting cannot be read.
func (x *explainer) finSetting() (s Setting, ok bool) {
	c := x.c
	own := x.flag(abi.ConnFinTimeSet)
	s = Setting{
		Option: "TCP_LINGER2", Sysctl: "net.ipv4.tcp_fin_timeout", Unit: "seconds",
		Means: "How long a closed socket waits in fin_wait2; below 0 not at all",
	}
	switch c.FinTime {
	case abi.AgeNone:
		s.Value = -1
	case c.Rto<<2 - c.Rto>>1:
		return s, false
	default:
		s.Value = inSeconds(x.rules.Duration(c.FinTime))
	}
	s.Source = sourceOf(own, s.Value, inSeconds(defaultFinTimeout))
	return s, true
}

// inSeconds returns a duration in whole seconds.
func inSeconds(d time.Duration) int64 { return int64(d / time.Second) }
