// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/ask"
)

func TestOutcomes(t *testing.T) {
	for want, a := range map[string]ask.Answer{
		"answered in 0.05 ms": {Result: ask.Answered, Probes: 1, RoundTrip: 50 * time.Microsecond},
		"answered in 0.4 ms":  {Result: ask.Answered, Probes: 1, RoundTrip: 403 * time.Microsecond},
		"answered in 9.5 ms":  {Result: ask.Answered, Probes: 1, RoundTrip: 9520 * time.Microsecond},
		"answered in 84 ms":   {Result: ask.Answered, Probes: 2, RoundTrip: 84 * time.Millisecond},
		"answered in 1.2 s":   {Result: ask.Answered, Probes: 1, RoundTrip: 1234 * time.Millisecond},
		"answered: it was heard, though not in answer to a probe": {Result: ask.Answered, Probes: 1},
		"silent: 3 probes in 10 s":                                {Result: ask.Silent, Probes: 3},
		"silent: 1 probe in 10 s":                                 {Result: ask.Silent, Probes: 1},
		"reset: the peer no longer knows it":                      {Result: ask.Reset, Probes: 1},
		`not asked: its process \x1b has closed it`:               {Result: ask.NotAsked, Why: "its process \x1b has closed it"},
	} {
		if got := outcome(&a, false); got != want {
			t.Errorf("%q, expected %q", got, want)
		}
	}
}

// pathed is a finder in which some connections have an obstacle.
type pathed struct {
	finder
	looks int
}

func (p *pathed) obstacle(_ context.Context, c *api.Connection) string {
	p.looks++
	if c.Remote.IP == "10.0.0.9" {
		return "There is no route to 10.0.0.9 (unicast, ENETUNREACH)."
	}
	return ""
}

func connectionTo(remote string, port uint16) api.Connection {
	return api.Connection{Cookie: "1a2b", Local: api.Endpoint{IP: "10.0.0.1", Port: port}, Remote: api.Endpoint{IP: remote, Port: 5432}, Netns: 7}
}

// One look at a path is enough for all connections with these ends.
func TestSilenceOfAHostThatCannotSend(t *testing.T) {
	look := new(pathed)
	r := &probing{look: look, obstacles: make(map[string]string)}
	for port := range uint16(5) {
		for remote, want := range map[string]ask.Answer{
			"10.0.0.9": {Result: ask.NotAsked, Probes: 3, Why: "nothing leaves this host: there is no route to 10.0.0.9 (unicast, ENETUNREACH)"},
			"10.0.0.8": {Result: ask.Silent, Probes: 3},
		} {
			c, a := connectionTo(remote, port+1), ask.Answer{Result: ask.Silent, Probes: 3}
			if r.excuse(t.Context(), &c, &a); a != want {
				t.Errorf("%+v, expected %+v", a, want)
			}
		}
	}
	if look.looks != 2 {
		t.Errorf("%d looks, expected 2", look.looks)
	}
}

func TestProbePrintsJSON(t *testing.T) {
	var stdout, stderr bytes.Buffer
	r := &probing{p: &probe{output: "json"}, stdout: &stdout, stderr: &stderr, total: 3, results: make(map[string]int), connections: make([]api.Connection, 3)}
	c := connectionTo("10.0.0.2", 37024)
	for _, a := range []ask.Answer{
		{Result: ask.Answered, Probes: 1, RoundTrip: 400 * time.Microsecond},
		{Result: ask.Silent, Probes: 3},
		{Result: ask.NotAsked, Why: "it has ended"},
	} {
		if err := r.print(&c, &a); err != nil {
			t.Fatal(err)
		}
	}
	const ends = `{"cookie":"1a2b","local":{"ip":"10.0.0.1","port":37024},"remote":{"ip":"10.0.0.2","port":5432},"netns":7,`
	want := ends + `"result":"answered","probes":1,"round_trip_seconds":0.0004,"why":null}` + "\n" +
		ends + `"result":"silent","probes":3,"round_trip_seconds":null,"why":null}` + "\n" +
		ends + `"result":"not_asked","probes":0,"round_trip_seconds":null,"why":"it has ended"}` + "\n"
	if stdout.String() != want {
		t.Errorf("%s, expected %s", &stdout, want)
	}
	if err := r.summary(true); !errors.Is(err, errNotAnswered) || stderr.String() != "3 connections: 1 answered, 1 silent, 1 not asked\n" {
		t.Errorf("%v: %s", err, &stderr)
	}
}

func TestSummaryBeyondTheLimit(t *testing.T) {
	var stderr bytes.Buffer
	r := &probing{p: new(probe), stderr: &stderr, total: 9, done: 2, results: map[string]int{ask.Answered: 2}, connections: make([]api.Connection, 2)}
	if err := r.summary(true); !errors.Is(err, errNotAnswered) || stderr.String() != "2 of 9 connections: 2 answered; the others are beyond --limit\n" {
		t.Errorf("%v: %s", err, &stderr)
	}
	r.total = 2
	if err := r.summary(true); err != nil {
		t.Error(err)
	}
}

// All reasons for which no descriptor holds a connection.
func TestWhoHoldsNothing(t *testing.T) {
	no, uid := false, uint32(1000)
	for want, o := range map[string]api.Ownership{
		"":                                      {Process: &api.Process{PID: 1}},
		"its application has not accepted it":   {Accepted: &no},
		"its application has closed it":         {},
		"no process holds it by a descriptor t": {UID: &uid},
	} {
		c := api.Connection{Ownership: o}
		if got := notHeld(&c); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("%q, expected %q", got, want)
		}
	}
}

// found is a finder of named connections.
type found struct {
	finder
	all []api.Connection
}

func (f *found) withPort(context.Context, uint16) ([]api.Connection, error) {
	return f.all, nil
}

func (f *found) detail(_ context.Context, cookie string) ([]byte, error) {
	for _, c := range f.all {
		if c.Cookie == cookie {
			return json.Marshal(api.ConnectionDetail{Connection: c})
		}
	}
	return nil, nil
}

func TestProbeFindsNamedConnections(t *testing.T) {
	one, two := connectionTo("10.0.0.2", 37024), connectionTo("10.0.0.2", 37025)
	two.Cookie = "3c4d"
	look := &found{all: []api.Connection{one, two}}
	find := func(names ...string) (cookies []string, err error) {
		p := &probe{selection: selection{Query: collector.Query{Limit: 1000}}}
		for _, name := range names {
			target, err := parseTarget(name)
			if err != nil {
				return nil, err
			}
			p.targets = append(p.targets, target)
		}
		_, connections, err := p.find(t.Context(), look)
		for _, c := range connections {
			cookies = append(cookies, c.Cookie)
		}
		return cookies, err
	}
	if got, err := find("sk:1a2b", "10.0.0.1:37025", ":37024"); err != nil || !slices.Equal(got, []string{"1a2b", "3c4d"}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, want := range map[string]string{"5": "no connection has the cookie 5", ":5": "no connection has the local port 5"} {
		if _, err := find("1a2b", name); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	hold, missing, err := finderOf(&found{all: []api.Connection{{Cookie: "1", Ownership: api.Ownership{Process: &api.Process{PID: 5, FD: 6}}}, {Cookie: "2"}}})(t.Context(), []uint64{1, 2, 77})
	if err != nil || !slices.Equal(hold, []ask.Target{{Cookie: 1, PID: 5, FD: 6}}) || !slices.Equal(missing, []uint64{77}) {
		t.Errorf("%v, %v, %v", hold, missing, err)
	}
}

// The descriptors of another machine are not ours.
func TestProbeAsksFromThisMachine(t *testing.T) {
	for url, want := range map[string]bool{
		"none": true, "unix:///run/other.sock": true, "http://127.0.0.1:9839": true, "https://[::1]:9839": true, "http://localhost:9839": true,
		"http://10.0.0.1:9839": false, "https://node7:9839": false,
	} {
		p, err := parsePlace(url)
		if err != nil {
			t.Fatal(err)
		}
		if p.here() != want {
			t.Errorf("%s: %v", url, !want)
		}
	}
	var stderr bytes.Buffer
	if status := run(t.Context(), []string{"probe", "--url=http://10.0.0.1:9839", "1a2b"}, &stderr, &stderr); status != exitUsage {
		t.Errorf("exit status %d: %s", status, &stderr)
	}
}

func TestRecoveryIsTold(t *testing.T) {
	if got := recovery(0, 0); got != nil {
		t.Error(got)
	}
	if got := recovery(1, 2); len(got) != 2 || !strings.HasPrefix(got[0], "put back the settings of 1 connection,") || !strings.HasPrefix(got[1], "2 connections: ") {
		t.Error(got)
	}
}
