// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// NoticeKind is the kind of a [Notice].
type NoticeKind uint8

// The kinds of notices.
const (
	NoticeSolicitation NoticeKind = iota
	NoticeVerdict
	NoticeDeath
)

// Notice is a change that subscribers receive as it happens.
type Notice struct {
	Kind       NoticeKind
	At         time.Time
	Connection Connection // after the change; of NoticeSolicitation, Evidence is what was sent
	From       Verdict    // NoticeVerdict: the verdict before
	Initial    bool       // NoticeVerdict: the trouble began before it was first seen; From means nothing
	Death      *Death     // NoticeDeath
}

// WithOwner returns a copy of the notice, and of its Death, that has the owner where n
// has none. It does not change n.
func (n Notice) WithOwner(o Ownership) Notice {
	n.Connection.setOwner(o)
	if n.Death != nil {
		death := *n.Death
		death.setOwner(o)
		n.Death = &death
	}
	return n
}
