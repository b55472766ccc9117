// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"regexp"
	"strings"
)

// Cgroup is what the path of a control group tells of who runs in it.
type Cgroup struct {
	Path        string // within its hierarchy, such as /system.slice/x.service
	ContainerID string // as the container runtime prints it in full; "": no container
	PodUID      string // of Kubernetes; "": no pod
	Unit        string // of systemd: the innermost service or scope; "": none
}

var (
	// A container's own group: 64 hexadecimal digits, as Docker, containerd,
	// CRI-O and Podman make them, which systemd's cgroup driver prefixes with the
	// runtime's name and makes a scope. Not what serves a container from outside,
	// such as libpod-conmon-… and crio-conmon-….
	containerName = regexp.MustCompile(`^(?:(?:docker|cri-containerd|crio|libpod|nerdctl|containerd)-)?([0-9a-f]{64})(?:\.scope)?$`)
	// A pod's group, with the slices of systemd's driver or plain. Static pods
	// have the hash of their manifest for a UID.
	podName = regexp.MustCompile(`^(?:[a-z-]*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
)

// ParseCgroup tells what a path tells. Of nested containers it is the innermost.
func ParseCgroup(path string) Cgroup {
	g := Cgroup{Path: path}
	// containerd joins slice, runtime and container by colons where runc was not
	// told to use systemd's driver.
	for _, name := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == ':' }) {
		if m := containerName.FindStringSubmatch(name); m != nil {
			g.ContainerID = m[1]
			continue
		}
		if m := podName.FindStringSubmatch(name); m != nil {
			g.PodUID = strings.ReplaceAll(m[1], "_", "-")
			continue
		}
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			g.Unit = name
		}
	}
	return g
}

// containerDigits is how many digits of a container's id its runtime prints.
const containerDigits = 12

// Owner returns the best name of what runs in the control group: the pod's UID, else the
// first 12 digits of the container's id, else the unit; NoOwner and "" if the path has
// none of them.
func (g *Cgroup) Owner() (OwnerKind, string) {
	switch {
	case g.PodUID != "":
		return OwnerPod, g.PodUID
	case g.ContainerID != "":
		return OwnerContainer, g.ContainerID[:min(len(g.ContainerID), containerDigits)]
	case g.Unit != "":
		return OwnerUnit, g.Unit
	}
	return NoOwner, ""
}

// Detail returns how much the path says of who runs in the control group: 0 nothing, 4 a
// pod.
func (g *Cgroup) Detail() int {
	switch {
	case g.PodUID != "":
		return 4
	case g.ContainerID != "":
		return 3
	case g.Unit != "":
		return 2
	case len(g.Path) > 1:
		return 1
	}
	return 0
}
