// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// lockedAfter is the time after which a connection whose asking has not ended is one whose socket
// is locked.
const lockedAfter = JudgedAfter + 5*time.Second

// maxLocked is the most sockets that may be locked at once. Each takes a thread.
const maxLocked = 1000

// question is what the other process wants: to ask a connection or, if Recover is set, to put
// back what killed processes have left.
type question struct {
	Ask     *Target  `json:"ask,omitempty"`
	Recover *holders `json:"recover,omitempty"`
}

// holders are descriptors that hold sockets now, and sockets that do not exist any more.
type holders struct {
	Hold []Target `json:"hold"`
	Gone []uint64 `json:"gone"`
}

// reply is the answer to a question.
type reply struct {
	Asked     *Answer   `json:"asked,omitempty"`
	Recovered *Recovery `json:"recovered,omitempty"`
}

// Recovery says what became of the journals that killed processes have left.
type Recovery struct {
	Restored int      `json:"restored"` // settings that are as they were
	Failed   []uint64 `json:"failed"`   // connections whose descriptor is gone, or locked
	Err      string   `json:"err"`      // why the journals could not be read; "": they could
}

// Main is the main function of the process that asks: it answers questions on descriptor 3 until
// the other process ends or closes its end. Then it puts back what it has changed, and ends. It
// returns the exit status.
func Main() int {
	// Signals to the process group are for the other process.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	f := os.NewFile(3, "questions")
	c, err := net.FileConn(f)
	if err != nil {
		fmt.Fprintln(os.Stderr, "halfopen: the process that asks: only other commands start it:", err)
		return 1
	}
	f.Close()
	serve(c, JournalDir)
	return 0
}

// prober answers the questions of one connection.
type prober struct {
	Asker
	noJournals error // why there are none

	mu  sync.Mutex
	out *json.Encoder

	changing sync.WaitGroup // what may change settings
	locked   atomic.Int64   // askings that have not ended in time
}

// serve answers questions until the connection ends. It returns when nothing is changed any more.
func serve(c net.Conn, journalDir string) {
	defer c.Close()
	p := &prober{out: json.NewEncoder(c)}
	p.journals, p.noJournals = openJournals(journalDir)
	if p.noJournals == nil {
		defer p.journals.close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	in := json.NewDecoder(c)
	for {
		var q question
		if in.Decode(&q) != nil {
			break
		}
		running.Go(func() {
			switch {
			case q.Ask != nil:
				p.send(&reply{Asked: new(p.ask(ctx, *q.Ask))})
			case q.Recover != nil:
				p.send(&reply{Recovered: p.recover(q.Recover)})
			}
		})
	}
	cancel()
	running.Wait()
	p.changing.Wait() // longer than running, if sockets are locked
}

func (p *prober) send(r *reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.out.Encode(r) // fails if the other process has ended
}

// ask is Ask, but waits for the lock of the socket no longer than lockedAfter.
func (p *prober) ask(ctx context.Context, t Target) Answer {
	refused := Answer{Cookie: t.Cookie, Result: NotAsked}
	switch {
	case p.noJournals != nil:
		refused.Why = p.noJournals.Error()
		return refused
	case p.locked.Load() >= maxLocked:
		refused.Why = fmt.Sprintf("%d other sockets are locked by processes", maxLocked)
		return refused
	}
	var a Answer
	ended := make(chan struct{})
	p.changing.Go(func() {
		defer close(ended)
		a = p.Ask(ctx, t)
	})
	select {
	case <-ended:
		return a
	case <-time.After(lockedAfter):
	}
	p.locked.Add(1)
	go func() {
		<-ended
		p.locked.Add(-1)
	}()
	refused.Why = fmt.Sprintf("a process has held the lock of its socket for %d s, as one does that sleeps in a write from memory that is not there", lockedAfter/time.Second)
	return refused
}

// recoverWithin is the longest wait for a locked socket.
const recoverWithin = time.Second

// recover puts back what killed processes have left. It looks for a socket at the descriptor of
// the journal, unless h knows another.
func (p *prober) recover(h *holders) *Recovery {
	if p.noJournals != nil {
		return &Recovery{Err: p.noJournals.Error()}
	}
	files, entries, err := p.journals.left()
	if err != nil {
		return &Recovery{Err: err.Error()}
	}
	hold := make(map[uint64]Target)
	for _, t := range h.Hold {
		hold[t.Cookie] = t
	}
	type outcome struct {
		cookie uint64
		err    error
	}
	ended := make(chan outcome, len(files))
	failed := make(map[uint64]bool)
	r := new(Recovery)
	for i, f := range files {
		e := entries[i]
		if slices.Contains(h.Gone, e.Cookie) {
			f.remove()
			continue
		}
		if t, ok := hold[e.Cookie]; ok {
			e.Target = t
		}
		failed[e.Cookie] = true
		p.changing.Go(func() {
			err := putBack(&e)
			if err == nil {
				f.remove()
			} else {
				f.Close()
			}
			ended <- outcome{e.Cookie, err}
		})
	}
	late := time.After(recoverWithin)
	for left := len(failed); left > 0; left-- {
		select {
		case o := <-ended:
			if o.err == nil {
				r.Restored++
				delete(failed, o.cookie)
			}
		case <-late:
			left = 0
		}
	}
	r.Failed = slices.Sorted(maps.Keys(failed))
	return r
}

// putBack puts the settings of a journal back.
func putBack(e *entry) error {
	s, err := duplicate(e.Target)
	if err != nil {
		return err
	}
	defer s.close()
	return e.Were.restore(s.fd)
}
