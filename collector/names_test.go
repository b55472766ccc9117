// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/containers"
)

// fakeRuntime is a [Privileged] that knows containers.
type fakeRuntime struct {
	Privileged
	mu    sync.Mutex
	names map[string]containers.Names // by id
	asked int
	hang  chan struct{} // if not nil, a question waits until it is closed
}

func (f *fakeRuntime) ContainerNames(id, _ string) (containers.Names, error) {
	f.mu.Lock()
	f.asked++
	n, ok := f.names[id]
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if !ok {
		return containers.Names{Container: "half read"}, os.ErrNotExist
	}
	return n, nil
}

func (f *fakeRuntime) set(id string, n containers.Names) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names[id] = n
}

func (f *fakeRuntime) remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.names, id)
}

func (f *fakeRuntime) setHang(hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = hang
}

func newFakeRuntime() (*fakeRuntime, *containerNames) {
	f := &fakeRuntime{names: map[string]containers.Names{}}
	return f, newContainerNames(f)
}

// nameOf returns the name of the container that fill finds.
func nameOf(n *containerNames, id string) string {
	g := conn.Cgroup{ContainerID: id}
	n.fill(&g)
	return g.Container
}

func TestNamesOutliveTheirContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newFakeRuntime()
		f.set("a", containers.Names{Namespace: "shop", Pod: "checkout", Container: "server"})
		g := conn.Cgroup{ContainerID: "a", PodUID: "u"}
		n.fill(&g)
		if g.Namespace != "shop" || g.Pod != "checkout" || g.Container != "server" {
			t.Errorf("%+v", g)
		}
		f.remove("a")
		for range 10 { // wanted again and again
			time.Sleep(namesKept - time.Minute)
			if n.fill(&g); g.Pod != "checkout" {
				t.Fatalf("%+v after it has gone", g)
			}
		}
		if f.asked != 1 {
			t.Errorf("%d questions", f.asked)
		}
		time.Sleep(2 * namesKept) // not wanted
		if n.fill(&g); g.Pod != "" || f.asked != 2 || len(n.known) != 1 {
			t.Errorf("%+v, %d questions, %d entries", g, f.asked, len(n.known))
		}
		n.fill(&conn.Cgroup{Unit: "x.service"})
		if f.asked != 2 {
			t.Error("it was asked for a unit")
		}
	})
}

func TestNamesThatWereNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newFakeRuntime()
		for range 1000 {
			if got := nameOf(n, "a"); got != "" {
				t.Fatalf("%q", got)
			}
		}
		if f.asked != 1 {
			t.Errorf("%d questions in no time", f.asked)
		}
		f.set("a", containers.Names{Container: "db"})
		time.Sleep(namesRetry + time.Second)
		if got := nameOf(n, "a"); got != "db" || f.asked != 2 {
			t.Errorf("%q after %d questions", got, f.asked)
		}
	})
}

func TestNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newFakeRuntime()
		for i := range 3 * maxContainers {
			nameOf(n, fmt.Sprint(i))
		}
		if f.asked > namesBurst {
			t.Errorf("%d questions at once", f.asked)
		}
		before := f.asked
		time.Sleep(10 * time.Second)
		for i := range 3 * maxContainers {
			nameOf(n, fmt.Sprint("later ", i))
		}
		if got := f.asked - before; got == 0 || got > 10*namesRate+1 {
			t.Errorf("%d questions in ten seconds", got)
		}
		for range 100 { // a user who makes up containers
			time.Sleep(time.Minute)
			for i := range namesBurst {
				nameOf(n, fmt.Sprint(time.Now(), i))
			}
			if len(n.known) > maxContainers {
				t.Fatalf("%d entries", len(n.known))
			}
		}
	})
}

// A question that hangs delays one look for a second, and later ones not at all.
func TestNamesThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newFakeRuntime()
		f.set("known", containers.Names{Container: "known"})
		f.set("slow", containers.Names{Container: "slow"})
		nameOf(n, "known")
		hang := make(chan struct{})
		f.setHang(hang)
		began := time.Now()
		var g sync.WaitGroup
		for _, id := range []string{"slow", "slow", "b", "c"} {
			g.Go(func() { nameOf(n, id) })
			synctest.Wait()
		}
		g.Wait()
		if took := time.Since(began); took != namesWait || f.asked != 2 {
			t.Errorf("it took %s, with %d questions", took, f.asked)
		}
		began = time.Now()
		if got := nameOf(n, "known") + nameOf(n, "slow") + nameOf(n, "d"); got != "known" || time.Since(began) != 0 || f.asked != 2 {
			t.Errorf("%q, after %s and %d questions", got, time.Since(began), f.asked)
		}
		close(hang)
		synctest.Wait()
		f.setHang(nil)
		if got := nameOf(n, "slow"); got != "slow" || f.asked != 2 {
			t.Errorf("%q, %d questions", got, f.asked)
		}
		if nameOf(n, "d"); f.asked != 3 {
			t.Error("nothing is asked any more")
		}
	})
}

// All who want the names of a container at once get them, by one question.
func TestNamesForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newFakeRuntime()
		id := strings.Repeat("a", 64)
		f.set(id, containers.Names{Container: "db"})
		var errs [64]error
		var g sync.WaitGroup
		for i := range errs {
			g.Go(func() {
				if got := nameOf(n, id); got != "db" {
					errs[i] = fmt.Errorf("%q", got)
				}
			})
		}
		g.Wait()
		if err := errors.Join(errs[:]...); err != nil || f.asked != 1 {
			t.Errorf("%v, %d questions", err, f.asked)
		}
	})
}
