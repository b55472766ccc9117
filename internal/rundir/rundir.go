// SPDX-License-Identifier: Apache-2.0

// Package rundir opens directories, such as /run/halfopen, in which no other user can have
// put anything.
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dirMode is the mode of a directory that Open makes.
const dirMode = 0o755

// Open opens a directory. If it is missing, it makes it, with that group (-1: that of this
// process), and no other. It follows no symbolic link, and passes only through directories in
// which no other user can have put the next one. Errors are one line.
func Open(path string, gid int) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, err := unix.Open("/", unix.O_PATH|flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	names := strings.Split(strings.Trim(path, "/"), "/")
	walked := ""
	for i, name := range names {
		last := i == len(names)-1
		walked += "/" + name
		mode, made := flags|unix.O_PATH, false
		if last {
			mode = flags
			err := unix.Mkdirat(at, name, dirMode)
			if made = err == nil; err != nil && !errors.Is(err, fs.ErrExist) {
				unix.Close(at)
				return nil, fmt.Errorf("make the directory %s: %w", walked, err)
			}
		}
		next, err := unix.Openat(at, name, mode, 0)
		unix.Close(at)
		if err != nil {
			return nil, directoryError(walked, err)
		}
		at = next
		if made {
			if err := unix.Fchmod(at, dirMode); err == nil && gid >= 0 {
				_ = unix.Fchown(at, -1, gid) // the group of the directory is information only
			}
		}
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			unix.Close(at)
			return nil, directoryError(walked, err)
		}
		if why := untrusted(&st, !last); why != "" {
			unix.Close(at)
			return nil, fmt.Errorf("the directory %s %s: make it root's and writable by root alone", walked, why)
		}
	}
	return os.NewFile(uintptr(at), path), nil
}

func directoryError(path string, err error) error {
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return fmt.Errorf("%s is a symbolic link, or no directory: give the path without", path)
	}
	return fmt.Errorf("open the directory %s: %w", path, err)
}

// untrusted returns why another user could have made what is in a directory, "" if no
// other user could. On the way a sticky directory is enough: no user can replace
// another's entry there, and the next directory is checked as well.
func untrusted(st *unix.Stat_t, onTheWay bool) string {
	switch {
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return fmt.Sprintf("belongs to user %d", st.Uid)
	case st.Mode&0o022 != 0 && (!onTheWay || st.Mode&unix.S_ISVTX == 0):
		return "can be written to by others"
	}
	return ""
}
