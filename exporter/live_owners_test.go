// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
)

// Who asks for owners is sent the notices of the subscription that waits for them, and
// who does not is sent the others.
func TestStreamWithOwners(t *testing.T) {
	src := &fakeSource{stats: fullStats(), notices: make(chan conn.Notice, 10), owned: make(chan conn.Notice, 10)}
	server := broadcast(t.Context(), t, src, nil)
	usual, owned := listen(t, server, "?event=verdict"), listen(t, server, "?event=verdict&owners=true")
	without := contractConnection()
	without.Process = nil
	src.notices <- verdictNotice(without)
	src.owned <- verdictNotice(contractConnection())
	for name, events := range map[string]<-chan sse{"usual": usual, "owned": owned} {
		var n api.Notice
		if err := json.Unmarshal([]byte(next(t, events, "verdict")), &n); err != nil {
			t.Fatal(err)
		}
		if hasOwner := n.Connection.Process != nil; hasOwner != (name == "owned") {
			t.Errorf("%s: %+v", name, n.Connection.Ownership)
		}
		select {
		case e := <-events:
			if e.name == "verdict" {
				t.Errorf("%s: a second verdict", name)
			}
		default:
		}
	}
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
