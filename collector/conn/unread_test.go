// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"testing"
	"time"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

// left returns the record of an idle connection, read that long after the start, whose
// application has left data for so long.
func left(cookie uint64, after, unread time.Duration) abi.Conn {
	c := conntest.Leave(conntest.Unguarded(), 11584, unread)
	c.Cookie = cookie
	return *stamp(c, after)
}

// read returns the record of the same connection after the application has read.
func read(cookie uint64, after time.Duration) *abi.Conn {
	c := conntest.Unguarded()
	c.Cookie = cookie
	return stamp(c, after)
}

// unreadCensus applies a census at that time, which found these connections and no other.
func (r *replay) unreadCensus(after time.Duration, connections ...abi.Conn) {
	r.census(&Census{Counts: census(5, 0, 0), Began: r.at(after), Troubled: seen(r.at(after), connections...)}, r.at(after+time.Millisecond))
}

func TestTrackerUnread(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *replay){
		"is found by a census, since the application stopped": func(t *testing.T, r *replay) {
			r.unreadCensus(0)
			r.unreadCensus(15*time.Second, left(1, 15*time.Second, 34*time.Second))
			r.expect("15s unguarded to unread")
			r.counted(map[Verdict]int64{Active: 5, Unread: 1})
			c := r.Describe(new(left(1, 16*time.Second, 35*time.Second)), r.at(16*time.Second))
			if c.Verdict != Unread || c.Evidence != EvidenceReceiveQueue || !c.Since.Equal(r.at(11*time.Second)) || c.ReceiveQueue != 11584 {
				t.Errorf("it is %v by %v since %v, with %d bytes", c.Verdict, c.Evidence, c.Since, c.ReceiveQueue)
			}
			if h := r.History(1); len(h) != 1 || h[0].From != Unguarded || h[0].To != Unread {
				t.Errorf("its history is %+v", h)
			}
		},
		"was unread before the agent began": func(t *testing.T, r *replay) {
			r.unreadCensus(0, left(1, 0, time.Hour))
			r.expect("0s unguarded to unread")
			if h := r.History(1); h != nil {
				t.Errorf("its history is %+v", h)
			}
		},
		"ends with a record of it": func(t *testing.T, r *replay) {
			r.unreadCensus(0, left(1, 0, time.Minute))
			if !r.FollowsUnread() {
				t.Error("it is not followed")
			}
			r.Apply(&Fact{Kind: FactWatch, At: r.at(15 * time.Second), Conn: read(1, 15*time.Second)})
			r.expect("0s unguarded to unread", "15s unread to unguarded")
			r.unreadCensus(15 * time.Second)
			r.counted(map[Verdict]int64{Active: 5})
			if len(r.tracked) != 0 || r.FollowsUnread() {
				t.Errorf("%d connections are followed", len(r.tracked))
			}
		},
		"is forgotten if it ends in order, and is no unknown death": func(t *testing.T, r *replay) {
			r.unreadCensus(0, left(1, 0, time.Minute))
			r.unreadCensus(time.Second)
			r.sweep(r.at(3 * time.Second))
			r.expect("0s unguarded to unread")
			r.counted(map[Verdict]int64{Active: 5})
			if len(r.tracked) != 0 || r.unseen != 0 || r.deaths.len != 0 {
				t.Errorf("%d followed, %d deaths unseen, %d remembered", len(r.tracked), r.unseen, r.deaths.len)
			}
		},
		"stays while the census did not walk its table, however long": func(t *testing.T, r *replay) {
			r.unreadCensus(0, left(1, 0, time.Minute))
			r.census(&Census{Counts: census(5, 0, 0), Began: r.at(time.Hour), Unwalked: []uint32{0}}, r.at(time.Hour))
			r.counted(map[Verdict]int64{Active: 5, Unread: 1})
		},
		"goes on when the trouble beside it ends": func(t *testing.T, r *replay) {
			r.unreadCensus(0)
			r.solicit(time.Second, conntest.Leave(conntest.Silent(abi.EvidenceKeepalive, 3, time.Minute), 1, time.Minute))
			c := conntest.Leave(conntest.With(func(*abi.Conn) {}), 1, 62*time.Second)
			r.watched(stamp(c, 3*time.Second), r.at(3*time.Second))
			r.expect("1s 3 unanswered", "1s active to zombie", "3s zombie to unread")
		},
		"is the last verdict of a connection that is reset": func(t *testing.T, r *replay) {
			r.unreadCensus(0, left(1, 0, time.Minute))
			c := conntest.Idle(func(c *abi.Conn) { c.Cookie = 1 })
			r.die(time.Second, CauseResetByPeer, c)
			r.expect("0s unguarded to unread", "1s died of reset_by_peer as unread")
			if d := r.lastDeath(); d.Evidence != EvidenceReceiveQueue {
				t.Errorf("its evidence is %v", d.Evidence)
			}
		},
		"is counted by owner, and its owner is wanted": func(t *testing.T, r *replay) {
			r.unreadCensus(0, left(1, 0, time.Minute))
			if wanted := r.NeedOwners(r.at(0), r.at(0)); len(wanted) != 1 {
				t.Errorf("the owners of %v are wanted", wanted)
			}
			r.setOwners(map[uint64]Ownership{1: {Process: &Process{PID: 812, Comm: "worker"}}}, r.at(time.Second))
			label := OwnerLabel{Name: "worker", RemotePort: "0", Verdict: "unread"}
			if s := r.Stats(r.at(2 * time.Second)); s.TroubleByOwner[label] != 1 {
				t.Errorf("by owner: %v", s.TroubleByOwner)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { test(t, newReplay(t)) })
	}
}

// However many there are, they leave room for connections in trouble, and are counted.
func TestUnreadConnectionsTakeHalfOfTheRoom(t *testing.T) {
	r := newReplay(t)
	all := make([]abi.Conn, maxTracked)
	for i := range all {
		all[i] = left(uint64(i+1), 0, time.Minute)
	}
	r.unreadCensus(0, all...)
	if len(r.tracked) != maxTracked/2 {
		t.Errorf("%d are followed, expected %d", len(r.tracked), maxTracked/2)
	}
	r.counted(map[Verdict]int64{Active: 5, Unread: maxTracked})
	zombie := conntest.KeepaliveZombie()
	zombie.Cookie = maxTracked + 1
	r.solicit(time.Second, zombie)
	if r.tracked[zombie.Cookie] == nil {
		t.Error("there is no room for a zombie")
	}
}

func TestOtherEnd(t *testing.T) {
	end := func(cookie uint64, lport, rport uint16, unread bool) abi.Conn {
		c := conntest.ClosedWindow(func(*abi.Conn) {})
		c.Cookie, c.Family, c.Lport, c.Rport = cookie, abi.FamilyInet, lport, rport
		copy(c.Laddr[:], []byte{10, 0, 0, byte(lport)})
		copy(c.Raddr[:], []byte{10, 0, 0, byte(rport)})
		if unread {
			conntest.Leave(c, 100, time.Minute)
		}
		return *c
	}
	stalled := end(1, 8, 9, false)
	for name, test := range map[string]struct {
		others []abi.Conn
		want   uint64 // its cookie, or 0
	}{
		"is unread":                               {[]abi.Conn{end(2, 9, 8, true)}, 2},
		"is not unread":                           {[]abi.Conn{end(2, 9, 8, false)}, 0},
		"has another port":                        {[]abi.Conn{end(2, 9, 7, true)}, 0},
		"looks like one in another namespace":     {[]abi.Conn{end(2, 9, 8, true), end(3, 9, 8, true)}, 0},
		"is not this one, between the same ports": {[]abi.Conn{end(2, 8, 9, true)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplay(t)
			r.unreadCensus(0, append(test.others, stalled)...)
			got := r.OtherEnd(new(r.Describe(&stalled, r.at(0))))
			if (got == nil) != (test.want == 0) || got != nil && (got.Cookie != test.want || got.ReceiveQueue != 100) {
				t.Errorf("the other end is %+v, want %x", got, test.want)
			}
		})
	}
}
