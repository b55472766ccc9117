// SPDX-License-Identifier: Apache-2.0

package conn

// verdictMeanings, riskMeanings and causeMeanings are the texts of the live page, the README
// and the metrics reference. A flag in brackets sets how long or how many.
var (
	verdictMeanings = [Verdicts]string{
		Active:    "The connection was made, or data moved, lately (--idle-after), and nothing is overdue.",
		Idle:      "No data has moved for long (--idle-after), but keepalive is on, so that the kernel will notice a dead peer; or the peer is in the same network namespace, where it cannot vanish unnoticed.",
		Unguarded: "No data has moved for long (--idle-after), and keepalive is off: a dead peer is not noticed until the application sends.",
		Unread:    "Data has arrived that this host's application has left in the receive queue for long (--unread-after): the application does not read.",
		Stalled:   "The peer answers, but its receive window has been closed for long (--stalled-after).",
		Suspect:   "A probe or a retransmission is unanswered, or was not sent, which is not enough for a zombie.",
		Blocked:   "This host fails to send: several probes or retransmissions in a row (--zombie-unanswered), for long (--zombie-silence), never left it. That says nothing about the peer.",
		Stuck:     "Several probes or retransmissions in a row (--zombie-unanswered) are not acknowledged, for long (--zombie-silence), although something comes from the peer: the way loses them, or its kernel does not accept them.",
		Zombie:    "Several probes or retransmissions in a row are unanswered (--zombie-unanswered), and nothing at all has come from the peer for long (--zombie-silence): it is most likely gone.",
	}
	riskMeanings = [Risks]string{
		RiskNoKeepalive:                  "The connection is established, its peer is not in the same network namespace, and keepalive is off: while nothing is sent, a dead peer is not noticed.",
		RiskKeepaliveSlowerThanMiddlebox: "The first keepalive probe may come later than a NAT or load balancer remembers the connection (--middlebox-timeout). The kernel's timers are late by up to an eighth of their time.",
		RiskUserTimeoutOverridesKeepcnt:  "TCP_USER_TIMEOUT is set, so the number of keepalive probes has no effect.",
		RiskKeepaliveMaskedByUnackedData: "Keepalive is on, but waits while data is in flight or queued.",
		RiskCloseWaitLeak:                "The peer closed the connection long ago (--idle-after), the application has not, and no data has moved since.",
		RiskHalfClosedUnguarded:          "The application has shut its side down and waits for the peer to close the other, with keepalive off: a dead peer is never noticed.",
		RiskOneProbeEndsIt:               "TCP_USER_TIMEOUT is not longer than the keepalive time and interval together, so a single lost probe ends a healthy connection.",
		RiskAcceptQueueFull:              "A listener: more connections wait to be accepted than its accept queue has room for, so its kernel drops new ones.",
		RiskPeerHostSilent:               "The connection is idle or unguarded, another to the same address is a zombie, and nothing was heard from that address since.",
	}
	causeMeanings = [Causes]string{
		CauseUnknown:            "None of the other causes could be shown.",
		CauseKeepaliveTimeout:   "The peer answered none of the keepalive probes that the kernel sends before it gives up.",
		CauseUserTimeout:        "TCP_USER_TIMEOUT passed without an answer from the peer.",
		CauseRetransmitTimeout:  "The peer did not acknowledge data, which the kernel sent again for as long as net.ipv4.tcp_retries2 allows.",
		CauseWindowProbeTimeout: "The peer had closed its receive window, and answered none of the window probes.",
		CauseConnectTimeout:     "The peer answered none of the SYNs.",
		CauseOrphanTimeout:      "The application had closed the connection, and the peer did not acknowledge the rest, or did not close its side in time (FIN_WAIT2).",
		CauseResetByPeer:        "The peer sent a reset.",
		CauseRefused:            "The peer answered our SYN with a reset.",
		CauseUnreachable:        "An ICMP error ended it.",
		CauseAborted:            "The application closed it with unread data or with SO_LINGER 0, or disconnected it; or data came after it had closed it.",
		CauseDestroyed:          "Another process ended it, by ss -K (SOCK_DESTROY) or bpf_sock_destroy.",
		CauseOutOfMemory:        "The kernel had no memory for it, or too many orphans.",
		CauseClosed:             "Both ends closed it in order.",
	}
	solicitations = [...]string{
		NoEvidence:           "solicitation",
		EvidenceKeepalive:    "keepalive probe",
		EvidenceRetransmit:   "retransmission",
		EvidenceWindowProbe:  "window probe",
		EvidenceReceiveQueue: "receive queue",
	}
)

// Meaning returns what the verdict says about a connection, in one or two sentences.
func (v Verdict) Meaning() string { return verdictMeanings[v] }

// InTrouble reports whether a connection with the verdict is in trouble: unread, stalled,
// suspect, blocked, stuck or zombie. The tracker follows these one by one.
func (v Verdict) InTrouble() bool { return v > Unguarded }

// Alerts reports whether the shipped alerts are about connections with the verdict one by
// one, so that they count by owner: zombie, stuck, blocked or unread.
func (v Verdict) Alerts() bool { return v == Zombie || v == Stuck || v == Blocked || v == Unread }

// Meaning returns what the risk is, in one or two sentences.
func (r Risk) Meaning() string { return riskMeanings[r] }

// Meaning returns how the connection ended, as a sentence.
func (c Cause) Meaning() string { return causeMeanings[c] }

// ParseEvidence is the reverse of [Evidence.String].
func ParseEvidence(s string) (Evidence, error) {
	v, err := parseName(s, evidenceNames[:], evidenceNames[EvidenceKeepalive:], "evidence")
	return Evidence(v), err
}

// Solicitation returns what was sent to the peer, as a noun: keepalive probe,
// retransmission or window probe; solicitation for NoEvidence, and receive queue for
// EvidenceReceiveQueue, of which nothing was sent.
func (e Evidence) Solicitation() string { return nameOf(solicitations[:], uint8(e)) }
