// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
	"github.com/halfopen/halfopen/collector/recording"
)

// A replay says the very same as the agent did, and ends with the same counts, deaths and
// owners.
func TestAReplaySaysWhatTheCollectorSaid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "recording")
	options := Options{ZombieSilence: 3 * time.Second}
	rules := options.Rules(conntest.HZ)
	recorder, err := recording.Create(file, recording.Header{Rules: recording.NewRules(&rules)}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	options.Record = recorder.Record // its goroutine is outside of the bubble
	var said []conn.Notice
	var stats conn.TrackerStats
	var deaths []conn.Death
	var last time.Time
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		c := collect(t, k, options)
		sub := c.Subscribe(1000)
		defer sub.Close()
		k.set(func() {
			k.sockets = []abi.Conn{healthy(1), healthy(2), zombie(3), suspect(4, 2)}
			k.watched = []abi.Conn{zombie(3), suspect(4, 2)}
			k.held = map[uint64][]abi.FDHolder{3: {heldBy(1<<30, "postgres")}, 5: {heldBy(1<<30-1, "nginx")}}
		})
		k.emit(solicitation(suspect(5, 2)), abi.Event{Type: abi.EventDeath, Cause: abi.CauseAborted, Conn: healthy(6)})
		time.Sleep(20 * time.Second)
		gone, recovered := suspect(4, 2), healthy(5)
		gone.Flags |= abi.ConnGone
		recovered.Flags |= abi.ConnAnswered
		k.set(func() { k.watched = []abi.Conn{gone, recovered} })
		k.emit(death(3, abi.CauseKeepaliveTimeout), death(3, abi.CauseKeepaliveTimeout))
		time.Sleep(time.Second)
		k.set(func() { k.watched, k.sockets = nil, k.sockets[:2] })
		time.Sleep(time.Minute)
		synctest.Wait()
		for len(sub.C) > 0 {
			said = append(said, <-sub.C)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		last = time.Now()
		stats = c.tracker.Stats(last)
		for d := range c.tracker.Deaths() {
			deaths = append(deaths, *d)
		}
	})
	recorder.Close()

	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	facts, err := recording.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	var replayed []conn.Notice
	var replayedDeaths []conn.Death
	tracker := conn.NewTracker(facts.Header.Rules.Conn(), func(n conn.Notice) { replayed = append(replayed, n) })
	kinds := make(map[conn.FactKind]int)
	for {
		f, err := facts.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds[f.Kind]++
		tracker.Apply(f)
	}
	for d := range tracker.Deaths() {
		replayedDeaths = append(replayedDeaths, *d)
	}
	addresses := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if d := cmp.Diff(said, replayed, addresses); d != "" || len(said) < 7 {
		t.Errorf("%d notices (-said +replayed)\n%s", len(said), d)
	}
	if d := cmp.Diff(deaths, replayedDeaths, addresses); d != "" || len(deaths) != 3 {
		t.Errorf("%d deaths (-known +replayed)\n%s", len(deaths), d)
	}
	if d := cmp.Diff(stats, tracker.Stats(last)); d != "" {
		t.Errorf("stats (-known +replayed)\n%s", d)
	}
	if len(kinds) != 6 {
		t.Errorf("facts of each kind: %v", kinds)
	}
}
