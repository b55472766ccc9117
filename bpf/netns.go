// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsPaths finds the network namespaces that a process is in or that are
// bind-mounted somewhere (ip netns, container runtimes), each once: inode
// number to a path that can be opened. Processes come and go while it looks;
// what has gone is left out.
func netnsPaths() (map[uint64]string, error) {
	found := make(map[uint64]string)
	add := func(path string) {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			if _, ok := found[st.Ino]; !ok {
				found[st.Ino] = path
			}
		}
	}
	add("/proc/self/ns/net")
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, err := strconv.Atoi(name); err == nil {
			add(filepath.Join("/proc", name, "ns/net"))
		}
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		// proc_pid_mountinfo(5): … (4) root (5) mount point … - (1) type
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			add(unescapeMount.Replace(fields[4]))
		}
	}
	return found, lines.Err()
}

// unescapeMount undoes how the kernel writes white space in mount points
// (fs/proc_namespace.c mangle).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
