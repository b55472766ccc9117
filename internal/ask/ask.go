// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spacing is the time between two probes, and probes the most of them. A live peer may
	// leave a probe unanswered, as it answers at most two in a second
	// (net.ipv4.tcp_invalid_ratelimit).
	spacing = 3 * time.Second
	probes  = 3
	// JudgedAfter is the time from the first probe until a peer that has not answered is silent.
	JudgedAfter = 10 * time.Second
	// leastSilence is how long TCP must have accepted nothing of the peer before the kernel sends a
	// probe: the least TCP_KEEPIDLE.
	leastSilence = now * time.Second
	// sentWithin is the longest wait for the kernel to send a probe.
	sentWithin = time.Second
	// slowest is the longest time between two looks. If the application closes a silent connection,
	// its FIN waits for the next one.
	slowest = 250 * time.Millisecond
)

// The values of Answer.Result.
const (
	Answered = "answered"
	Silent   = "silent"
	Reset    = "reset"
	NotAsked = "not_asked"
)

// Answer is what came of asking the peer of a connection.
type Answer struct {
	Cookie uint64 `json:"cookie"`
	Result string `json:"result"`
	Probes int    `json:"probes"`
	// RoundTrip is the time from the last probe to the answer. It is 0 if the peer was heard, but
	// not in answer to a probe, or was not heard.
	RoundTrip time.Duration `json:"round_trip"`
	Why       string        `json:"why"` // of NotAsked
}

// Asker asks the peers of connections.
type Asker struct{ journals *journals }

// Ask asks the peer of one connection. It takes JudgedAfter if the peer is silent, and at most
// about two seconds more. It waits for the lock of the socket without a limit.
func (a *Asker) Ask(ctx context.Context, t Target) Answer {
	r := asking{a: a, answer: Answer{Cookie: t.Cookie}}
	err := r.run(ctx, t)
	var why notAsked
	switch {
	case errors.As(err, &why):
		r.answer.Result, r.answer.Why = NotAsked, string(why)
	case err != nil:
		r.answer.Result, r.answer.Why = NotAsked, err.Error()
	}
	return r.answer
}

// asking is the asking of one connection.
type asking struct {
	a      *Asker
	s      *socket
	start  look     // before the first probe
	last   look     // the newest
	were   Settings // before the next probe
	first  moment   // when the first probe was sent; 0: none was
	sent   moment   // when the last probe was sent
	answer Answer
}

// run asks, and sets the answer, or returns why the connection was not asked.
func (r *asking) run(ctx context.Context, t Target) (err error) {
	if r.s, err = duplicate(t); err != nil {
		return err
	}
	defer r.s.close()
	if r.start, err = r.s.look(); err != nil {
		return err
	}
	r.last = r.start
	var why notAsked
	for n := range probes {
		judged, err := r.wait(ctx, r.due(n))
		if err != nil || judged {
			return err
		}
		var own bool
		if why, own, err = r.refuses(); err != nil {
			return err
		}
		switch {
		case why == "":
			err = r.probe()
		case !own && r.first == 0:
			return why
		}
		if err != nil {
			return err
		}
	}
	judged, err := r.wait(ctx, r.end())
	switch {
	case err != nil || judged:
		return err
	case r.last.heardSince(&r.start):
		r.answer.Result = Answered
	case r.answer.Probes == 0:
		return why
	default:
		r.answer.Result = Silent
	}
	return nil
}

// due returns when the n-th probe is due. The first is due when TCP has accepted nothing for long
// enough.
func (r *asking) due(n int) moment {
	if r.first == 0 {
		return r.start.at.add(time.Duration(n)*spacing + max(0, leastSilence+jiffy-r.start.accepted()))
	}
	return r.first.add(time.Duration(n) * spacing)
}

// end returns when the peer is judged.
func (r *asking) end() moment {
	if r.first == 0 {
		return r.start.at.add(JudgedAfter)
	}
	return r.first.add(JudgedAfter)
}

// refuses returns why no probe can be sent now, "" if one can: then it sets were. own is true if the
// connection's own keepalive asks soon, so that an answer may come without us.
func (r *asking) refuses() (why notAsked, own bool, err error) {
	switch r.last.State {
	case unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_FIN_WAIT2:
	case unix.BPF_TCP_SYN_SENT, unix.BPF_TCP_SYN_RECV:
		return "it is not established yet, and its SYN asks by itself", false, nil
	case unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_CLOSING, unix.BPF_TCP_LAST_ACK:
		return "its FIN is not acknowledged, and asks by itself", false, nil
	case unix.BPF_TCP_LISTEN:
		return "it is a listener, and has no peer", false, nil
	default:
		return "it has ended", false, nil
	}
	protocol, err := unix.GetsockoptInt(r.s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP {
		return "its socket is not of TCP alone", false, nil
	}
	if repaired, err := unix.GetsockoptInt(r.s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || repaired != 0 {
		return "its socket is being repaired (TCP_REPAIR), as by a checkpoint", false, nil
	}
	if n, err := r.s.outstanding(); err != nil {
		return "", false, err
	} else if n > 0 {
		return "data in flight, or in the send queue, asks by itself", false, nil
	}
	if r.were, err = readSettings(r.s.fd); err != nil {
		return "", false, err
	}
	if why := r.were.cannotPutBack(); why != "" {
		return notAsked(why), false, nil
	}
	why, own = r.tooMany()
	return why, own, nil
}

// tooMany returns why one more unanswered probe could end the connection later, "" if it could
// not. The kernel counts unanswered probes until the peer is heard, also those that it was made
// to send, and nothing takes them back.
func (r *asking) tooMany() (why notAsked, own bool) {
	were, out := &r.were, int(r.last.Probes)
	silence, timeout := time.Duration(were.Idle)*time.Second, time.Duration(were.UserTimeout)*time.Millisecond
	switch {
	case were.Keepalive == 0 && out+1 >= maxCount:
		return notAsked(fmt.Sprintf("%d probes are unanswered, which is as many as the kernel counts", out)), false
	case r.last.Snd_wnd == 0 && out+1 > 2: // tcp_probe_timer() counts them against tcp_retries2
		return "the peer's window is closed, and more unanswered probes would shorten the time that window probes have", false
	case were.Keepalive == 0:
		return "", false
	case r.last.accepted()+leastSilence >= silence:
		return notAsked(fmt.Sprintf("its own keepalive asks: %d of %d probes are unanswered", out, were.Count)), true
	case out+1 >= were.Count:
		return notAsked(fmt.Sprintf("its own keepalive ends it after %d unanswered probes, and %d are", were.Count, out)), true
	case timeout > 0 && timeout <= silence+silence/8+leastSilence: // the timer wheel is late by up to an eighth
		return "its TCP_USER_TIMEOUT is not longer than its TCP_KEEPIDLE, so that one unanswered probe more would end it", true
	}
	return "", false
}

// probe makes the kernel send one probe.
func (r *asking) probe() error {
	before, were := r.last, &r.were
	journal, err := r.a.journals.write(&entry{Target: r.s.target, Prober: os.Getpid(), Were: *were})
	if err != nil {
		return err
	}
	err = were.change(r.s.fd)
	if err == nil {
		err = r.awaitSent(&before)
	}
	if failed := were.restore(r.s.fd); failed != nil {
		journal.Close() // what is left is put back later
		return errors.Join(err, fmt.Errorf("not all settings could be put back: %w", failed))
	}
	journal.remove()
	return err
}

// awaitSent waits until the kernel has sent a probe, or has heard the peer.
func (r *asking) awaitSent(before *look) error {
	end := clock().add(sentWithin)
	looked, pause := before.at, time.Duration(0)
	for {
		if err := r.look(); err != nil {
			return err
		}
		tick := lastTick()
		ended := r.last.State == unix.BPF_TCP_CLOSE
		if r.last.Probes > before.Probes || r.last.acceptedSince(before) || ended {
			if r.last.Segs_out == before.Segs_out {
				return nil // it was heard, or has ended, before it was asked
			}
			// The timer has fired right after one of the ticks since the look before this one.
			r.sent = looked
			if tick > looked {
				r.sent = tick.add(-tick.sub(looked) / jiffy * jiffy)
			}
			if r.first == 0 {
				r.first = r.sent
			}
			r.answer.Probes++
			return nil
		}
		switch {
		case r.last.at > end && r.last.Segs_out != before.Segs_out:
			return notAsked("the device of this host did not take the probe: its queue, or a filter at its egress, drops it")
		case r.last.at > end:
			return notAsked("the kernel sent no probe: something else was sent or received meanwhile")
		}
		looked = r.last.at
		// Look soon after the next tick, and a few times more in each jiffy.
		if pause *= 2; pause == 0 || tick.add(jiffy).sub(clock()) < pause {
			pause = 20 * time.Microsecond
			sleep(max(0, tick.add(jiffy).sub(clock())) + pause)
			continue
		}
		sleep(pause)
	}
}

// wait waits until a time, or until the peer is heard or the connection has ended: then it sets
// the answer, and judged is true.
func (r *asking) wait(ctx context.Context, until moment) (judged bool, err error) {
	pause := 20 * time.Microsecond
	for {
		looked := r.last.at
		if err := r.look(); err != nil {
			return false, err
		}
		switch {
		case r.judge(looked):
			return true, nil
		case r.last.State == unix.BPF_TCP_CLOSE:
			return false, notAsked("it has ended, and not by an answer of the peer")
		}
		left := until.sub(clock())
		if left <= 0 {
			return false, nil
		}
		pause = min(pause+pause/3, slowest)
		if pause < time.Millisecond && r.sent != 0 {
			sleep(min(pause, left))
			continue
		}
		if !r.s.held() {
			return false, notAsked(fmt.Sprintf("its process %d closed it meanwhile", r.s.target.PID))
		}
		pause = max(pause, time.Millisecond)
		select {
		case <-ctx.Done():
			return false, notAsked("interrupted")
		case <-time.After(min(pause, left)):
		}
	}
}

func (r *asking) look() (err error) {
	r.last, err = r.s.look()
	return err
}

// judge sets the answer if the newest look shows one. looked is the time of the look before. The
// peer answers a probe by a segment that TCP accepts. One that is only heard, such as a probe of its
// own, says nothing about ours: it may not have arrived.
func (r *asking) judge(looked moment) bool {
	switch {
	case r.last.State == unix.BPF_TCP_CLOSE && r.last.heardSince(&r.start):
		r.answer.Result = Reset
		return true
	case r.last.State == unix.BPF_TCP_CLOSE, !r.last.acceptedSince(&r.start):
		return false
	}
	r.answer.Result = Answered
	if r.sent == 0 {
		return true
	}
	// The stamp of the answer is a jiffy exact.
	at := r.last.at
	if stamp := at.add(jiffy - r.last.accepted()); stamp > looked && stamp < at {
		at = stamp
	}
	r.answer.RoundTrip = max(at.sub(r.sent), time.Microsecond)
	return true
}

// sleep sleeps for less than a millisecond or two, more exactly than time.Sleep.
func sleep(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil)
}
