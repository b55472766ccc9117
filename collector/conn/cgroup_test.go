// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"strings"
	"testing"
)

func TestParseCgroup(t *testing.T) {
	const (
		id  = "4f5e2b0c9a7d13864f5e2b0c9a7d13864f5e2b0c9a7d13864f5e2b0c9a7d1386"
		in  = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
		uid = "6b1f3a52-7c8d-4e9f-a0b1-c2d3e4f56789"
	)
	under := strings.ReplaceAll(uid, "-", "_")
	for path, want := range map[string]Cgroup{
		"/": {},
		"/system.slice/postgresql@15-main.service":                                         {Unit: "postgresql@15-main.service"},
		"/user.slice/user-1000.slice/session-3.scope":                                      {Unit: "session-3.scope"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-foot@1.service":       {Unit: "app-foot@1.service"},
		"/user.slice/user-1000.slice":                                                      {},
		"/docker/" + id:                                                                    {ContainerID: id},
		"/system.slice/docker-" + id + ".scope":                                            {ContainerID: id},
		"/system.slice/docker-" + id + ".scope/system.slice/nginx.service":                 {ContainerID: id, Unit: "nginx.service"},
		"/docker/" + id + "/docker/" + in:                                                  {ContainerID: in},
		"/default/" + id:                                                                   {ContainerID: id},
		"/system.slice/nerdctl-" + id + ".scope":                                           {ContainerID: id},
		"/machine.slice/libpod-" + id + ".scope/container":                                 {ContainerID: id},
		"/machine.slice/libpod-conmon-" + id + ".scope":                                    {Unit: "libpod-conmon-" + id + ".scope"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope": {ContainerID: id, Unit: "user@1000.service"},
		"/kubepods/burstable/pod" + uid + "/" + id:                                         {PodUID: uid, ContainerID: id},
		"/kubepods/pod" + uid + "/" + id:                                                   {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope":                  {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-" + id + ".scope":                          {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope":                                                               {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "") + ".slice/crio-" + id + ".scope": {PodUID: strings.ReplaceAll(uid, "-", ""), ContainerID: id},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/cri-containerd-" + id + ".scope":                       {PodUID: uid, ContainerID: id},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id:                             {PodUID: uid, ContainerID: id},
		"/system.slice/containerd.service/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id:                                     {PodUID: uid, ContainerID: id, Unit: "containerd.service"},
		"/system.slice/not-" + id + ".service": {Unit: "not-" + id + ".service"},
		"/docker/" + id[:12]:                   {},
	} {
		want.Path = path
		if got := ParseCgroup(path); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", path, got, want)
		}
	}
}
