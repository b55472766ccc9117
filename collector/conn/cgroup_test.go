// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"strings"
	"testing"
)

func TestOwnerOfAGroup(t *testing.T) {
	const uid = "6f1c4a5e-0000-4000-8000-1234567890ab"
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		g    Cgroup
		kind OwnerKind
		name string
	}{
		{Cgroup{}, NoOwner, ""},
		{Cgroup{Unit: "x.service"}, OwnerUnit, "x.service"},
		{Cgroup{Unit: "docker.service", ContainerID: id}, OwnerContainer, "0123456789ab"},
		{Cgroup{ContainerID: id, Container: "shop_db_1"}, OwnerContainer, "shop_db_1"},
		{Cgroup{ContainerID: id, PodUID: uid, Container: "server"}, OwnerPod, uid},
		{Cgroup{ContainerID: id, PodUID: uid, Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"}, OwnerPod, "shop/checkout-xhnvf"},
		{Cgroup{ContainerID: id, Namespace: "shop", Pod: "checkout-xhnvf"}, OwnerPod, "shop/checkout-xhnvf"},
	} {
		if kind, name := c.g.Owner(); kind != c.kind || name != c.name {
			t.Errorf("%+v is of %s %q, want %s %q", c.g, kind, name, c.kind, c.name)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	const (
		id  = "4f5e2b0c9a7d13864f5e2b0c9a7d13864f5e2b0c9a7d13864f5e2b0c9a7d1386"
		in  = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
		uid = "6b1f3a52-7c8d-4e9f-a0b1-c2d3e4f56789"
	)
	under := strings.ReplaceAll(uid, "-", "_")
	const user = "/user.slice/user-1000.slice/user@1000.service"
	bare := strings.ReplaceAll(uid, "-", "")
	pod := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice"
	for path, want := range map[string]Cgroup{
		"": {}, "/": {}, "/init.scope": {Unit: "init.scope"},

		// systemd
		"/system.slice/postgresql@15-main.service":                               {Unit: "postgresql@15-main.service"},
		"/system.slice/system-getty.slice/getty@tty1.service":                    {Unit: "getty@tty1.service"},
		"/system.slice/a:b.service":                                              {Unit: "a:b.service"},
		"/system.slice/not-" + id + ".service":                                   {Unit: "not-" + id + ".service"},
		"/user.slice/user-1000.slice/session-3.scope":                            {Unit: "session-3.scope"},
		"/user.slice/user-1000.slice":                                            {},
		"/machine.slice/machine-vm.scope/libvirt/emulator":                       {Unit: "machine-vm.scope"},
		"/machine.slice/systemd-nspawn@c.service/payload/system.slice/x.service": {Unit: "systemd-nspawn@c.service"},
		user:                                          {Unit: "user@1000.service"},
		user + "/init.scope":                          {Unit: "user@1000.service/init.scope"},
		user + "/app.slice/app-foot@1.service":        {Unit: "user@1000.service/app-foot@1.service"},
		user + "/app.slice/a.service/b.scope":         {Unit: "user@1000.service/a.service"},
		user + "/app.slice/":                          {Unit: "user@1000.service"},
		"/user@1000.service/user@0.service/x.service": {Unit: "user@1000.service/user@0.service"},

		// Docker: both drivers, its own cgroup parent, in Docker, kind, systemd inside
		"/docker/" + id:                                                    {ContainerID: id},
		"/system.slice/docker-" + id + ".scope":                            {ContainerID: id},
		"/system.slice/docker-" + id + ".scope/init":                       {ContainerID: id},
		"/batch/jobs/" + id:                                                {ContainerID: id},
		"/actions_job/" + id:                                               {ContainerID: id},
		"/ecs/0a1b2c3d4e5f60718293a4b5c6d7e8f9/" + id:                      {ContainerID: id},
		"/docker/" + id + "/docker/" + in:                                  {ContainerID: id},
		"/system.slice/docker-" + id + ".scope/system.slice/nginx.service": {ContainerID: id},
		"/docker/" + id + "/system.slice/nginx.service":                    {ContainerID: id},
		"/docker/" + id + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/cri-containerd-" + in + ".scope": {ContainerID: id},
		"/docker/" + id + "/kubelet/kubepods/besteffort/pod" + uid + "/" + in:                                                             {ContainerID: id},
		"/docker/" + id[:12]:                         {},
		"/system.slice/docker.service":               {Unit: "docker.service"},
		"/system.slice/docker.service/docker/" + id:  {ContainerID: id, Unit: "docker.service"},
		user + "/user.slice/docker-" + id + ".scope": {Unit: "user@1000.service/docker-" + id + ".scope"},

		// containerd, nerdctl, Podman, LXC
		"/default/" + id:                                   {ContainerID: id},
		"/k8s.io/" + id:                                    {ContainerID: id},
		"/system.slice/nerdctl-" + id + ".scope":           {ContainerID: id},
		"/machine.slice/libpod-" + id + ".scope/container": {ContainerID: id},
		"/libpod_parent/libpod-" + id:                      {ContainerID: id},
		"/machine.slice/libpod-conmon-" + id + ".scope":    {Unit: "libpod-conmon-" + id + ".scope"},
		"/machine.slice/machine-libpod_pod_" + in + ".slice/libpod-" + id + ".scope": {ContainerID: id},
		"/system.slice/web.service/libpod-payload-" + id:                             {Unit: "web.service"},
		user + "/user.slice/libpod-" + id + ".scope/container":                       {Unit: "user@1000.service/libpod-" + id + ".scope"},
		"/lxc/101/ns/system.slice/nginx.service":                                     {},
		"/lxc.payload.web/system.slice/nginx.service":                                {},
		"/lxc.payload.web/kubepods/pod" + uid + "/" + id:                             {},

		// Kubernetes: containerd and CRI-O, both drivers, quality of service, static pods
		"/kubepods/burstable/pod" + uid + "/" + id:                          {PodUID: uid, ContainerID: id},
		"/kubepods/pod" + uid + "/" + id:                                    {PodUID: uid, ContainerID: id},
		"/kubepods/besteffort/pod" + uid + "/crio-" + id:                    {PodUID: uid, ContainerID: id},
		"/kubepods/burstable/pod" + uid:                                     {PodUID: uid},
		"/kubepods/burstable/pod" + bare + "/" + id:                         {PodUID: bare, ContainerID: id},
		"/kubepods/pod" + uid + "/kata_overhead":                            {PodUID: uid},
		pod + "/cri-containerd-" + id + ".scope":                            {PodUID: uid, ContainerID: id},
		pod + "/cri-containerd-" + id + ".scope/system.slice/nginx.service": {PodUID: uid, ContainerID: id},
		pod + "/cri-containerd-" + id + ".scope/docker/" + in:               {PodUID: uid, ContainerID: id},
		pod + "/docker-" + id + ".scope":                                    {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-" + id + ".scope/container": {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope":                                                {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-pod" + under + ".slice/crio-conmon-" + id + ".scope":                                         {PodUID: uid},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + bare + ".slice/crio-" + id + ".scope":              {PodUID: bare, ContainerID: id},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/cri-containerd-" + id + ".scope":        {PodUID: uid, ContainerID: id},
		pod + ":cri-containerd:" + id: {PodUID: uid, ContainerID: id},
		"/system.slice/containerd.service/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id: {PodUID: uid, ContainerID: id, Unit: "containerd.service"},
		"/system.slice/k3s.service/kubepods/burstable/pod" + uid + "/" + id:                               {PodUID: uid, ContainerID: id, Unit: "k3s.service"},

		// what a user makes up
		user + pod + "/cri-containerd-" + id + ".scope":                   {Unit: "user@1000.service/cri-containerd-" + id + ".scope"},
		user + "/kubepods/pod" + uid + "/" + id:                           {Unit: "user@1000.service"},
		user + "/containerd.service/docker/" + id:                         {Unit: "user@1000.service/containerd.service"},
		user + "/app.slice/system.slice/postgresql.service":               {Unit: "user@1000.service/postgresql.service"},
		"/system.slice/delegated.service/system.slice/postgresql.service": {Unit: "delegated.service"},
		"/system.slice/delegated.service/kubepods/pod" + uid + "/" + id:   {Unit: "delegated.service"},
		"/docker/postgresql.service":                                      {},
		"/system.slice/docker.service/docker/postgresql.service":          {Unit: "docker.service"},
	} {
		want.Path = path
		if got := ParseCgroup(path); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", path, got, want)
		}
	}
}
