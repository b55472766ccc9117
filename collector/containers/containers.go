// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Names are the names of a container. Each can be any text, and "" if it is not known.
type Names struct {
	Namespace, Pod string // of Kubernetes; both or none
	Container      string // "" also for the container that holds a pod's namespaces
}

var (
	containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// podUID matches the UID of a pod, or the hash that a static pod has in its place.
	podUID = regexp.MustCompile(`^(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32})$`)
)

const (
	// maxFile is the size of the largest state file that is read, in bytes. One has some
	// tens of thousands, and Kubernetes allows no pod to have more than 1.5 million.
	maxFile = 4 << 20
	// maxNamespaces is the most namespaces of one containerd that are searched. Kubernetes,
	// Docker and nerdctl have one each.
	maxNamespaces = 16
	// maxPods is the most directories of /var/log/pods that are read. A node has some
	// hundreds of pods.
	maxPods = 8192
)

// place is where a runtime keeps its state files.
type place struct {
	directory string // from the root directory
	// file returns the path of the file of a container below the directory.
	file func(id string) string
	// namespaces is set if the directory has one directory for each namespace of
	// containerd, and these have the files.
	namespaces bool
	read       func(file io.Reader, id string) (Names, error)
}

// places are searched in this order.
var places = []place{
	containerd("run/containerd"),
	containerd("run/k3s/containerd"), // and RKE2
	containerd("run/k0s/containerd"),
	containerd("var/snap/microk8s/common/run/containerd"),
	{"run/containers/storage/overlay-containers", inside("userdata/config.json"), false, readSpec}, // CRI-O
	{"var/lib/docker/containers", inside("config.v2.json"), false, readDocker},
	{"var/snap/docker/common/var-lib-docker/containers", inside("config.v2.json"), false, readDocker},
	{"var/lib/containers/storage/overlay-containers", list("containers.json"), false, readStorage}, // Podman
	{"var/lib/containers/storage/overlay-containers", list("volatile-containers.json"), false, readStorage},
}

// podLogs is where kubelet makes a directory NAMESPACE_POD_UID for the logs of each pod.
const podLogs = "var/log/pods"

func containerd(state string) place {
	return place{state + "/io.containerd.runtime.v2.task", inside("config.json"), true, readSpec}
}

// inside returns a place.file for a file in a directory that each container has.
func inside(name string) func(string) string {
	return func(id string) string { return id + "/" + name }
}

// list returns a place.file for a file that has all containers.
func list(name string) func(string) string { return func(string) string { return name } }

// Reader reads state files. It is safe for concurrent use.
type Reader struct {
	roots []string // root directories to search
	owner uint32   // the user that state files must belong to
}

// initProcess is the first process of our pid namespace. For an agent in a container that
// shares the pid namespace of its host, it is the host's: such an agent needs no mounts.
const initProcess = "/proc/1"

// NewReader returns a reader of the state files that this process sees, and of those that
// the first process sees, if that has another mount namespace and this process may enter
// its root directory (CAP_SYS_PTRACE).
func NewReader() *Reader { return newReader(initProcess) }

func newReader(initProcess string) *Reader {
	r := &Reader{roots: []string{"/"}}
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return r
	}
	if first, err := os.Stat(initProcess + "/ns/mnt"); err == nil && !os.SameFile(own, first) {
		r.roots = append(r.roots, initProcess+"/root")
	}
	return r
}

// Names returns the names of a container with that id and in the pod with that UID. One of
// them can be "". The error is [os.ErrNotExist] if no state file has the names.
func (r *Reader) Names(id, pod string) (Names, error) {
	if id != "" && !containerID.MatchString(id) || pod != "" && !podUID.MatchString(pod) {
		return Names{}, fmt.Errorf("the id of a container or pod has another form: %w", unix.EINVAL)
	}
	var n Names
	var errs []error
	for _, root := range r.roots {
		if id != "" && n == (Names{}) {
			for i := range places {
				found, err := r.search(root, &places[i], id)
				if err == nil && found != (Names{}) {
					n = found
					break
				}
				errs = appendUnlessMissing(errs, err)
			}
		}
		if pod != "" && n.Pod == "" {
			var err error
			n.Namespace, n.Pod, err = podOfLogs(root, pod)
			errs = appendUnlessMissing(errs, err)
		}
		if n.Pod != "" || pod == "" && n != (Names{}) {
			return n, nil
		}
	}
	if n != (Names{}) {
		return n, nil
	}
	return n, errors.Join(append(errs, os.ErrNotExist)...)
}

// appendUnlessMissing appends an error, unless it is nil or says that there is no such file.
func appendUnlessMissing(errs []error, err error) []error {
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return errs
	}
	return append(errs, err)
}

// search searches one place for a container.
func (r *Reader) search(root string, p *place, id string) (Names, error) {
	directory, err := os.OpenRoot(filepath.Join(root, p.directory))
	if err != nil {
		return Names{}, err
	}
	defer directory.Close()
	namespaces := []string{"."}
	if p.namespaces {
		if namespaces, err = entries(directory, maxNamespaces); err != nil {
			return Names{}, err
		}
	}
	var errs []error
	for _, namespace := range namespaces {
		n, err := r.read(directory, path.Join(namespace, p.file(id)), p.read, id)
		if err == nil && n != (Names{}) {
			return n, nil
		}
		errs = appendUnlessMissing(errs, err)
	}
	return Names{}, errors.Join(errs...)
}

// read reads the names from one file below the directory. It refuses what is not a regular
// file of the right owner and size, such as a symbolic link or a FIFO.
func (r *Reader) read(directory *os.Root, name string, read func(io.Reader, string) (Names, error), id string) (Names, error) {
	info, err := directory.Lstat(name)
	if err != nil {
		return Names{}, err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !info.Mode().IsRegular() || owner != r.owner || info.Size() > maxFile {
		return Names{}, fmt.Errorf("%s in %s is not a state file: %s of user %d, %d bytes", name, directory.Name(), info.Mode(), owner, info.Size())
	}
	f, err := directory.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return Names{}, err
	}
	defer f.Close()
	if opened, err := f.Stat(); err != nil || !os.SameFile(info, opened) {
		return Names{}, errors.Join(err, fmt.Errorf("%s in %s is replaced: %w", name, directory.Name(), unix.EAGAIN))
	}
	n, err := read(io.LimitReader(f, maxFile), id)
	if err != nil {
		return Names{}, fmt.Errorf("read %s in %s: %w", name, directory.Name(), err)
	}
	return n, nil
}

// podOfLogs returns the namespace and the name of the pod with that UID, from the name of
// its directory of logs.
func podOfLogs(root, uid string) (namespace, pod string, err error) {
	directory, err := os.OpenRoot(filepath.Join(root, podLogs))
	if err != nil {
		return "", "", err
	}
	defer directory.Close()
	all, err := entries(directory, maxPods)
	for _, name := range all {
		if parts := strings.Split(name, "_"); len(parts) == 3 && parts[2] == uid {
			return parts[0], parts[1], nil
		}
	}
	return "", "", err
}

// entries returns the names in a directory, at most limit.
func entries(directory *os.Root, limit int) ([]string, error) {
	f, err := directory.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if errors.Is(err, io.EOF) { // it is empty
		err = nil
	}
	return names, err
}
