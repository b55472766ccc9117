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

// Notice is what subscribers are told, as it happens.
type Notice struct {
	Kind       NoticeKind
	At         time.Time
	Connection Connection // as it is; its Evidence is that of the solicitation
	From       Verdict    // NoticeVerdict: the verdict before
	First      bool       // NoticeVerdict: it was so already when first seen; From means nothing
	Death      *Death     // NoticeDeath
}

// WithOwner returns the notice with that owner, unless it has a process already. The
// original and its Death stay as they are.
func (n Notice) WithOwner(o Ownership) Notice {
	n.Connection.setOwner(o)
	if n.Death != nil {
		death := *n.Death
		death.setOwner(o)
		n.Death = &death
	}
	return n
}
