// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/halfopen/halfopen/bpf"
)

const (
	// otherMemory is the memory in bytes that a control group needs for the agent besides
	// its Go heap and the maps of its programs: resident pages of the binary, page tables,
	// threads, sockets.
	otherMemory = 14 << 20
	// leastHeap is the least limit in bytes for the memory of Go. With less, Go would do
	// little but collect garbage.
	leastHeap = 24 << 20
)

// limitMemory makes Go keep to the memory that the control groups of this process leave it,
// beside the maps of the kernel programs, which the kernel charges to the same groups. It
// returns the limits in bytes of the groups and of Go: none is math.MaxInt64. If the user
// has set GOMEMLIMIT, that is the limit of Go.
func limitMemory(maps int64) (group, heap int64) {
	group = groupLimit()
	if os.Getenv("GOMEMLIMIT") == "" && group < math.MaxInt64 {
		debug.SetMemoryLimit(max(group-maps-otherMemory, leastHeap))
	}
	return group, debug.SetMemoryLimit(-1)
}

// heapGrowth is by how many percent the heap may grow over what was in use after the last
// garbage collection. The agent makes little garbage but for large answers, and a node has
// less memory to spare than the few milliseconds that Go's default of 100 would save.
const heapGrowth = 40

// trimMemory gives back the memory that loading the programs took, and keeps the heap small
// from now on, unless GOGC is set.
func trimMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
	debug.FreeOSMemory()
}

// logMemory logs the limits that limitMemory has found and set.
func logMemory(logger *slog.Logger, maps, group, heap int64) {
	mebibytes := func(n int64) string {
		if n == math.MaxInt64 {
			return "none"
		}
		return fmt.Sprintf("%d MiB", n>>20)
	}
	logger.Info("Memory limits", "control_group", mebibytes(group), "go", mebibytes(heap), "kernel_maps", mebibytes(maps))
	if least := maps + otherMemory + leastHeap; group < least {
		logger.Warn("The memory limit of the control group is too small: the kernel may end the agent", "least", mebibytes(least))
	}
}

// groupLimit returns the least memory limit in bytes of the control groups that this process
// is in, math.MaxInt64 if there is none.
func groupLimit() int64 {
	self, err := procfs.Self()
	if err != nil {
		return math.MaxInt64
	}
	groups, err := self.Cgroups()
	if err != nil {
		return math.MaxInt64 // a kernel without control groups
	}
	return groupLimitOf(groups, bpf.Mounts)
}

// groupLimitOf returns the least limit of these groups, and of all groups that they are in,
// as far as the mounts show them.
func groupLimitOf(groups []procfs.Cgroup, mounts func(fstype string) ([]bpf.Mount, error)) int64 {
	least := int64(math.MaxInt64)
	for _, g := range groups {
		fstype, files := "cgroup2", []string{"memory.max", "memory.high"}
		if g.HierarchyID != 0 {
			fstype, files = "cgroup", []string{"memory.limit_in_bytes"}
			if !slices.Contains(g.Controllers, "memory") {
				continue
			}
		}
		mounted, err := mounts(fstype)
		if err != nil {
			continue
		}
		for _, m := range mounted {
			path, err := filepath.Rel(m.Root, g.Path)
			if err != nil || strings.HasPrefix(path, "..") || strings.HasPrefix(g.Path, "/../") {
				continue // the mount does not show this group
			}
			for ; ; path = filepath.Dir(path) {
				for _, file := range files {
					least = min(least, readLimit(filepath.Join(m.Point, path, file)))
				}
				if path == "." {
					break
				}
			}
		}
	}
	return least
}

// readLimit returns the limit in a file of a control group, math.MaxInt64 if it has none.
// The limit of cgroup v1 is about math.MaxInt64 if there is none.
func readLimit(name string) int64 {
	text, err := os.ReadFile(name)
	if err != nil {
		return math.MaxInt64 // the root has no limit, nor has a group without the controller
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n > 1<<62 { // max
		return math.MaxInt64
	}
	return n
}
