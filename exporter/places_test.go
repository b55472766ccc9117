// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
)

// scrapes gives what a place chose at each of several scrapes, and remembers all series
// that there ever were.
type scrapes struct {
	t      *testing.T
	places *ownerPlaces
	now    time.Time
	ever   map[conn.OwnerLabel]bool
}

func newScrapes(t *testing.T) *scrapes {
	return &scrapes{t, newOwnerPlaces(1), noon, make(map[conn.OwnerLabel]bool)}
}

// after scrapes once more. No scrape may lose a zombie, or have more than fifty series.
func (s *scrapes) after(d time.Duration, owners map[conn.OwnerLabel]int) map[conn.OwnerLabel]int {
	s.t.Helper()
	s.now = s.now.Add(d)
	series := s.places.choose(owners, s.now)
	if sum(series) != sum(owners) || len(series) > 50 {
		s.t.Fatalf("%d zombies of %d in %d series", sum(series), sum(owners), len(series))
	}
	for o := range series {
		s.ever[o] = true
	}
	return series
}

func sum(owners map[conn.OwnerLabel]int) (total int) {
	for n := range maps.Values(owners) {
		total += n
	}
	return total
}

// named returns owners with these numbers, of so many zombies each.
func named(from, to, zombies int) map[conn.OwnerLabel]int {
	owners := make(map[conn.OwnerLabel]int)
	for i := from; i < to; i++ {
		owners[conn.OwnerLabel{Name: fmt.Sprintf("app%05d", i)}] = zombies
	}
	return owners
}

func TestOwnersKeepTheirSeriesWhileTheyLive(t *testing.T) {
	s := newScrapes(t)
	first := s.after(0, named(0, 49, 1))
	for i := range 240 { // an hour of scrapes; 10,000 names, each with more zombies than the first ones
		owners := named(0, 49, 1)
		maps.Copy(owners, named(1000+i*42, 1000+(i+1)*42, 100))
		series := s.after(15*time.Second, owners)
		for o := range first {
			if series[o] != 1 {
				t.Fatalf("scrape %d: %q has lost its series", i, o.Name)
			}
		}
	}
	if len(s.ever) != 50 {
		t.Errorf("%d series in all, want 50", len(s.ever))
	}
}

func TestNewOwnersDoNotMakeSeriesWithoutEnd(t *testing.T) {
	s := newScrapes(t)
	for i := range 240 { // an hour of scrapes; 10,000 names, none of which stays
		s.after(15*time.Second, named(i*42, (i+1)*42, 1))
	}
	if n := len(s.ever); n < 49 || n > 2*49+1 {
		t.Errorf("%d series in an hour, want at most 49, 49 more, and other", n)
	}
}

func TestPlacesBecomeFree(t *testing.T) {
	s := newScrapes(t)
	s.after(0, named(0, 49, 1))
	if series := s.after(time.Hour, named(1, 50, 1)); series[conn.OwnerLabel{Name: "app00049"}] != 1 {
		t.Error("the place of an owner that has gone is not given to the next")
	}
	if series := s.after(time.Hour, named(0, 49, 1)); series[restOf(conn.OwnerLabel{})] != 0 || len(series) != 49 {
		t.Errorf("an owner that comes back has no place: %v", series)
	}
	s = newScrapes(t)
	s.after(0, named(0, 49, 1))
	for range 1000 { // comes and goes without using up the places for new owners
		s.after(time.Second, named(0, 1, 1))
		s.after(time.Second, nil)
	}
	if series := s.after(time.Hour, named(100, 149, 1)); len(series) != 49 || series[restOf(conn.OwnerLabel{})] != 0 {
		t.Errorf("new owners get no places: %v", series)
	}
}

// The series of each verdict of an owner is its own, and so is the rest.
func TestPlacesOfTwoVerdicts(t *testing.T) {
	s := newScrapes(t)
	s.places = newOwnerPlaces(2)
	owners := make(map[conn.OwnerLabel]int)
	for i := range 30 {
		name := fmt.Sprintf("app%05d", i)
		owners[conn.OwnerLabel{Name: name, Verdict: "stuck"}] = 3
		owners[conn.OwnerLabel{Name: name, Verdict: "blocked"}] = 2
	}
	series := s.after(0, owners)
	rest := [2]int{series[conn.OwnerLabel{Name: "other", Verdict: "stuck"}], series[conn.OwnerLabel{Name: "other", Verdict: "blocked"}]}
	// 48 places: all 30 that are stuck, and 18 of those that are blocked.
	if rest != [2]int{0, 24} || len(series) != 49 {
		t.Errorf("%d series, rest %v, want 49 and [0 24]", len(series), rest)
	}
}

// The rest of each risk has a series of its own, whatever the other risks have.
func TestPlacesOfRisks(t *testing.T) {
	s := newScrapes(t)
	s.places = newOwnerPlaces(conn.Risks)
	owners := make(map[conn.OwnerLabel]int)
	for i := range 100 {
		owners[conn.OwnerLabel{Name: fmt.Sprintf("app%05d.service", i), Risk: "no_keepalive"}] = 3
		owners[conn.OwnerLabel{Name: fmt.Sprintf("app%05d.service", i), Risk: "close_wait_leak"}] = 2
	}
	owners[conn.OwnerLabel{Name: "other", Risk: "close_wait_leak"}] = 7 // of groups that were not counted
	series := s.after(0, owners)
	rest := [2]int{series[conn.OwnerLabel{Name: "other", Risk: "no_keepalive"}], series[conn.OwnerLabel{Name: "other", Risk: "close_wait_leak"}]}
	if places := 50 - conn.Risks; rest != [2]int{3 * (100 - places), 207} || len(series) != places+2 {
		t.Errorf("%d series, rest %v", len(series), rest)
	}
}
