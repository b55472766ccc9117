// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

// doNothing loads a program that returns at once. Its cost is the kernel's cost of running any program.
func doNothing(attach ebpf.AttachType, to string) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "do_nothing",
		Type:         ebpf.Tracing,
		AttachType:   attach,
		AttachTo:     to,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load an empty program for %s: %w", to, err)
	}
	return prog, nil
}

// closers closes several objects together.
type closers []io.Closer

func (cs closers) Close() error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// observeNothing loads an empty program for each tracepoint that the agent uses, and
// returns a function that attaches them.
func observeNothing() (attach func() (detach func() error, err error), programs closers, err error) {
	names, err := bpf.Tracepoints()
	if err != nil {
		return nil, nil, err
	}
	var all []*ebpf.Program
	for _, name := range names {
		prog, err := doNothing(ebpf.AttachTraceRawTp, name)
		if err != nil {
			return nil, nil, errors.Join(err, programs.Close())
		}
		all, programs = append(all, prog), append(programs, prog)
	}
	return func() (func() error, error) {
		var links closers
		for _, prog := range all {
			l, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: ebpf.AttachTraceRawTp})
			if err != nil {
				return nil, errors.Join(fmt.Errorf("attach %s: %w", prog, err), links.Close())
			}
			links = append(links, l)
		}
		return links.Close, nil
	}, programs, nil
}

// bareIterator returns a function that passes over all TCP sockets of the caller's network
// namespace and does nothing with them.
func bareIterator() (pass func() error, stop func(), err error) {
	prog, err := doNothing(ebpf.AttachTraceIter, "tcp")
	if err != nil {
		return nil, nil, err
	}
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		prog.Close()
		return nil, nil, fmt.Errorf("attach bare iterator: %w", err)
	}
	pass = func() error {
		r, err := it.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		buf := make([]byte, 16<<10)
		for {
			_, err := r.Read(buf)
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // after a million sockets
			case err != nil:
				return err
			}
		}
	}
	stop = func() {
		it.Close()
		prog.Close()
	}
	return pass, stop, nil
}
