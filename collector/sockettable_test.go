// SPDX-License-Identifier: Apache-2.0

package collector

import "testing"

// A table has each socket once, also after it has grown beyond the number of sockets that
// it was made for.
func TestSocketTable(t *testing.T) {
	for _, expected := range []int{0, 100, 10_000} {
		table, err := newSocketTable(expected)
		if err != nil {
			t.Fatal(err)
		}
		const many = 5003
		cookie := func(i int) uint64 { return uint64(i+1) * 4096 } // the kernel gives them in runs
		for round := range 2 {
			for i := range many {
				e, err := table.add(cookie(i))
				if err != nil {
					t.Fatal(err)
				}
				if known := e.fd != 0; known != (round > 0) {
					t.Fatalf("room for %d, round %d: socket %d is known: %v", expected, round, i, known)
				}
				e.fd = uint32(i + 1)
			}
		}
		if table.used != many {
			t.Errorf("room for %d: %d entries of %d sockets", expected, table.used, many)
		}
		for i := range 2 * many {
			e := table.find(cookie(i))
			if want := i < many; (e.cookie != 0) != want || want && e.fd != uint32(i+1) {
				t.Fatalf("room for %d: socket %d has the entry %+v", expected, i, *e)
			}
		}
		table.free()
		table.free()
	}
}
