// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Argument is the first argument of this program that makes it call [Main].
const Argument = "prober"

// Prober asks peers in a process of its own.
type Prober struct {
	conn *net.UnixConn
	out  *json.Encoder
	// Replies are decoded by one goroutine at a time.
	in *json.Decoder
}

// Start starts the process that asks. It ends after Close, or with this process, as soon as it
// has put back what it changed; nobody has to wait for that.
func Start() (*Prober, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the process that asks: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "prober"), os.NewFile(uintptr(fds[1]), "prober")
	defer ours.Close()
	defer theirs.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("start the process that asks: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", Argument)
	cmd.Args[0] = os.Args[0]
	cmd.Env = []string{}
	cmd.Dir = "/"
	// It has none of our descriptors: a reader of our output need not wait for it.
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	if err := cmd.Start(); err != nil {
		c.Close()
		return nil, fmt.Errorf("start the process that asks: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	return &Prober{conn: c.(*net.UnixConn), out: json.NewEncoder(c), in: json.NewDecoder(c)}, nil
}

// Close has the process end.
func (p *Prober) Close() { p.conn.Close() }

// Ask has the peer of a connection asked. [Prober.Answer] returns the answer.
func (p *Prober) Ask(t Target) error {
	if p.out.Encode(&question{Ask: &t}) != nil {
		return errEnded
	}
	return nil
}

var errEnded = errors.New("the process that asks has ended: run halfopen probe again, which puts back what it left")

// Answer waits for the next answer, in the order in which they come. It returns early if the
// context ends, and must not be called again then.
func (p *Prober) Answer(ctx context.Context) (*Answer, error) {
	r, err := p.reply(ctx)
	if err != nil {
		return nil, err
	}
	return r.Asked, nil
}

func (p *Prober) reply(ctx context.Context) (*reply, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.conn.CloseRead() })
	defer stop()
	var r reply
	if err := p.in.Decode(&r); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errEnded
	}
	return &r, nil
}

// Left reports whether processes that ask have left journals: some may be at work now.
func Left() bool {
	files, err := os.ReadDir(JournalDir)
	return err == nil && len(files) > 0
}

// Finder finds where sockets are now: descriptors that hold them, and which of them do not exist
// any more.
type Finder func(ctx context.Context, cookies []uint64) (hold []Target, gone []uint64, err error)

// Recover puts back the settings that processes have left that were killed while they asked.
// restored is how many connections have their settings again, and failed how many do not, because
// their sockets are locked or no descriptor holds them. find is called if a socket is not where
// its journal says. No asking may be under way.
func (p *Prober) Recover(ctx context.Context, find Finder) (restored, failed int, err error) {
	r, err := p.recover(ctx, new(holders))
	if err != nil || len(r.Failed) == 0 {
		return r.Restored, 0, err
	}
	restored = r.Restored
	var h holders
	if h.Hold, h.Gone, err = find(ctx, r.Failed); err != nil {
		return restored, len(r.Failed), err
	}
	r, err = p.recover(ctx, &h)
	return restored + r.Restored, len(r.Failed), err
}

func (p *Prober) recover(ctx context.Context, h *holders) (Recovery, error) {
	if p.out.Encode(&question{Recover: h}) != nil {
		return Recovery{}, errEnded
	}
	r, err := p.reply(ctx)
	switch {
	case err != nil:
		return Recovery{}, err
	case r.Recovered.Err != "":
		return Recovery{}, errors.New(r.Recovered.Err)
	}
	return *r.Recovered, nil
}
