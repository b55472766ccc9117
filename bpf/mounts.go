// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"bufio"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
)

// Mount is a filesystem that is mounted in this process's mount namespace.
type Mount struct {
	Root  string // the part of the filesystem that is mounted, such as / or net:[4026531840]
	Point string // where it is mounted; another mount on top may hide it
}

// Mounts returns the mounts of a filesystem type, named as the kernel does. The paths
// are hostile input: fusermount lets users mount where they choose.
func Mounts(fstype string) ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f, fstype)
}

// maxMountLine is the length in bytes of the longest line of mountinfo that is read. The
// longest path that can be opened is four times PATH_MAX, if the kernel escapes each of
// its bytes; there are longer paths.
const maxMountLine = 64 << 10

// parseMounts reads mountinfo (Documentation/filesystems/proc.rst, 3.5):
//
//	ID PARENT DEVICE ROOT POINT OPTIONS [FIELD…] - TYPE SOURCE OPTIONS
//
// It skips lines that have another form or are too long.
func parseMounts(r io.Reader, fstype string) ([]Mount, error) {
	var found []Mount
	lines := bufio.NewReaderSize(r, maxMountLine)
	for {
		line, err := lines.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = lines.ReadSlice('\n')
		}
		if !long {
			if mount, of := parseMount(strings.TrimSuffix(string(line), "\n")); of == fstype {
				found = append(found, mount)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, err
		}
	}
}

// parseMount returns the mount that a line describes, and the type of its filesystem; ""
// if the line has another form.
func parseMount(line string) (mount Mount, fstype string) {
	fields := strings.Split(line, " ")
	if len(fields) < 8 {
		return mount, ""
	}
	// A dash ends the optional fields; the mount point or an option may be a dash, too.
	end := slices.Index(fields[6:len(fields)-1], "-")
	if end < 0 {
		return mount, ""
	}
	return Mount{Root: unescapeMount.Replace(fields[3]), Point: unescapeMount.Replace(fields[4])}, fields[6+end+1]
}

// unescapeMount undoes how the kernel escapes white space and backslashes in mountinfo
// (fs/proc_namespace.c mangle).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
