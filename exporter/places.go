// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/escape"
)

const (
	// maxOwners is the largest number of series of halfopen_tcp_zombies_by_owner, of
	// halfopen_tcp_trouble_by_owner, and of halfopen_tcp_at_risk_by_owner, with those that sum
	// up the rest.
	maxOwners = 50
	// placesEvery is the time in which at most ownerPlaces.most owners get a place, beyond
	// the first ones.
	placesEvery = time.Hour
)

// restOf returns the owner under which the owners without a place are summed up.
func restOf(o conn.OwnerLabel) conn.OwnerLabel {
	return conn.OwnerLabel{Name: conn.OtherOwners, Verdict: o.Verdict, Risk: o.Risk, Excluded: o.Excluded}
}

// ownerPlaces chooses the owners that have a place, which is a series of their own, in one
// metric. A user chooses the names of processes, and so can make owners without end: they
// must neither take the series of others away nor make ever new ones, each of which
// Prometheus keeps. So an owner with a connection that counts keeps its place. One without
// keeps its place too until another owner needs it. An owner counts once for each verdict or
// risk.
// It is safe for concurrent use.
type ownerPlaces struct {
	mu       sync.Mutex
	most     int                           // places that there are
	lastSeen map[conn.OwnerLabel]time.Time // of the owners that have a place
	new      *rate.Limiter                 // places given
}

// newOwnerPlaces makes the places of a metric in which connections of so many verdicts or
// risks count, each of which has a series of the rest.
func newOwnerPlaces(kinds int) *ownerPlaces {
	most := maxOwners - kinds
	return &ownerPlaces{
		most:     most,
		lastSeen: make(map[conn.OwnerLabel]time.Time),
		new:      rate.NewLimiter(rate.Every(placesEvery/time.Duration(most)), most),
	}
}

// choose returns at most maxOwners series with escaped names: those of the owners that
// have a place, and the sum of the rest under restOf, with an owner of that name. Of
// the owners that have no place yet, the largest get the free places; ties go by name and
// then port.
func (p *ownerPlaces) choose(owners map[conn.OwnerLabel]int, now time.Time) map[conn.OwnerLabel]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	series := make(map[conn.OwnerLabel]int, min(len(owners), maxOwners))
	var waiting []conn.OwnerLabel
	waitingCounts := make(map[conn.OwnerLabel]int)
	for o, n := range owners {
		for _, name := range []*string{&o.Name, &o.Namespace, &o.Pod, &o.Container} {
			*name = escape.Text(*name)
		}
		if _, placed := p.lastSeen[o]; placed {
			p.lastSeen[o] = now
			series[o] = n
		} else if o == restOf(o) {
			series[o] = n
		} else {
			waiting = append(waiting, o)
			waitingCounts[o] = n
		}
	}
	slices.SortFunc(waiting, func(a, b conn.OwnerLabel) int {
		return cmp.Or(cmp.Compare(waitingCounts[b], waitingCounts[a]), cmp.Compare(a.Name, b.Name), cmp.Compare(a.RemotePort, b.RemotePort),
			cmp.Compare(a.Container, b.Container), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Risk, b.Risk), cmp.Compare(a.Excluded, b.Excluded))
	})
	for _, o := range waiting {
		if p.findPlace(series, now) {
			p.lastSeen[o] = now
			series[o] = waitingCounts[o]
		} else {
			series[restOf(o)] += waitingCounts[o]
		}
	}
	return series
}

// findPlace reports whether another owner may have a place now. If all are taken, it takes
// away the place of the owner that has had no series for longest.
func (p *ownerPlaces) findPlace(series map[conn.OwnerLabel]int, now time.Time) bool {
	if len(p.lastSeen) < p.most {
		return p.new.AllowN(now, 1)
	}
	var oldest conn.OwnerLabel
	found := false
	for o, seen := range p.lastSeen {
		if _, has := series[o]; !has && (!found || seen.Before(p.lastSeen[oldest])) {
			oldest, found = o, true
		}
	}
	if !found || !p.new.AllowN(now, 1) {
		return false
	}
	delete(p.lastSeen, oldest)
	return true
}
