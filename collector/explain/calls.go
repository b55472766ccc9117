// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// keepaliveCalls has TCP_KEEPIDLE last: it is what sets the timer anew, and by
// then the others should be in force.
func keepaliveCalls(fd string, t timing, what changes) []string {
	var calls []string
	for _, o := range []struct {
		what        changes
		level, name string
		value       int64
	}{
		{soKeepalive, "SOL_SOCKET", "SO_KEEPALIVE", 1},
		{keepIntvl, "IPPROTO_TCP", "TCP_KEEPINTVL", inSeconds(t.interval)},
		{keepCnt, "IPPROTO_TCP", "TCP_KEEPCNT", int64(t.probes)},
		{keepIdle, "IPPROTO_TCP", "TCP_KEEPIDLE", inSeconds(t.idle)},
	} {
		if what&o.what != 0 {
			calls = append(calls, strings.Replace(call(o.level, o.name, o.value), "(fd", "("+fd, 1))
		}
	}
	return calls
}

func userTimeoutCall(d time.Duration) string {
	return call("IPPROTO_TCP", "TCP_USER_TIMEOUT", d.Milliseconds())
}

// call is setsockopt(2) with the value itself, as most languages have it.
func call(level, name string, value int64) string {
	return fmt.Sprintf("setsockopt(fd, %s, %s, %d)", level, name, value)
}

func (x *explainer) sysctl(key string, value int64) string {
	return x.inside(fmt.Sprintf("sysctl -w net.ipv4.%s=%d", key, value))
}

// inside is a command for the connection's network namespace.
func (x *explainer) inside(command string) string {
	if !plainPath.MatchString(x.netns) {
		return command
	}
	return "nsenter --net=" + x.netns + " " + command
}

// plainPath is a path that a shell takes as it is.
var plainPath = regexp.MustCompile(`^/[\w./@+-]+$`)

func (x *explainer) namespace() string {
	return fmt.Sprintf("network namespace %d", x.conn.Netns)
}
