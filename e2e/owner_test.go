// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// everywhere asks for the connections of a network to or from a port, both ends,
// by cookie.
func (a *agent) everywhere(n *network, port int) map[string]connection {
	a.t.Helper()
	var list struct {
		Connections []connection `json:"connections"`
	}
	if err := a.get(fmt.Sprintf("/api/v1/connections?limit=100000&port=%d", port), &list); err != nil {
		a.t.Fatal(err)
	}
	conns := make(map[string]connection)
	for _, c := range list.Connections {
		if c.Netns == n.Client.Inode() || c.Netns == n.Server.Inode() {
			conns[c.Cookie] = c
		}
	}
	return conns
}

var ssUID, ssInode = regexp.MustCompile(`\buid:(\d+)`), regexp.MustCompile(`\bino:(\d+)`)

// described is what ss says of a socket: its inode, 0 if no process holds it, and its
// user.
func (n *network) described(t *testing.T, cookie string) (inode string, uid int) {
	t.Helper()
	for _, ns := range []interface {
		Output(string, ...string) ([]byte, error)
	}{n.Client, n.Server} {
		out, err := ns.Output("ss", "-Htnae")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, " sk:"+cookie+" ") {
				continue
			}
			if m := ssUID.FindStringSubmatch(line); m != nil {
				uid, _ = strconv.Atoi(m[1])
			}
			if m := ssInode.FindStringSubmatch(line); m != nil {
				inode = m[1]
			}
			return inode, uid
		}
	}
	t.Fatalf("ss has no socket %s", cookie)
	return "", 0
}

// owned checks that a connection is a helper process's, by its descriptor, and that ss and
// /proc say the same.
func (n *network) owned(t *testing.T, what string, c connection, p *helperProcess, fd int) {
	t.Helper()
	inode, uid := n.described(t, c.Cookie)
	if link := p.descriptor(fd); link != "socket:["+inode+"]" {
		t.Fatalf("%s: descriptor %d of %d is %s, ss knows inode %s of %s", what, fd, p.PID, link, inode, c.Cookie)
	}
	switch {
	case c.Accepted != nil:
		t.Errorf("%s: accepted is %v", what, *c.Accepted)
	case c.Process == nil:
		t.Errorf("%s: nobody's, %d holds it", what, p.PID)
	case c.Process.PID != p.PID || c.Process.FD != fd || c.Process.Comm != p.comm():
		t.Errorf("%s: of %+v, expected %d, %s, by %d", what, *c.Process, p.PID, p.comm(), fd)
	}
	if c.UID == nil || *c.UID != uid {
		t.Errorf("%s: user %v, ss says %d", what, c.UID, uid)
	}
}

// nobodys checks that the agent names no process that holds a connection.
func nobodys(t *testing.T, what string, c connection, accepted bool) {
	t.Helper()
	if c.Process != nil || c.UID != nil || c.Cgroup != nil || c.ContainerID != nil || c.PodUID != nil || c.Unit != nil {
		t.Errorf("%s: of %+v, user %v, group %v", what, c.Process, c.UID, c.Cgroup)
	}
	if got := c.Accepted == nil; got != accepted {
		t.Errorf("%s: accepted is %v", what, got)
	}
}

// A user who needs no name.
const someUser = 54321

func TestOwners(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		h := newController(t)
		addr := n.server(servedPort)
		server := h.start("master", n.Server.Path())
		listener := server.must(command{Do: "listen", Addr: addr, UID: someUser}).FD
		client := h.start("client", n.Client.Path())
		connect := func() answer {
			t.Helper()
			return client.must(command{Do: "connect", Addr: addr, UID: someUser})
		}
		find := func(what, cookie string) connection {
			t.Helper()
			c, ok := a.everywhere(n, servedPort)[cookie]
			if !ok {
				t.Fatalf("%s: there is no %s", what, cookie)
			}
			return c
		}

		// Nobody has accepted it: whose will it be? ss knows it by its ends only.
		early := connect()
		waiting := func() (found []connection) {
			for _, c := range a.everywhere(n, servedPort) {
				if c.Netns == n.Server.Inode() && c.Accepted != nil {
					found = append(found, c)
				}
			}
			return found
		}
		queued := waiting()
		if len(queued) != 1 {
			t.Fatalf("%d connections are not accepted, expected 1: %+v", len(queued), queued)
		}
		nobodys(t, "not yet accepted", queued[0], false)
		c := find("client", early.Cookie)
		n.owned(t, "client", c, client, early.FD)
		if *c.UID != someUser {
			t.Errorf("client: user %d, expected %d", *c.UID, someUser)
		}

		// Four workers share the listener, and with their parent hold it.
		var workers []*helperProcess
		for i := range 4 {
			pid := server.must(command{Do: "fork", FD: listener}).PID
			w := h.accept()
			if w.PID != pid {
				t.Fatalf("worker %d is %d, expected %d", i, w.PID, pid)
			}
			w.must(command{Do: "name", Name: fmt.Sprintf("worker-%d", i)})
			workers = append(workers, w)
		}
		accepted := workers[0].must(command{Do: "accept", FD: 3})
		if accepted.Cookie != queued[0].Cookie {
			t.Fatalf("%s was accepted, %s had waited", accepted.Cookie, queued[0].Cookie)
		}
		n.owned(t, "accepted after all", find("accepted after all", accepted.Cookie), workers[0], accepted.FD)
		for i, w := range workers {
			for range 3 {
				connect()
				got := w.must(command{Do: "accept", FD: 3})
				what := fmt.Sprintf("worker %d's", i)
				n.owned(t, what, find(what, got.Cookie), w, got.FD)
			}
		}
		if got := waiting(); len(got) > 0 {
			t.Errorf("not accepted: %+v", got)
		}

		// It is passed on over a Unix socket, and the one who had it closes it.
		dir := filepath.Join(t.TempDir(), "s")
		heir := h.start("heir", "")
		heir.must(command{Do: "await", Path: dir})
		workers[0].must(command{Do: "pass", Path: dir, FD: accepted.FD})
		passed := heir.must(command{Do: "take"}).FD
		workers[0].must(command{Do: "close", FD: accepted.FD})
		n.owned(t, "passed on", find("passed on", accepted.Cookie), heir, passed)

		// Its owner ends while a child holds it, too.
		shared := connect()
		parent := h.start("parent", n.Server.Path())
		workers[1].must(command{Do: "await", Path: dir + "2"})
		got := workers[1].must(command{Do: "accept", FD: 3})
		parent.must(command{Do: "await", Path: dir + "3"})
		workers[1].must(command{Do: "pass", Path: dir + "3", FD: got.FD})
		fd := parent.must(command{Do: "take"}).FD
		workers[1].must(command{Do: "close", FD: got.FD})
		parent.must(command{Do: "fork", FD: fd})
		child := h.accept()
		child.must(command{Do: "name", Name: "child"})
		both := find("held by two", got.Cookie)
		if both.Process != nil && both.Process.PID == child.PID {
			n.owned(t, "held by two", both, child, 3)
		} else {
			n.owned(t, "held by two", both, parent, fd)
		}
		parent.exit()
		n.owned(t, "outlived its process", find("outlived its process", got.Cookie), child, 3)
		n.owned(t, "its other end", find("its other end", shared.Cookie), client, shared.FD)

		// Its application closes it, and the peer does not hear of that.
		orphan := connect()
		workers[2].must(command{Do: "accept", FD: 3})
		n.cut(servedPort)
		client.must(command{Do: "write", FD: orphan.FD})
		client.must(command{Do: "close", FD: orphan.FD})
		c = find("orphan", orphan.Cookie)
		nobodys(t, "orphan", c, true)
		if inode, _ := n.described(t, orphan.Cookie); inode != "" && inode != "0" || c.State != "fin_wait1" {
			t.Errorf("ss knows inode %q of the orphan, which is in %s", inode, c.State)
		}
	})
}

// A zombie's owner is looked for only now and then, and the one who held it first
// may be gone by then.
func TestOwnerOfZombieOutlivesItsProcess(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		h := newController(t)
		n.serve(droppedPort, func(c *net.TCPConn) {})
		parent := h.start("parent", n.Client.Path())
		got := parent.must(command{Do: "connect", Addr: n.server(droppedPort), Options: probing(100)})
		n.cut(droppedPort)
		zombie := func() (connection, error) {
			c := a.everywhere(n, droppedPort)[got.Cookie]
			if c.Verdict != "zombie" {
				return c, fmt.Errorf("%s is %q", got.Cookie, c.Verdict)
			}
			return c, nil
		}
		eventually(t, "a zombie of its parent", func() error {
			c, err := zombie()
			if err == nil {
				n.owned(t, "zombie", c, parent, got.FD)
			}
			return err
		})
		parent.must(command{Do: "fork", FD: got.FD})
		child := h.accept()
		child.must(command{Do: "name", Name: "child"})
		parent.exit()
		eventually(t, "a zombie of its child", func() error {
			c, err := zombie()
			if err == nil && (c.Process == nil || c.Process.PID != child.PID) {
				err = fmt.Errorf("of %+v", c.Process)
			}
			if err == nil {
				n.owned(t, "zombie", c, child, 3)
			}
			return err
		})
	})
}

// probing is keepalive every second, to be given up after so many probes.
func probing(count int) [][3]int {
	return [][3]int{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	}
}

// hierarchy is where control groups are made: of v2, or of v1 by name.
func hierarchy(t *testing.T, v1 string) string {
	t.Helper()
	mounts, err := procfs.GetMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if _, ok := m.SuperOptions[v1]; v1 == "" && m.FSType == "cgroup2" || v1 != "" && m.FSType == "cgroup" && ok {
			return m.MountPoint
		}
	}
	// A node of v2 only has none of v1, and one may be mounted beside it.
	dir := t.TempDir()
	fstype, data := "cgroup2", ""
	if v1 != "" {
		fstype, data = "cgroup", "none,"+v1
	}
	if err := unix.Mount("none", dir, fstype, 0, data); err != nil {
		t.Fatalf("mount %s %s: %v", fstype, data, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// group makes a control group, and those above it, in a hierarchy, until the test
// ends. Its path is as /proc/PID/cgroup has it.
func group(t *testing.T, mount, path string) string {
	t.Helper()
	dir := mount
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		dir = filepath.Join(dir, name)
		at := dir
		err := os.Mkdir(at, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// Those who were in it have ended, but the kernel takes its time.
			eventually(t, "the group is removed", func() error { return os.Remove(at) })
		})
	}
	return dir
}

// joins puts a helper process into a group.
func (p *helperProcess) joins(group string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(p.PID)), 0); err != nil {
		p.t.Fatal(err)
	}
}

// An ownerCase is a helper process in a group, as container runtimes and systemd make them.
type ownerCase struct {
	name                      string
	path                      string // in the hierarchy
	v1                        bool
	containerID, podUID, unit string
	owner                     string // of its zombies
	*helperProcess
	got answer
}

const (
	aPod       = "0ef5a5f3-73c8-4c1b-8f5a-4ac3ee05c52c"
	anotherPod = "cd0ea2a5-8b9e-4b1f-9a2e-7f1b3d5c7e90"
)

// hexes is a container's id.
func hexes(digit string) string { return strings.Repeat(digit+"1f8", 16) }

func ownerCases() []*ownerCase {
	under := func(uid string) string { return strings.ReplaceAll(uid, "-", "_") }
	return []*ownerCase{
		{name: "containerd in Kubernetes", containerID: hexes("a"), podUID: aPod, owner: aPod,
			path: "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under(aPod) + ".slice/cri-containerd-" + hexes("a") + ".scope"},
		{name: "CRI-O", containerID: hexes("b"), podUID: anotherPod, owner: anotherPod,
			path: "kubepods.slice/kubepods-pod" + under(anotherPod) + ".slice/crio-" + hexes("b") + ".scope/container"},
		{name: "Docker", containerID: hexes("c"), owner: hexes("c")[:12],
			path: "system.slice/docker-" + hexes("c") + ".scope"},
		{name: "Podman", containerID: hexes("d"), owner: hexes("d")[:12],
			path: "machine.slice/libpod-" + hexes("d") + ".scope/container"},
		{name: "Docker without systemd", containerID: hexes("e"), owner: hexes("e")[:12],
			path: "docker/" + hexes("e")},
		{name: "systemd service", unit: "postgresql@15-main.service", owner: "postgresql@15-main.service",
			path: "system.slice/system-postgresql.slice/postgresql@15-main.service"},
		{name: "cgroup v1 only", v1: true, containerID: hexes("f"), owner: hexes("f")[:12],
			path: "docker/" + hexes("f")},
		{name: "no group that tells", owner: "lonely",
			path: "lonely"},
	}
}

// checkOwner checks what the agent says of the process and its cgroup.
func (r *ownerCase) checkOwner(t *testing.T, what string, c connection) {
	t.Helper()
	for _, field := range []struct {
		name string
		got  *string
		want string
	}{
		{"cgroup", c.Cgroup, "/" + r.path}, {"container_id", c.ContainerID, r.containerID},
		{"pod_uid", c.PodUID, r.podUID}, {"unit", c.Unit, r.unit},
	} {
		got := ""
		if field.got != nil {
			if got = *field.got; got == "" {
				t.Errorf("%s, %s: %s is empty, not null", r.name, what, field.name)
			}
		}
		if got != field.want {
			t.Errorf("%s, %s: %s is %q, expected %q", r.name, what, field.name, got, field.want)
		}
	}
	if c.Process == nil || c.Process.PID != r.PID || c.Process.FD != r.got.FD {
		t.Errorf("%s, %s: of %+v, expected %d by %d", r.name, what, c.Process, r.PID, r.got.FD)
	}
}

func TestGroupsOfOwners(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		v2, v1 := hierarchy(t, ""), hierarchy(t, "name=systemd")
		h := newController(t)
		// All in one group, so that nothing of the node's own is touched. systemd makes its
		// units in slices.
		top := fmt.Sprintf("halfopen-e2e-%d-%s.slice", os.Getpid(), n.family)
		all := ownerCases()
		n.serve(droppedPort, func(*net.TCPConn) {})
		for _, r := range all {
			r.path = filepath.Join(top, r.path)
			mount := v2
			if r.v1 {
				mount = v1
			}
			at := group(t, mount, r.path)
			r.helperProcess = h.start("lonely", n.Client.Path())
			r.joins(at)
		}
		for _, r := range all {
			// Time enough as a zombie for a scrape, and then an end by itself.
			r.got = r.must(command{Do: "connect", Addr: n.server(droppedPort), Options: probing(22)})
		}
		for _, r := range all {
			r.checkOwner(t, "alive", a.everywhere(n, droppedPort)[r.got.Cookie])
		}

		n.cut(droppedPort)
		eventually(t, "zombies by owner", func() error {
			for _, c := range a.everywhere(n, droppedPort) {
				if c.Netns == n.Client.Inode() && c.Verdict != "zombie" {
					return fmt.Errorf("%s is %s", c.Cookie, c.Verdict)
				}
			}
			got := a.metrics().zombiesByOwner(droppedPort)
			for _, r := range all {
				// Both families run at once, and with the same names.
				if n := got[r.owner]; n < 1 || n > 2 {
					return fmt.Errorf("%q has %d zombies: %v", r.owner, n, got)
				}
			}
			return nil
		})
		for _, r := range all {
			r.checkOwner(t, "zombie", a.everywhere(n, droppedPort)[r.got.Cookie])
		}

		var deaths []death
		eventually(t, "all are given up", func() error {
			if deaths = a.deaths(n, droppedPort); len(deaths) != len(all) {
				return fmt.Errorf("%d deaths, expected %d", len(deaths), len(all))
			}
			return nil
		})
		for _, r := range all {
			i := slices.IndexFunc(deaths, func(d death) bool { return d.Cookie == r.got.Cookie })
			if i < 0 {
				t.Fatalf("%s: no death of %s", r.name, r.got.Cookie)
			}
			if d := deaths[i]; d.Cause != "keepalive_timeout" && !d.hidden(t) {
				t.Errorf("%s died of %s", r.name, d.Cause)
			}
			r.checkOwner(t, "dead", deaths[i].connection)
		}
	})
}

// zombiesByOwner is the metric of that name, for a service's port.
func (m metrics) zombiesByOwner(port int) map[string]int {
	m.t.Helper()
	got := make(map[string]int)
	f := m.families["halfopen_tcp_zombies_by_owner"]
	if f == nil {
		return got
	}
	for _, s := range f.Metric {
		labels := make(map[string]string)
		for _, l := range s.Label {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["remote_port"] == strconv.Itoa(port) {
			got[labels["owner"]] += int(s.Gauge.GetValue())
		}
	}
	return got
}

// zombies returns the number of zombies of a service's port, of all owners.
func (m metrics) zombies(port int) (n int) {
	m.t.Helper()
	for _, ofOwner := range m.zombiesByOwner(port) {
		n += ofOwner
	}
	return n
}

// An accepted connection has the cgroup of its listener, whichever process accepts it,
// and one that dies without ever having been in trouble is told with its owner.
func TestAcceptedConnectionHasItsListenersGroup(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		h := newController(t)
		v2 := hierarchy(t, "")
		top := fmt.Sprintf("halfopen-e2e-accept-%d-%s.slice", os.Getpid(), n.family)
		r := &ownerCase{name: "listener", path: top + "/web.service", unit: "web.service"}
		web, other := group(t, v2, r.path), group(t, v2, top+"/worker.service")
		server := h.start("master", n.Server.Path())
		server.joins(web)
		listener := server.must(command{Do: "listen", Addr: n.server(servedPort)}).FD
		server.must(command{Do: "fork", FD: listener})
		r.helperProcess = h.accept()
		r.joins(other)
		client := n.dial(servedPort, 1)[0]
		r.got = r.must(command{Do: "accept", FD: 3})
		r.checkOwner(t, "alive", a.everywhere(n, servedPort)[r.got.Cookie])

		if err := client.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		ends := client.LocalAddr().(*net.TCPAddr).AddrPort()
		client.Close()
		eventually(t, "its death is told", func() error {
			var list struct {
				Deaths []death `json:"deaths"`
			}
			if err := a.get("/api/v1/deaths?limit=100000&cause=reset_by_peer", &list); err != nil {
				return err
			}
			for _, d := range list.Deaths {
				if d.Cookie != r.got.Cookie {
					continue
				}
				if d.Process == nil {
					return errors.New("nobody's")
				}
				r.checkOwner(t, "dead", d.connection)
				return nil
			}
			if slices.ContainsFunc(deathTracer.hiddenDeaths(t), func(h hiddenDeath) bool { return h.remote == ends && h.at.After(n.made) }) {
				t.Log("its death is hidden from every program")
				return nil
			}
			return errors.New("no death")
		})
	})
}
