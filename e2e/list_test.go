// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// row is a socket as ss shows it: state, both ends, and of a listener its queue.
type row struct {
	state         string
	local, remote netip.AddrPort
	queue         string
}

// ssAll is every TCP socket that ss shows inside a namespace, by cookie.
func ssAll(t *testing.T, ns *lab.Namespace) map[string]row {
	t.Helper()
	out, err := ns.Output("ss", "-Htane")
	if err != nil {
		t.Fatal(err)
	}
	end := func(s string) netip.AddrPort {
		i := strings.LastIndexByte(s, ':')
		host := strings.Trim(s[:i], "[]")
		if host == "*" {
			host = "::" // of both families
		}
		port, _ := strconv.ParseUint(s[i+1:], 10, 16) // "*" is 0
		return netip.AddrPortFrom(netip.MustParseAddr(host).Unmap(), uint16(port))
	}
	rows := make(map[string]row)
	for line := range strings.Lines(string(out)) {
		f, cookie := strings.Fields(line), ssCookie.FindStringSubmatch(line)
		if len(f) < 5 || cookie == nil || ssStates[f[0]] == "" {
			t.Fatalf("ss: %q", line)
		}
		r := row{state: ssStates[f[0]], local: end(f[3]), remote: end(f[4])}
		if r.state == "listen" {
			r.queue = f[1] + "/" + f[2]
		}
		rows[cookie[1]] = r
	}
	return rows
}

// socketObject is a connection object, with what only some sockets have.
type socketObject struct {
	connection
	Verdict     *string `json:"verdict"`
	AcceptQueue *struct {
		Length int `json:"length"`
		Limit  int `json:"limit"`

		Overflows int `json:"overflows"`
	} `json:"accept_queue"`
	Unit        *string `json:"unit"`
	ContainerID *string `json:"container_id"`
	PodUID      *string `json:"pod_uid"`
}

// list runs `halfopen list -o json`.
func list(t *testing.T, args ...string) []socketObject {
	t.Helper()
	var doc struct {
		Total       int
		Connections []socketObject
	}
	listInto(t, &doc, args...)
	if doc.Total != len(doc.Connections) && !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--limit") }) {
		t.Errorf("%v: total is %d, with %d connections", args, doc.Total, len(doc.Connections))
	}
	return doc.Connections
}

func listInto(t *testing.T, doc any, args ...string) {
	t.Helper()
	stdout, stderr, status := run(t, exec.Command(binary, append([]string{"list", "-o", "json"}, withoutAgent(args)...)...))
	if status != 0 || stderr != "" {
		t.Fatalf("%v: exit status %d: %s", args, status, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), doc); err != nil {
		t.Fatalf("%v: %v in\n%s", args, err, stdout)
	}
}

// withoutAgent adds to the flags of a command, unless they name an agent, that it is to
// look by itself, whatever agent this machine has.
func withoutAgent(args []string) []string {
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--url") }) {
		return args
	}
	return append(args[:len(args):len(args)], "--url=none")
}

func rowOf(c *socketObject) row {
	r := row{
		state:  c.State,
		local:  netip.AddrPortFrom(netip.MustParseAddr(c.Local.IP), uint16(c.Local.Port)),
		remote: netip.AddrPortFrom(netip.MustParseAddr(c.Remote.IP), uint16(c.Remote.Port)),
	}
	if c.AcceptQueue != nil {
		r.queue = fmt.Sprintf("%d/%d", c.AcceptQueue.Length, c.AcceptQueue.Limit)
	}
	return r
}

// incomplete returns whether the socket is a listener, or a connection that is not accepted
// yet or is over. It has no verdict then.
func (c *socketObject) incomplete() bool {
	return c.State == "listen" || c.State == "syn_recv" || c.State == "time_wait"
}

// listAllAsSS waits until `list --all` shows the sockets of a namespace that ss shows, and
// returns them.
func listAllAsSS(t *testing.T, ns *lab.Namespace, args ...string) (shown []socketObject) {
	t.Helper()
	eventually(t, fmt.Sprintf("list --all %v", args), func() error {
		before := ssAll(t, ns)
		shown = list(t, append([]string{"--all"}, args...)...)
		after := ssAll(t, ns)
		if !maps.Equal(before, after) {
			return fmt.Errorf("they change: %v, then %v", before, after)
		}
		shown = slices.DeleteFunc(shown, func(c socketObject) bool { return c.Netns != ns.Inode() })
		rows := make(map[string]row)
		for i := range shown {
			c := &shown[i]
			rows[c.Cookie] = rowOf(c)
			if c.incomplete() && c.Verdict != nil {
				t.Errorf("a socket in %s is %s", c.State, *c.Verdict)
			}
		}
		if !maps.Equal(rows, before) {
			return fmt.Errorf("\n%v\nss:\n%v", rows, before)
		}
		return nil
	})
	return shown
}

// checkListener checks what the agent says of a listener of network.sockets.
func checkListener(t *testing.T, c *socketObject) {
	t.Helper()
	if c.Process == nil || c.Process.PID != syscall.Getpid() {
		t.Errorf("a listener belongs to %+v, not to us", c.Process)
	}
	if k := c.Keepalive; c.Local.Port == unaccepting && (!k.Enabled || k.TimeSeconds != 60 || !k.PerSocket) {
		t.Errorf("wrong settings of a listener: %+v", c)
	}
}

// Every state that can be made to stay, on IPv4, on IPv6, and on IPv4 with the
// server's sockets of IPv6.
func TestListAllIsWhatSSShows(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "")
	n.sockets()
	want := []string{"close_wait", "established", "fin_wait2", "listen", "syn_recv", "syn_sent", "time_wait"}
	a := startAgent(t)

	// The agent is asked first: time_wait is soon over.
	shown := append(listAllAsSS(t, n.Client, "--url", a.url), listAllAsSS(t, n.Server, "--url", a.url)...)
	listAllAsSS(t, n.Client)
	listAllAsSS(t, n.Server)

	states := make(map[string]bool)
	stubs := 0
	for i := range shown {
		c := &shown[i]
		states[c.State] = true
		if c.State == "fin_wait2" && c.Verdict == nil {
			stubs++
		}
		if c.State == "listen" {
			checkListener(t, c)
		}
		accepted := c.Accepted == nil || *c.Accepted
		if waits := c.Local.Port == unaccepting; !waits && accepted == (c.State == "syn_recv") {
			t.Errorf("accepted is %v in %s", accepted, c.State)
		}
	}
	if got := slices.Sorted(maps.Keys(states)); !slices.Equal(got, want) || stubs != 3 {
		t.Errorf("states %v, expected %v; %d stubs in fin_wait2, expected 3", got, want, stubs)
	}

	client, server := fmt.Sprint(n.Client.Inode()), fmt.Sprint(n.Server.Inode())
	for _, c := range list(t, "--netns", client, "--netns", server) {
		if c.incomplete() || c.Verdict == nil {
			t.Errorf("without --all there is %+v", c)
		}
	}
	if got := list(t, "--all", "--state=listen", "--netns", server, "--port", fmt.Sprint(unaccepting)); len(got) != 1 {
		t.Errorf("listeners on port %d: %+v", unaccepting, got)
	}
	for _, query := range []string{"verdict=active", "risk=no_keepalive"} {
		var doc struct{ Total int }
		if err := a.get("/api/v1/connections?all=true&state=listen&state=time_wait&"+query, &doc); err != nil || doc.Total != 0 {
			t.Errorf("%d that are no connection have %s, error %v", doc.Total, query, err)
		}
	}
	for _, c := range list(t, "--all", "--state=listen", "--netns", server) {
		if err := a.get("/api/v1/connections/"+url.PathEscape(c.Cookie), &struct{}{}); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("a listener is explained: %v", err)
		}
	}
}

const (
	unaccepting = 7002 // a listener that leaves its connections in its queue
	unanswering = 7003 // the first of the ports whose SYN-ACKs get lost
)

// sockets makes connections in many states, three of each: IPv4, IPv6, and IPv4
// to a server of IPv6.
func (n *network) sockets() {
	t := n.t
	t.Helper()
	listen := func(addr netip.AddrPort, accepts bool) (accepted chan *net.TCPConn) {
		l, err := n.Server.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		accepted = make(chan *net.TCPConn, many)
		if !accepts {
			if err := lab.SetKeepalive(l, time.Minute, 0, 0); err != nil {
				t.Fatal(err)
			}
			return accepted
		}
		go func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		return accepted
	}
	both := netip.IPv6Unspecified()
	server4, server6 := n.Server.Addr4(), n.Server.Addr6()
	listen(netip.AddrPortFrom(both, unaccepting), false)
	for i, at := range []struct {
		listens, connects netip.Addr
		port              uint16
	}{{server4, server4, 7000}, {server6, server6, 7000}, {both, server4, 7001}} {
		accepted := listen(netip.AddrPortFrom(at.listens, at.port), true)
		dial := func(port uint16) *net.TCPConn {
			c, err := n.Client.Dial(t.Context(), netip.AddrPortFrom(at.connects, port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		pair := func() (client, server *net.TCPConn) {
			client = dial(at.port)
			select {
			case server = <-accepted:
			case <-time.After(generous):
				t.Fatal("nothing is accepted")
			}
			t.Cleanup(func() { server.Close() })
			return client, server
		}
		pair()
		client, _ := pair() // fin_wait2 and close_wait
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		client, _ = pair() // of the client only a stub is left, in fin_wait2
		client.Close()
		client, server := pair() // and here in time_wait
		client.Close()
		_, _ = server.Read(make([]byte, 1)) // its FIN
		server.Close()
		if i < 2 {
			dial(unaccepting)
		}
		silent := unanswering + uint16(i)
		listen(netip.AddrPortFrom(at.listens, silent), true)
		n.drop(lab.Rule{Port: silent, Direction: lab.In, Percent: 100})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		t.Cleanup(func() {
			cancel()
			<-done
		})
		go func() { // syn_sent and syn_recv
			defer close(done)
			if c, err := n.Client.Dial(ctx, netip.AddrPortFrom(at.connects, silent)); err == nil {
				c.Close()
			}
		}()
	}
}

// groupObject is a group of `halfopen list --by`.
type groupObject struct {
	Owner *struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
	} `json:"owner"`
	Remote *struct {
		IP   string `json:"ip"`
		Port *int   `json:"port"`
	} `json:"remote"`
	Verdict  *string        `json:"verdict"`
	Total    int            `json:"total"`
	Verdicts map[string]int `json:"verdicts"`
}

// name is what the connections of a group have in common, or "".
func (g *groupObject) name() string {
	switch {
	case g.Owner != nil:
		return g.Owner.Name
	case g.Remote != nil && g.Remote.Port != nil:
		return net.JoinHostPort(g.Remote.IP, strconv.Itoa(*g.Remote.Port))
	case g.Remote != nil:
		return g.Remote.IP
	case g.Verdict != nil:
		return *g.Verdict
	}
	return ""
}

// groupList is the answer of `halfopen list --by`.
type groupList struct {
	Total  int
	Groups []groupObject
}

// expectedGroup is a group, and how many of its connections have which verdicts, as far as
// that is known.
type expectedGroup struct {
	name     string
	total    int
	verdicts map[string]int
}

// compare returns an error unless there are so many groups in all, and those listed are as
// expected.
func (l *groupList) compare(total int, expected []expectedGroup) error {
	if l.Total != total || len(l.Groups) != len(expected) {
		return fmt.Errorf("%d groups of %d, expected %d of %d", len(l.Groups), l.Total, len(expected), total)
	}
	for i, want := range expected {
		g := &l.Groups[i]
		if g.name() != want.name || g.Total != want.total {
			return fmt.Errorf("group %d is %q of %d connections, expected %q of %d", i, g.name(), g.Total, want.name, want.total)
		}
		for verdict, n := range want.verdicts {
			if g.Verdicts[verdict] != n {
				return fmt.Errorf("%q has %d that are %s, expected %d", want.name, g.Verdicts[verdict], verdict, n)
			}
		}
	}
	return nil
}

// mixedLab is a network with zombies to one port and live connections to another, and an
// agent. One process owns all connections.
type mixedLab struct {
	*network
	agent              *agent
	rules              []string // the agent's
	zombies, live      int
	clientNS, serverNS string // for --netns
}

func newMixedLab(t *testing.T) *mixedLab {
	t.Helper()
	rules := []string{"--zombie-unanswered=2", "--zombie-silence=2s"}
	n := newNetwork(t, "ipv4")
	m := &mixedLab{
		network: n, agent: startAgent(t, rules...), rules: rules, zombies: 3, live: 7,
		clientNS: fmt.Sprint(n.Client.Inode()), serverNS: fmt.Sprint(n.Server.Inode()),
	}
	n.serve(droppedPort, echo)
	n.serve(servedPort, echo)
	dying, living := n.dial(droppedPort, m.zombies), n.dial(servedPort, m.live)
	n.greet(dying)
	n.greet(living)
	n.keepalive(dying, time.Second, 3*time.Second, 127) // a hundred lists that load the programs take minutes
	n.cut(droppedPort)
	eventually(t, "zombies", func() error { return all(m.agent.connections(n, droppedPort, ""), m.zombies, "zombie") })
	return m
}

// groups runs `halfopen list --by`.
func (m *mixedLab) groups(t *testing.T, how []string, by, flags string) (doc groupList) {
	t.Helper()
	listInto(t, &doc, slices.Concat(how, []string{"--by", by}, strings.Fields(flags))...)
	return doc
}

// owner returns the name of the owner of the connections.
func (m *mixedLab) owner(t *testing.T, how []string) string {
	t.Helper()
	doc := m.groups(t, how, "owner", "--netns="+m.clientNS)
	if len(doc.Groups) != 1 || doc.Groups[0].Owner == nil {
		t.Fatalf("by owner: %+v", doc)
	}
	return doc.Groups[0].Owner.Name
}

// checkGroups checks the groups by verdict, by remote and by owner.
func (m *mixedLab) checkGroups(t *testing.T, how []string, owner string) {
	t.Helper()
	dropped := expectedGroup{m.server(droppedPort).String(), m.zombies, map[string]int{"zombie": m.zombies}}
	served := expectedGroup{m.server(servedPort).String(), m.live, map[string]int{"active": m.live}}
	for _, test := range []struct {
		by, flags string
		total     int // without --limit
		groups    []expectedGroup
	}{
		{"verdict", "--netns=" + m.clientNS, 2, []expectedGroup{{"zombie", m.zombies, nil}, {"active", m.live, nil}}},
		{"remote", "--netns=" + m.clientNS, 2, []expectedGroup{dropped, served}},
		{"remote", "--netns=" + m.clientNS + " --limit=1", 2, []expectedGroup{dropped}},
		{"remote", "--netns=" + m.serverNS, 1, []expectedGroup{{m.Client.Addr4().String(), m.zombies + m.live, nil}}},
		{"owner", "--netns=" + m.clientNS, 1, []expectedGroup{{owner, m.zombies + m.live, map[string]int{"zombie": m.zombies}}}},
		{"owner", "--netns=" + m.serverNS + " --all --state=listen", 1, []expectedGroup{{owner, 2, map[string]int{"active": 0}}}},
	} {
		doc := m.groups(t, how, test.by, test.flags)
		if err := doc.compare(test.total, test.groups); err != nil {
			t.Errorf("--by=%s %s: %v: %+v", test.by, test.flags, err, doc)
		}
	}
}

// checkFilters checks how many connections each filter finds, of one of every so many
// filters.
func (m *mixedLab) checkFilters(t *testing.T, how []string, owner string, every int) {
	t.Helper()
	everyone, address := m.zombies+m.live, m.Server.Addr4()
	for i, test := range []struct {
		filter string
		count  int
	}{
		{"", everyone},
		{"--owner=" + owner, everyone},
		{"--owner=" + owner + " --owner=-", everyone},
		{"--owner=-", 0},
		{"--owner=nobody's.service", 0},
		{"--owner=" + owner + " --verdict=zombie", m.zombies},
		{"--owner=" + owner + " --pid=" + strconv.Itoa(syscall.Getpid()), everyone},
		{"--owner=" + owner + " --pid=1", 0},
		{"--remote=" + address.String(), everyone},
		{"--remote=::ffff:" + address.String() + " --port=" + strconv.Itoa(droppedPort), m.zombies},
		{"--remote=" + netip.PrefixFrom(address, 24).Masked().String(), everyone},
		{"--remote=203.0.113.0/24 --remote=" + m.Server.Addr6().String(), 0},
		{"--remote=::/0", 0},
		{"--remote=0.0.0.0/0", everyone},
		{"--risk=no_keepalive", m.live},
		{"--risk=no_keepalive --risk=close_wait_leak", m.live},
		{"--risk=close_wait_leak", 0},
		{"--risk=no_keepalive --verdict=zombie", 0},
		{"--state=established --all", everyone},
		{"--netns=" + m.serverNS, 2 * everyone},
	} {
		if i%every != 0 {
			continue
		}
		args := slices.Concat(how, []string{"--netns", m.clientNS}, strings.Fields(test.filter))
		if got := list(t, args...); len(got) != test.count {
			t.Errorf("%s: %d connections, expected %d", test.filter, len(got), test.count)
		}
	}
}

func TestListGroupsAndFilters(t *testing.T) {
	t.Parallel()
	m := newMixedLab(t)
	for name, test := range map[string]struct {
		how   []string
		every int
	}{
		"alone":         {m.rules, scale}, // it loads the programs each time
		"from an agent": {[]string{"--url", m.agent.url}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			owner := m.owner(t, test.how)
			m.checkGroups(t, test.how, owner)
			m.checkFilters(t, test.how, owner, test.every)
			worst := list(t, slices.Concat(test.how, []string{"--netns", m.clientNS, "--limit=2", "--owner", owner})...)
			if len(worst) != 2 || *worst[0].Verdict != "zombie" || *worst[1].Verdict != "zombie" || worst[0].Process == nil {
				t.Errorf("the worst two: %+v", worst)
			}
		})
	}
	if err := m.agent.get("/api/v1/connections?remote=localhost", &struct{}{}); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a remote that is a name: %v", err)
	}
}

// Anybody may ask for all connections of a node, several times at once.
func TestAskingForAllTakesLittleMemory(t *testing.T) {
	const askers, most = 4, 40 << 20
	pairs := scaled(9000)
	g := startBulkClients(t, "close", pairs, 7600)
	g.ready()
	a := startAgent(t)
	// As much as it takes anyway; and kernels may hide a connection from the first census.
	eventually(t, "all of them", func() error {
		var doc struct{ Total int }
		if err := a.get(fmt.Sprintf("/api/v1/connections?netns=%d&netns=%d", g.Client.Inode(), g.Server.Inode()), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Total < 2*pairs {
			return fmt.Errorf("%d connections, expected %d", doc.Total, 2*pairs)
		}
		return nil
	})
	before := a.peak()
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			var doc struct {
				Connections []connection `json:"connections"`
			}
			if err := a.get(fmt.Sprintf("/api/v1/connections?limit=1000000&netns=%d&netns=%d", g.Client.Inode(), g.Server.Inode()), &doc); err != nil {
				t.Error(err)
			}
			n := 0
			var without []connection
			for _, c := range doc.Connections {
				if c.Netns != g.Client.Inode() && c.Netns != g.Server.Inode() {
					continue
				}
				if n++; c.Process == nil {
					without = append(without, c)
				}
			}
			if n != 2*pairs || len(without) > 0 {
				t.Errorf("%d connections, expected %d; %d without an owner: %+v", n, 2*pairs, len(without), without[:min(len(without), 1)])
			}
		})
	}
	wg.Wait()
	after := a.peak()
	t.Logf("%d sockets: at most %.1f MB, then %.1f MB", 2*pairs, float64(before)/1e6, float64(after)/1e6)
	if after-before > most {
		t.Errorf("%.1f MB more", float64(after-before)/1e6)
	}
}

// peak is the most bytes that were resident so far.
func (a *agent) peak() (bytes int) {
	a.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		a.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		a.t.Fatal(err)
	}
	return bytes << 10
}
