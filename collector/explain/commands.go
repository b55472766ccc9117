// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// keepaliveCalls returns the calls that set the options in what on fd. TCP_KEEPIDLE comes
// last: it arms the timer again, and the others should be in force by then.
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

// userTimeoutCall returns the call that sets TCP_USER_TIMEOUT.
func userTimeoutCall(d time.Duration) string {
	return call("IPPROTO_TCP", "TCP_USER_TIMEOUT", d.Milliseconds())
}

// call returns a setsockopt(2) call with the value itself, as in most languages.
func call(level, name string, value int64) string {
	return fmt.Sprintf("setsockopt(fd, %s, %s, %d)", level, name, value)
}

// sysctl returns the command that sets a sysctl, without its namespace: see
// [explainer.inside]. key comes after net.ipv4.
func sysctl(key string, value int64) string {
	return fmt.Sprintf("sysctl -w net.ipv4.%s=%d", key, value)
}

// inside makes the commands of an advice act on the connection's network namespace. If no
// way into it is known, the advice gets a sentence in their place: they would act on
// another namespace, such as the machine's own.
func (x *explainer) inside(a Advice, commands ...string) Advice {
	switch {
	case x.netns.Host:
		a.How = commands
	case plainPath.MatchString(x.netns.Path):
		for _, c := range commands {
			a.How = append(a.How, "nsenter --net="+x.netns.Path+" "+c)
		}
	default:
		a.Text += " There is no command here, because no path to that namespace is known that is safe to paste, and without one a command would act on another namespace. As root on the machine, `lsns -t net` lists namespaces with a process in each, and `nsenter --net=/proc/PID/ns/net` enters that of a process."
	}
	return a
}

// plainPath matches a path that needs no quotes in a shell.
var plainPath = regexp.MustCompile(`^/[\w./@+-]+$`)

// namespace names the connection's network namespace in a sentence.
func (x *explainer) namespace() string {
	return fmt.Sprintf("network namespace %d", x.conn.Netns)
}
