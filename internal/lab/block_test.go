// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"strings"
	"testing"
)

// What a namespace blocks never leaves, and its TCP knows it: it probes with what it has not
// sent, and retransmits nothing.
func TestBlock(t *testing.T) {
	l := newLab(t)
	for name, block := range map[string]func() (func() error, error){
		"at the output hook": func() (func() error, error) { return l.Client.BlockOutput(5432) },
		"in the queue":       l.Client.BlockQueue,
		"at the egress":      l.Client.BlockEgress,
	} {
		t.Run(name, func(t *testing.T) {
			families(t, l, func(t *testing.T, server netip.Addr) {
				client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
				send(t, client, "before")
				receive(t, accepted, "before")
				remove, err := block()
				if err != nil {
					t.Fatal(err)
				}
				send(t, client, "question")
				receiveNothing(t, accepted)
				out, err := l.Client.Output("ss", "-Htno", "state", "established", "dport = :5432")
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(string(out), "timer:(persist") {
					t.Errorf("ss says %q", out)
				}
				if err := remove(); err != nil {
					t.Fatal(err)
				}
				receive(t, accepted, "question")
			})
		})
	}
}
