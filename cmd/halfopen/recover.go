// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/internal/ask"
)

// recoverTimeout is how long an agent waits at its start for what interrupted probes have left.
const recoverTimeout = 5 * time.Second

// recoverAsked puts back the settings that interrupted probes have left changed, if there are any.
// It needs the privileges that the agent drops.
func recoverAsked(ctx context.Context, from detailer, logger *slog.Logger) {
	if !ask.Left() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	prober, err := ask.Start()
	if err == nil {
		defer prober.Close()
		var restored, failed int
		restored, failed, err = prober.Recover(ctx, finderOf(from))
		for _, text := range recovery(restored, failed) {
			logger.Warn("An interrupted halfopen probe has left something", "what", text)
		}
	}
	if err != nil {
		logger.Warn("Cannot put back what interrupted probes have left", "err", oneLine(err))
	}
}

// finderOf returns where sockets are now, for [ask.Prober.Recover].
func finderOf(from detailer) ask.Finder {
	return func(ctx context.Context, cookies []uint64) (hold []ask.Target, gone []uint64, err error) {
		for _, cookie := range cookies {
			d, err := detailOf(ctx, from, conn.FormatCookie(cookie))
			switch {
			case err != nil:
				return nil, nil, err
			case d == nil:
				gone = append(gone, cookie)
			case d.Process != nil:
				hold = append(hold, targetOf(cookie, &d.Connection))
			}
		}
		return hold, gone, nil
	}
}

// recovery says what became of the settings that interrupted probes have left.
func recovery(restored, failed int) (texts []string) {
	if restored > 0 {
		texts = append(texts, "put back the settings of "+plural(restored, "connection")+", which an interrupted probe had left changed")
	}
	if failed > 0 {
		texts = append(texts, fmt.Sprintf("%s: the settings are still those of an interrupted probe, since no descriptor in reach holds the socket, or it is locked; the next probe or agent tries again", plural(failed, "connection")))
	}
	return texts
}
