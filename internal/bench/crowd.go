// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/internal/lab"
)

// crowdEnv, if set, makes this program a process that only holds connections (a part, as JSON).
const crowdEnv = "HALFOPEN_BENCH_CROWD"

// pairsEach is the largest number of connections of one part: some systems limit a process
// to fewer descriptors than more would need.
const pairsEach = 9000

// A part describes the connections that one process holds, both ends, over loopback.
type part struct {
	Addr  [4]byte // different for each part, so that it has the whole port range
	Pairs int
	Abort bool // in the end its connections are aborted, and not closed
}

// playCrowd is the main function of the child process: it makes its connections, prints
// "ready", and holds them until its stdin ends.
func playCrowd(text string) error {
	var p part
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	clients, err := p.connect()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	if p.Abort { // the end of the process would close the other ends first
		for _, fd := range clients {
			unix.Close(fd)
		}
	}
	return err
}

// connect makes idle connections, with keepalive on at the client's end, and returns the
// clients' ends.
func (p part) connect() (clients []int, err error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	addr := &unix.SockaddrInet4{Addr: p.Addr, Port: 5432}
	if err := errors.Join(unix.Bind(listener, addr), unix.Listen(listener, 128)); err != nil {
		return nil, err
	}
	for range p.Pairs {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1), unix.Connect(fd, addr)); err != nil {
			return nil, err
		}
		if p.Abort {
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return nil, err
			}
		}
		clients = append(clients, fd)
		if _, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
			return nil, err
		}
	}
	return clients, nil
}

// A crowd is many idle connections in one namespace, held by several processes.
type crowd struct {
	ns    *lab.Namespace
	parts []holder
	pairs int
	abort bool // of the parts that grow makes
}

type holder struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
	pairs  int
}

func newCrowd() (*crowd, error) {
	ns, err := lab.NewNamespace()
	if err != nil {
		return nil, err
	}
	return &crowd{ns: ns}, nil
}

// grow adds connections until the crowd has this many sockets, two for each connection.
func (c *crowd) grow(ctx context.Context, sockets int) error {
	began := len(c.parts)
	for want := sockets/2 - c.pairs; want > 0; want = sockets/2 - c.pairs {
		h, err := c.start(part{Addr: [4]byte{127, 0, 1, byte(len(c.parts) + 1)}, Pairs: min(want, pairsEach), Abort: c.abort})
		if err != nil {
			return err
		}
		c.parts = append(c.parts, h)
		c.pairs += h.pairs
	}
	for _, h := range c.parts[began:] {
		if line, err := h.stdout.ReadString('\n'); line != "ready\n" {
			return fmt.Errorf("a process that holds connections printed %q instead of ready: %w", line, errors.Join(err, ctx.Err()))
		}
	}
	return nil
}

func (c *crowd) start(p part) (h holder, err error) {
	text, err := json.Marshal(p)
	if err != nil {
		return h, err
	}
	h.pairs = p.Pairs
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Env = append(os.Environ(), crowdEnv+"="+string(text))
	h.cmd.Stderr = os.Stderr
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return h, err
	}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		return h, err
	}
	h.stdout = bufio.NewReader(stdout)
	return h, c.ns.Start(h.cmd)
}

// Close ends all connections.
func (c *crowd) Close() error {
	for _, h := range c.parts {
		h.stdin.Close()
	}
	var errs []error
	for _, h := range c.parts {
		errs = append(errs, h.cmd.Wait())
	}
	return errors.Join(append(errs, c.ns.Close())...)
}
