// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// k3sState is where k3s has the state of its containerd, and so has the one of the test: the
// machine may have its own in /run/containerd.
const k3sState = "/run/k3s/containerd"

// aContainerd is a containerd that runs until the test ends.
type aContainerd struct {
	t       *testing.T
	address string
}

func startContainerd(t *testing.T) *aContainerd {
	t.Helper()
	if _, err := os.Stat(k3sState); err == nil {
		t.Fatalf("%s exists: is this a node of k3s?", k3sState)
	}
	dir, err := os.MkdirTemp("", "containerd") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(k3sState)); err != nil {
			t.Error(err)
		}
		_ = os.Remove(filepath.Dir(k3sState))
	})
	c := &aContainerd{t, filepath.Join(dir, "socket")}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), k3sState, c.address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", config)
	log := &buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("containerd said:\n%s", log.String())
		}
	})
	eventually(t, "containerd answers", func() error {
		_, err := c.try("version")
		return err
	})
	return c
}

// try runs ctr in the namespace of Kubernetes, and returns what it prints.
func (c *aContainerd) try(args ...string) (string, error) {
	out, err := exec.Command("ctr", append([]string{"--address", c.address, "--timeout", "1m", "--namespace", "k8s.io"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", args, err, out)
	}
	return string(out), nil
}

// run runs a container with that id until the test ends.
func (c *aContainerd) run(id string, args ...string) {
	c.t.Helper()
	if _, err := c.try(append([]string{"run", "--detach"}, args...)...); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_, err := c.try("task", "delete", "--force", id)
		if err == nil {
			_, err = c.try("containers", "delete", id)
		}
		if err != nil {
			c.t.Error(err)
		}
	})
}

// busyboxRoot makes the root directory of a container.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	from, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(from)
	if err == nil {
		err = errors.Join(os.Mkdir(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// removeGroups removes the groups that runc has made below top in all hierarchies.
func removeGroups(t *testing.T, top string) {
	t.Helper()
	tops, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", top))
	more, err2 := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", top))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for _, at := range append(tops, more...) {
		if out, err := exec.Command("find", at, "-depth", "-type", "d", "-delete").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// A real containerd and a real runc write the file, and the agent finds the names in it.
func TestNamesOfARealContainer(t *testing.T) {
	n := newNetwork(t, "ipv4")
	a := sharedAgent(t)
	n.serve(droppedPort, func(*net.TCPConn) {})
	top := fmt.Sprintf("halfopen-e2e-containerd-%d", os.Getpid())
	t.Cleanup(func() { removeGroups(t, top) })
	c := startContainerd(t)
	id, uid := randomID(t, 64), "0ef5a5f3-73c8-4c1b-8f5a-4ac3ee05c52c"
	server := n.server(droppedPort)
	began := time.Now()
	c.run(id, "--rootfs", "--cgroup", "/"+top+"/kubepods/burstable/pod"+uid+"/"+id, "--with-ns", "network:"+n.Client.Path(),
		"--env", "PASSWORD=secret", "--annotation", "io.kubernetes.cri.container-type=container", "--annotation", "io.kubernetes.cri.container-name=server",
		"--annotation", "io.kubernetes.cri.sandbox-name=checkout-xhnvf", "--annotation", "io.kubernetes.cri.sandbox-namespace="+top,
		busyboxRoot(t), id, "/bin/busybox", "sh", "-c", "/bin/busybox sleep 3600 | /bin/busybox nc "+server.Addr().String()+" "+strconv.Itoa(droppedPort))
	t.Logf("it runs after %s", time.Since(began))
	r := containerCase{name: "containerd", namespace: top, pod: "checkout-xhnvf", container: "server"}
	eventually(t, "the container's connection", func() error {
		for what, url := range map[string]string{"of the agent": "--url=" + a.url, "of list alone": "--url=none"} {
			found := list(t, url, "--namespace", top, "--pod", "checkout-xhnvf", "--port", strconv.Itoa(droppedPort))
			if len(found) != 1 {
				return fmt.Errorf("%d connections %s", len(found), what)
			}
			o := &found[0]
			r.checkNames(t, what, o.connection)
			if o.Process == nil || o.Process.Comm != "busybox" || o.ContainerID == nil || *o.ContainerID != id || o.PodUID == nil || *o.PodUID != uid {
				t.Errorf("%s: of %+v, container %v, pod %v", what, o.Process, o.ContainerID, o.PodUID)
			}
		}
		return nil
	})
	file, err := os.ReadFile(filepath.Join(k3sState, "io.containerd.runtime.v2.task/k8s.io", id, "config.json"))
	if err != nil || !strings.Contains(string(file), "PASSWORD=secret") {
		t.Errorf("the file of containerd is another: %v\n%s", err, file)
	}
}
