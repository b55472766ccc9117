// SPDX-License-Identifier: Apache-2.0

// Command histories makes connections whose peers go silent, in private network namespaces,
// and records what the running kernel reports about them. It writes one masked recording
// for each history to collector/testdata/recordings; they are unit tests. It needs root and
// takes about twenty seconds.
//
//	go run ./internal/histories -o collector/testdata/recordings
//	go test ./cmd/halfopen -run TestReplayOfHistories -update
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/recording"
	"github.com/halfopen/halfopen/internal/lab"
)

// limit is the longest time that a run may take.
const limit = 5 * time.Minute

func main() { os.Exit(record()) }

// record is the body of main, and returns the exit status.
func record() int {
	out := flag.String("o", "collector/testdata/recordings", "the directory to write to")
	version := flag.String("version", "unknown", "the version of halfopen that the recordings are said to be of")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *out, *version); err != nil {
		fmt.Fprintf(os.Stderr, "histories: %s\n", err)
		return 1
	}
	return 0
}

// history is a history to record: all that the kernel reports about two namespaces.
type history struct {
	name string
	// live makes the connections of the history in a lab, and returns at its end.
	live func(ctx context.Context, l *ends) error
	// held reports whether a process holds the connection at the end, when it is in trouble
	// or dead. If so, its owner is recorded as well.
	held bool

	netns   []uint32
	cookies map[uint64]bool // of the connections that were recorded
	file    *recording.Recorder
	owned   chan struct{} // closed when an owner has been recorded
}

func run(ctx context.Context, dir, version string) (err error) {
	opts := collector.Options{
		ZombieSilence: 2 * time.Second, StalledAfter: 2 * time.Second, // shorter than the defaults, so that the histories take less time
		CensusInterval: 3 * time.Second, CensusCPU: 1,
	}
	k, err := bpf.Load(bpf.Options{Observe: true, IdleBounds: collector.IdleBounds})
	if err != nil {
		return err
	}
	defer k.Close()
	tmp, err := os.MkdirTemp("", "histories")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	release := unix.ByteSliceToString(uts.Release[:])
	header := recording.Header{
		Halfopen: version, Kernel: release, MonotonicZero: collector.MonotonicZero(),
		Rules: recording.NewRules(new(opts.Rules(k.HZ()))),
	}

	var labs []*lab.Lab
	defer func() {
		for _, l := range labs {
			err = errors.Join(err, l.Close())
		}
	}()
	for i := range histories {
		h := &histories[i]
		l, err := lab.New()
		if err != nil {
			return err
		}
		labs = append(labs, l)
		h.netns, h.cookies = []uint32{l.Client.Inode(), l.Server.Inode()}, make(map[uint64]bool)
		h.owned = make(chan struct{})
		h.file, err = recording.Create(filepath.Join(tmp, h.name), header, slog.Default())
		if err != nil {
			return err
		}
	}
	opts.Record = func(f *conn.Fact) {
		for i := range histories {
			histories[i].record(f)
		}
	}
	c := collector.New(k, opts)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	g, watching := errgroup.WithContext(watching)
	g.Go(func() error { return c.Run(watching) })
	g.Go(func() error {
		defer stop()
		living, ctx := errgroup.WithContext(watching)
		for i := range histories {
			h, e := &histories[i], &ends{Lab: labs[i], collector: c}
			living.Go(func() error {
				err := e.connect(ctx)
				if err == nil {
					err = h.live(ctx, e)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", h.name, err)
				}
				return h.end(ctx)
			})
		}
		return living.Wait()
	})
	if err := g.Wait(); err != nil {
		return err
	}
	short := strings.Join(strings.SplitN(release, ".", 3)[:2], ".")
	for i := range histories {
		h := &histories[i]
		if err := mask(filepath.Join(tmp, h.name), filepath.Join(dir, short+"-"+h.name+".jsonl")); err != nil {
			return err
		}
	}
	return nil
}

// ownersWait is the longest time to wait for owners. After a long search the next one comes late.
const ownersWait = 30 * time.Second

// end waits until the owner is recorded, and ends the recording.
func (h *history) end(ctx context.Context) error {
	defer h.file.Close()
	if !h.held {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-h.owned:
		return nil
	case <-time.After(ownersWait):
		return fmt.Errorf("%s: no process that holds the connection was found within %s", h.name, ownersWait)
	}
}

// mask writes the masked copy of a recording to its place.
func mask(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := recording.CreateFile(to)
	if err != nil {
		return err
	}
	_, err = recording.Mask(out, in)
	return errors.Join(err, out.Chmod(0o644), out.Close())
}

// record records the parts of a fact that are about the history's namespaces.
func (h *history) record(f *conn.Fact) {
	about := func(c *abi.Conn) bool {
		if c.Netns != h.netns[0] && c.Netns != h.netns[1] {
			return false
		}
		h.cookies[c.Cookie] = true
		return true
	}
	switch f.Kind {
	case conn.FactEvent:
		if !about(&f.Event.Conn) {
			return
		}
	case conn.FactWatch:
		if !about(f.Conn) && !h.cookies[f.Conn.Cookie] { // the record of a socket that is gone has no namespace
			return
		}
	case conn.FactCensus:
		ours := *f.Census
		ours.Counts, ours.Troubled = new(abi.CensusCounts), nil // the counts are of the whole machine
		for i := range f.Census.Troubled {
			if o := &f.Census.Troubled[i]; about(&o.Conn) {
				ours.Troubled = append(ours.Troubled, *o)
			}
		}
		f = &conn.Fact{Kind: f.Kind, At: f.At, Census: &ours}
	case conn.FactOwners:
		ours := make(map[uint64]conn.Ownership)
		for cookie, o := range f.Owners {
			if h.cookies[cookie] {
				ours[cookie] = o
			}
		}
		if len(ours) == 0 {
			return
		}
		select {
		case <-h.owned:
		default:
			close(h.owned)
		}
		f = &conn.Fact{Kind: f.Kind, At: f.At, Owners: ours}
	}
	h.file.Record(f)
}

// port is the server's port.
const port = 5432

// cut loses all packets.
var cut = lab.Rule{Port: port, Direction: lab.Both, Percent: 100}

// until waits for a notice of the client's namespace.
func (e *ends) until(ctx context.Context, what string, is func(*conn.Notice) bool) error {
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return fmt.Errorf("no %s within a minute", what)
		case n := <-e.told.C:
			if n.Connection.Netns == e.Client.Inode() && is(&n) {
				return nil
			}
		}
	}
}

func (e *ends) verdict(ctx context.Context, v conn.Verdict) error {
	return e.until(ctx, v.String(), func(n *conn.Notice) bool { return n.Kind == conn.NoticeVerdict && n.Connection.Verdict == v })
}

func (e *ends) death(ctx context.Context, cause conn.Cause) error {
	return e.until(ctx, cause.String(), func(n *conn.Notice) bool { return n.Kind == conn.NoticeDeath && n.Death.Cause == cause })
}

// connect makes the connection.
func (e *ends) connect(ctx context.Context) error {
	e.told = e.collector.Subscribe(1 << 16)
	addr := netip.AddrPortFrom(e.Server.Addr4(), port)
	ln, err := e.Server.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	if e.client, err = e.Client.Dial(ctx, addr); err != nil {
		return err
	}
	e.server, err = ln.AcceptTCP()
	return errors.Join(err, e.greet())
}

// greet has data move to the server.
func (e *ends) greet() error {
	if _, err := io.WriteString(e.client, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(e.server, make([]byte, len("hello")))
	return err
}

// fill writes from the client until its send queue takes no more.
func (e *ends) fill() error {
	if err := e.client.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	var err error
	for block := make([]byte, 1<<16); err == nil; {
		_, err = e.client.Write(block)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// drain reads all data that has arrived at the server.
func (e *ends) drain() *sync.WaitGroup {
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, e.server) })
	return &reading
}
