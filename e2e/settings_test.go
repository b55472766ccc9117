// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const slowKeepalive = "keepalive_slower_than_middlebox"

// addAddress gives the server another address, with a route from the client.
func (n *network) addAddress(addr string) netip.Addr {
	n.t.Helper()
	a := netip.MustParseAddr(addr)
	prefix := netip.PrefixFrom(a, a.BitLen()).String()
	link, err := n.Client.Output("ip", "-o", "route", "get", n.server(1).Addr().String())
	if err != nil {
		n.t.Fatal(err)
	}
	dev := strings.Fields(string(link[strings.Index(string(link), " dev "):]))[1]
	if _, err := n.Server.Output("ip", "address", "add", prefix, "dev", "lo"); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.Client.Output("ip", "route", "add", prefix, "via", n.server(1).Addr().String(), "dev", dev); err != nil {
		n.t.Fatal(err)
	}
	return a
}

// The timeout of the middlebox is that of the longest prefix of the destination, in the
// census's count, in each list, and in what is advised.
func TestMiddleboxTimeoutOfTheDestination(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		bits := 24
		near, far := "203.0.113.7", "198.51.100.7" // in no prefix of the list, and in its shorter one
		if n.family == "ipv6" {
			bits = 48
			near, far = "2001:db8:113::7", "2001:db8:100::7"
		}
		unlisted, wide, exact := n.addAddress(near), n.addAddress(far), n.server(1).Addr()
		wider, err := wide.Prefix(bits)
		if err != nil {
			t.Fatal(err)
		}
		flag := fmt.Sprintf("--middlebox-timeout=%v=8s,%v=ipvs,default=2s", exact, wider)
		a := startAgent(t, flag, "--idle-after=1h", "--census-interval=500ms", "--census-cpu=100%")
		unit := "middleboxes-" + n.family + ".service"
		at := group(t, hierarchy(t, ""), filepath.Join(fmt.Sprintf("halfopen-e2e-middlebox-%d-%s.slice", os.Getpid(), n.family), unit))
		client := newController(t).start("lonely", n.Client.Path())
		client.joins(at)
		slow := 0
		for i, test := range []struct {
			to      netip.Addr
			idle    time.Duration
			risk    bool
			timeout string // as explain writes it
		}{
			{exact, 5 * time.Second, false, "8s"}, {exact, 9 * time.Second, true, "8s"}, {exact, 2 * time.Hour, true, "8s"},
			{wide, 9 * time.Second, false, "15m"}, {wide, 10 * time.Minute, false, "15m"}, {wide, 15 * time.Minute, true, "15m"},
			{unlisted, time.Second, false, "2s"}, {unlisted, 3 * time.Second, true, "2s"},
		} {
			port := 7101 + i
			l, err := n.Server.Listen("tcp", netip.AddrPortFrom(test.to, uint16(port)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			made := client.must(command{Do: "connect", Addr: netip.AddrPortFrom(test.to, uint16(port)), Options: [][3]int{
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(test.idle / time.Second)}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			}})
			if test.risk {
				slow++
			}
			got := a.ofPort(n, port)
			if slices.Contains(got.Risks, slowKeepalive) != test.risk {
				t.Errorf("to %v, with a first probe after %v, the risks are %v", test.to, test.idle, got.Risks)
			}
			var alone struct{ Connections []socketObject }
			listInto(t, &alone, flag, "--netns", fmt.Sprint(n.Client.Inode()), "--port", fmt.Sprint(port))
			if len(alone.Connections) != 1 || slices.Contains(alone.Connections[0].Risks, slowKeepalive) != test.risk {
				t.Errorf("list alone, to %v, with a first probe after %v: %+v", test.to, test.idle, alone.Connections)
			}
			assessment := explainOf(t, made.Cookie, "--url", a.url).Explanation.Assessment
			if says := strings.Contains(assessment, "may have forgotten the connection after "+test.timeout+","); says != test.risk {
				t.Errorf("to %v, with a first probe after %v: %s", test.to, test.idle, assessment)
			}
		}
		eventually(t, "the census counts them", func() error {
			labels := map[string]string{"owner": unit, "risk": slowKeepalive}
			if got := a.metrics().series("halfopen_tcp_at_risk_by_owner", labels); got != slow {
				return fmt.Errorf("%d are at risk, expected %d", got, slow)
			}
			return nil
		})
	})
}

// The sysctls are those of the namespace, as it has them itself; the options are those that
// were set on the sockets.
func TestSettingsOfANamespace(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		for key, value := range map[string]string{
			"keepalive_time": "1234", "keepalive_intvl": "56", "keepalive_probes": "7", "retries2": "11", "syn_retries": "4", "orphan_retries": "3", "fin_timeout": "41",
		} {
			if err := n.Client.Sysctl("net.ipv4.tcp_"+key, value); err != nil {
				t.Fatal(err)
			}
		}
		n.serve(servedPort, echo)
		conns := n.dial(servedPort, 23)
		n.greet(conns)
		option := func(c *net.TCPConn, level, name, value int) {
			control(t, c, func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) })
		}
		for i, c := range conns {
			if i < 13 {
				option(c, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			}
			if i < 5 {
				option(c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 100)
			}
			if i < 3 {
				option(c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10)
			}
			if i == 6 {
				option(c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 2)
			}
			if i == 22 { // without effect, since keepalive is off
				option(c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 100)
			}
			if i >= 20 {
				option(c, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 60_000)
			}
			if i >= 21 {
				option(c, unix.IPPROTO_TCP, unix.TCP_LINGER2, 20)
			}
		}
		on := 0
		for _, s := range n.ss(servedPort) {
			if s.timer == "keepalive" {
				on++
			}
		}
		sysctl := func(name string) int { return n.sysctl("net.ipv4.tcp_" + name) }
		if on != 13 || sysctl("keepalive_time") != 1234 {
			t.Fatalf("ss has %d keepalive timers, and tcp_keepalive_time is %d", on, sysctl("keepalive_time"))
		}
		want := fmt.Sprintf(`{"sysctls":{"keepalive_time_seconds":%d,"keepalive_interval_seconds":%d,"keepalive_probes":%d,`+
			`"retries2":%d,"syn_retries":%d,"orphan_retries":%d,"fin_timeout_seconds":%d},`+
			`"keepalive":{"on":%d,"off":%d,"own":6,"own_time":5,"own_interval":3,"own_probes":1},"user_timeout":3,"own_fin_timeout":2}`,
			sysctl("keepalive_time"), sysctl("keepalive_intvl"), sysctl("keepalive_probes"), sysctl("retries2"), sysctl("syn_retries"),
			sysctl("orphan_retries"), sysctl("fin_timeout"), on, 23-on)
		for name, how := range map[string][]string{"alone": nil, "from an agent": {"--url", a.url}} {
			var doc struct {
				Groups []struct {
					Netns    uint32
					Total    int
					Settings json.RawMessage
				}
			}
			listInto(t, &doc, slices.Concat(how, []string{"--by=netns", "--settings", "--netns", fmt.Sprint(n.Client.Inode())})...)
			if len(doc.Groups) != 1 || doc.Groups[0].Netns != n.Client.Inode() || doc.Groups[0].Total != 23 || string(doc.Groups[0].Settings) != want {
				t.Errorf("%s: %+v\n%s, expected\n%s", name, doc.Groups, doc.Groups[0].Settings, want)
			}
		}
	})
}

// Whose connections are at risk, by the control group that their socket was made in.
func TestConnectionsAtRiskByOwner(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := startAgent(t, "--census-interval=500ms", "--census-cpu=100%")
		h := newController(t)
		v2, top := hierarchy(t, ""), fmt.Sprintf("halfopen-e2e-risk-%d-%s.slice", os.Getpid(), n.family)
		n.serve(servedPort, func(*net.TCPConn) {})
		slow := [][3]int{{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 7000}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}}
		pod := "0f1e2d3c-1111-2222-3333-" + map[string]string{"ipv4": "444444444444", "ipv6": "666666666666"}[n.family]
		owners := []struct {
			group, owner string
			off, slow    int
		}{
			{"careless-" + n.family + ".service", "careless-" + n.family + ".service", 23, 7},
			{"hostile\x1b[2J" + n.family + ".service", `hostile\x1b[2J` + n.family + ".service", 11, 0},
			{"kubepods-pod" + strings.ReplaceAll(pod, "-", "_") + ".slice", pod, 13, 2},
		}
		for _, o := range owners {
			at := group(t, v2, filepath.Join(top, o.group))
			p := h.start("lonely", n.Client.Path())
			p.joins(at)
			for i := range o.off + o.slow {
				var options [][3]int
				if i >= o.off {
					options = slow
				}
				p.must(command{Do: "connect", Addr: n.server(servedPort), Options: options})
			}
		}
		atRisk := func(m metrics, owner, risk string) int {
			return m.series("halfopen_tcp_at_risk_by_owner", map[string]string{"owner": owner, "risk": risk})
		}
		eventually(t, "the owners of connections at risk", func() error {
			m := a.metrics()
			for _, o := range owners {
				if off, slow := atRisk(m, o.owner, "no_keepalive"), atRisk(m, o.owner, slowKeepalive); off != o.off || slow != o.slow {
					return fmt.Errorf("%s has %d without keepalive, and %d with slow keepalive", o.owner, off, slow)
				}
			}
			if n := len(m.families["halfopen_tcp_at_risk_by_owner"].Metric); n > mostSeries {
				return fmt.Errorf("%d series", n)
			}
			return nil
		})
	})
}
