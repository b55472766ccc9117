// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountsOfAType(t *testing.T) {
	const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/root rw
25 22 0:4 net:[4026532281] /run/netns/blue rw shared:4 master:1 - nsfs nsfs rw
26 22 0:4 net:[4026532282] /run/netns/a\040b\134c rw - nsfs nsfs rw
27 22 0:5 / /home/u/\040-\040nsfs rw - fuse.nsfs nsfs rw
not of a kernel
28 22 0:4 mnt:[4026532283] /run/mnt rw - nsfs nsfs rw`
	got, err := parseMounts(strings.NewReader(mountinfo), "nsfs")
	want := []Mount{
		{"net:[4026532281]", "/run/netns/blue"}, {"net:[4026532282]", `/run/netns/a b\c`}, {"mnt:[4026532283]", "/run/mnt"},
	}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, expected %+v", got[i], want[i])
		}
	}
}

// A user can make a mount by fusermount, and move its directory to a path that is longer
// than any that can be opened. That must not hide a namespace.
func TestNamespacesBesideAVeryLongPath(t *testing.T) {
	const env = "HALFOPEN_TEST_MOUNTS"
	needRoot(t)
	dir := os.Getenv(env)
	if dir == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), env+"="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	mounted := filepath.Join(dir, "moved", "mounted")
	if err := os.MkdirAll(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", mounted, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for range 70 { // mountinfo has four characters for a blank
		if err := os.Mkdir(strings.Repeat(" ", 250), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chdir(strings.Repeat(" ", 250)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Dir(mounted), "moved"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "namespace")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", file, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if info, err := os.ReadFile("/proc/self/mountinfo"); err != nil || len(info) < maxMountLine {
		t.Fatalf("%d bytes of mounts, %v", len(info), err)
	}
	var own unix.Stat_t
	if err := unix.Stat(file, &own); err != nil {
		t.Fatal(err)
	}
	found, err := mountedNamespaces()
	if err != nil || found[own.Ino] != file {
		t.Errorf("found %v, %v; expected %s for %d", found, err, file, own.Ino)
	}
}

// mangle escapes a path as the kernel does in mountinfo.
var mangle = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// Other mounts do not hide a mount, or change its name.
func FuzzMounts(f *testing.F) {
	f.Add("/run/netns/blue", "26 22 0:4 / / rw - ext4 /dev/root rw")
	f.Add("/run/a b\\040\n\tc - nsfs x", "1 2 3 4 5 6 - nsfs x\n - - - \n\n")
	f.Add("-", "")
	f.Add("/", strings.Repeat("x", maxMountLine+1))
	f.Fuzz(func(t *testing.T, point, noise string) {
		if strings.Contains(noise, "nsfs") || len(point) > 4096 {
			noise, point = "", point[:min(len(point), 4096)]
		}
		line := "\n30 22 0:4 net:[4026532281] " + mangle.Replace(point) + " rw shared:1 - nsfs nsfs rw\n"
		got, err := parseMounts(strings.NewReader(noise+line+noise), "nsfs")
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0] != (Mount{"net:[4026532281]", point}) {
			t.Fatalf("%q is found as %+v", point, got)
		}
	})
}
