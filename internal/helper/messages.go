// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"net/netip"
	"syscall"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/containers"
)

// service is the name under which package rpc knows the questions.
const service = "Helper"

// None is the argument of a question that has no argument.
type None struct{}

// File identifies a file by its device and inode number.
type File struct {
	Device, Inode uint64
}

// CookieTarget is a [bpf.CookieTarget] as JSON. Its path is of type []byte, because JSON
// would change bytes of a string that are not UTF-8.
type CookieTarget struct {
	Netns, States uint32
	Path          []byte
	Holder        abi.Holder
}

// PathReply is a path, or the reason why there is none.
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

// CookiesReply has a failure for each target, the CPU time that all of them took, and the
// reason why the answer is incomplete.
type CookiesReply struct {
	Errors []Failure
	CPU    time.Duration
	Failed Failure
}

// FlowQuestion is a [conn.Flow], and the way into its network namespace: a
// [bpf.NetnsRef], with a path of bytes.
type FlowQuestion struct {
	Netns         uint32
	Path          []byte
	Holder        abi.Holder
	Cookie        uint64
	Local, Remote netip.AddrPort
}

// FlowReply is how the kernel would send a packet of the flow, or why that is not known.
type FlowReply struct {
	Path   *conn.Path
	Failed Failure
}

// Failure is an error in a message: its text, and its errno if it has one. The zero value
// means no error.
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

// errnoError is the error of a Failure that has an errno.
type errnoError struct{ Failure }

func (e *errnoError) Error() string { return e.Text }
func (e *errnoError) Unwrap() error { return e.Errno }
