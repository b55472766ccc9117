// SPDX-License-Identifier: Apache-2.0

package conn

// verdictMeanings and riskMeanings are what the live page, the README and the metrics
// reference say of each. How long is long says the flag in brackets.
var (
	verdictMeanings = [Verdicts]string{
		Active:    "The connection was made, or data moved, lately (--idle-after), and nothing is overdue.",
		Idle:      "No data has moved for long (--idle-after), but keepalive is on: the kernel will notice a dead peer.",
		Unguarded: "No data has moved for long (--idle-after), and keepalive is off: a dead peer is not noticed until the application sends.",
		Stalled:   "The peer answers, but its receive window has been closed for long (--stalled-after).",
		Suspect:   "A probe or a retransmission is unanswered, which is not enough for a zombie.",
		Zombie:    "Several probes or retransmissions in a row are unanswered (--zombie-unanswered), and the peer has been silent for long (--zombie-silence): it is most likely gone.",
	}
	riskMeanings = [Risks]string{
		RiskNoKeepalive:                  "The connection is established, and keepalive is off: while nothing is sent, a dead peer is not noticed.",
		RiskKeepaliveSlowerThanMiddlebox: "The first keepalive probe comes later than a NAT or load balancer may remember the connection (--middlebox-timeout).",
		RiskUserTimeoutOverridesKeepcnt:  "TCP_USER_TIMEOUT is set, so the number of keepalive probes has no effect.",
		RiskKeepaliveMaskedByUnackedData: "Keepalive is on, but waits while data is in flight or queued.",
		RiskCloseWaitLeak:                "The peer has closed the connection, the application has not, and no data has moved for long (--idle-after).",
	}
	solicitations = [...]string{
		NoEvidence:          "solicitation",
		EvidenceKeepalive:   "keepalive probe",
		EvidenceRetransmit:  "retransmission",
		EvidenceWindowProbe: "window probe",
	}
)

// Meaning returns what the verdict says of a connection, as a sentence or two.
func (v Verdict) Meaning() string { return verdictMeanings[v] }

// InTrouble tells whether a connection with the verdict is in trouble: stalled, suspect or
// zombie. The collector follows these one by one.
func (v Verdict) InTrouble() bool { return v > Unguarded }

// Meaning returns what the risk is, as a sentence or two.
func (r Risk) Meaning() string { return riskMeanings[r] }

// ParseEvidence is the reverse of [Evidence.String].
func ParseEvidence(s string) (Evidence, error) {
	v, err := parse(s, evidenceNames[:], "evidence")
	return Evidence(v), err
}

// Solicitation returns what was sent to the peer, as a noun: keepalive probe,
// retransmission or window probe; solicitation for NoEvidence.
func (e Evidence) Solicitation() string { return nameOf(solicitations[:], uint8(e)) }
