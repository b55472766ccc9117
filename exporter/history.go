// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// A sample is the counts at one time.
type sample struct {
	at       time.Time
	verdicts [conn.Verdicts]uint64
	risks    uint64
	deaths   [conn.Causes]uint64 // since the agent started
}

// summarise sends the counts if they have changed, or if they were sent long ago.
func (l *Live) summarise(now time.Time) {
	stats, err := l.src.Stats()
	if err != nil {
		l.logger.Error("Counts were not read for the live page", "err", err)
		return
	}
	counted := sampleOf(&stats, now)
	s := api.StreamSummary{Summary: newSummary(l.src, &stats, l.node), Missed: l.missed()}
	s.DeathsSince = now.UTC()
	var before sample
	if len(l.past) > 0 {
		before = l.past[0]
		s.DeathsSince = before.at.UTC()
	} else {
		before.deaths = counted.deaths
	}
	for c, n := range counted.deaths {
		s.Deaths[conn.Cause(c).String()] = n - before.deaths[c]
	}
	data, err := json.Marshal(&s)
	if err != nil {
		l.logger.Error("Counts were not encoded", "err", err)
		return
	}
	if bytes.Equal(data, l.summary) && now.Sub(l.sentAt) < summaryLatest {
		return
	}
	l.summary, l.sentAt = data, now
	var f frame
	f.add(kindSummary, withTime(data, now))
	l.send(&f)
}

// missed returns how many notices did not fit the buffers.
func (l *Live) missed() uint64 {
	n := l.missedBefore
	for _, s := range []*collector.Subscription{l.notices, l.owned} {
		if s != nil {
			n += s.Dropped()
		}
	}
	return n
}

// withTime adds the time as "at" to a JSON object that is not empty.
func withTime(object []byte, at time.Time) []byte {
	if len(object) == 0 {
		return []byte("{}") // the counts could not be read
	}
	return fmt.Appendf(nil, `{"at":%q,%s`, at.UTC().Format(time.RFC3339Nano), object[1:])
}

func sampleOf(stats *collector.Stats, at time.Time) sample {
	m := sample{at: at}
	copy(m.deaths[:], stats.Kernel.Deaths[:])
	for _, verdicts := range stats.Connections {
		for v, n := range verdicts {
			m.verdicts[v] += n
		}
	}
	for _, n := range stats.AtRisk {
		m.risks += n
	}
	return m
}

// remember adds the counts to the history, and sends the history.
func (l *Live) remember(now time.Time) {
	stats, err := l.src.Stats()
	if err != nil {
		l.logger.Error("Counts were not read for the live page", "err", err)
		return
	}
	for len(l.past) > 0 && now.Sub(l.past[0].at) > historySpan {
		l.past = slices.Delete(l.past, 0, 1)
	}
	l.past = append(l.past, sampleOf(&stats, now))
	if l.wanted&(1<<kindHistory) != 0 {
		var f frame
		f.add(kindHistory, l.history())
		l.send(&f)
	}
}

func (l *Live) history() []byte {
	var h api.History
	for i := range l.past {
		m := &l.past[i]
		var deaths uint64
		if i > 0 {
			for c := range m.deaths {
				if !conn.Cause(c).IsOrderly() {
					deaths += m.deaths[c] - l.past[i-1].deaths[c]
				}
			}
		}
		h.At = append(h.At, m.at.Unix())
		h.Zombie = append(h.Zombie, m.verdicts[conn.Zombie])
		h.Stuck = append(h.Stuck, m.verdicts[conn.Stuck])
		h.Blocked = append(h.Blocked, m.verdicts[conn.Blocked])
		h.Suspect = append(h.Suspect, m.verdicts[conn.Suspect])
		h.Stalled = append(h.Stalled, m.verdicts[conn.Stalled])
		h.Unread = append(h.Unread, m.verdicts[conn.Unread])
		h.Unguarded = append(h.Unguarded, m.verdicts[conn.Unguarded])
		h.AtRisk = append(h.AtRisk, m.risks)
		h.Deaths = append(h.Deaths, deaths)
	}
	data, err := json.Marshal(&h)
	if err != nil {
		l.logger.Error("History was not encoded", "err", err)
		return []byte("{}")
	}
	return data
}
