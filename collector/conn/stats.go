// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// zombieBounds are the upper bounds of TrackerStats.ZombieSeconds, from the shortest
// silence of a zombie to a day.
var zombieBounds = []float64{1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 86400}

// forecastBounds are the upper bounds of TrackerStats.ForecastError. The first bucket
// counts the forecasts that were right.
var forecastBounds = []float64{0, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600}

// TrackerStats are the numbers of a Tracker at one moment.
type TrackerStats struct {
	Connections  [States][Verdicts]uint64 // in states that are Judged
	ZombieOldest time.Duration            // age of the oldest zombie; 0: there is none
	// Excluded are those of Connections with a verdict that [Verdict.Alerts], whose owner is
	// excluded. ZombieOldestExcluded is the age of the oldest zombie of these, and ZombieOldest
	// that of the others.
	Excluded             [States][Verdicts]uint64
	ZombieOldestExcluded time.Duration
	ZombiesByOwner       map[OwnerLabel]int
	TroubleByOwner       map[OwnerLabel]int // of the verdicts unread, blocked and stuck
	PeerHostSilent       int                // connections with the risk of that name
	ZombieSeconds        Histogram          // lives of the zombies that died or recovered
	ForecastError        Histogram          // absolute errors of the deaths that had a forecast
	Watched              int                // connections in trouble
	Overflowed           uint64             // connections, histories and recoveries that there was no room for
	Unseen               uint64             // deaths of connections in trouble that no program saw
}

// Stats returns the numbers at that time. They share no memory with the tracker.
func (t *Tracker) Stats(now time.Time) TrackerStats {
	s := TrackerStats{
		ZombiesByOwner: make(map[OwnerLabel]int),
		TroubleByOwner: make(map[OwnerLabel]int),
		PeerHostSilent: t.exposed(),
		ZombieSeconds:  t.zombieSeconds.clone(),
		ForecastError:  t.forecastError.clone(),
		Watched:        len(t.tracked),
		Overflowed:     t.overflowed,
		Unseen:         t.unseen,
	}
	for state := range States {
		for verdict, n := range t.counts[state] {
			s.Connections[state][verdict] = uint64(n)
		}
	}
	for _, tc := range t.tracked {
		label := tc.label
		label.RemotePort = servicePort(tc.conn.Rport)
		if tc.verdict.Alerts() && t.excluded.Match(label.Name) {
			label.Excluded = ExcludedOwner
			if k := tc.countKey(); s.Excluded[k.state][k.verdict] < s.Connections[k.state][k.verdict] {
				s.Excluded[k.state][k.verdict]++
			}
		}
		switch tc.verdict {
		case Zombie:
			oldest := &s.ZombieOldest
			if label.Excluded != "" {
				oldest = &s.ZombieOldestExcluded
			}
			*oldest = max(*oldest, now.Sub(tc.since))
			s.ZombiesByOwner[label]++
		case Stuck, Blocked, Unread:
			label.Verdict = tc.verdict.String()
			s.TroubleByOwner[label]++
		}
	}
	return s
}
