// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/rundir"
)

// JournalDir is where journals are. It is a file system in memory: sockets do not outlive the
// machine either.
const JournalDir = "/run/halfopen/probe"

// entry is the content of a journal: whose settings are being changed, and what they were. The
// cookie identifies the socket, since the kernel gives none twice between two boots. What the
// settings are changed to follows from what they were ([Settings.ours]).
type entry struct {
	Boot string `json:"boot"` // the kernel's random id of this boot
	Target
	Prober int      `json:"prober"` // the process that changes them
	Were   Settings `json:"were"`
}

// journals are the files of a directory, one for each connection whose settings are being changed.
// A process that changes settings holds the lock of the file; a file without a lock was left by
// a process that has been killed.
type journals struct {
	dir  *os.File
	boot string
}

// openJournals opens the directory of journals. If it is missing, it makes it.
func openJournals(path string) (*journals, error) {
	parent, err := rundir.Open(filepath.Dir(path), -1)
	if err != nil {
		return nil, err
	}
	parent.Close()
	dir, err := rundir.Open(path, -1)
	if err != nil {
		return nil, err
	}
	if err := unix.Faccessat(int(dir.Fd()), ".", unix.W_OK, unix.AT_EACCESS); err != nil {
		dir.Close()
		return nil, fmt.Errorf("write to %s: %w", path, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &journals{dir, strings.TrimSpace(string(boot))}, nil
}

func (j *journals) close() { j.dir.Close() }

// journal is one file. It is locked.
type journal struct {
	*os.File
	in   *journals
	name string
}

// errBusy is the error if another process changes the settings of the connection.
var errBusy = notAsked("another process asks it at this moment")

func fileName(cookie uint64) string { return strconv.FormatUint(cookie, 16) }

// write makes the journal of a connection. Nothing may be changed before it returns.
func (j *journals) write(e *entry) (*journal, error) {
	e.Boot = j.boot
	text, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	for {
		f, err := j.open(fileName(e.Cookie), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, unix.LOCK_EX)
		switch {
		case errors.Is(err, errGone):
			continue // removed before it was locked
		case errors.Is(err, fs.ErrExist):
			return nil, errBusy
		case err != nil:
			return nil, err
		}
		if _, err := f.Write(text); err != nil {
			f.remove()
			return nil, fmt.Errorf("write the journal %s: %w", f.Name(), err)
		}
		return f, nil
	}
}

// errGone is the error if a journal is removed between open and lock.
var errGone = errors.New("the journal is gone")

// open opens and locks a journal.
func (j *journals) open(name string, flags, lock int) (*journal, error) {
	path := filepath.Join(j.dir.Name(), name)
	fd, err := unix.Openat(int(j.dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the journal %s: %w", path, err)
	}
	f := &journal{os.NewFile(uintptr(fd), path), j, name}
	if err := unix.Flock(fd, lock); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the journal %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
		f.Close()
		return nil, errors.Join(errGone, err)
	}
	return f, nil
}

// remove removes the journal: the settings are as they were.
func (f *journal) remove() {
	_ = unix.Unlinkat(int(f.in.dir.Fd()), f.name, 0)
	f.Close()
}

// left returns the journals that killed processes have left, locked. One without an entry was
// left before anything was changed, and one of another boot is of a socket that is gone: left
// removes both.
func (j *journals) left() (files []*journal, entries []entry, err error) {
	list, err := os.ReadDir(j.dir.Name())
	if err != nil {
		return nil, nil, err
	}
	for _, l := range list {
		f, err := j.open(l.Name(), unix.O_RDWR|unix.O_NONBLOCK, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // its process lives, or has just removed it
		}
		text, err := io.ReadAll(io.LimitReader(f, 1<<16))
		var e entry
		if err != nil || json.Unmarshal(text, &e) != nil || fileName(e.Cookie) != l.Name() || e.Boot != j.boot {
			f.remove()
			continue
		}
		files, entries = append(files, f), append(entries, e)
	}
	return files, entries, nil
}
