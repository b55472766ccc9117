// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"testing"
	"time"
)

// While LockSocket holds the lock of a socket, the kernel acknowledges no data that arrives
// for it.
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
				t.Fatal("the kernel acknowledged data while the socket was locked")
			}
		}
		for range 2 { // a second call has no effect
			if err := release(); err != nil {
				t.Fatal(err)
			}
		}
		receive(t, client, "anybody there?")
		receive(t, accepted, "\x00") // the byte that LockSocket writes
		eventually(t, "the data is acknowledged", func() bool { return inFlight() == 0 })
	})
}

func TestLockSocketRefusesAClosedSocket(t *testing.T) {
	l := newLab(t)
	client, _ := connect(t, l, netip.AddrPortFrom(l.Server.Addr4(), 5432))
	client.Close()
	if _, err := LockSocket(client); err == nil {
		t.Error("LockSocket returned no error for a closed socket")
	}
}
