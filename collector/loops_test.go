// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// deadCookies returns the cookies of the deaths that the collector lists, newest first.
func deadCookies(c *Collector) (cookies []uint64) {
	_, deaths := c.Deaths(nil, 0)
	for _, d := range deaths {
		cookies = append(cookies, d.Cookie)
	}
	return cookies
}

func TestAQueryKnowsEveryEventThatWasSentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		began := time.Now()
		var queries sync.WaitGroup
		for i := range uint64(200) {
			queries.Go(func() {
				if i%3 == 0 {
					runtime.Gosched() // so that the queries come at different times
				}
				k.emit(death(i, abi.CauseAborted))
				if dead := deadCookies(c); !slices.Contains(dead, i) {
					t.Errorf("death %d was sent before the query, which knows of %d deaths", i, len(dead))
				}
			})
		}
		queries.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("the queries waited %v for events that the kernel had already sent", took)
		}
		if dead := deadCookies(c); len(dead) != 200 {
			t.Errorf("%d deaths, want 200", len(dead))
		}
	})
}

// A query may come when the reader has just emptied the ring buffer and is about to end a
// flush. That flush must not answer the query.
func TestAQueryWaitsForEventsThatOvertakeAFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		late := make(chan []uint64, 1)
		k.slow = time.Millisecond
		k.set(func() {
			k.onFlushed = func() {
				k.set(func() { k.onFlushed = nil })
				k.emit(death(1, abi.CauseAborted))
				go func() { late <- deadCookies(c) }()
				synctest.Wait() // until the query waits
			}
		})
		deadCookies(c)
		if dead := <-late; !slices.Equal(dead, []uint64{1}) {
			t.Errorf("the query returned the deaths %d, want 1", dead)
		}
	})
}

func TestAQueryWaitsOnlySoLongForAKernelThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.deaf = true
		c := collect(t, k, Options{})
		synctest.Wait()
		k.emit(death(1, abi.CauseAborted))
		began := time.Now()
		if dead := deadCookies(c); len(dead) != 1 || time.Since(began) != flushTimeout {
			t.Errorf("%d deaths after %v", len(dead), time.Since(began))
		}
		k.set(func() { k.deaf = false })
		began = time.Now()
		if deadCookies(c); time.Since(began) != 0 {
			t.Errorf("a query took %v, though the kernel answers again", time.Since(began))
		}
		k.set(func() { k.deaf, k.closed = true, true }) // so that Run can end
	})
}

func TestAQueryDoesNotWaitForAReaderThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.deaf = true
		c := collect(t, k, Options{})
		synctest.Wait()
		began := time.Now()
		var queries sync.WaitGroup
		for range 5 {
			queries.Go(func() { deadCookies(c) })
		}
		time.Sleep(flushTimeout / 2)
		k.set(func() { k.closed = true }) // while the queries wait
		queries.Wait()
		if took := time.Since(began); took != flushTimeout/2 {
			t.Errorf("queries that waited when the reader ended took %v", took)
		}
		began = time.Now()
		if deadCookies(c); time.Since(began) != 0 {
			t.Errorf("a query after the end took %v", time.Since(began))
		}
	})
}

func TestRunEndsWithTheErrorOfTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := New(k, Options{})
		k.emit(bpf.ErrUndecodable, death(1, abi.CauseAborted), bpf.ErrUndecodable, unix.EIO, death(2, abi.CauseAborted))
		if err := c.Run(t.Context()); !errors.Is(err, unix.EIO) || err.Error() != "read events: input/output error" {
			t.Errorf("Run returned %v", err)
		}
		s, err := c.Stats()
		if err != nil || s.EventsLost["undecodable"] != 2 {
			t.Errorf("%d undecodable events, error %v", s.EventsLost["undecodable"], err)
		}
		if dead := deadCookies(c); !slices.Equal(dead, []uint64{1}) {
			t.Errorf("deaths %d", dead)
		}
	})
}

func TestRunEndsWithItsContextWhateverIsUnderWay(t *testing.T) {
	for _, tt := range []struct {
		name string
		busy func(*fakeKernel)
	}{
		{"nothing is", func(*fakeKernel) {}},
		{"a census waits for its turn", func(k *fakeKernel) {
			k.onCensus = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}},
		{"events never end", func(k *fakeKernel) {
			var i uint64
			k.onWatch = func() error { i++; k.emit(death(i, abi.CauseAborted)); return nil }
		}},
		{"everything fails", func(k *fakeKernel) {
			k.onCensus = func(context.Context) error { return unix.ENOMEM }
			k.onWatch = func() error { return unix.ENOMEM }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
				k := newFakeKernel()
				tt.busy(k)
				c := New(k, Options{})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				if err := c.Run(ctx); err != nil || time.Since(began) != time.Minute {
					t.Errorf("Run returned %v after %v", err, time.Since(began))
				}
			})
		})
	}
}

func TestWatchPassesComeWhenTheyAreWorthWhile(t *testing.T) {
	const due = 54 * time.Millisecond // the time for an answer that comes within 50 ms, and a jiffy
	for _, tt := range []struct {
		name   string
		took   time.Duration // each pass
		finds  []uint16      // for each pass, the number of unanswered solicitations, the last of them just now
		events []uint16      // unanswered solicitations in the events at 100 ms
		want   []time.Duration
	}{
		{"no event comes", 0, nil, nil, []time.Duration{0, conn.WatchInterval, 2 * conn.WatchInterval}},
		{"a first solicitation starts no pass", 0, nil, []uint16{1}, []time.Duration{0, conn.WatchInterval, 2 * conn.WatchInterval}},
		{"the second unanswered one starts a pass", 0, nil, []uint16{2}, []time.Duration{0, 100*time.Millisecond + due, 100*time.Millisecond + due + conn.WatchInterval}},
		{"several events start one pass", 0, nil, []uint16{2, 3, 2, 4}, []time.Duration{0, 100*time.Millisecond + due, 100*time.Millisecond + due + conn.WatchInterval}},
		{"a pass that takes long comes later", 30 * time.Millisecond, nil, []uint16{2}, []time.Duration{0, 400 * time.Millisecond, 900 * time.Millisecond}},
		{"a pass that finds recent solicitations is followed by another", 0, []uint16{1, 2}, nil, []time.Duration{0, due, 2 * due, 3 * due}},
		{"each pass finds recent solicitations and takes long", 30 * time.Millisecond, []uint16{2}, nil, []time.Duration{0, 300 * time.Millisecond, 600 * time.Millisecond, 900 * time.Millisecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel()
				k.onWatch = func() error { time.Sleep(tt.took); return nil }
				for i, n := range tt.finds {
					k.watched = append(k.watched, suspect(uint64(i), n))
				}
				began := time.Now()
				collect(t, k, Options{})
				time.Sleep(100 * time.Millisecond)
				for i, n := range tt.events {
					k.emit(solicitation(suspect(uint64(i), n)))
				}
				time.Sleep(time.Second)
				k.mu.Lock()
				defer k.mu.Unlock()
				var got []time.Duration
				for _, at := range k.watches {
					got = append(got, at.Sub(began))
				}
				if !slices.Equal(got[:min(len(got), len(tt.want))], tt.want) || tt.finds == nil && len(got) > len(tt.want)+1 {
					t.Errorf("passes at %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestWatchPassFindsWhatNoEventTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		sub := c.Subscribe(100)
		defer sub.Close()
		told := func() (said []string) {
			for {
				select {
				case n := <-sub.C:
					switch n.Kind {
					case conn.NoticeVerdict:
						said = append(said, fmt.Sprintf("%d %v", n.Connection.Cookie, n.Connection.Verdict))
					case conn.NoticeDeath:
						said = append(said, fmt.Sprintf("%d %v", n.Connection.Cookie, n.Death.Cause))
					}
				default:
					return said
				}
			}
		}
		expect := func(when string, want ...string) {
			t.Helper()
			time.Sleep(conn.WatchInterval)
			synctest.Wait()
			if got := told(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		k.set(func() { k.watched = []abi.Conn{zombie(1), zombie(2), zombie(3)} })
		expect("three are silent", "1 zombie", "2 zombie", "3 zombie")

		// The first peer answers. The event of the second connection's death was lost. No
		// program saw the third one's death.
		answered, killed, gone := healthy(1), zombie(2), zombie(3)
		answered.Flags |= abi.ConnAnswered
		killed.Flags, killed.Cause = abi.ConnGone, abi.CauseUserTimeout
		gone.Flags, gone.Cause = abi.ConnGone, abi.CauseUnknown
		k.set(func() { k.watched = []abi.Conn{answered, killed, gone} })
		expect("they end", "1 active", "2 user_timeout")
		k.set(func() { k.watched = nil })
		expect("the death of the third waits, since its event may be late")
		expect("no program saw it", "3 unknown")
		for range 5 {
			expect("no notice is sent twice")
		}
		k.emit(death(3, abi.CauseKeepaliveTimeout))
		expect("an event that comes after the death was recorded")
		if s, err := c.Stats(); err != nil || s.Unseen != 1 || s.Kernel.Deaths[abi.CauseUnknown] != 1 || s.Watched != 0 {
			t.Errorf("%d unseen, %d counted as unknown, %d watched, error %v", s.Unseen, s.Kernel.Deaths[abi.CauseUnknown], s.Watched, err)
		}
	})
}

// A death whose event waits to be read is not one that no program saw, though the reader comes
// late.
func TestADeathAwaitsItsEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		k.set(func() { k.watched = []abi.Conn{zombie(1)} })
		time.Sleep(conn.WatchInterval)
		gone := zombie(1)
		gone.Flags, gone.Cause = abi.ConnGone, abi.CauseUnknown
		k.set(func() { k.watched, k.slow = []abi.Conn{gone}, 700*time.Millisecond })
		k.emit(solicitation(zombie(2)), solicitation(zombie(2)), death(1, abi.CauseKeepaliveTimeout))
		time.Sleep(10 * time.Second)
		if s, err := c.Stats(); err != nil || s.Unseen != 0 || s.Watched != 1 {
			t.Errorf("%d deaths unseen, %d watched, error %v", s.Unseen, s.Watched, err)
		}
	})
}

// Only a census finds unread data, and asks for its end. It follows from no watch pass.
func TestCensusFindsUnreadDataAndItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.sockets = []abi.Conn{healthy(1), healthy(2)}
		c := collect(t, k, Options{CensusInterval: 15 * time.Second})
		events := c.Subscribe(9)
		want := func(when string, unread, active uint64) {
			t.Helper()
			if got := verdicts(t, c); got[conn.Unread] != unread || got[conn.Active] != active {
				t.Errorf("%s: %d unread and %d active, want %d and %d", when, got[conn.Unread], got[conn.Active], unread, active)
			}
		}
		want("at first", 0, 2)
		left := *conntest.Leave(new(healthy(1)), 100, time.Minute)
		k.set(func() { k.sockets[0] = left })
		time.Sleep(16 * time.Second)
		want("after a census", 1, 1)
		time.Sleep(time.Minute)
		want("while it lasts", 1, 1)
		k.set(func() { k.sockets[0], k.again = healthy(1), []abi.Conn{healthy(1)} })
		time.Sleep(15 * time.Second)
		want("after the application has read", 0, 2)
		for _, verdict := range []conn.Verdict{conn.Unread, conn.Active} {
			select {
			case n := <-events.C:
				if n.Kind != conn.NoticeVerdict || n.Connection.Verdict != verdict || n.Connection.Cookie != 1 {
					t.Errorf("a notice of %+v", n)
				}
			default:
				t.Errorf("no notice of %v", verdict)
			}
		}
	})
}

func TestAPassThatFailsOrHangsLeavesTheOthersRunning(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fail   func(k *fakeKernel, hook func() error)
		detail string
	}{
		{"watch", func(k *fakeKernel, hook func() error) { k.onWatch = hook }, "the watch pass"},
		{"census", func(k *fakeKernel, hook func() error) {
			k.onCensus = nil
			if hook != nil {
				k.onCensus = func(context.Context) error { return hook() }
			}
		}, "the census"},
		{"owners", func(k *fakeKernel, hook func() error) {
			k.onOwners = nil
			if hook != nil {
				k.onOwners = func([]uint64) error { return hook() }
			}
		}, "the search for owners"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel()
				k.set(func() { k.watched, k.sockets = []abi.Conn{zombie(1)}, []abi.Conn{zombie(1), healthy(2)} })
				c := collect(t, k, Options{})
				progress := func() (n [3]int) {
					n[0], n[1], n[2] = k.passes()
					return n
				}
				// expect waits for a minute, and checks the reasons and that the other passes go on.
				expect := func(when, reasons, detail string) {
					t.Helper()
					before := progress()
					time.Sleep(61 * time.Second)
					synctest.Wait()
					if got := strings.Join(reasonsOf(c), " "); got != reasons {
						t.Errorf("%s: %q hold, want %q", when, got, reasons)
					}
					for _, f := range c.Degraded() {
						if f.Reason.String() == reasons && !strings.Contains(f.Detail, detail) {
							t.Errorf("%s: %q does not say %q", when, f.Detail, detail)
						}
					}
					after := progress()
					for i, name := range []string{"watch", "census", "owners"} {
						if resting := name == tt.name && reasons == "pass_hangs"; after[i] == before[i] && !resting {
							t.Errorf("%s: no %s pass within a minute", when, name)
						}
					}
				}
				expect("all is well", "", "")

				k.set(func() { tt.fail(k, func() error { return unix.EMFILE }) })
				expect("it fails", "pass_fails", tt.detail+" failed: too many open files")
				s, err := c.Stats()
				failed := s.EventsLost["pass_failed"]
				if err != nil || failed < 2 {
					t.Errorf("%d failed passes counted, error %v", failed, err)
				}
				k.set(func() { tt.fail(k, nil) })
				expect("it works again", "", "")
				if s, err = c.Stats(); err != nil || s.EventsLost["pass_failed"] > failed+1 {
					t.Errorf("%d failed passes counted, then %d, error %v", failed, s.EventsLost["pass_failed"], err)
				}

				hang := make(chan struct{})
				k.set(func() { tt.fail(k, func() error { <-hang; return nil }) })
				time.Sleep(time.Minute) // until the pass hangs, and has done so for long enough
				expect("it hangs", "pass_hangs", tt.detail+" has not ended for")
				close(hang)
				k.set(func() { tt.fail(k, nil) })
				time.Sleep(ownersSpacingMost) // the search for owners rests after it took long
				expect("it has ended", "", "")
			})
		})
	}
}

func TestCensusIntervalFollowsItsCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		var spent time.Duration // CPU time of the process
		opts := Options{CensusInterval: 15 * time.Second, CensusCPU: 0.01}
		c := New(k, opts)
		var others time.Duration // CPU time of the process's other work between two censuses
		k.onCensus = func(context.Context) error {
			spent += others + k.result.CPU
			return nil
		}
		c.processCPU = func() time.Duration { return spent }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		interval := func() time.Duration {
			synctest.Wait()
			s, err := c.Stats()
			if err != nil {
				t.Fatal(err)
			}
			return s.Census.Interval
		}
		if got := interval(); got != 15*time.Second || !c.Ready() {
			t.Errorf("the first census: the next in %v, ready %v", got, c.Ready())
		}
		if want := 37500 * time.Microsecond; k.ownTables != want { // a quarter of 1 % of 15 s
			t.Errorf("hash tables of single namespaces may take %v, want %v", k.ownTables, want)
		}
		for _, step := range []struct {
			name         string
			cost, others time.Duration
			want         time.Duration
		}{
			{"it costs little", 100 * time.Millisecond, 0, 15 * time.Second},
			{"it costs much", 1500 * time.Millisecond, 0, 150 * time.Second},
			{"it costs as much as before", 1500 * time.Millisecond, 0, 150 * time.Second},
			{"a fifth of the share goes elsewhere", 1500 * time.Millisecond, 300 * time.Millisecond, 187500 * time.Millisecond},
			{"a storm leaves it half of the share", 1500 * time.Millisecond, 100 * time.Second, 300 * time.Second},
			{"it costs little again", 10 * time.Millisecond, 0, 15 * time.Second},
		} {
			wait := interval()
			k.set(func() { k.result.CPU, others = step.cost, step.others })
			_, before, _ := k.passes()
			time.Sleep(wait)
			got := interval()
			if _, after, _ := k.passes(); got != step.want || after != before+1 {
				t.Errorf("%s: %d censuses within %v, then the next in %v, want 1 and %v", step.name, after-before, wait, got, step.want)
			}
		}

		// A census that fails does not change the interval.
		k.set(func() { k.onCensus = func(context.Context) error { return unix.ENOMEM } })
		_, before, _ := k.passes()
		time.Sleep(10 * 15 * time.Second)
		synctest.Wait()
		if _, after, _ := k.passes(); after != before+10 {
			t.Errorf("%d censuses within ten intervals, though they fail", after-before)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestReasonsFollowFromTheCensus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		result bpf.CensusResult
		want   string
	}{
		{"it sees all namespaces", bpf.CensusResult{Namespaces: 7}, ""},
		{"some namespaces are refused", bpf.CensusResult{Namespaces: 7, Unvisited: 2, Refused: 2, Err: enterError(unix.EPERM)}, "namespaces_refused"},
		{"nothing leads into some namespaces", bpf.CensusResult{Namespaces: 7, Unvisited: 2, Hidden: 2}, "namespaces_hidden"},
		{"some tables are not walked yet", bpf.CensusResult{Namespaces: 7, OwnTables: []uint32{8, 9}, Unwalked: []uint32{9}}, ""},
		{"some tables are late", bpf.CensusResult{Namespaces: 7, OwnTables: []uint32{8, 9}, Unwalked: []uint32{9}, Late: 1}, "tables_late"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel()
				k.result = tt.result
				c := collect(t, k, Options{})
				time.Sleep(time.Minute)
				if got := strings.Join(reasonsOf(c), " "); got != tt.want {
					t.Errorf("%q hold, want %q", got, tt.want)
				}
				k.set(func() { k.result = bpf.CensusResult{Namespaces: 7} })
				time.Sleep(time.Minute)
				if got := reasonsOf(c); len(got) > 0 {
					t.Errorf("%q hold when the census sees all again", got)
				}
			})
		})
	}
	t.Run("a query leaves a table out", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel()
			c := collect(t, k, Options{})
			synctest.Wait()
			k.set(func() { k.result.Unwalked = []uint32{9} })
			if _, _, err := c.Connections(t.Context(), Query{}); err != nil || c.Unwalked() != 1 {
				t.Errorf("%d hash tables not walked, error %v", c.Unwalked(), err)
			}
			if got := strings.Join(reasonsOf(c), " "); got != "tables_late" {
				t.Errorf("%q hold", got)
			}
			time.Sleep(unlistedFor + endsAfter + time.Second)
			if got := reasonsOf(c); len(got) > 0 {
				t.Errorf("%q hold a minute after", got)
			}
		})
	})
	t.Run("the search for cookies fails and hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel()
			k.cookies.err, k.cookies.hangs = unix.EPERM, time.Now()
			c := collect(t, k, Options{})
			synctest.Wait()
			if got := strings.Join(reasonsOf(c), " "); got != "cookies_missing pass_hangs" {
				t.Errorf("%q hold", got)
			}
		})
	})
}

func TestOwnersAreFoundSoonerOrLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, Options{})
		processOf := func(cookie uint64) string {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			seen := zombie(cookie)
			p := c.tracker.Describe(&seen, time.Now()).Process
			if p == nil {
				return ""
			}
			return p.Comm
		}
		k.set(func() {
			k.held[1] = []abi.FDHolder{heldBy(1<<30, "forked"), heldBy(1<<30-1, "postgres")}
			k.watched = []abi.Conn{zombie(1), zombie(2)}
		})
		time.Sleep(2 * time.Second)
		if got := processOf(1); got != "postgres" {
			t.Errorf("the process is %q", got)
		}
		if got := processOf(2); got != "" {
			t.Errorf("the process of a connection that no process holds is %q", got)
		}

		// Both are searched for again after OwnersRetry, and not before.
		_, _, searched := k.passes()
		k.set(func() {
			k.held[2] = []abi.FDHolder{heldBy(1<<30-2, "late")}
			delete(k.held, 1) // its process has ended
		})
		time.Sleep(conn.OwnersRetry / 2)
		got := processOf(2)
		if _, _, n := k.passes(); got != "" || n != searched {
			t.Errorf("the process is %q, after %d more searches", got, n-searched)
		}
		time.Sleep(conn.OwnersRetry * 3 / 2)
		if first, second := processOf(1), processOf(2); first != "" || second != "late" {
			t.Errorf("the processes are %q and %q, want none and late", first, second)
		}

		// A dead connection is searched for as well: its process may still hold the socket.
		k.set(func() { k.watched, k.held[3] = nil, []abi.FDHolder{heldBy(1<<30-3, "last")} })
		dies := death(3, abi.CauseResetByPeer)
		k.emit(dies)
		time.Sleep(conn.OwnersRetry)
		_, deaths := c.Deaths([]conn.Cause{conn.CauseResetByPeer}, 0)
		if len(deaths) != 1 || deaths[0].Process == nil || deaths[0].Process.Comm != "last" {
			t.Errorf("deaths %+v", deaths)
		}
	})
}

func TestASearchForOwnersThatTakesLongIsRarer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.onOwners = func([]uint64) error { time.Sleep(200 * time.Millisecond); return nil }
		collect(t, k, Options{})
		for i := range uint64(600) { // so that there is always a new connection
			k.emit(solicitation(suspect(i, 3)))
			time.Sleep(100 * time.Millisecond)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		for i := 1; i < len(k.searches); i++ {
			if between := k.searches[i].Sub(k.searches[i-1]); between < 10*time.Second {
				t.Errorf("searches %v apart", between)
			}
		}
		if n := len(k.searches); n < 4 || n > 7 { // 200 ms are 2 % of 10 s
			t.Errorf("%d searches within a minute", n)
		}
	})
}

// A query must not change the tracker. It must not send notices of dead connections as if
// they were alive.
func TestAListWhileItsConnectionsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.set(func() {
			k.sockets, k.watched = []abi.Conn{zombie(1), healthy(2), zombie(3)}, []abi.Conn{zombie(1), zombie(3)}
		})
		c := collect(t, k, Options{})
		time.Sleep(time.Second)
		sub := c.Subscribe(100)
		defer sub.Close()
		k.onVisit = func(visited *abi.Conn) { // each event overtakes the census
			switch visited.Cookie {
			case 1:
				k.emit(death(3, abi.CauseKeepaliveTimeout))
			case 2:
				k.emit(solicitation(suspect(2, 3)))
			}
			c.awaitEvents()
		}
		began := time.Now()
		k.set(func() { k.watched, k.sockets = nil, append([]abi.Conn{suspect(4, 3)}, k.sockets...) })
		k.set(func() { k.slow = time.Millisecond })
		k.emit(solicitation(suspect(4, 3)))
		total, connections, err := c.Connections(t.Context(), Query{})
		if err != nil || total != 4 {
			t.Fatalf("%d connections, error %v", total, err)
		}
		var listed []string
		for connection, err := range connections {
			if err != nil {
				t.Fatal(err)
			}
			listed = append(listed, fmt.Sprintf("%d %v", connection.Cookie, connection.Verdict))
			if connection.Cookie == 4 && !connection.Since.Equal(began) {
				t.Errorf("4 is a suspect since %v, but its event came at %v", connection.Since, began)
			}
		}
		if want := []string{"1 zombie", "3 zombie", "4 suspect", "2 active"}; !slices.Equal(listed, want) {
			t.Errorf("listed as they were read: %q, want %q", listed, want)
		}
		if got := verdicts(t, c); got[conn.Zombie] != 1 || got[conn.Suspect] != 2 {
			t.Errorf("%d zombies and %d suspects are followed, want 1 and 2", got[conn.Zombie], got[conn.Suspect])
		}
		for len(sub.C) > 0 {
			if n := <-sub.C; n.Kind == conn.NoticeVerdict && n.Connection.Cookie%2 != 0 {
				t.Errorf("the query sent a notice that %d is %v", n.Connection.Cookie, n.Connection.Verdict)
			}
		}
		k.onVisit = nil
		if d, err := c.Connection(t.Context(), 3); err != nil || d == nil {
			t.Errorf("a connection that the kernel still has: %v, error %v", d, err)
		}
		if d, err := c.Connection(t.Context(), 5); err != nil || d != nil {
			t.Errorf("a connection that does not exist: %v, error %v", d, err)
		}
	})
}

// A connection that is counted as a death is not counted as a connection any more, at each
// reading of the metrics.
func TestStatsCountADeathOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 50
		k := newFakeKernel()
		for i := range uint64(n) {
			k.sockets = append(k.sockets, zombie(i))
		}
		k.watched = k.sockets
		c := collect(t, k, Options{})
		time.Sleep(time.Second)
		die := func(cookie uint64, told bool) {
			k.set(func() {
				k.stats.Counters.Deaths[abi.CauseKeepaliveTimeout]++
				k.watched = slices.DeleteFunc(slices.Clone(k.watched), func(c abi.Conn) bool { return c.Cookie == cookie })
				if told {
					k.queue = append(k.queue, death(cookie, abi.CauseKeepaliveTimeout))
				}
			})
		}
		for i := range uint64(n) {
			k.onStats = func() error { die(i, true); return nil } // at the moment of the reading
			s, err := c.Stats()
			if err != nil {
				t.Fatal(err)
			}
			var alive uint64
			for state := range s.Connections {
				for _, m := range s.Connections[state] {
					alive += m
				}
			}
			if dead := s.Kernel.Deaths[abi.CauseKeepaliveTimeout]; alive+dead != n || dead != i+1 {
				t.Fatalf("%d alive and %d dead, of %d", alive, dead, n)
			}
		}
		k.onStats = func() error { return os.ErrClosed }
		if _, err := c.Stats(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("error %v", err)
		}
	})
}
