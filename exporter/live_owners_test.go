// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// ownerSource finds owners when it is let go.
type ownerSource struct {
	fakeSource
	mu     sync.Mutex
	asked  []int // how many connections, each time
	let    chan struct{}
	always bool // let go already
}

func (s *ownerSource) FillOwners(connections []conn.Connection) error {
	s.mu.Lock()
	s.asked = append(s.asked, len(connections))
	s.mu.Unlock()
	if !s.always {
		<-s.let
	}
	return s.fakeSource.FillOwners(connections)
}

func ownerless(c conn.Connection) conn.Connection {
	c.Process = nil
	return c
}

// ownerOf is the pid in an event of the stream, 0 for none.
func ownerOf(t *testing.T, data string) uint32 {
	t.Helper()
	var n api.Notice
	if err := json.Unmarshal([]byte(data), &n); err != nil {
		t.Fatal(err)
	}
	o := api.Ownership{}
	if n.Death != nil {
		o = n.Death.Ownership
	} else {
		o = n.Connection.Ownership
	}
	if o.Process == nil {
		return 0
	}
	return o.Process.PID
}

func TestStreamWaitsForOwnersOfThoseWhoAskForThem(t *testing.T) {
	src := &ownerSource{let: make(chan struct{})}
	src.stats, src.notices, src.owner = fullStats(), make(chan conn.Notice, 10), &conn.Process{PID: 4711, Comm: "found"}
	server := broadcast(t.Context(), t, src, nil)
	defer close(src.let)
	usual, owned := listen(t, server, "?event=verdict&event=death"), listen(t, server, "?event=verdict&event=death&owners=true")
	died := conn.Death{Connection: ownerless(contractConnection()), DiedAt: noon, Cause: conn.CauseResetByPeer}
	src.notices <- verdictNotice(ownerless(contractConnection()))
	src.notices <- conn.Notice{Kind: conn.NoticeDeath, At: noon, Connection: died.Connection, Death: &died}
	for _, name := range []string{"verdict", "death"} {
		if pid := ownerOf(t, next(t, usual, name)); pid != 0 {
			t.Errorf("the usual %s has the owner %d", name, pid)
		}
	}
	select {
	case e := <-owned:
		t.Fatalf("%s before its owner was found", e.name)
	default:
	}
	src.let <- struct{}{}
	for _, name := range []string{"verdict", "death"} {
		if pid := ownerOf(t, next(t, owned, name)); pid != 4711 {
			t.Errorf("%s has the owner %d", name, pid)
		}
	}
	if died.Process != nil {
		t.Error("the death that all have was changed")
	}
	src.mu.Lock()
	if len(src.asked) != 1 || src.asked[0] != 1 {
		t.Errorf("owners were looked for of %v connections", src.asked)
	}
	src.mu.Unlock()
	// What has an owner, or cannot have one, waits for nothing.
	orphan := ownerless(contractConnection())
	orphan.Orphaned = true
	src.notices <- verdictNotice(contractConnection())
	if pid := ownerOf(t, next(t, owned, "verdict")); pid != 812 {
		t.Errorf("owner %d", pid)
	}
	src.notices <- verdictNotice(orphan)
	if pid := ownerOf(t, next(t, owned, "verdict")); pid != 0 {
		t.Errorf("the orphan has the owner %d", pid)
	}
}

func TestStreamDoesNotWaitForOwnersForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ownerSource{let: make(chan struct{})}
		src.stats, src.notices, src.owner = fullStats(), make(chan conn.Notice, 10), &conn.Process{PID: 4711}
		live := NewLive(src, quiet)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			live.Run(ctx)
			close(done)
		}()
		v := &viewer{wants: told << kindOwned, frames: make(chan *frame, viewerFrames)}
		live.join <- v
		<-v.frames // what it begins with
		tell := func() { src.notices <- verdictNotice(ownerless(contractConnection())) }
		took := func() time.Duration {
			began := time.Now()
			for {
				if f := <-v.frames; len(f[kindOwned+kindVerdict]) > 0 {
					return time.Since(began)
				}
			}
		}
		tell()
		if d := took(); d < ownersPatience || d > ownersPatience+frameSpacing {
			t.Errorf("told without an owner after %s", d)
		}
		tell() // the search for the first is still under way
		if d := took(); d < ownersPatience || d > ownersPatience+frameSpacing {
			t.Errorf("the next one after %s", d)
		}
		close(src.let)
		time.Sleep(5 * time.Minute) // the pause after so long a search
		tell()
		if d := took(); d > frameSpacing {
			t.Errorf("with a search that takes no time after %s", d)
		}
		tell() // too early for another search
		if d := took(); d < eventOwnersPause/2 || d > ownersPatience {
			t.Errorf("the second search came after %s", d)
		}
		cancel()
		<-done
	})
}

func TestWrongOwnersOfTheStream(t *testing.T) {
	h := newHandler(t, &fakeSource{})
	for query, want := range map[string]string{
		"owners=maybe":            `owners "maybe" is neither true nor false`,
		"owners=true&owners=true": "owners is given more than once",
		"event=x":                 `unknown event "x": there are verdict, death, solicitation, summary, history, rows`,
	} {
		w := request(t, h, http.MethodGet, "/api/v1/stream?"+query)
		var e api.Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != http.StatusBadRequest || e.Error != want {
			t.Errorf("%s: status %d, %q, want %q", query, w.Code, e.Error, want)
		}
	}
}
