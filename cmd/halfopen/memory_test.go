// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/procfs"

	"github.com/halfopen/halfopen/bpf"
)

func TestMemoryLimitIsTheLeastOnTheWayToTheRoot(t *testing.T) {
	const none = math.MaxInt64
	v2 := func(path string) procfs.Cgroup { return procfs.Cgroup{Path: path} }
	v1 := func(path string, controllers ...string) procfs.Cgroup {
		return procfs.Cgroup{HierarchyID: 4, Controllers: controllers, Path: path}
	}
	for _, tc := range []struct {
		name   string
		groups []procfs.Cgroup
		root   string            // what part of the hierarchy is mounted
		files  map[string]string // below the mount
		want   int64
	}{
		{"no files", []procfs.Cgroup{v2("/a/b")}, "/", nil, none},
		{"its own", []procfs.Cgroup{v2("/a/b")}, "/", map[string]string{"a/b/memory.max": "67108864\n", "a/b/memory.high": "max\n"}, 64 << 20},
		{"high is lower", []procfs.Cgroup{v2("/a/b")}, "/", map[string]string{"a/b/memory.max": "67108864\n", "a/b/memory.high": "50331648\n"}, 48 << 20},
		{"of the group around it", []procfs.Cgroup{v2("/a/b")}, "/", map[string]string{"a/b/memory.max": "67108864\n", "a/memory.max": "1048576\n"}, 1 << 20},
		{"of another group", []procfs.Cgroup{v2("/a/b")}, "/", map[string]string{"a/c/memory.max": "1\n", "b/memory.max": "1\n", "a/b/c/memory.max": "1\n"}, none},
		{"a namespace of control groups", []procfs.Cgroup{v2("/")}, "/", map[string]string{"memory.max": "67108864\n"}, 64 << 20},
		{"only its own is mounted", []procfs.Cgroup{v2("/docker/x/y")}, "/docker/x", map[string]string{"memory.max": "67108864\n", "y/memory.high": "1048576\n"}, 1 << 20},
		{"another is mounted", []procfs.Cgroup{v2("/docker/x")}, "/docker/y", map[string]string{"memory.max": "67108864\n"}, none},
		{"outside of its namespace", []procfs.Cgroup{v2("/../x")}, "/", map[string]string{"memory.max": "67108864\n"}, none},
		{"no number", []procfs.Cgroup{v2("/")}, "/", map[string]string{"memory.max": "\n"}, none},
		{
			"version 1", []procfs.Cgroup{v1("/x/y", "cpu"), v1("/a/b", "hugetlb", "memory"), v2("/")}, "/",
			map[string]string{"a/b/memory.limit_in_bytes": "9223372036854771712\n", "a/memory.limit_in_bytes": "67108864\n", "x/memory.limit_in_bytes": "1\n", "a/memory.max": "1"}, 64 << 20,
		},
		{"version 1 without a limit", []procfs.Cgroup{v1("/a", "memory")}, "/", map[string]string{"a/memory.limit_in_bytes": "9223372036854771712\n"}, none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			point := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(point, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			mounts := func(string) ([]bpf.Mount, error) { return []bpf.Mount{{Root: tc.root, Point: point}}, nil }
			if got := groupLimitOf(tc.groups, mounts); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
	broken := func(string) ([]bpf.Mount, error) { return nil, errors.New("no") }
	if got := groupLimitOf([]procfs.Cgroup{v2("/")}, broken); got != none {
		t.Errorf("%d without mounts", got)
	}
}
