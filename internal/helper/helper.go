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
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/containers"
)

// Argument is the first argument of this program that makes it call [Main].
const Argument = "privileged-helper"

// Helper asks the helper process. It implements [collector.Privileged]. It is safe for
// concurrent use: a question that hangs does not delay other questions.
type Helper struct {
	client *rpc.Client
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error // the reason for the end; valid when ended is closed
}

var _ collector.Privileged = (*Helper)(nil)

// Start starts the helper. socket is the path of the Unix socket that the helper may
// remove when asked; "": none. The helper writes to the stderr of this process.
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

// Wait returns nil when the context ends, and an error if the helper ends before that.
func (h *Helper) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-h.ended:
		return fmt.Errorf("the helper process has ended (%v): start the agent again", h.cmd.ProcessState)
	}
}

// closeTimeout is the time that Close gives the helper to end by itself.
const closeTimeout = time.Second

// Close ends the helper.
func (h *Helper) Close() error {
	err := h.client.Close()
	select {
	case <-h.ended:
		return errors.Join(err, h.err)
	case <-time.After(closeTimeout): // the helper hangs in a question, and ends after it
		return err
	}
}

// call asks a question and waits for the answer.
func call[A, R any](h *Helper, method string, argument A) (R, error) {
	return callContext[A, R](context.Background(), h, method, argument)
}

// callContext asks a question, and waits no longer than until the context ends.
func callContext[A, R any](ctx context.Context, h *Helper, method string, argument A) (reply R, err error) {
	if err := ctx.Err(); err != nil {
		return reply, err
	}
	answer := new(R) // which may come when nobody waits any more
	asked := h.client.Go(service+"."+method, argument, answer, make(chan *rpc.Call, 1))
	select {
	case <-ctx.Done():
		return reply, context.Cause(ctx)
	case <-asked.Done:
	}
	if asked.Error != nil {
		return reply, fmt.Errorf("ask the helper process: %w", asked.Error)
	}
	return *answer, nil
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
	question := make([]CookieTarget, len(targets))
	for i, t := range targets {
		question[i] = CookieTarget{t.Netns, t.States, []byte(t.Path), t.Holder}
	}
	reply, err := callContext[[]CookieTarget, CookiesReply](ctx, h, "GiveCookies", question)
	switch {
	case err != nil:
		return nil, 0, err
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

// FlowPath implements [collector.Privileged].
func (h *Helper) FlowPath(ctx context.Context, netns bpf.NetnsRef, flow conn.Flow) (*conn.Path, error) {
	// The helper answers in time, if it runs.
	ctx, cancel := context.WithTimeoutCause(ctx, 2*collector.FlowPathTimeout, errors.New("the helper process does not answer"))
	defer cancel()
	reply, err := callContext[FlowQuestion, FlowReply](ctx, h, "FlowPath",
		FlowQuestion{netns.Inode, []byte(netns.Path), netns.Holder, flow.Cookie, flow.Local, flow.Remote})
	return reply.Path, errors.Join(err, reply.Failed.error())
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
