// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/internal/escape"
)

// OrderVerdict is the order of a list that has connections with the worst verdict first,
// and those with one verdict in any order.
const OrderVerdict = "verdict"

// Connections is the answer of /api/v1/connections. Total is how many there
// are, whatever the limit. Order is "" if the worst connections come first, and
// [OrderVerdict] if there are too many to sort (see [collector.Query.Sorted]).
type Connections struct {
	GeneratedAt time.Time    `json:"generated_at"`
	Total       int          `json:"total"`
	Order       string       `json:"order,omitempty"`
	Connections []Connection `json:"connections"`
}

// Groups is the answer of /api/v1/groups. Total is how many groups there are,
// whatever the limit.
type Groups struct {
	GeneratedAt time.Time `json:"generated_at"`
	Total       int       `json:"total"`
	Groups      []Group   `json:"groups"`
}

// Deaths is the answer of /api/v1/deaths. Total is how many are kept, whatever
// the limit.
type Deaths struct {
	GeneratedAt time.Time `json:"generated_at"`
	Total       int       `json:"total"`
	Deaths      []Death   `json:"deaths"`
}

// NoConnection is the beginning of the [Error] about a cookie that no connection has.
const NoConnection = "no living connection"

// Error is the answer of the API to a request that it cannot fulfil.
type Error struct {
	Error string `json:"error"`
}

// OrderOf returns the order of the answer of [collector.Collector.Connections] to a query that
// total connections match.
func OrderOf(q *collector.Query, total int) string {
	if q.Sorted(total) {
		return ""
	}
	return OrderVerdict
}

// WriteList writes the object of [Connections], [Groups] or [Deaths], an item a line and in a
// Write of its own. order is that of connections, else "". Items are encoded one by one: all of
// a large node's would be hundreds of MB. Names in them do nothing to a terminal, see
// [escape.JSON].
func WriteList[In, Out any](w io.Writer, name string, total int, order string, items iter.Seq2[*In, error], encode func(*In) Out) error {
	head := fmt.Sprintf("{\"generated_at\":%q,\"total\":%d,", time.Now().UTC().Format(time.RFC3339Nano), total)
	if order != "" {
		head += fmt.Sprintf("\"order\":%q,", order)
	}
	if _, err := fmt.Fprintf(w, "%s%q:[\n", head, name); err != nil {
		return err
	}
	enc, between := json.NewEncoder(escape.Writer{W: w}), ""
	var out Out // one for all: Encode makes it escape
	for item, err := range items {
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, between); err != nil {
			return err
		}
		out = encode(item)
		if err := enc.Encode(&out); err != nil {
			return err
		}
		between = ","
	}
	_, err := io.WriteString(w, "]}\n")
	return err
}

// Values ranges over items for [WriteList].
func Values[T any](items []T) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		for i := range items {
			if !yield(&items[i], nil) {
				return
			}
		}
	}
}
