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
	"os/signal"
	"syscall"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter"
	"github.com/halfopen/halfopen/internal/sandbox"
)

// Main is the main function of the helper: it answers until the other process ends or
// closes its end. Its arguments are those after [Argument]. It returns the exit status.
func Main(arguments []string) int {
	// Signals to the process group or the unit are for the other process, with which
	// this one ends.
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
	s := rpc.NewServer()
	if err := s.RegisterName(service, &answers{collector.NewDirect(), arguments[0]}); err != nil {
		return err
	}
	_ = sandbox.Enter(sandbox.Helper()) // as far as possible here: the doctor says what is not
	s.ServeCodec(jsonrpc.NewServerCodec(questions{c}))
	return nil
}

// questions ends this process with the other one, even if a question hangs.
type questions struct{ net.Conn }

func (q questions) Read(b []byte) (int, error) {
	n, err := q.Conn.Read(b)
	if err != nil {
		os.Exit(0)
	}
	return n, nil
}

// answers has a method for each question.
type answers struct {
	direct *collector.Direct
	socket string
}

// GiveCookies answers [Helper.GiveCookies].
func (a *answers) GiveCookies(targets []bpf.CookieTarget, reply *CookiesReply) error {
	errs, cpu, err := bpf.GiveCookies(context.Background(), targets)
	reply.CPU, reply.Failed = cpu, failureOf(err)
	for _, err := range errs {
		reply.Errors = append(reply.Errors, failureOf(err))
	}
	return nil
}

// CgroupPath answers [Helper.CgroupPath].
func (a *answers) CgroupPath(id uint64, reply *PathReply) error {
	path, err := a.direct.CgroupPath(id)
	*reply = PathReply{path, failureOf(err)}
	return nil
}

// CgroupsRefused answers [Helper.CgroupsRefused].
func (a *answers) CgroupsRefused(_ None, reply *Failure) error {
	*reply = failureOf(a.direct.CgroupsRefused())
	return nil
}

// DescriptorsRefused answers [Helper.DescriptorsRefused].
func (a *answers) DescriptorsRefused(_ None, reply *Failure) error {
	*reply = failureOf(a.direct.DescriptorsRefused())
	return nil
}

// RemoveSocket answers [Helper.RemoveSocket].
func (a *answers) RemoveSocket(f File, reply *Failure) error {
	if a.socket != "" {
		*reply = failureOf(exporter.RemoveSocket(a.socket, f.Device, f.Inode))
	}
	return nil
}
