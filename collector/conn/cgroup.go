// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"cmp"
	"regexp"
	"strings"
)

// Cgroup is a control group, and what its path says about the processes in it.
type Cgroup struct {
	Path        string // within its hierarchy, such as /system.slice/x.service
	ContainerID string // in full, 64 hexadecimal digits; "": not a container
	PodUID      string // the UID in Kubernetes; "": not a pod
	// Unit is the service or scope of systemd that the processes are in; "": none. A unit
	// of a user's own manager is marked by the manager's unit before it, as in
	// user@1000.service/app.service: that user chose its name.
	Unit string
	// Namespace and Pod are the names of the pod in Kubernetes, and Container is that of the
	// container. The path does not have them, but the container's runtime. Each can be any
	// text; "": not known, or there is none.
	Namespace, Pod, Container string
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
	// joinedName matches slice, runtime and container, which containerd joins by colons if
	// runc does not use systemd's cgroup driver.
	joinedName = regexp.MustCompile(`^([^:]+):[a-z-]+:([0-9a-f]{64})$`)
	// userManager matches the unit of a user's own systemd.
	userManager = regexp.MustCompile(`^user@[^/]+\.service$`)
	// runtimeUnit matches the units of container runtimes, which may have their
	// containers in their own group.
	runtimeUnit = regexp.MustCompile(`^(?:containerd|docker|crio|podman|kubelet|k3s(?:-agent)?|rke2-(?:server|agent)|k0s(?:controller|worker)|snap\.docker\.dockerd|snap\.microk8s\.daemon-(?:containerd|kubelite))\.service$`)
	// lxcName matches the group of the containers of LXC, or of one. Their names are no
	// ids, and their own systemd makes the groups below.
	lxcName = regexp.MustCompile(`^lxc(?:\.payload.*)?$`)
)

// ParseCgroup parses the path of a control group. The outermost pod, container or unit
// counts, with the container that is next below a pod: who runs in one may be able to make
// groups below it and name them at will, as users can below their own systemd, root can in
// a container with a cgroup namespace, and users of a service can with Delegate=. Groups
// above it are root's.
func ParseCgroup(path string) Cgroup {
	g := Cgroup{Path: path}
	inSlices := true // systemd makes its units in slices, or in the root group
	for name := range strings.SplitSeq(path, "/") {
		container := containerName.FindStringSubmatch(name)
		if m := joinedName.FindStringSubmatch(name); m != nil {
			name, container = m[1], m[1:]
		}
		if m := podName.FindStringSubmatch(name); m != nil && g.PodUID == "" {
			g.PodUID = strings.ReplaceAll(m[1], "_", "-")
		}
		switch {
		case container != nil:
			g.ContainerID = container[1]
			return g
		case g.PodUID != "": // its container comes next
		case lxcName.MatchString(name):
			return g
		case inSlices && isUnit(name):
			g.Unit = name
			if userManager.MatchString(name) {
				g.Unit = managedUnit(path, name)
			}
			if !runtimeUnit.MatchString(name) {
				return g
			}
		}
		inSlices = inSlices && (name == "" || strings.HasSuffix(name, ".slice"))
	}
	return g
}

// isUnit reports whether a group has the name of a service or a scope.
func isUnit(name string) bool {
	return strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope")
}

// managedUnit returns the outermost unit below that of a user's manager, with the manager
// before it, or the manager alone.
func managedUnit(path, manager string) string {
	_, below, _ := strings.Cut(path, "/"+manager+"/")
	for name := range strings.SplitSeq(below, "/") {
		if isUnit(name) {
			return manager + "/" + name
		}
	}
	return manager
}

// containerDigits is how many digits of a container's id its runtime prints.
const containerDigits = 12

// PodName returns the pod as NAMESPACE/NAME; "" if its names are not known.
func (g *Cgroup) PodName() string {
	if g.Pod == "" {
		return ""
	}
	return g.Namespace + "/" + g.Pod
}

// ContainerName returns the name of the container, else the first 12 digits of its id, else "".
func (g *Cgroup) ContainerName() string {
	return cmp.Or(g.Container, g.ContainerID[:min(len(g.ContainerID), containerDigits)])
}

// Owner returns the best name of what runs in the control group: the pod, as PodName
// returns it or else by its UID; else the container, as ContainerName returns it; else the
// unit; NoOwner and "" if there is none of them.
func (g *Cgroup) Owner() (OwnerKind, string) {
	switch {
	case g.PodUID != "" || g.Pod != "":
		return OwnerPod, cmp.Or(g.PodName(), g.PodUID)
	case g.ContainerID != "":
		return OwnerContainer, g.ContainerName()
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
