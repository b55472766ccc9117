// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector/conn"
)

func TestOpenHierarchyOpensOnlyCgroup2(t *testing.T) {
	dir := t.TempDir()
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/sys/fs/cgroup", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, fifo, link, "/nowhere"} {
		if f, err := openHierarchy(path); err == nil {
			f.Close()
			t.Errorf("%s was opened", path)
		}
	}
	mounts, err := bpf.Mounts("cgroup2")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		f, err := openHierarchy(m.Point)
		if err != nil {
			t.Errorf("%+v: %v", m, err)
			continue
		}
		f.Close()
	}
}

func TestCgroupOfAProcessIsReadOnce(t *testing.T) {
	g := make(processCgroups)
	self := uint32(os.Getpid())
	if got, want := g.get(self), cgroupOfProcess(self); got != want {
		t.Errorf("%+v, expected %+v", got, want)
	}
	g[self] = conn.Cgroup{Path: "/read"}
	if got := g.get(self); got.Path != "/read" {
		t.Errorf("read again: %+v", got)
	}
}
