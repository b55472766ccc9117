// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector/conn"
)

// Death is the death object of the API.
type Death struct {
	Cookie string   `json:"cookie"`
	Family string   `json:"family"`
	Local  Endpoint `json:"local"`
	Remote Endpoint `json:"remote"`
	Netns  uint32   `json:"netns"`
	Ownership
	At            time.Time `json:"at"`
	Cause         string    `json:"cause"`
	During        *string   `json:"during"` // null but for user_timeout
	State         string    `json:"state"`  // before death
	Errno         *string   `json:"errno"`  // null: none
	Unanswered    int       `json:"unanswered"`
	Evidence      *string   `json:"evidence"`       // null: none
	SilentSeconds *float64  `json:"silent_seconds"` // null: never heard
	Verdict       *string   `json:"verdict"`        // the last one; null: the state has none
	ZombieSeconds *float64  `json:"zombie_seconds"` // null: it was not a zombie
	// ForecastErrorSeconds is by how much a timeout came before (negative) or after the
	// interval forecast when the peer was last heard; null: no timeout, or no forecast.
	ForecastErrorSeconds *float64 `json:"forecast_error_seconds"`
	// Similar is the number of older deaths that this one stands for and that the agent no
	// longer lists, and SimilarSince the time of the first of them, see [conn.Death]; 0 and
	// null: none.
	Similar      int        `json:"similar"`
	SimilarSince *time.Time `json:"similar_since"`
}

// NewDeath encodes a death.
func NewDeath(d *conn.Death) Death {
	c := &d.Connection
	out := Death{
		Cookie:        conn.FormatCookie(c.Cookie),
		Family:        family(c),
		Local:         endpoint(c.Local),
		Remote:        endpoint(c.Remote),
		Netns:         c.Netns,
		Ownership:     ownership(c),
		At:            d.DiedAt.UTC(),
		Cause:         d.Cause.String(),
		During:        nonEmpty(d.During.String()),
		State:         c.State.String(),
		Errno:         nonEmpty(errnoName(d.Errno)),
		Unanswered:    c.Unanswered,
		Evidence:      nonEmpty(c.Evidence.String()),
		SilentSeconds: age(c.Silent),
		Verdict:       verdict(c),
	}
	if d.Similar > 0 {
		out.Similar, out.SimilarSince = d.Similar, new(d.SimilarSince.UTC())
	}
	if d.ZombieFor > 0 {
		out.ZombieSeconds = age(d.ZombieFor)
	}
	if d.Forecast.Ever() {
		out.ForecastErrorSeconds = new(seconds(d.ForecastError))
	}
	return out
}

// errnoName returns the name of an errno; "" for no error.
func errnoName(errno uint16) string {
	if errno == 0 {
		return ""
	}
	if name := unix.ErrnoName(syscall.Errno(errno)); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", errno)
}
