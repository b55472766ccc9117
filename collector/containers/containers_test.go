// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	id      = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	otherID = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
	uid     = "6f1c4a5e-0000-4000-8000-1234567890ab"
)

// tree is a root directory, and a reader of it.
type tree struct {
	t *testing.T
	*Reader
	root string
}

func newTree(t *testing.T) *tree {
	root := t.TempDir()
	return &tree{t, &Reader{roots: []string{root}, owner: uint32(os.Geteuid())}, root}
}

// write writes a file below the root directory, and returns its path.
func (r *tree) write(name, text string) string {
	r.t.Helper()
	name = filepath.Join(r.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	return name
}

// A specification as containerd writes it, shortened.
const spec = `{"ociVersion":"1.0.2","process":{"user":{"uid":0},"args":["/bin/server"],"env":["PASSWORD=secret","annotations={"],"cwd":"/"},
"root":{"path":"rootfs"},"hostname":"x","mounts":[{"destination":"/proc","options":["nosuid"]}],"annotations":{%s},"linux":{"resources":{}}}`

func specOf(annotations string) string { return strings.Replace(spec, "%s", annotations, 1) }

const (
	kubernetesSpec = `"io.kubernetes.cri.container-name":"server","io.kubernetes.cri.container-type":"container",` +
		`"io.kubernetes.cri.sandbox-name":"checkout-xhnvf","io.kubernetes.cri.sandbox-namespace":"shop"`
	criOSpec = `"io.kubernetes.container.name":"server","io.kubernetes.pod.name":"checkout-xhnvf","io.kubernetes.pod.namespace":"shop"`
)

func TestNamesOfEachRuntime(t *testing.T) {
	server := Names{"shop", "checkout-xhnvf", "server"}
	sandbox := Names{Namespace: "shop", Pod: "checkout-xhnvf"}
	const storage = "var/lib/containers/storage/overlay-containers/"
	for name, c := range map[string]struct {
		file, text string
		want       Names
	}{
		"containerd":                  {"run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json", specOf(kubernetesSpec), server},
		"k3s":                         {"run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json", specOf(kubernetesSpec), server},
		"k0s":                         {"run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json", specOf(kubernetesSpec), server},
		"MicroK8s":                    {"var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json", specOf(kubernetesSpec), server},
		"the sandbox of a pod":        {"run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json", specOf(`"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-name":"checkout-xhnvf","io.kubernetes.cri.sandbox-namespace":"shop"`), sandbox},
		"nerdctl":                     {"run/containerd/io.containerd.runtime.v2.task/default/" + id + "/config.json", specOf(`"nerdctl/name":"db"`), Names{Container: "db"}},
		"CRI-O":                       {"run/containers/storage/overlay-containers/" + id + "/userdata/config.json", specOf(criOSpec), server},
		"the sandbox of a CRI-O pod":  {"run/containers/storage/overlay-containers/" + id + "/userdata/config.json", specOf(strings.Replace(criOSpec, "server", "POD", 1)), sandbox},
		"Docker":                      {"var/lib/docker/containers/" + id + "/config.v2.json", `{"State":{"Pid":7},"Config":{"Env":["Name=x"],"Labels":{"Name":"y"}},"Name":"/shop_db_1"}`, Names{Container: "shop_db_1"}},
		"Docker of snap":              {"var/snap/docker/common/var-lib-docker/containers/" + id + "/config.v2.json", `{"Name":"/db"}`, Names{Container: "db"}},
		"cri-dockerd":                 {"var/lib/docker/containers/" + id + "/config.v2.json", `{"Name":"/k8s_server_checkout-xhnvf_shop_` + uid + `_0"}`, server},
		"the sandbox of cri-dockerd":  {"var/lib/docker/containers/" + id + "/config.v2.json", `{"Name":"/k8s_POD_checkout-xhnvf_shop_` + uid + `_0"}`, sandbox},
		"labels of an image":          {"var/lib/docker/containers/" + id + "/config.v2.json", `{"Config":{"Labels":{"io.kubernetes.pod.name":"etcd","io.kubernetes.pod.namespace":"kube-system"}},"Name":"/db"}`, Names{Container: "db"}},
		"Podman":                      {storage + "containers.json", `[{"id":"` + otherID + `","names":["no"]},{"id":"` + id + `","names":["db","also"],"metadata":"{}"}]`, Names{Container: "db"}},
		"Podman with --rm":            {storage + "volatile-containers.json", `[{"names":["db"],"id":"` + id + `"}]`, Names{Container: "db"}},
		"an escaped name":             {"var/lib/docker/containers/" + id + "/config.v2.json", `{"Name":"/\u202e\u001b[2J"}`, Names{Container: "\u202e\x1b[2J"}},
		"a pod without its namespace": {"run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json", specOf(`"io.kubernetes.cri.container-name":"server","io.kubernetes.cri.sandbox-name":"checkout-xhnvf"`), Names{Container: "server"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTree(t)
			r.write(c.file, c.text)
			for _, pod := range []string{"", uid} {
				if got, err := r.Names(id, pod); got != c.want || err != nil {
					t.Errorf("%+v, %v, want %+v", got, err, c.want)
				}
			}
			if got, err := r.Names(otherID, ""); got != (Names{}) && name != "Podman" || err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("another container is %+v, %v", got, err)
			}
		})
	}
}

func TestNamesOfAPodFromItsLogs(t *testing.T) {
	const static = "0123456789abcdef0123456789abcdef"
	r := newTree(t)
	for _, pod := range []string{"shop_checkout-xhnvf_" + uid, "kube-system_etcd-node7_" + static, "a_b_c_" + uid, uid} {
		r.write("var/log/pods/"+pod+"/server/0.log", "")
	}
	want := Names{Namespace: "shop", Pod: "checkout-xhnvf"}
	for _, container := range []string{"", id} {
		if got, err := r.Names(container, uid); got != want || err != nil {
			t.Errorf("%q: %+v, %v", container, got, err)
		}
	}
	if got, err := r.Names("", static); got != (Names{Namespace: "kube-system", Pod: "etcd-node7"}) || err != nil {
		t.Errorf("static pod: %+v, %v", got, err)
	}
	r.write("run/containerd/io.containerd.runtime.v2.task/k8s.io/"+id+"/config.json", specOf(`"io.kubernetes.cri.container-name":"server"`))
	want.Container = "server"
	if got, err := r.Names(id, uid); got != want || err != nil {
		t.Errorf("of two files: %+v, %v", got, err)
	}
	if _, err := r.Names("", "7f1c4a5e-0000-4000-8000-1234567890ab"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v for a pod that is not there", err)
	}
}

// A link of the administrator to where the data of Docker is may be followed.
func TestDataOfDockerIsElsewhere(t *testing.T) {
	r := newTree(t)
	r.write("data/containers/"+id+"/config.v2.json", `{"Name":"/db"}`)
	if err := errors.Join(os.MkdirAll(filepath.Join(r.root, "var/lib"), 0o700), os.Symlink(filepath.Join(r.root, "data"), filepath.Join(r.root, "var/lib/docker"))); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Names(id, ""); got.Container != "db" || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// An agent in a container finds the files of its host by the first process.
func TestFilesInTheRootOfAnotherProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes mount namespaces")
	}
	// The files are in the mount namespace of a process, and nowhere else.
	process := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs none /var/log && mkdir -p "/var/log/pods/shop_checkout-xhnvf_$1" && echo made && exec cat`, "sh", uid)
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := process.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "made\n" {
		t.Fatalf("%q, %v", line, err)
	}
	first := fmt.Sprintf("/proc/%d", process.Process.Pid)
	if got, err := newReader(first).Names("", uid); got != (Names{Namespace: "shop", Pod: "checkout-xhnvf"}) || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := newReader("/proc/self").Names("", uid); got != (Names{}) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%+v, %v in our own", got, err)
	}
	if got := newReader("/proc/self").roots; len(got) != 1 {
		t.Errorf("the same files are read twice, below %v", got)
	}
}

// What is not the id of a container or pod opens no file.
func TestOnlyIDsAreLookedUp(t *testing.T) {
	r := newTree(t)
	r.write("config.v2.json", `{"Name":"/outside"}`)
	r.write("var/lib/docker/containers/x/config.v2.json", `{"Name":"/inside"}`)
	for _, c := range [][2]string{
		{"../../../.."}, {"x"}, {id + "/../x"}, {"../" + id}, {strings.ToUpper(id)}, {id[1:]}, {id + "0"}, {id + "\n"}, {"\x00"},
		{id, "../" + uid}, {"", "*"}, {"", uid + "/"}, {"", strings.Repeat("0", 31)}, {id, "."},
	} {
		if got, err := r.Names(c[0], c[1]); got != (Names{}) || !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %+v, %v", c, got, err)
		}
	}
	if _, err := r.Names("", ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v for none", err)
	}
}

// Whatever lies in the place of a state file is refused at once, and the rest of the places
// still count.
func TestWhatIsNotAStateFile(t *testing.T) {
	const name = "run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id + "/config.json"
	good := specOf(kubernetesSpec)
	for what, c := range map[string]struct {
		make func(r *tree, at string) error
		want string // in the error
	}{
		"a symbolic link to a file": {func(r *tree, at string) error {
			return os.Symlink(r.write("elsewhere", good), at)
		}, "not a state file"},
		"a relative symbolic link": {func(r *tree, at string) error {
			r.write("run/containerd/io.containerd.runtime.v2.task/k8s.io/"+otherID+"/config.json", good)
			return os.Symlink("../"+otherID+"/config.json", at)
		}, "not a state file"},
		"a symbolic link out of the directory": {func(r *tree, at string) error {
			r.write("elsewhere/config.json", good)
			return errors.Join(os.Remove(filepath.Dir(at)), os.Symlink(filepath.Join(r.root, "elsewhere"), filepath.Dir(at)))
		}, "escapes"},
		"a FIFO":      {func(_ *tree, at string) error { return unix.Mkfifo(at, 0o600) }, "not a state file"},
		"a directory": {func(_ *tree, at string) error { return os.Mkdir(at, 0o700) }, "not a state file"},
		"10 MB": {func(_ *tree, at string) error {
			return os.WriteFile(at, []byte(strings.Replace(good, "PASSWORD=", strings.Repeat("x", 10<<20), 1)), 0o600)
		}, "not a state file"},
		"no JSON":         {func(_ *tree, at string) error { return os.WriteFile(at, []byte("\x00\xff"), 0o600) }, "invalid character"},
		"an empty file":   {func(_ *tree, at string) error { return os.WriteFile(at, nil, 0o600) }, "EOF"},
		"an end too soon": {func(_ *tree, at string) error { return os.WriteFile(at, []byte(good[:len(good)/2]), 0o600) }, "EOF"},
		"an array":        {func(_ *tree, at string) error { return os.WriteFile(at, []byte(`[{}]`), 0o600) }, "another form"},
		"a text":          {func(_ *tree, at string) error { return os.WriteFile(at, []byte(`"x"`), 0o600) }, "another form"},
		"no object in it": {func(_ *tree, at string) error { return os.WriteFile(at, []byte(`{"annotations":["a"]}`), 0o600) }, "another form"},
		"depth without end": {func(_ *tree, at string) error {
			return os.WriteFile(at, []byte(`{"x":`+strings.Repeat("[", 1<<20)), 0o600)
		}, "another form"},
		"names without a use": {func(_ *tree, at string) error {
			return os.WriteFile(at, []byte(`{"annotations":{"io.kubernetes.cri.container-name":7}}`), 0o600)
		}, "not exist"},
		"a name too long": {func(_ *tree, at string) error {
			return os.WriteFile(at, []byte(specOf(`"nerdctl/name":"`+strings.Repeat("x", maxName+1)+`"`)), 0o600)
		}, "not exist"},
	} {
		t.Run(what, func(t *testing.T) {
			r := newTree(t)
			at := filepath.Join(r.root, name)
			if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.make(r, at); err != nil {
				t.Fatal(err)
			}
			if got, err := r.Names(id, ""); got != (Names{}) || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v, want an error with %q", got, err, c.want)
			}
			r.write("var/lib/docker/containers/"+id+"/config.v2.json", `{"Name":"/db"}`)
			if got, err := r.Names(id, ""); got.Container != "db" || err != nil {
				t.Errorf("in the next place: %+v, %v", got, err)
			}
		})
	}
}

func TestStateFileOfAnotherUser(t *testing.T) {
	r := newTree(t)
	r.write("var/lib/docker/containers/"+id+"/config.v2.json", `{"Name":"/db"}`)
	r.owner++
	if got, err := r.Names(id, ""); got != (Names{}) || err == nil || !strings.Contains(err.Error(), "not a state file") {
		t.Errorf("%+v, %v", got, err)
	}
}

// An environment as large as Kubernetes allows is skipped, and nothing is kept of it.
func TestLargeEnvironmentIsSkipped(t *testing.T) {
	r := newTree(t)
	env := strings.Repeat(`"SECRET=`+strings.Repeat("s", 1000)+`",`, 1500) + `"LAST="`
	r.write("run/containerd/io.containerd.runtime.v2.task/k8s.io/"+id+"/config.json",
		strings.Replace(specOf(kubernetesSpec), `"PASSWORD=secret"`, env, 1))
	if got, err := r.Names(id, uid); got != (Names{"shop", "checkout-xhnvf", "server"}) || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzState(f *testing.F) {
	for _, seed := range []string{specOf(kubernetesSpec), specOf(criOSpec), `{"Name":"/db"}`, `[{"id":"` + id + `","names":["db"]}]`, `{"Name":[["x"]]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		for name, read := range map[string]func() (Names, error){
			"specification": func() (Names, error) { return readSpec(strings.NewReader(string(file)), id) },
			"Docker":        func() (Names, error) { return readDocker(strings.NewReader(string(file)), id) },
			"storage":       func() (Names, error) { return readStorage(strings.NewReader(string(file)), id) },
		} {
			n, err := read()
			if err != nil && n != (Names{}) && name != "Docker" {
				t.Errorf("%s: %+v with %v", name, n, err)
			}
			if (n.Namespace == "") != (n.Pod == "") || len(n.Namespace) > maxName || len(n.Pod) > maxName || len(n.Container) > maxName {
				t.Errorf("%s: %+v", name, n)
			}
		}
	})
}
