// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"regexp"
	"strings"
)

// Cgroup is a control group, and what its path says about the processes in it.
type Cgroup struct {
	Path        string // within its hierarchy, such as /system.slice/x.service
	ContainerID string // in full, 64 hexadecimal digits; "": not a container
	PodUID      string // the UID in Kubernetes; "": not a pod
	Unit        string // the innermost service or scope of systemd; "": none
}

var (
	// containerName matches the group of a container: 64 hexadecimal digits, as Docker,
	// containerd, CRI-O and Podman make them. systemd's cgroup driver puts the name of
	// the runtime before them and makes a scope. The groups of processes that serve a
	// container from outside, such as libpod-conmon-… and crio-conmon-…, do not match.
	containerName = regexp.MustCompile(`^(?:(?:docker|cri-containerd|crio|libpod|nerdctl|containerd)-)?([0-9a-f]{64})(?:\.scope)?$`)
	// podName matches the group of a pod, with or without the slices of systemd's cgroup
	// driver. A static pod has the hash of its manifest in place of a UID.
	podName = regexp.MustCompile(`^(?:[a-z-]*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
)

// ParseCgroup parses the path of a control group. If containers are nested, the
// innermost one counts.
func ParseCgroup(path string) Cgroup {
	g := Cgroup{Path: path}
	// containerd joins slice, runtime and container by colons if runc does not use
	// systemd's cgroup driver.
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

// Detail returns how much the path says: 4 for a pod, 3 for a container, 2 for a unit,
// 1 for any other group, 0 for the root group or none.
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
