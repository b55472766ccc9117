// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"syscall"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/containers"
)

// service is the name of the questions.
const service = "Helper"

// None is the argument of a question without one.
type None struct{}

// File is a file by its device and inode number.
type File struct {
	Device, Inode uint64
}

// CookieTarget is a [bpf.CookieTarget]. A path is bytes, since JSON would change what is
// not UTF-8 in a string.
type CookieTarget struct {
	Netns, States uint32
	Path          []byte
	Holder        abi.Holder
}

// PathReply is a path, or why there is none.
type PathReply struct {
	Path   []byte
	Failed Failure
}

// Container is a container by its id and the UID of its pod, of which one can be "".
type Container struct {
	ID, PodUID string
}

// NamesReply has the names of a container, or why there are none.
type NamesReply struct {
	Names  containers.Names
	Failed Failure
}

// CookiesReply has a failure for each target, the CPU time that they took, and why the
// answer is not complete.
type CookiesReply struct {
	Errors []Failure
	CPU    time.Duration
	Failed Failure
}

// Failure is an error on its way between the processes: its text, and its errno if it has
// one. The zero value is nil.
type Failure struct {
	Text  string
	Errno syscall.Errno
}

func failureOf(err error) (f Failure) {
	if err != nil {
		f.Text = err.Error()
		errors.As(err, &f.Errno)
	}
	return f
}

func (f Failure) error() error {
	switch {
	case f.Text == "":
		return nil
	case f.Errno == 0:
		return errors.New(f.Text)
	}
	return &errnoError{f}
}

// errnoError is a failure with an errno.
type errnoError struct{ Failure }

func (e *errnoError) Error() string { return e.Text }
func (e *errnoError) Unwrap() error { return e.Errno }
