// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/halfopen/halfopen/collector/conn"
)

func counterValue(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func clientAt(address string) lookupClient {
	return lookupClient{address: clientOf(address + ":1")}
}

// lookupOf returns a look-up that takes so much CPU time, as far as its share knows.
func lookupOf(g *lookupGroup, key string, cpu time.Duration, run func()) *lookup {
	return &lookup{key: key, run: func(l *lookup) {
		run()
		g.charge(l, cpu)
		l.answer = &answer{status: http.StatusOK}
		g.end(l)
		close(l.ready)
	}}
}

// take has a look-up at once.
func take(t *testing.T, g *lookupGroup, client lookupClient, cpu time.Duration) {
	t.Helper()
	if l, refused, _ := g.join(t.Context(), client, lookupOf(g, "", cpu, func() {})); l == nil {
		t.Fatalf("%v is refused: %v", client, refused)
	}
}

func TestLookupsTakeTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lookups := NewLookups(0.25)
		g := &lookups.tcp
		const cpu = 40 * time.Millisecond
		var done atomic.Int64
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var clients sync.WaitGroup
		for i := range 20 {
			clients.Go(func() {
				for ctx.Err() == nil {
					_, refused, wait := g.join(ctx, clientAt("10.0.0."+strconv.Itoa(i)), lookupOf(g, "", cpu, func() { time.Sleep(cpu); done.Add(1) }))
					if refused != nil {
						time.Sleep(wait)
					}
				}
			})
		}
		clients.Wait()
		time.Sleep(time.Second) // for what runs yet
		got, want := time.Duration(done.Load())*cpu, time.Minute/4+g.most()
		if got < want-time.Second || got > want+time.Second {
			t.Errorf("look-ups took %v in a minute, want %v", got, want)
		}
		if total := counterValue(t, lookups.metrics.cpu); math.Abs(total-got.Seconds()) > 1e-3 {
			t.Errorf("the metric has %v s, want %v", total, got)
		}
	})
}

func TestLookupsOfOneClientLeaveOthersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lookups := NewLookups(0.25)
		g, greedy, modest := &lookups.tcp, clientAt("10.0.0.1"), clientAt("10.0.0.2")
		take(t, g, greedy, 3300*time.Millisecond)
		began := time.Now()
		for _, tt := range []struct {
			client lookupClient
			status int
			wait   time.Duration
		}{
			{greedy, http.StatusTooManyRequests, 16*time.Second + 401*time.Millisecond},
			{modest, 0, 0},
		} {
			l, refused, wait := g.join(t.Context(), tt.client, lookupOf(g, "", 0, func() {}))
			switch {
			case tt.status == 0 && l == nil:
				t.Errorf("%v is refused: %v", tt.client, refused)
			case tt.status != 0 && (refused == nil || refused.status != tt.status || wait != tt.wait):
				t.Errorf("%v is refused with %v for %v", tt.client, refused, wait)
			}
		}
		if waited := time.Since(began); waited != 3201*time.Millisecond { // for what the greedy one took beyond
			t.Errorf("it waited for %v", waited)
		}
		take(t, g, modest, 5*time.Second)
		if _, refused, wait := g.join(t.Context(), clientAt("10.0.0.3"), lookupOf(g, "", 0, func() {})); refused != lookupsBusy || wait < 10*time.Second {
			t.Errorf("another client is refused with %v for %v", refused, wait)
		}
		take(t, &lookups.unix, lookupClient{user: 0}, time.Second) // which has a share of its own
		time.Sleep(time.Minute)
		take(t, g, greedy, 0)
		if n := len(g.clients); n != 0 {
			t.Errorf("%d clients are remembered that have used nothing lately", n)
		}
	})
}

func TestEqualRequestsShareALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lookups := NewLookups(0.25)
		g := &lookups.tcp
		began := 0
		proceed := make(chan struct{})
		run := func() { began++; <-proceed }
		got := make(chan *lookup, 9)
		ask := func(client lookupClient) {
			l, _, _ := g.join(t.Context(), client, lookupOf(g, "/connections", time.Millisecond, run))
			got <- l
		}
		go ask(clientAt("10.0.0.1"))
		synctest.Wait()
		for i := range 5 { // these come after the first has begun to look
			go ask(clientAt("10.0.1." + strconv.Itoa(i)))
		}
		synctest.Wait()
		if began != 1 {
			t.Fatalf("%d look-ups have begun", began)
		}
		close(proceed)
		answers := make(map[*answer]int)
		for range 6 {
			answers[(<-got).answer]++
		}
		if began != 2 || len(answers) != 2 {
			t.Errorf("%d look-ups, %d answers, want 2", began, len(answers))
		}
	})
}

func TestALookupEndsWithItsLastRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &NewLookups(0.25).tcp
		proceed := make(chan struct{})
		var first context.Context
		ctx, cancel := context.WithCancel(t.Context())
		go g.join(ctx, clientAt("10.0.0.1"), &lookup{run: func(l *lookup) {
			first = l.ctx
			<-proceed
			g.end(l)
		}})
		synctest.Wait()
		for range 2 { // wait for it
			go g.join(ctx, clientAt("10.0.0.1"), lookupOf(g, "equal", 0, func() { t.Error("it looks for clients that have left") }))
		}
		synctest.Wait()
		if len(g.waiting) != 1 || len(g.requests) != 2 {
			t.Errorf("%d look-ups wait for %d requests, want 1 for 2", len(g.waiting), len(g.requests))
		}
		cancel()
		synctest.Wait()
		if first.Err() == nil {
			t.Error("the look-up that runs goes on for a client that has left")
		}
		if len(g.waiting) != 0 || len(g.requests) != 0 || len(g.shared) != 0 {
			t.Errorf("%v, %v, %v are left", g.waiting, g.requests, g.shared)
		}
		close(proceed)
	})
}

func TestTheTurnIsOfTheClientWithMostTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &NewLookups(0.25).tcp
		take(t, g, clientAt("10.0.0.1"), 500*time.Millisecond)
		take(t, g, clientAt("10.0.0.2"), 200*time.Millisecond)
		proceed := make(chan struct{})
		go g.join(t.Context(), clientAt("10.0.0.9"), lookupOf(g, "", 0, func() { <-proceed }))
		synctest.Wait()
		var order []string
		for _, client := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
			go g.join(t.Context(), clientAt(client), lookupOf(g, "", 0, func() { order = append(order, client) }))
			synctest.Wait()
		}
		close(proceed)
		synctest.Wait()
		if got := strings.Join(order, " "); got != "10.0.0.3 10.0.0.2 10.0.0.1" {
			t.Errorf("the order is %s", got)
		}
	})
}

func TestFewRequestsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &NewLookups(0.25).tcp
		proceed := make(chan struct{})
		defer close(proceed)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		refused := make(map[lookupClient][]*refusal)
		ask := func(client lookupClient, key string) {
			_, why, _ := g.join(ctx, client, lookupOf(g, key, 0, func() { <-proceed }))
			mu.Lock()
			defer mu.Unlock()
			if why != nil {
				refused[client] = append(refused[client], why)
			}
		}
		go ask(clientAt("10.0.0.9"), "") // runs
		synctest.Wait()
		for i := range 5 {
			for range maxClientWaiting + 1 {
				go ask(clientAt("10.0.0."+strconv.Itoa(i)), strconv.Itoa(i))
				synctest.Wait()
			}
		}
		waiting := func() int {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.requests)
		}
		if n := waiting(); n != maxWaiting {
			t.Errorf("%d requests wait", n)
		}
		mu.Lock()
		sum := 0
		for i := range 4 {
			for _, why := range refused[clientAt("10.0.0."+strconv.Itoa(i))] {
				sum++
				if why != lookupsOfClient {
					t.Errorf("refused: %v", why.err)
				}
			}
		}
		// One more than it may have of each, and what the fifth client got instead.
		last := refused[clientAt("10.0.0.4")]
		if sum+len(last) != 4+maxClientWaiting+1 || len(last) == 0 || last[0] != lookupsBusy {
			t.Errorf("%d were refused, and of the last client %v", sum, last)
		}
		mu.Unlock()
		begun := time.Now()
		for waiting() > 0 && time.Since(begun) < time.Minute {
			time.Sleep(time.Second)
		}
		if took := time.Since(begun); took > maxLookupWait+time.Second {
			t.Errorf("the last waited for %v", took)
		}
	})
}

func TestRefusalSaysWhenToAskAgain(t *testing.T) {
	src := &fakeSource{}
	lookups := NewLookups(0.25)
	logger := newDiscardLogger()
	h := NewHandler(src, NewLive(src, logger), lookups, logger)
	r := httptest.NewRequest("GET", "/", nil)
	_, client := lookups.of(r)
	lookups.tcp.charge(&lookup{payer: client}, 6*time.Second)
	for _, path := range []string{"/api/v1/connections", "/api/v1/connections?limit=5000", "/api/v1/connections/1a", "/api/v1/groups?by=owner", "/api/v1/deaths"} {
		w := request(t, h, "GET", path)
		wantError(t, w, http.StatusTooManyRequests)
		if after, err := strconv.Atoi(w.Header().Get("Retry-After")); err != nil || after < 30 || after > 39 {
			t.Errorf("%s: Retry-After is %q", path, w.Header().Get("Retry-After"))
		}
	}
	for _, path := range []string{"/metrics", "/-/healthy", "/-/ready", "/", "/web/main.js", "/api/v1/status"} {
		if w := request(t, h, "GET", path); w.Code != http.StatusOK {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	if n := counterValue(t, lookups.metrics.refused.WithLabelValues("client")); n != 5 {
		t.Errorf("the metric has %v", n)
	}
	if w := request(t, h, "GET", "/api/v1/connections?nothing"); w.Code != http.StatusBadRequest {
		t.Errorf("a wrong query: status %d", w.Code)
	}
}

// panicking is a source that cannot be asked for deaths.
type panicking struct{ fakeSource }

func (*panicking) Deaths([]conn.Cause, int) (int, []conn.Death) { panic("no deaths") }

func TestAPanicIsAnError(t *testing.T) {
	h := newHandler(t, &panicking{})
	wantError(t, request(t, h, "GET", "/api/v1/deaths"), http.StatusInternalServerError)
}

// slowClient reads nothing, until its deadline.
type slowClient struct {
	http.ResponseWriter
	deadline chan struct{}
	once     sync.Once
}

func newSlowClient() *slowClient {
	return &slowClient{ResponseWriter: httptest.NewRecorder(), deadline: make(chan struct{})}
}

func (s *slowClient) Write([]byte) (int, error) {
	<-s.deadline
	return 0, os.ErrDeadlineExceeded
}

func (s *slowClient) SetWriteDeadline(at time.Time) error {
	if at.Before(time.Now()) {
		s.once.Do(func() { close(s.deadline) })
	}
	return nil
}

func TestALargeAnswerThatIsNotReadGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lookups := NewLookups(0.25)
		g := &lookups.tcp
		slow := newAnswerWriter(newSlowClient())
		join := func(out *answerWriter) *lookup {
			l, _, _ := g.join(t.Context(), clientAt("10.0.0.1"), &lookup{lane: laneLarge, out: out, run: func(l *lookup) { close(l.ready) }})
			return l
		}
		go func() {
			l := join(slow)
			if _, err := io.Copy(slow, strings.NewReader("a long answer")); err == nil {
				t.Error("it was written")
			}
			g.end(l)
		}()
		synctest.Wait()
		time.Sleep(30 * time.Second)
		if slow.wasCut() {
			t.Error("it was cut off for nobody")
		}
		if l := join(newAnswerWriter(httptest.NewRecorder())); l == nil || !slow.wasCut() {
			t.Error("the next one was not served")
		}
	})
}

func TestALargeAnswerThatIsReadSlowlyGivesWayToOthers(t *testing.T) {
	for _, another := range []bool{false, true} {
		w := newAnswerWriter(httptest.NewRecorder())
		w.blocked = slowWrites
		if w.giveWay(another); w.wasCut() != another {
			t.Errorf("cut off for another client: %v, want %v", w.wasCut(), another)
		}
	}
}

func TestAnswersThatWaitAreBounded(t *testing.T) {
	p := answers{written: make(map[*answer]bool)}
	add := func(address string, size int, moved int) (*answer, *answerWriter) {
		a := &answer{body: make([]byte, size), client: lookupClient{address: netip.MustParsePrefix(address)}}
		w := newAnswerWriter(newSlowClient())
		w.moved = noon.Add(time.Duration(moved) * time.Second)
		p.add(a, w)
		return a, w
	}
	const part = maxAnswerBytes / 4
	_, one := add("10.0.0.1/32", part, 1)
	slowAnswer, slow := add("10.0.0.2/32", part, 2)
	fastAnswer, fast := add("10.0.0.2/32", part, 3)
	shared := newAnswerWriter(newSlowClient())
	shared.moved = slow.moved
	p.add(slowAnswer, shared)
	add("10.0.0.3/32", 2*part, 4)
	if one.wasCut() || !slow.wasCut() || !shared.wasCut() || fast.wasCut() || p.bytes != 4*part {
		t.Errorf("cut off: %v, %v, %v, %v; %d bytes are left", one.wasCut(), slow.wasCut(), shared.wasCut(), fast.wasCut(), p.bytes)
	}
	p.remove(slowAnswer, slow)
	p.remove(slowAnswer, shared)
	p.remove(fastAnswer, fast)
	if p.bytes != 3*part {
		t.Errorf("%d bytes are left", p.bytes)
	}
	huge, w := add("10.0.0.4/32", 9*part, 5)
	if w.wasCut() || p.bytes != 9*part {
		t.Errorf("cut off: %v, %d bytes", w.wasCut(), p.bytes)
	}
	p.remove(huge, w)
	if p.bytes != 0 || len(p.written) != 0 {
		t.Errorf("%d bytes are left", p.bytes)
	}
}
