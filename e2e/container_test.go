// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// stateDirectories are the directories that stateFile has made, in this order.
var stateDirectories struct {
	sync.Mutex
	made []string
}

// stateFile writes a file of a container runtime where the agent looks for it, until the
// test ends. It removes the directories that it has made when nothing is in them.
func stateFile(t *testing.T, path, text string) {
	t.Helper()
	s := &stateDirectories
	s.Lock()
	defer s.Unlock()
	t.Cleanup(func() {
		s.Lock()
		defer s.Unlock()
		_ = os.Remove(path)
		for _, dir := range slices.Backward(s.made) {
			_ = os.Remove(dir)
		}
	})
	dir := "/"
	for name := range strings.SplitSeq(strings.Trim(filepath.Dir(path), "/"), "/") {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o711); err == nil {
			s.made = append(s.made, dir)
		} else if !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// randomID returns an id of so many hexadecimal digits, for no runtime has it already.
func randomID(t *testing.T, digits int) string {
	t.Helper()
	b := make([]byte, digits/2)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// A containerCase is a helper process in the group of a container, and the files of its
// runtime.
type containerCase struct {
	name                      string
	path                      string // of the group
	file, text                string
	namespace, pod, container string
	owner                     string // of its zombies, as the metric has it
	*helperProcess
	got answer
}

func containerCases(t *testing.T, unique string) []*containerCase {
	t.Helper()
	uid := func() string {
		id := randomID(t, 32)
		return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
	}
	under := func(uid string) string { return strings.ReplaceAll(uid, "-", "_") }
	inPod, logged := uid(), uid()
	server, plain, hidden := randomID(t, 64), randomID(t, 64), randomID(t, 64)
	hostile, _ := json.Marshal("/evil\u202e\x1b[2J" + unique)
	return []*containerCase{
		{
			name: "containerd in Kubernetes", namespace: unique, pod: "checkout-xhnvf", container: "server", owner: unique + "/checkout-xhnvf",
			path: "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under(inPod) + ".slice/cri-containerd-" + server + ".scope",
			file: "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + server + "/config.json",
			text: `{"ociVersion":"1.0.2","process":{"env":["PASSWORD=secret"],"args":["x"]},"annotations":{"io.kubernetes.cri.container-name":"server",` +
				`"io.kubernetes.cri.sandbox-name":"checkout-xhnvf","io.kubernetes.cri.sandbox-namespace":"` + unique + `"},"linux":{}}`,
		},
		{
			name: "Docker", container: "evil\u202e\x1b[2J" + unique, owner: `evil\u202e\x1b[2J` + unique,
			path: "system.slice/docker-" + plain + ".scope",
			file: "/var/lib/docker/containers/" + plain + "/config.v2.json", text: `{"Config":{"Env":["PASSWORD=secret"]},"Name":` + string(hostile) + `}`,
		},
		{
			name: "only logs of the pod", namespace: unique, pod: "logged", owner: unique + "/logged",
			path: "kubepods.slice/kubepods-pod" + under(logged) + ".slice/crio-" + hidden + ".scope",
			file: "/var/log/pods/" + unique + "_logged_" + logged + "/server/0.log",
		},
	}
}

// checkNames checks the names of the connection.
func (r *containerCase) checkNames(t *testing.T, what string, c connection) {
	t.Helper()
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	got, want := [3]string{text(c.Namespace), text(c.Pod), text(c.Container)}, [3]string{r.namespace, r.pod, r.container}
	if got != want {
		t.Errorf("%s, %s: namespace, pod and container are %q, expected %q", r.name, what, got, want)
	}
}

func TestNamesOfContainers(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		a := sharedAgent(t)
		h := newController(t)
		unique := "shop-" + randomID(t, 8)
		top := fmt.Sprintf("halfopen-e2e-names-%d-%s.slice", os.Getpid(), n.family)
		all := containerCases(t, unique)
		n.serve(droppedPort, func(*net.TCPConn) {})
		for _, r := range all {
			stateFile(t, r.file, r.text)
			r.helperProcess = h.start("x", n.Client.Path())
			r.joins(group(t, hierarchy(t, ""), filepath.Join(top, r.path)))
			r.got = r.must(command{Do: "connect", Addr: n.server(droppedPort), Options: probing(120)})
		}
		here := list(t, "--port", strconv.Itoa(droppedPort), "--limit", "100000")
		for _, r := range all {
			r.checkNames(t, "of the agent", a.everywhere(n, droppedPort)[r.got.Cookie])
			found := false
			for i := range here {
				if here[i].Cookie == r.got.Cookie {
					found = true
					r.checkNames(t, "of list alone", here[i].connection)
				}
			}
			if !found {
				t.Errorf("%s: list does not have %s", r.name, r.got.Cookie)
			}
		}
		selects := func(want []*containerCase, filters ...string) {
			t.Helper()
			for _, url := range []string{"--url=none", "--url=" + a.url} {
				got := list(t, append(filters, url)...)
				for _, r := range want {
					if !slices.ContainsFunc(got, func(o socketObject) bool { return o.Cookie == r.got.Cookie }) || len(got) != len(want) {
						t.Errorf("%v %s selects %d connections, not just %s: %+v", filters, url, len(got), r.got.Cookie, got)
					}
				}
			}
		}
		selects([]*containerCase{all[0], all[2]}, "--namespace", unique)
		selects(all[2:], "--namespace", unique, "--pod", "logged")
		selects(all[:1], "--owner", unique+"/checkout-xhnvf")
		selects(all[1:2], "--owner", all[1].container)
		out, _, status := run(t, exec.Command(binary, "explain", all[0].got.Cookie, "--url="+a.url))
		if want := ", in pod " + unique + "/checkout-xhnvf container server\n"; status != 0 || !strings.Contains(out, want) {
			t.Errorf("explain has no %q in\n%s", want, out)
		}

		// The names outlive the container and its files.
		for _, r := range all {
			if err := os.Remove(r.file); err != nil {
				t.Fatal(err)
			}
		}
		n.cut(droppedPort)
		eventually(t, "zombies by owner", func() error {
			m := a.metrics()
			for _, r := range all {
				labels := map[string]string{"owner": r.owner, "namespace": r.namespace, "pod": r.pod, "container": r.container, "remote_port": strconv.Itoa(droppedPort), "excluded": ""}
				if r.name == "Docker" {
					labels["container"] = r.owner // escaped
				}
				if got := m.series("halfopen_tcp_zombies_by_owner", labels); got != 1 {
					return fmt.Errorf("%d zombies with %v: %v", got, labels, m.zombiesByOwner(droppedPort))
				}
			}
			return nil
		})
		for _, r := range all {
			r.checkNames(t, "zombie", a.everywhere(n, droppedPort)[r.got.Cookie])
			r.exit()
		}
	})
}

// series returns the sum of the gauges of that name with exactly these labels.
func (m metrics) series(name string, labels map[string]string) (sum int) {
	m.t.Helper()
	for _, s := range m.families[name].GetMetric() {
		same := len(s.Label) == len(labels)
		for _, l := range s.Label {
			same = same && labels[l.GetName()] == l.GetValue()
		}
		if same {
			sum += int(s.Gauge.GetValue())
		}
	}
	return sum
}
