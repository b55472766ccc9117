// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/containers"
)

// Argument is the first argument of this program when it is to call [Main].
const Argument = "privileged-helper"

// Helper is the other process. It implements [collector.Privileged]. It is safe for
// concurrent use: a question that hangs delays no other.
type Helper struct {
	client *rpc.Client
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error // why it has ended; valid when ended is closed
}

var _ collector.Privileged = (*Helper)(nil)

// Start starts the helper. It may remove the file of the Unix socket at that path when
// it is asked to; "": none. Its stderr is this process's.
func Start(socket string) (*Helper, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the helper process: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "helper"), os.NewFile(uintptr(fds[1]), "helper")
	defer ours.Close()
	defer theirs.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("start the helper process: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", Argument, socket)
	cmd.Args[0] = os.Args[0]
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	if err := cmd.Start(); err != nil {
		c.Close()
		return nil, fmt.Errorf("start the helper process: %w", err)
	}
	h := &Helper{client: jsonrpc.NewClient(c), cmd: cmd, ended: make(chan struct{})}
	go func() {
		h.err = cmd.Wait()
		close(h.ended)
	}()
	return h, nil
}

// Wait waits until the context ends, and then returns nil, or until the helper does.
func (h *Helper) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-h.ended:
		return fmt.Errorf("the helper process has ended (%v): start the agent again", h.cmd.ProcessState)
	}
}

// closeTimeout is how long to wait for the helper to end.
const closeTimeout = time.Second

// Close ends the helper.
func (h *Helper) Close() error {
	err := h.client.Close()
	select {
	case <-h.ended:
		return errors.Join(err, h.err)
	case <-time.After(closeTimeout): // it hangs in a question, and ends with it
		return err
	}
}

// call asks a question.
func call[A, R any](h *Helper, method string, argument A) (R, error) {
	var reply R
	err := h.client.Call(service+"."+method, argument, &reply)
	if err != nil {
		err = fmt.Errorf("ask the helper process: %w", err)
	}
	return reply, err
}

// GiveCookies is [bpf.GiveCookies]. It asks about no more than maxTargets at once.
func (h *Helper) GiveCookies(ctx context.Context, targets []bpf.CookieTarget) (errs []error, cpu time.Duration, err error) {
	for some := range slices.Chunk(targets, maxTargets) {
		answered, took, err := h.giveCookies(ctx, some)
		cpu += took
		if err != nil {
			return nil, cpu, err
		}
		errs = append(errs, answered...)
	}
	return errs, cpu, nil
}

func (h *Helper) giveCookies(ctx context.Context, targets []bpf.CookieTarget) ([]error, time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	question := make([]CookieTarget, len(targets))
	for i, t := range targets {
		question[i] = CookieTarget{t.Netns, t.States, []byte(t.Path), t.Holder}
	}
	var reply CookiesReply
	asked := h.client.Go(service+".GiveCookies", question, &reply, make(chan *rpc.Call, 1))
	select {
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-asked.Done:
	}
	switch {
	case asked.Error != nil:
		return nil, 0, fmt.Errorf("ask the helper process: %w", asked.Error)
	case reply.Failed.error() != nil:
		return nil, reply.CPU, reply.Failed.error()
	case len(reply.Errors) != len(targets):
		return nil, reply.CPU, fmt.Errorf("the helper process answered %d of %d questions", len(reply.Errors), len(targets))
	}
	errs := make([]error, len(targets))
	for i := range errs {
		errs[i] = reply.Errors[i].error()
	}
	return errs, reply.CPU, nil
}

// CgroupPath implements [collector.Privileged].
func (h *Helper) CgroupPath(id uint64) (string, error) {
	reply, err := call[uint64, PathReply](h, "CgroupPath", id)
	return string(reply.Path), errors.Join(err, reply.Failed.error())
}

// CgroupsRefused implements [collector.Privileged].
func (h *Helper) CgroupsRefused() error {
	reply, err := call[None, Failure](h, "CgroupsRefused", None{})
	return errors.Join(err, reply.error())
}

// DescriptorsRefused implements [collector.Privileged].
func (h *Helper) DescriptorsRefused() error {
	reply, err := call[None, Failure](h, "DescriptorsRefused", None{})
	return errors.Join(err, reply.error())
}

// ContainerNames implements [collector.Privileged].
func (h *Helper) ContainerNames(id, podUID string) (containers.Names, error) {
	reply, err := call[Container, NamesReply](h, "ContainerNames", Container{id, podUID})
	return reply.Names, errors.Join(err, reply.Failed.error())
}

// RemoveSocket removes the file of the Unix socket at the path that the helper was
// started with, if it is still the file of that device and inode number.
func (h *Helper) RemoveSocket(device, inode uint64) error {
	reply, err := call[File, Failure](h, "RemoveSocket", File{device, inode})
	return errors.Join(err, reply.error())
}
