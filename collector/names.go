// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/containers"
)

const (
	// maxContainers is the most containers whose names are remembered. A node has some
	// hundreds.
	maxContainers = 8192
	// namesKept is for how long the names of a container are remembered after they were
	// last wanted: its sockets can outlive it, and their deaths come later still.
	namesKept = 10 * time.Minute
	// namesRetry is how long names that were not found are not searched for again.
	namesRetry = 15 * time.Second
	// namesWait is the longest wait for the names of one container.
	namesWait = time.Second
	// namesRate and namesBurst bound the searches: so many a second, and so many at once.
	namesRate, namesBurst = 20, 1024
)

// container is a container by its id, or the UID of its pod, or both.
type container struct {
	id, podUID string
}

// namesEntry is what is known of the names of a container.
type namesEntry struct {
	names    containers.Names // zero: not found
	searched time.Time        // the beginning of the last search
	wanted   time.Time        // the last use
}

// containerNames finds the names of containers. It is safe for concurrent use. A container's
// names never change.
type containerNames struct {
	from  Privileged
	limit *rate.Limiter
	turn  chan struct{} // taken by the search that runs

	mu     sync.Mutex
	hangs  bool // the search that runs takes longer than namesWait
	known  map[container]*namesEntry
	forget time.Time // when to look for entries that have not been wanted for long
}

func newContainerNames(from Privileged) *containerNames {
	return &containerNames{
		from: from, limit: rate.NewLimiter(namesRate, namesBurst), turn: make(chan struct{}, 1), known: make(map[container]*namesEntry),
	}
}

// fill sets the names of a control group, as far as they are known. It waits for a search,
// but not for one that hangs.
func (n *containerNames) fill(g *conn.Cgroup) {
	if g.ContainerID == "" && g.PodUID == "" {
		return
	}
	k := container{g.ContainerID, g.PodUID}
	names, due := n.lookUp(k, time.Now())
	if due {
		n.search(k)
		names, _ = n.lookUp(k, time.Now())
	}
	g.Namespace, g.Pod, g.Container = names.Namespace, names.Pod, names.Container
}

// lookUp returns the names of a container that are remembered, and whether to search for
// them now.
func (n *containerNames) lookUp(k container, now time.Time) (names containers.Names, due bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.After(n.forget) {
		maps.DeleteFunc(n.known, func(_ container, e *namesEntry) bool { return now.Sub(e.wanted) > namesKept })
		n.forget = now.Add(namesKept / 10)
	}
	e, ok := n.known[k]
	if !ok {
		return names, !n.hangs
	}
	e.wanted = now
	return e.names, !n.hangs && e.names == (containers.Names{}) && now.Sub(e.searched) > namesRetry
}

// search searches for the names of a container, unless there were too many searches or the
// turn does not come within namesWait.
func (n *containerNames) search(k container) {
	timeout := time.NewTimer(namesWait)
	defer timeout.Stop()
	select {
	case n.turn <- struct{}{}:
	case <-timeout.C:
		return
	}
	now := time.Now()
	if _, due := n.lookUp(k, now); !due || !n.limit.AllowN(now, 1) {
		<-n.turn
		return
	}
	ended := make(chan struct{})
	go func() {
		names, err := n.from.ContainerNames(k.id, k.podUID)
		if err != nil {
			names = containers.Names{} // searched for again later
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.known) >= maxContainers {
			clear(n.known)
		}
		n.known[k] = &namesEntry{names, now, now}
		n.hangs = false
		close(ended)
		<-n.turn
	}()
	select {
	case <-ended:
		return
	case <-timeout.C:
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-ended:
	default:
		n.hangs = true
	}
}
