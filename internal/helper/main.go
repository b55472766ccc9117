// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter"
	"github.com/halfopen/halfopen/internal/sandbox"
)

// Main is the main function of the helper: it answers questions until the other process
// ends or closes its end of the socketpair. Its arguments are those after [Argument]. It
// returns the exit status.
func Main(arguments []string) int {
	// Signals to the process group or the unit are for the other process. The helper ends
	// when that process ends.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	if err := serve(arguments); err != nil {
		fmt.Fprintln(os.Stderr, "halfopen: the helper process:", err)
		return 1
	}
	return 0
}

func serve(arguments []string) error {
	f := os.NewFile(3, "questions")
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("only other commands start it: %w", err)
	}
	f.Close()
	if len(arguments) != 1 {
		return errors.New("its only argument is the path of the socket")
	}
	_ = sandbox.Enter(sandbox.Helper()) // as far as possible here; halfopen doctor prints the steps that fail
	return answer(c, &answers{direct: collector.NewDirect(), socket: arguments[0], giveCookies: bpf.GiveCookies})
}

// Bounds on questions, because an attacker may control the other process.
const (
	// maxQuestion is the largest size of a question in bytes: maxTargets with the longest path.
	maxQuestion = 2 << 20
	// maxTargets is the largest number of namespaces in one question, and maxPath the
	// largest length of a namespace's path in bytes (PATH_MAX).
	maxTargets = 256
	maxPath    = 4096
	// maxRunning is the largest number of questions without an answer. Further ones wait.
	maxRunning = 64
	// maxHanging is the largest number of running questions that may hang. The helper
	// refuses further ones with EBUSY, so that they never use up maxRunning.
	maxHanging = 4
)

// answer answers questions until the connection ends. Data that is not a question is an
// error. It does not wait for questions that hang.
func answer(c io.ReadWriteCloser, a *answers) error {
	a.hanging = make(chan struct{}, maxHanging)
	s := rpc.NewServer()
	if err := s.RegisterName(service, a); err != nil {
		return err
	}
	limited := &limitedReader{ReadWriteCloser: c}
	ended := make(chan error, 1)
	go s.ServeCodec(&boundedCodec{jsonrpc.NewServerCodec(limited), limited, make(chan struct{}, maxRunning), ended})
	// The kernel resets the connection if the other process ends with an answer unread.
	if err := <-ended; !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("read a question: %w", err)
	}
	return nil
}

// limitedReader fails after left more bytes.
type limitedReader struct {
	io.ReadWriteCloser
	left int
}

var errTooLong = fmt.Errorf("the question is longer than %d bytes", maxQuestion)

func (l *limitedReader) Read(b []byte) (int, error) {
	if l.left == 0 {
		return 0, errTooLong
	}
	n, err := l.ReadWriteCloser.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

// boundedCodec bounds the length of questions and the number of those without an answer.
type boundedCodec struct {
	rpc.ServerCodec
	limited *limitedReader
	running chan struct{}
	ended   chan<- error // gets the error that ends the connection
}

// ReadRequestHeader implements [rpc.ServerCodec].
func (c *boundedCodec) ReadRequestHeader(r *rpc.Request) error {
	c.running <- struct{}{} // until WriteResponse, which follows each question
	c.limited.left = maxQuestion
	err := c.ServerCodec.ReadRequestHeader(r)
	if err != nil {
		c.ended <- err // package rpc stops reading
	}
	return err
}

// WriteResponse implements [rpc.ServerCodec].
func (c *boundedCodec) WriteResponse(r *rpc.Response, body any) error {
	defer func() { <-c.running }()
	return c.ServerCodec.WriteResponse(r, body)
}

// answers has a method for each question.
type answers struct {
	direct      *collector.Direct
	socket      string
	giveCookies func(context.Context, []bpf.CookieTarget) ([]error, time.Duration, error)
	hanging     chan struct{} // a value for each running question that may hang
}

// mayHang runs f, or returns EBUSY if too many questions hang.
func (a *answers) mayHang(f func() error) error {
	select {
	case a.hanging <- struct{}{}:
		defer func() { <-a.hanging }()
		return f()
	default:
		return fmt.Errorf("%d earlier questions hang: %w", maxHanging, unix.EBUSY)
	}
}

// GiveCookies answers [Helper.GiveCookies].
func (a *answers) GiveCookies(asked []CookieTarget, reply *CookiesReply) error {
	if len(asked) > maxTargets {
		return fmt.Errorf("%d namespaces in one question, at most %d are possible", len(asked), maxTargets)
	}
	targets := make([]bpf.CookieTarget, len(asked))
	for i, t := range asked {
		if len(t.Path) > maxPath {
			return fmt.Errorf("a path of %d bytes, at most %d are possible", len(t.Path), maxPath)
		}
		targets[i] = bpf.CookieTarget{Netns: t.Netns, States: t.States, Path: string(t.Path), Holder: t.Holder}
	}
	reply.Failed = failureOf(a.mayHang(func() error {
		errs, cpu, err := a.giveCookies(context.Background(), targets)
		reply.CPU = cpu
		for _, err := range errs {
			reply.Errors = append(reply.Errors, failureOf(err))
		}
		return err
	}))
	return nil
}

// CgroupPath answers [Helper.CgroupPath].
func (a *answers) CgroupPath(id uint64, reply *PathReply) error {
	path, err := a.direct.CgroupPath(id)
	*reply = PathReply{[]byte(path), failureOf(err)}
	return nil
}

// CgroupsRefused answers [Helper.CgroupsRefused].
func (a *answers) CgroupsRefused(_ None, reply *Failure) error {
	*reply = failureOf(a.direct.CgroupsRefused())
	return nil
}

// DescriptorsRefused answers [Helper.DescriptorsRefused].
func (a *answers) DescriptorsRefused(_ None, reply *Failure) error {
	*reply = failureOf(a.mayHang(a.direct.DescriptorsRefused))
	return nil
}

// FlowPath answers [Helper.FlowPath]. It cannot hang, since [collector.Direct.FlowPath] has
// bounds of its own.
func (a *answers) FlowPath(asked FlowQuestion, reply *FlowReply) error {
	if len(asked.Path) > maxPath {
		return fmt.Errorf("a path of %d bytes, at most %d are possible", len(asked.Path), maxPath)
	}
	path, err := a.direct.FlowPath(context.Background(),
		bpf.NetnsRef{Inode: asked.Netns, Path: string(asked.Path), Holder: asked.Holder},
		conn.Flow{Cookie: asked.Cookie, Local: asked.Local, Remote: asked.Remote})
	*reply = FlowReply{path, failureOf(err)}
	return nil
}

// ContainerNames answers [Helper.ContainerNames]. It may hang: the data of Docker and Podman
// can be on a network.
func (a *answers) ContainerNames(c Container, reply *NamesReply) error {
	reply.Failed = failureOf(a.mayHang(func() (err error) {
		reply.Names, err = a.direct.ContainerNames(c.ID, c.PodUID)
		return err
	}))
	return nil
}

// RemoveSocket answers [Helper.RemoveSocket].
func (a *answers) RemoveSocket(f File, reply *Failure) error {
	if a.socket != "" {
		*reply = failureOf(exporter.RemoveSocket(a.socket, f.Device, f.Inode))
	}
	return nil
}
