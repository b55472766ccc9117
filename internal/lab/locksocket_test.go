// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"testing"
	"time"
)

// A socket that is in use acknowledges nothing: what arrives waits for its user.
func TestLockSocket(t *testing.T) {
	l := newLab(t)
	families(t, l, func(t *testing.T, server netip.Addr) {
		client, accepted := connect(t, l, netip.AddrPortFrom(server, 5432))
		inFlight := func() uint32 {
			info, err := Info(accepted)
			if err != nil {
				t.Fatal(err)
			}
			return info.Unacked
		}
		release, err := LockSocket(client)
		if err != nil {
			t.Fatal(err)
		}
		send(t, accepted, "anybody there?")
		for begin := time.Now(); time.Since(begin) < silence; time.Sleep(10 * time.Millisecond) {
			if inFlight() == 0 {
				t.Fatal("somebody has acknowledged it")
			}
		}
		for range 2 {
			if err := release(); err != nil {
				t.Fatal(err)
			}
		}
		receive(t, client, "anybody there?")
		receive(t, accepted, "\x00") // what the holder wrote
		eventually(t, "acknowledged", func() bool { return inFlight() == 0 })
	})
}

func TestLockSocketOfAClosedSocket(t *testing.T) {
	l := newLab(t)
	client, _ := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	client.Close()
	if _, err := LockSocket(client); err == nil {
		t.Error("a closed socket was held")
	}
}
